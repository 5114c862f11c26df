"""Settings of sampling that are tried: the first ones, and variations of the best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from ...core.errors import InputError, setting
from ...request import Choices
from ...samplers import SAMPLERS

if TYPE_CHECKING:
    from ...pipeline.planner import Planner

OWN = "the model's own"
"""The name of the settings that candidates are compared with."""
FAST = "the model's fast settings"
"""The name of those that it has already."""
SHARES_OF_STEPS = (0.5, 0.36, 0.24)
"""Which shares of the model's own steps are tried first."""
SPACINGS = ("power:1.25", "power:0.8", "split:0.35,0.33", "split:0.35,0.4")
SPARED: tuple[Mapping[str, Any], ...] = ({"reuse": 2}, {"reuse": 3}, {"adaptive": 0.99})
TRIED: Mapping[str, Callable[[str], Any]] = {
    "sampler": str, "steps": int, "spacing": str, "timing": str, "cfg_scale": float, "adaptive": float, "reuse": int,
    "dtype": str, "decode_dtype": str, "fast": lambda text: {"true": True}[text.lower()],
}  # fmt: skip
"""What a candidate may choose."""


@dataclass(frozen=True)
class Candidate:
    """Settings of sampling."""

    choices: Mapping[str, Any]
    """Those that differ from the model's own, by name."""

    @classmethod
    def read(cls, text: str) -> Candidate:
        """From a text such as ``"steps=18 reuse=3 spacing=split:0.35,0.33"``.

        Raises:
            InputError: it is another text, or names what is no setting of sampling.
        """
        found: dict[str, Any] = {}
        for part in text.split():
            name, _, value = part.partition("=")
            if name not in TRIED or not value:
                raise InputError(
                    f"{setting('candidate')} {text[:80]!r} cannot be read: give NAME=VALUE of {', '.join(TRIED)}, with "
                    "spaces between them"
                )
            found[name] = _value_of(name, value)
        return cls(found)

    @property
    def name(self) -> str:
        """What they are, in a line."""
        words = (FAST if name == "fast" else f"{name} {value}" for name, value in self.choices.items())
        return ", ".join(words) or OWN

    def but(self, **changes: Any) -> Candidate:
        """The same with other choices; None leaves one out."""
        changed = {**self.choices, **changes}
        return Candidate({name: value for name, value in changed.items() if value is not None})


def _value_of(name: str, text: str) -> Any:
    try:
        return TRIED[name](text)
    except KeyError:
        raise InputError(
            f"{setting('candidate')} fast={text[:80]} cannot be read: give fast=true, or leave it out"
        ) from None
    except ValueError:
        raise InputError(f"{setting(name)} {text[:80]!r} is not a number: give one") from None


def first_candidates(
    planner: Planner, steps: Sequence[int] = (), samplers: Sequence[str] = (), dtype: str | None = None
) -> list[Candidate]:
    """The coarse candidates: each sampler with each number of steps, and the fast settings that the model has already.

    Args:
        planner: the model's.
        steps: numbers of steps; if empty, ``SHARES_OF_STEPS`` of the model's own.
        samplers: names; if empty, the model's own and, of a diffusion model, "dpm-solver-sde".
        dtype: the precision of the network; None for the model's own.

    Raises:
        InputError: one is not valid for the model.
    """
    own, path = planner.preset, planner.facts.path
    counts = steps or sorted({max(2, round(share * own.steps)) for share in SHARES_OF_STEPS})
    names = samplers or [own.sampler, *(each for each in SAMPLERS[path] if each == "dpm-solver-sde" != own.sampler)]
    precision = {"dtype": dtype, "decode_dtype": "bf16" if dtype == "bf16" else "fp32"} if dtype else {}
    found = [Candidate({"sampler": name, "steps": count} | precision) for count in sorted(counts) for name in names]
    found += [Candidate({"fast": True})] if own.fast is not None else []
    for each in found:
        planner.complete([""], **cast("Choices", dict(each.choices)))
    return found


def finer_candidates(best: Candidate, fewer: int | None, timing: str) -> list[list[Candidate]]:
    """The rounds after the coarse one. They vary where the steps lie, and which calls are left out.

    Args:
        best: the cheapest coarse candidate that seems no worse.
        fewer: the next smaller number of steps that was tried; None if there is none.
        timing: when the model is guided by itself.
    """
    counts = [best.choices["steps"]] + ([(best.choices["steps"] + fewer) // 2] if fewer else [])
    spaced = [best.but(steps=count, spacing=spacing) for count in counts for spacing in SPACINGS]
    return [spaced, [best.but(**dict(each)) for each in SPARED]] if timing else [spaced]
