"""The result of a search: its table, its files and its plot."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...core.atomic import atomic_path, write_json
from ...core.extras import require
from ...metrics.metric import Bench
from ...metrics.statistics import mean_interval
from ...models.family import Fast, Preset
from ...models.small import FAST
from .blocks import Measured, number_of
from .candidates import OWN
from .judging import Judgement, Verified, mean_of

MARKERS = "soD^v"


@dataclass(frozen=True)
class Calibration:
    """The result of a search for fast settings."""

    model: str
    bench: Bench
    margins: Mapping[str, float]
    """By metric."""
    tuned: tuple[Measured, ...]
    """All that was sampled on the tuning prompts, the model's own settings first."""
    own: Measured
    """The model's own settings on held-out prompts."""
    verified: tuple[Verified, ...]
    """The candidates that were sampled on held-out prompts, the cheapest first."""
    confidence: float
    """Of the intervals on held-out prompts: 0.95 for all finalists together."""
    timed: str = "s"
    """What time is measured in: CPU seconds, or seconds by the clock."""
    shared: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Choices of all settings, such as ``cfg_scale``."""

    @property
    def found(self) -> Verified | None:
        """The cheapest candidate that is no worse; None if there is none."""
        return next((each for each in self.verified if each.no_worse), None)

    def table(self) -> str:
        """The finalists on held-out prompts as a Markdown table: mean, loss with its interval, and margin."""
        names = list(self.margins)
        lines = [f"| settings | {self.timed} a clip | times faster | " + " | ".join(names) + " | no worse |"]
        lines.append("|---" * (len(names) + 4) + "|")
        means = " | ".join(f"{mean_of(self.own.values[name]):.4g}" for name in names)
        lines.append(f"| {OWN} | {self.own.seconds:.3g} | 1 | {means} | |")
        for each in self.verified:
            cells = " | ".join(f"{found.value:.4g} ({found.loss})" for found in each.judgements.values())
            said = "yes" if each.no_worse else f"not shown in {', '.join(each.not_shown)}"
            start = f"| {each.measured.candidate.name} | {each.measured.seconds:.3g} | {each.faster:.2f}"
            lines.append(f"{start} | {cells} | {said} |")
        return "\n".join(lines)

    @property
    def verdict(self) -> str:
        """The result in words."""
        allowed = ", ".join(f"{name} {margin:.3g}" for name, margin in self.margins.items())
        count = len(next(iter(self.own.values.values())))
        told = f"margins: {allowed}\n{count} held-out prompts; in brackets the loss, in intervals of "
        told += f"{100 * self.confidence:.4g}%"
        if self.found is None:
            return (
                f"{told}\nno candidate is shown to be no worse: of what the last column names, intervals reach beyond "
                "the margin; ask for more prompts, which narrow it, or for more finalists, more steps or wider margins"
            )
        found = self.found
        return f"{told}\nfast settings, {found.faster:.1f} times less time: {found.measured.candidate.name}"

    def fast(self, preset: Preset[Any]) -> Fast | None:
        """The fast settings of a model with this preset; None if none was found.

        They hold one guidance scale that all settings shared. Other shared choices are only named in ``measured``.
        """
        if self.found is None:
            return None
        chosen = dict(self.found.measured.candidate.choices)
        if chosen.pop("fast", False) and preset.fast is not None:  # those that it has already
            own = preset.fast.settings
        else:
            own = {name: getattr(preset, name) for name in ("sampler", "steps", "timing", "dtype", "decode_dtype")}
        shared = {name: value for name, value in self.shared.items() if value is not None}
        if isinstance(shared.get("cfg_scale"), int | float):
            own["cfg_scale"] = shared.pop("cfg_scale")
        count = len(next(iter(self.own.values.values())))
        measured = (
            f"{self.found.faster:.1f}x less time a clip; no worse on {count} prompts in {', '.join(self.margins)}"
        )
        measured += "".join(f", with {name} {value}" for name, value in shared.items())
        return Fast(**own | chosen, measured=measured)

    def as_json(self) -> dict[str, Any]:
        """All of it as plain values."""

        def plain(each: Measured) -> dict[str, Any]:
            means = {name: number_of(mean_of(each.values[name])) for name in self.margins}
            return {"settings": dict(each.candidate.choices), "seconds": each.seconds, "means": means}

        def judged(found: Judgement) -> dict[str, Any]:
            loss = {end: number_of(getattr(found.loss, end)) for end in ("value", "low", "high")}
            return {"own": number_of(found.own), "value": number_of(found.value), "loss": loss, "margin": found.margin}

        verified = [
            plain(each.measured)
            | {"faster": each.faster, "no_worse": each.no_worse}
            | {"judged": {name: judged(found) for name, found in each.judgements.items()}}
            for each in self.verified
        ]
        return {
            "model": self.model, "bench": self.bench.name, "margins": dict(self.margins), "confidence": self.confidence,
            "fast": None if self.found is None else dict(self.found.measured.candidate.choices),
            "prompts": {"tuning": len(self.tuned[0].values[next(iter(self.margins))]),
                        "held_out": len(self.own.values[next(iter(self.margins))])},
            "tuning": [plain(each) for each in self.tuned], "own": plain(self.own), "held_out": verified,
        }  # fmt: skip

    def write(self, out: Path, preset: Preset[Any]) -> list[Path]:
        """Write calibration.json, calibration.csv (a row for each candidate), pareto.png, and the settings that were
        found, as a file that a model folder may hold."""
        paths = [out / "calibration.json", out / "calibration.csv"]
        write_json(paths[0], self.as_json())
        with atomic_path(paths[1]) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["prompts", "settings", "seconds", *self.margins])
            held_out = [self.own, *(each.measured for each in self.verified)]
            for prompts, rows in (("tuning", self.tuned), ("held-out", held_out)):
                for each in rows:
                    means = [f"{mean_of(each.values[name]):.6g}" for name in self.margins]
                    writer.writerow([prompts, each.candidate.name, f"{each.seconds:.6g}", *means])
        if (fast := self.fast(preset)) is not None:
            paths.append(out / FAST)
            write_json(paths[-1], fast.settings | {"measured": fast.measured})
        return [*paths, self._draw(out / "pareto.png")]

    def _draw(self, path: Path) -> Path:
        """Time against every metric, on tuning prompts; the finalists on held-out prompts with their intervals."""
        names = list(self.margins)
        width = min(3, len(names))
        height = math.ceil(len(names) / width)
        shown = [(OWN, self.own), *((each.measured.candidate.name, each.measured) for each in self.verified)]
        ticks = require("matplotlib.ticker", "drawing", "study")
        figure = require("matplotlib.figure", "drawing", "study").Figure(
            figsize=(3.4 * width, 2.9 * height + 0.3 * (2 + len(shown))), layout="constrained"
        )
        for number, name in enumerate(names):
            axis = figure.add_subplot(height, width, number + 1)
            metric = self.bench.metrics[name]
            sign = 1 if metric.better == "higher" else -1
            points = [(each.seconds, mean_of(each.values[name])) for each in self.tuned]
            axis.scatter(
                *zip(*points, strict=True), s=14, color="0.6", label="settings that were tried, on tuning prompts"
            )
            front = [
                a for a in points if not any(b[0] <= a[0] and sign * b[1] >= sign * a[1] and b != a for b in points)
            ]
            axis.step(*zip(*sorted(front), strict=True), where="post", color="0.8", linewidth=1, zorder=0)
            for place, (label, each) in enumerate(shown):
                mean = mean_interval(each.values[name])
                ends = [[mean.value - mean.low], [mean.high - mean.value]]
                axis.errorbar(
                    [each.seconds],
                    [mean.value],
                    ends if all(math.isfinite(e[0]) for e in ends) else None,
                    fmt=MARKERS[place % len(MARKERS)],
                    color="C3" if not place else f"C{(place - 1) % 3}",
                    markersize=5,
                    capsize=2,
                    label=f"{label}, on held-out prompts",
                )
            axis.set(xscale="log", xlabel=f"{self.timed} a clip", title=f"{metric.label} ({metric.better} is better)")
            axis.xaxis.set_major_locator(ticks.LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter(ticks.FormatStrFormatter("%g"))
            axis.xaxis.set_minor_formatter(ticks.NullFormatter())
            if not number:
                figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", fontsize=8)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=130, format="png")
        return path
