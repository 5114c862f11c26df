"""What a browser asks for: a prompt and one to four settings. It is checked before anything is loaded or allocated."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, cast

from pydantic import Field

from ..core.errors import InputError, setting
from ..core.reading import Limit
from ..core.settings import Settings, validated
from ..request import DIFFUSERS, Choices, Request
from ..samplers import CLIPS_TOGETHER

if TYPE_CHECKING:
    from ..pipeline.contract import ModelPlanner

LETTERS = "ABCD"  # the names of the settings of a comparison
MOST_SEEDS = CLIPS_TOGETHER
LONGEST = 1000  # characters of a prompt
WORK = Limit("GUIDON_STUDIO_MAX_WORK", 500_000_000, "pixels to denoise")
"""Pixels of all clips of a comparison, times their steps."""

_ITEM = re.compile(rf"{setting('settings')}, item ([1-{len(LETTERS)}])")

Text = Annotated[str, Field(max_length=LONGEST)]
Short = Annotated[str, Field(max_length=200)]
Finite = Annotated[float, Field(ge=-100, le=1000, allow_inf_nan=False)]


class Setting(Settings):
    """One of the settings that are compared."""

    channels: Annotated[tuple[bool, ...], Field(min_length=1, max_length=512)]
    """Of each latent channel, whether it is guided."""
    scales: Annotated[tuple[Finite, ...], Field(min_length=1, max_length=512)]
    """Of each latent channel, its guidance scale where it is guided."""
    guidance: Short = "cfg"
    """The rule, such as "apg:momentum=0"."""
    timing: Short | None = None
    """When guidance acts, such as "interval:0,0.5"; None for the model's own."""
    sampler: Short | None = None
    """The sampler; None for the model's own."""
    steps: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Denoising steps; None for the model's own."""
    negative_prompt: Text | None = None
    """What to steer away from; None or empty for the null caption."""
    fast: bool = False
    """The model's calibrated fast settings, in place of rule, timing, sampler and steps."""

    def choices(self, channels: int) -> dict[str, Any]:
        """The choices of a call, such as ``pipe(prompt, **choices)``.

        Args:
            channels: latent channels of the model.

        Raises:
            InputError: there are switches or scales of another number of channels.
        """
        for name, given in (("cfg_channels", self.channels), ("cfg_scale", self.scales)):
            if len(given) != channels:
                raise InputError(
                    f"{setting(name)} has {len(given)} values, the model has {channels} latent channels: give one each"
                )
        found = self._guided() | {"guidance": self.guidance, "timing": self.timing}
        found |= {"sampler": self.sampler, "steps": self.steps, "negative_prompt": self.negative_prompt or None}
        if self.fast:
            kept = ("cfg_scale", "cfg_channels")
            found = {name: value for name, value in found.items() if name in kept} | {"fast": True}
        if found.get("guidance") == "cfg":
            del found["guidance"]
        return {name: value for name, value in found.items() if value is not None}

    def _guided(self) -> dict[str, Any]:
        """Scale and channels in their shortest form: one scale and a choice, or one scale for each channel."""
        guided = [number for number, on in enumerate(self.channels) if on]
        scales = {self.scales[number] for number in guided}
        if not guided:
            return {"cfg_scale": self.scales[0], "cfg_channels": "none"}
        if len(scales) > 1:
            return {"cfg_scale": tuple(s if on else 1.0 for s, on in zip(self.scales, self.channels, strict=True))}
        if len(guided) == len(self.channels):
            chosen: int | str = "all"
        elif guided == list(range(len(guided))):
            chosen = len(guided)
        else:
            chosen = f"only:{guided[0]}" if len(guided) == 1 else ",".join(map(str, guided))
        return {"cfg_scale": scales.pop(), "cfg_channels": chosen}


class Asked(Settings):
    """A comparison: one prompt, from the same noise under every setting."""

    model: str
    """A name of the list of models. That of a folder is its path, which may be long."""
    prompt: Text
    """What to show."""
    seed: Annotated[int, Field(ge=0, lt=2**53)] = 0
    """Seed of the noise. A browser's numbers are exact up to 2^53."""
    seeds: Annotated[int, Field(ge=1, le=MOST_SEEDS)] = 1
    """How many clips of each setting, from noise of their own: samples 0, 1, ... of the seed."""
    settings: Annotated[tuple[Setting, ...], Field(min_length=1, max_length=len(LETTERS))]
    """The settings that are compared."""
    size: tuple[Annotated[int, Field(ge=1, le=1 << 15)], Annotated[int, Field(ge=1, le=1 << 15)]] | None = None
    """Height and width in pixels; None for the model's own."""
    frames: Annotated[int, Field(ge=1, le=1 << 15)] | None = None
    """Length; None for the model's own."""
    force: bool = False
    """Sample a prompt that the model cannot follow, too."""


class AskedStudy(Settings):
    """A study of the settings of a comparison."""

    comparison: Asked
    """What is compared."""
    prompts: Annotated[int, Field(ge=2, le=1000)] | Annotated[tuple[Text, ...], Field(min_length=2, max_length=1000)]
    """How many held-out captions of the bench, or the prompts."""
    seeds: Annotated[int, Field(ge=1, le=100)] = 1
    """Samples of each prompt."""
    title: Text = ""
    """The heading of the report."""


@dataclass(frozen=True)
class Comparison:
    """A comparison that is complete: the request of each setting, and its work."""

    asked: Asked
    choices: tuple[Mapping[str, Any], ...]
    """Of each setting, the choices of a call."""
    requests: tuple[Request, ...]
    """Of each setting, what is made."""
    work: int
    """Pixels to denoise, times steps."""


def read_asked(values: Any) -> Asked:
    """What a browser sent, checked as far as it can be without its model.

    Raises:
        InputError: it is not valid. The message names settings and channels as the page does.
    """
    try:
        return validated(Asked, values, None)
    except InputError as error:
        line = _ITEM.sub(lambda found: f"setting {LETTERS[int(found[1]) - 1]}", error.args[0])
        line = re.sub(r"scales, item (\d+)", lambda found: f"scale of channel {int(found[1]) - 1}", line)
        raise InputError(line) from None


def read_comparison(asked: Asked, planner: ModelPlanner) -> Comparison:
    """The complete comparison of what a browser sent.

    Args:
        asked: what it sent.
        planner: that of the model.

    Raises:
        InputError: a choice is not valid for the model, or it is more work, or needs more memory, than is allowed.
    """
    if not asked.prompt.strip():
        raise InputError(f"{setting('prompt')} is empty: say what to show, or press some of the words below it")
    own = [one.choices(planner.channels) for one in asked.settings]
    shared: dict[str, Any] = {"seed": asked.seed, "size": asked.size, "frames": asked.frames}
    shared = {name: value for name, value in shared.items() if value is not None}
    choices, requests, work = list[Mapping[str, Any]](), list[Request](), 0
    for letter, chosen in zip(LETTERS, own, strict=False):
        called = shared | chosen
        try:
            request = planner.complete((asked.prompt,), range(asked.seeds), **cast("Choices", called))
        except InputError as error:
            raise InputError(f"{letter}: {error.args[0]}") from None  # with the names of settings marked
        work += request.steps * asked.seeds * math.prod(pixels_of(planner, request))
        choices.append(called)
        requests.append(request)
    if work > WORK.value:
        raise InputError(
            f"{setting('size')} x frames x steps x clips is {work:,} {WORK.unit}, the limit is {WORK.value:,}: lower "
            f"{setting('steps')} or {setting('seeds')}, or compare fewer settings"
        )
    texts, avoided = dict[str, str](), set[Any]()
    for letter, called in zip(LETTERS, choices, strict=False):  # the prompt, and each negative prompt once
        negative = called.get("negative_prompt")
        if avoided and negative in (None, *avoided):
            continue
        avoided.add(negative)
        try:
            texts |= planner.plan(
                (asked.prompt,), range(asked.seeds), force=asked.force, **cast("Choices", called)
            ).read_as
        except InputError as error:
            raise error if letter == LETTERS[0] else InputError(f"{letter}: {error.args[0]}") from None
    requests = [one.model_copy(update={"read_as": texts | one.read_as}) if texts else one for one in requests]
    return Comparison(asked, tuple(choices), tuple(requests), work)


def pixels_of(planner: ModelPlanner, request: Request) -> Sequence[int]:
    """(frames, height, width) of a request's clips; of a diffusers pipeline what its call says."""
    if not request.model.startswith(DIFFUSERS):
        return cast("Any", planner).clip_size(request)
    call = request.call
    return tuple(int(call.get(name) or usual) for name, usual in (("num_frames", 1), ("height", 512), ("width", 512)))
