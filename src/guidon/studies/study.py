"""A study file: settings x prompts x seeds, and one primary contrast."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt, field_validator, model_validator

from ..core.errors import InputError, nearest
from ..core.limits import as_text
from ..core.reading import Limit
from ..core.settings import Settings, read_mapping, validated
from ..metrics.choice import BenchChoice
from ..models.sources import Sources
from ..request import DIFFUSERS, DecodeDtype, DtypeName

CELLS = Limit("GUIDON_MAX_CELLS", 1_000_000, "cells")
"""The clips of a study."""
SETTINGS = Limit("GUIDON_MAX_SETTINGS", 10_000, "settings")
"""The settings of a study, grids expanded."""
CELL_BYTES = 6 * 4096
"""What a cell takes on a disk at the least: a block of the usual size for its folder and for each of its five files."""
Channels = int | str | tuple[int, ...]
Text = Annotated[str, BeforeValidator(lambda given: str(given) if isinstance(given, int) else given)]
"""A prompt; the number of a class is read as text."""


class Arm(Settings):
    """One setting of a study, or several with ``grid``. A missing value is the study's, else the model's."""

    name: str | None = None
    """The name of the setting. If it is missing, the name is made from the choices."""
    cfg_scale: float | tuple[float, ...] | None = None
    """Guidance scale, one number or one per latent channel."""
    energy_of: str | None = None
    """Use it in place of cfg_scale: the name of a setting whose energy this one matches.

    The scale is solved so that both settings add the same energy on the tuning prompts. Energy is the sum over steps
    and guided channels of ((s - 1) ||cond - uncond||)^2.
    """
    cfg_channels: Channels | None = None
    """Guided latent channels: 3, "all", "none", [0, 2], "0-2", "only:3"."""
    rotation: int | None = None
    """Seed of a random rotation of the latent channels. cfg_channels then chooses among the rotated channels. This is a
    control experiment."""
    guidance: str | None = None
    """The rule, such as "apg:momentum=0"."""
    timing: str | None = None
    """When guidance acts, such as "interval:0,0.5"."""
    sampler: str | None = None
    steps: PositiveInt | None = None
    """Denoising steps."""
    spacing: str | None = None
    """Where the steps lie, such as "quadratic"."""
    fast: bool | None = None
    """The model's calibrated fast settings; sampler, steps, timing and dtype of the study then have no effect on it."""
    adaptive: float | None = None
    """Stop guiding a clip once its branches agree: the cosine from which they do, such as 0.99."""
    reuse: PositiveInt | None = None
    """Call the unconditional branch at every so many guided steps."""
    dtype: DtypeName | None = None
    """Precision of the network."""
    eta: float | None = None
    """How much noise ddim adds, 0 to 1."""
    negative_prompt: str | None = None
    """A prompt to steer away from. It replaces the null caption."""
    decode_dtype: DecodeDtype | None = None
    """Precision in which the autoencoder decodes."""
    grid: dict[str, list[Any]] | None = None
    """Keys of a setting, each with a list of values. Every combination of the values becomes a setting."""


class Contrast(Settings):
    """The main comparison of the study: does ``against`` differ from ``baseline`` in ``metric``?"""

    metric: Annotated[str, Field(examples=["joint"])]
    baseline: Annotated[str, Field(examples=["scale 2, channels 3"])]
    """The name of a setting; reports compare all others with it."""
    against: Annotated[str, Field(examples=["scale 2, channels all"])]
    """The name of another setting."""


class DiffusersModel(Settings):
    """A diffusers pipeline, in the folder that its ``save_pretrained`` wrote."""

    diffusers: Annotated[str, Field(min_length=1)]
    """The folder."""
    dtype: DtypeName | None = None
    """The precision to load it in; None for that of its weights."""
    offload: Literal["none", "model", "sequential"] = "none"
    """What stays on the device: everything, the part that computes, or the layer that computes."""


class Study(Settings):
    """The content of a STUDY.yaml."""

    title: str = ""
    """The heading of reports."""
    model: str | DiffusersModel = "guidon-small"
    """A preset, a folder of weights, or ``{diffusers: FOLDER}``."""
    call: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Arguments of every call of a diffusers pipeline, such as height and num_frames."""
    sources: Sources = Sources()
    """Where to find the parts of a released model that do not come with the package."""
    split: str | None = None
    """The split of the bench from which captions are taken; None for its default split."""
    prompts: Annotated[
        PositiveInt | Annotated[tuple[Text, ...], Field(min_length=1)],
        Field(examples=["12, or a list of texts"]),
    ]
    """The number of captions to take from the bench; or a list of prompts, as texts or class numbers."""
    bench: Annotated[
        BenchChoice, BeforeValidator(lambda given: {"name": given} if isinstance(given, str) else given)
    ] = BenchChoice()
    """What measures the clips, and with which weights; its name alone is enough where it needs none."""
    tuning_prompts: PositiveInt = 8
    """Number of prompts on which scales are solved, if a setting gives energy_of."""
    seeds: PositiveInt = 1
    """Samples of each prompt."""
    seed: Annotated[int, Field(ge=0)] = 0
    """The noise of prompt k has the seed ``seed + k``."""
    sampler: str | None = None
    """Sampler of settings that name none; None for the model's own."""
    steps: PositiveInt | None = None
    """Denoising steps of settings that name none; None for the model's own."""
    timing: str | None = None
    """When guidance acts, for settings that do not say it; None for the model's own."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] | None = None
    """Precision of the network, for settings that do not say it; None for the model's own. "auto" lets the machine that
    plans the study choose fp32 or bf16; the plan holds which."""
    decode_dtype: Literal["auto", "fp32", "bf16"] | None = None
    """Precision in which the autoencoder decodes, as ``dtype``; None for fp32."""
    compile: Annotated[bool | None, AfterValidator(lambda given: given or None)] = None
    """True to compile the blocks of the network. Results then differ by rounding."""
    block: PositiveInt | None = None
    """Clips that are denoised together, but always all ``seeds`` of a prompt; None for 16, or 1 of a diffusers
    pipeline."""
    settings: Annotated[
        tuple[Arm, ...],
        Field(min_length=1, examples=["[{cfg_scale: 2, cfg_channels: 3}, {cfg_scale: 2, cfg_channels: all}]"]),
    ]
    """The settings that are compared."""
    primary: Annotated[
        Contrast,
        Field(examples=['{metric: joint, baseline: "scale 2, channels 3", against: "scale 2, channels all"}']),
    ]
    """The main comparison, chosen before the study runs."""

    @property
    def model_name(self) -> str:
        """The model as ``guidon.load`` takes it."""
        return self.model if isinstance(self.model, str) else f"{DIFFUSERS}{self.model.diffusers}"

    @property
    def parts(self) -> dict[str, Any]:
        """How the model is loaded: arguments of ``guidon.load``."""
        found = self.sources.model_dump(exclude_unset=True)
        found |= {} if isinstance(self.model, str) else self.model.model_dump(exclude={"diffusers"}, exclude_unset=True)
        found |= self.model_dump(include={"dtype", "decode_dtype", "compile"}, exclude_none=True)
        return found | ({"call": self.call} if self.call else {})

    @field_validator("model", mode="before")
    @classmethod
    def _read_model(cls, value: Any) -> Any:
        """One message for each fault, not one for each form of a model."""
        return validated(DiffusersModel, dict(value), None) if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _of_a_size_that_can_be_run(self) -> Study:
        """Count before anything is expanded: a short grid can stand for billions of settings."""
        settings = sum(math.prod(map(len, arm.grid.values())) if arm.grid else 1 for arm in self.settings)
        prompts = self.prompts if isinstance(self.prompts, int) else len(self.prompts)
        check_size(settings, prompts, self.seeds)
        if self.tuning_prompts > CELLS.value:
            raise InputError(f"tuning_prompts is {self.tuning_prompts:,}, the limit is {CELLS.value:,}: give fewer")
        return self


def check_size(settings: int, prompts: int, seeds: int) -> None:
    """Refuse a study that is larger than the limits. Nothing is expanded.

    Raises:
        InputError: the message says how many cells and how much disk it would take, and how to raise the limit.
    """
    cells = settings * prompts * seeds
    asked = f"{settings:,} settings x {prompts:,} prompts x {seeds:,} seeds = {cells:,} cells"
    for limit, count in ((SETTINGS, settings), (CELLS, cells)):
        if count > limit.value:
            raise InputError(
                f"{asked} need at least {as_text(cells * CELL_BYTES)} of disk, and the limit is {limit.value:,} "
                f"{limit.unit}: ask for fewer, or set the environment variable {limit.variable} to a higher number"
            )


def load_study(path: Path) -> Study:
    """The validated content of a STUDY.yaml."""
    return validated(Study, read_mapping(path, "a study"), str(path))


def with_arithmetic(study: Study, choices: Mapping[str, Any]) -> Study:
    """A study with ``dtype``, ``decode_dtype`` and ``compile`` of a caller in the place of its own.

    Raises:
        InputError: there is no such precision.
    """
    return validated(Study, study.model_dump(exclude_unset=True) | dict(choices), None) if choices else study


def arms(study: Study) -> dict[str, Arm]:
    """Every setting by its name, grids expanded.

    Raises:
        InputError: an empty grid, an unknown key in one, or two settings of one name.
    """
    found: dict[str, Arm] = {}
    for arm in study.settings:
        for chosen in _expanded(arm):
            label = _label(chosen)
            name = f"{arm.name}: {label}" if arm.name and arm.grid else arm.name or label
            if name in found:
                raise InputError(f"two settings are called {name!r}: give them names, or leave one out")
            found[name] = chosen
    return found


def _expanded(arm: Arm) -> list[Arm]:
    """The arm itself, or the arms of its grid."""
    if arm.grid is None:
        return [arm]
    if not arm.grid:
        raise InputError("a grid is empty: name a setting and its values")
    for key, values in arm.grid.items():
        if key not in Arm.model_fields or key in ("name", "grid"):
            raise InputError(f"the grid's {key!r} is not a setting{nearest(key, Arm.model_fields)}")
        if not values:
            raise InputError(f"the grid's {key} is empty: give at least one value")
    common = arm.model_dump(exclude={"grid", "name"}, exclude_none=True)
    combinations = itertools.product(*arm.grid.values())
    return [validated(Arm, common | dict(zip(arm.grid, values, strict=True)), "grid") for values in combinations]


def _label(arm: Arm) -> str:
    """A name made from the choices."""
    chosen = arm.model_dump(exclude={"grid", "name"}, exclude_none=True)
    if chosen == {"cfg_scale": 1}:
        return "no guidance"
    words = {"cfg_scale": "scale", "cfg_channels": "channels", "energy_of": "energy of", "negative_prompt": "negative"}
    parts = []
    for key, value in chosen.items():
        text = ",".join(f"{v:g}" for v in value) if isinstance(value, tuple) else value
        parts.append(f"{words.get(key, key)} {text:g}" if isinstance(text, float) else f"{words.get(key, key)} {text}")
    return ", ".join(parts) or "preset"
