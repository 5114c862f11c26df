"""What Guidon does in each family of diffusers pipelines, measured on tiny pipelines: the support matrix of the docs.

    python tests/diffusers_support.py    measures with the installed diffusers, and writes docs/diffusers-support.md

What was measured is kept by version in docs/diffusers-support.json. ``make support-matrix`` measures many versions.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import guidon
from guidon import Guidance, InputError
from guidon.bridges.diffusers.families import family_of
from guidon.core.errors import first_line
from tiny_pipelines import PIPELINES, TinyPipeline, own, record, run, shared

DOCS = Path(__file__).parents[1] / "docs"
MEASURED, PAGE = DOCS / "diffusers-support.json", DOCS / "diffusers-support.md"
EXACT, CLOSE, REFUSED = "bitwise", "to rounding", "refused"


@dataclass(frozen=True)
class Support:
    """What was measured of one family. Errors are relative to the norm of what was expected."""

    family: str
    pipeline: str
    branches: str
    channels: str
    own: str
    """Guidance on all the channels that the pipeline guides, against the pipeline alone: the final latents."""
    mask: str
    """``channels`` alone, on two channels: what the scheduler receives, at every step."""
    rule: str
    """A scale per channel: what the scheduler receives, at every step."""
    number: str
    """``channel_scale`` with the same scales."""
    removed: str
    """The final latents after ``remove``, against the pipeline alone."""


def measure(tiny: TinyPipeline, steps: int = 3) -> Support:
    """Measure one family in so many sampling steps.

    Raises:
        Exception: the installed diffusers does not have it, or has it in another form.
    """
    pipe, alone = shared(tiny), own(tiny, steps=steps)
    family = family_of(type(pipe))

    guidon.apply(pipe, Guidance(tiny.scale, family.guided))
    full = EXACT if torch.equal(run(tiny, pipe, steps=steps), alone) else "differs"

    def masked() -> str:
        guided = [0, 2]
        guidon.apply(pipe, channels=guided)
        seen = record(tiny, pipe, steps=steps)[1]
        return _error(tiny, seen, [tiny.scale if c in guided else None for c in range(tiny.channels)])

    scales = [1 + 0.5 * channel for channel in range(tiny.channels)]

    def ruled() -> str:
        guidon.apply(pipe, Guidance(scales))
        _, seen = record(tiny, pipe, steps=steps)
        return _worst(_distance(tiny.to_channels(tiny.received(step)), _wanted(tiny, step, scales)) for step in seen)

    def numbered() -> str:
        guidon.remove(pipe)
        layout = family.layout
        axis = 0 if family.name == "Z-Image" else layout.axis
        neutral = 1 - int(family.offset)
        number = guidon.channel_scale(
            [scale - family.offset for scale in scales], axis=axis, patch=layout.patch, neutral=neutral
        )  # type: ignore[arg-type]
        _, seen = record(tiny, pipe, number, steps=steps)
        first = seen[:1] if len(tiny.networks) > 1 else seen  # the other expert has a scale of its own
        return _worst(_distance(tiny.to_channels(tiny.received(step)), _wanted(tiny, step, scales)) for step in first)

    mask, rule, number = _tried(masked), _tried(ruled), _tried(numbered)
    if tiny.normalise is not None and number != REFUSED:
        number = "changed by its normalisation"
    elif number == EXACT:  # by chance: an unguided channel is uncond + 1 (cond - uncond)
        number = CLOSE
    guidon.remove(pipe)
    removed = EXACT if torch.equal(run(tiny, pipe, steps=steps), alone) else "differs"
    place = {1: "", 2: ", third axis", -1: ", last axis"}[family.layout.axis]
    if family.layout.grid is not None:
        patch = family.layout.patch**2
        place = ", packed" + (f", feature k is channel k // {patch}" if patch > 1 else "")
    return Support(
        family.name,
        type(pipe).__name__,
        family.order,
        f"{family.guided.text}{place}",
        full,
        mask,
        rule,
        number,
        removed,
    )


def _wanted(tiny: TinyPipeline, step: Any, scales: list[float]) -> torch.Tensor:
    """uncond + s (cond - uncond) with a scale per channel; scale 1 is cond itself."""
    cond, uncond = (tiny.to_channels(branch).float() for branch in tiny.branches(step))
    factor = torch.tensor(scales).view(1, -1, *[1] * (cond.ndim - 2))
    return torch.where(factor == 1, cond, uncond + factor * (cond - uncond))


def _error(tiny: TinyPipeline, steps: list[Any], scales: list[float | None]) -> str:
    """Against the pipeline's own guidance where there is a scale, and cond elsewhere."""
    guided = torch.tensor([scale is not None for scale in scales])
    distances: list[float] = []
    for step in steps:
        got, cond = tiny.to_channels(tiny.received(step)), tiny.to_channels(tiny.branches(step)[0])
        where = guided.view(1, -1, *[1] * (got.ndim - 2))
        distances.append(_distance(got, torch.where(where, tiny.to_channels(tiny.guided(step)), cond)))
    return _worst(distances)


def _distance(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return 0.0 if torch.equal(got, wanted) else float((got - wanted).norm() / wanted.norm())


def _worst(distances: Any) -> str:
    """In words, so that they are the same on every machine."""
    worst = max(distances)
    return EXACT if worst == 0 else CLOSE if worst < 2e-6 else f"differs by {worst:.1g}"


def _tried(trial: Callable[[], str]) -> str:
    try:
        return trial()
    except InputError:
        return REFUSED


def measured() -> dict[str, dict[str, str]]:
    """Every family that the installed diffusers has, by the name of its tiny pipeline."""
    found: dict[str, dict[str, str]] = {}
    for tiny in PIPELINES:
        try:
            found[tiny.name] = asdict(measure(tiny))
        except Exception as error:  # an older version may fail in any way
            print(f"{tiny.name}: not in this version ({type(error).__name__}: {first_line(error)})")
    return found


def page(by_version: dict[str, dict[str, dict[str, str]]]) -> str:
    """The page, from what was measured with each version."""
    versions = sorted(by_version, key=lambda text: [int(part) for part in text.split(".")])
    newest = by_version[versions[-1]]
    lines = [
        "# Which diffusers pipelines Guidon guides",
        "",
        "This page is written by the tests (`make support-matrix`). Each pipeline was run with a tiny random network",
        "in fp32 on a CPU, with these versions of diffusers:",
        f"{', '.join(versions)}.",
        "Other tests repeat it in bf16, and most of it under `torch.compile(fullgraph=True)`. [Use it in",
        "diffusers](diffusers.md) describes `guidon.apply`.",
        "",
        "- **branches**: how the pipeline runs its two branches.",
        "- **guides**: the channels that the pipeline guides by itself, and where they lie.",
        "- **own**: `apply` with the pipeline's own scale and channels, against the pipeline alone: final latents.",
        "- **channels alone**: `apply(pipe, channels=[0, 2])`: at every step, guided channels against full guidance, the",
        "  others against the conditional prediction.",
        "- **any guidance**: `apply(pipe, Guidance(...))` with another scale in every channel: what the pipeline goes on",
        "  with, at every step.",
        "- **number**: `channel_scale` as the pipeline's scale, with the same scales, without a hook.",
        "- **versions**: of diffusers, in which all of the row holds.",
        "",
        "*bitwise*: no bit differs. *to rounding*: the relative error is below 2e-6. *refused*: an error says why, and what",
        "to do instead.",
        "",
        "| family | pipeline | branches | guides | own | channels alone | any guidance | number | versions |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in (tiny.name for tiny in PIPELINES if tiny.name in newest):
        row = newest[name]
        same = [number for number in versions if by_version[number].get(name) == row]
        several = sum(row["pipeline"] == other["pipeline"] for other in newest.values()) > 1
        variant = f" ({name})" if several else ""
        cells = [f"{row['family']}{variant}", f"`{row['pipeline']}`", row["branches"], row["channels"], row["own"],
                 row["mask"], row["rule"], row["number"], _span(same, versions)]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _span(found: list[str], versions: list[str]) -> str:
    """The versions as ranges."""
    numbers = [versions.index(number) for number in found]
    if numbers == list(range(numbers[0], len(versions))):
        return f"{found[0]} and later"
    return ", ".join(found)


def main() -> None:
    warnings.filterwarnings("ignore")
    by_version = json.loads(MEASURED.read_text()) if MEASURED.exists() else {}
    by_version[version("diffusers")] = measured()
    MEASURED.write_text(json.dumps(by_version, indent=1, sort_keys=True) + "\n")
    PAGE.write_text(page(by_version))


if __name__ == "__main__":
    main()
