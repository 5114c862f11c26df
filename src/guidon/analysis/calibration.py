"""Fast settings of a model: a search for sampling that costs less, and a proof on other prompts that it is no worse.

Candidates are searched from coarse to fine on tuning prompts: sampler and steps, then where the steps lie, then fewer
calls of guidance's unconditional branch. The cheapest that seem no worse are sampled on prompts that had no part in the
choice. There, every metric must exclude a loss beyond a margin that was fixed before (non-inferiority).
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..core.atomic import atomic_path, write_json
from ..core.errors import InputError, setting
from ..core.extras import require
from ..core.hashing import hash_settings
from ..core.interrupts import finished_first
from ..core.locks import try_held
from ..core.progress import OnStep
from ..core.reading import read_object, reading
from ..metrics.bench import find_bench
from ..metrics.metric import EVALUATION_SEED, MARGIN, SHARE, TUNING_SEED, Bench, Values
from ..metrics.statistics import Interval, by_prompt, mean_interval
from ..models.family import Fast, Preset
from ..models.small import FAST
from ..request import Choices, Request
from ..samplers import SAMPLERS

if TYPE_CHECKING:
    from ..pipeline import Pipeline
    from ..pipeline.planner import Planner

OWN = "the model's own"
"""The name of the settings that candidates are compared with."""
DECIBELS, HALF = 1.0, 0.5
"""Margins where neither the user nor the bench gives one: a loss in dB, and in other units a share of the mean of the
model's own settings. A share may lose ``MARGIN``."""
SHARES_OF_STEPS = (0.5, 0.36, 0.24)
"""Which shares of the model's own steps are tried first."""
SPACINGS = ("power:1.25", "power:0.8", "split:0.35,0.33", "split:0.35,0.4")
SPARED: tuple[Mapping[str, Any], ...] = ({"reuse": 2}, {"reuse": 3}, {"adaptive": 0.99})
TRIED: Mapping[str, type[str] | type[int] | type[float]] = {
    "sampler": str, "steps": int, "spacing": str, "timing": str, "cfg_scale": float, "adaptive": float, "reuse": int,
    "dtype": str, "decode_dtype": str,
}  # fmt: skip
"""What a candidate may choose."""
BLOCK = 16
"""Clips that are denoised together, and stored together."""
POLL = 0.5
"""Seconds between two looks at blocks that other processes sample."""


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
        return ", ".join(f"{name} {value}" for name, value in self.choices.items()) or OWN

    def but(self, **changes: Any) -> Candidate:
        """The same with other choices; None leaves one out."""
        changed = {**self.choices, **changes}
        return Candidate({name: value for name, value in changed.items() if value is not None})


@dataclass(frozen=True)
class Measured:
    """A candidate that was sampled on some prompts."""

    candidate: Candidate
    values: Values
    """(prompts,) by metric."""
    seconds: float
    """Of one clip, denoising and decoding: the median over blocks; of the CPU, or by the clock on another device."""


@dataclass(frozen=True)
class Judgement:
    """One metric of a candidate against the model's own settings."""

    own: float
    """The mean of the model's own settings."""
    value: float
    """The candidate's."""
    loss: Interval
    """How much worse the candidate is, with its interval: below 0 it is better."""
    margin: float
    """The loss that the interval must exclude."""

    @property
    def no_worse(self) -> bool:
        """Whether a loss beyond the margin is excluded."""
        return self.loss.high < self.margin


@dataclass(frozen=True)
class Verified:
    """A candidate on held-out prompts."""

    measured: Measured
    judgements: Mapping[str, Judgement]
    """By metric."""
    faster: float
    """How many times less time a clip takes than with the model's own settings."""

    @property
    def no_worse(self) -> bool:
        """Whether every metric excludes a loss beyond its margin."""
        return all(each.no_worse for each in self.judgements.values())


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

    @property
    def found(self) -> Verified | None:
        """The cheapest candidate that is no worse; None if there is none."""
        return next((each for each in self.verified if each.no_worse), None)

    def table(self) -> str:
        """The finalists on held-out prompts as a Markdown table: mean, loss with its interval, and margin."""
        names = list(self.margins)
        lines = ["| settings | s a clip | times faster | " + " | ".join(names) + " | no worse |"]
        lines.append("|---" * (len(names) + 4) + "|")
        means = " | ".join(f"{_mean(self.own.values[name]):.4g}" for name in names)
        lines.append(f"| {OWN} | {self.own.seconds:.3g} | 1 | {means} | |")
        for each in self.verified:
            cells = " | ".join(f"{found.value:.4g} ({found.loss})" for found in each.judgements.values())
            said = "yes" if each.no_worse else "not shown"
            start = f"| {each.measured.candidate.name} | {each.measured.seconds:.3g} | {each.faster:.2f}"
            lines.append(f"{start} | {cells} | {said} |")
        return "\n".join(lines)

    @property
    def verdict(self) -> str:
        """The result in words."""
        allowed = ", ".join(f"{name} {margin:.3g}" for name, margin in self.margins.items())
        count = len(next(iter(self.own.values.values())))
        told = f"margins: {allowed}; {count} held-out prompts, intervals of {100 * self.confidence:.4g}%"
        if self.found is None:
            return f"{told}\nno candidate is shown to be no worse: ask for more steps, more prompts or wider margins"
        found = self.found
        return f"{told}\nfast settings, {found.faster:.1f} times less time: {found.measured.candidate.name}"

    def fast(self, preset: Preset[Any]) -> Fast | None:
        """The fast settings of a model with this preset; None if none was found."""
        if self.found is None:
            return None
        names = ("sampler", "steps", "timing", "dtype", "decode_dtype")
        own: dict[str, Any] = {name: getattr(preset, name) for name in names}
        count = len(next(iter(self.own.values.values())))
        measured = (
            f"{self.found.faster:.1f}x less time a clip; no worse on {count} prompts in {', '.join(self.margins)}"
        )
        return Fast(**own | dict(self.found.measured.candidate.choices), measured=measured)

    def as_json(self) -> dict[str, Any]:
        """All of it as plain values."""

        def plain(each: Measured) -> dict[str, Any]:
            means = {name: _number(_mean(each.values[name])) for name in self.margins}
            return {"settings": dict(each.candidate.choices), "seconds": each.seconds, "means": means}

        def judged(found: Judgement) -> dict[str, Any]:
            loss = {end: _number(getattr(found.loss, end)) for end in ("value", "low", "high")}
            return {"own": _number(found.own), "value": _number(found.value), "loss": loss, "margin": found.margin}

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
                    means = [f"{_mean(each.values[name]):.6g}" for name in self.margins]
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
        ticks = require("matplotlib.ticker", "drawing", "study")
        figure = require("matplotlib.figure", "drawing", "study").Figure(
            figsize=(3.4 * width, 2.9 * height), layout="constrained"
        )
        for number, name in enumerate(names):
            axis = figure.add_subplot(height, width, number + 1)
            metric = self.bench.metrics[name]
            sign = 1 if metric.better == "higher" else -1
            points = [(each.seconds, _mean(each.values[name])) for each in self.tuned]
            axis.scatter(*zip(*points, strict=True), s=14, color="0.6", label="tuning prompts")
            front = [
                a for a in points if not any(b[0] <= a[0] and sign * b[1] >= sign * a[1] and b != a for b in points)
            ]
            axis.step(*zip(*sorted(front), strict=True), where="post", color="0.8", linewidth=1, zorder=0)
            for each, own in ((self.own, True), *((v.measured, False) for v in self.verified)):
                mean = mean_interval(each.values[name])
                ends = [[mean.value - mean.low], [mean.high - mean.value]]
                axis.errorbar(
                    [each.seconds],
                    [mean.value],
                    ends if all(math.isfinite(e[0]) for e in ends) else None,
                    fmt="s" if own else "o",
                    color="C3" if own else "C0",
                    markersize=5,
                    capsize=2,
                    label=OWN if own else "held-out prompts",
                )
            axis.set(xscale="log", xlabel="seconds a clip", title=f"{metric.label} ({metric.better} is better)")
            axis.xaxis.set_major_locator(ticks.LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter(ticks.FormatStrFormatter("%g"))
            axis.xaxis.set_minor_formatter(ticks.NullFormatter())
            if not number:
                handles = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
                axis.legend(handles.values(), handles.keys(), fontsize=7)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=130, format="png")
        return path


def _value_of(name: str, text: str) -> Any:
    try:
        return TRIED[name](text)
    except ValueError:
        raise InputError(f"{setting(name)} {text[:80]!r} is not a number: give one") from None


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _mean(values: np.ndarray) -> float:
    """The mean of the defined values; NaN where there is none."""
    defined = values[np.isfinite(values)]
    return float(defined.mean()) if len(defined) else math.nan


def guarded_metrics(bench: Bench, names: Sequence[str] = ()) -> tuple[str, ...]:
    """The metrics that fast settings must not worsen: the given ones, or the bench's.

    Raises:
        InputError: one does not exist, or has no better direction.
    """
    chosen = tuple(names) or bench.guarded or tuple(n for n in bench.shown if bench.metrics[n].better is not None)
    for name in chosen:
        if bench.find_metric(name).better is None:
            raise InputError(
                f"{name} is neither better higher nor lower, so nothing can be no worse in it: leave it out"
            )
    return chosen


def check_margins(margins: Mapping[str, float], names: Sequence[str]) -> None:
    """Refuse a margin that is not above 0, or not of one of the guarded metrics.

    Raises:
        InputError: the message says which.
    """
    for name, margin in margins.items():
        if name not in names or not margin > 0:
            raise InputError(
                f"the {setting('margin')} {name}={margin:g} is not above 0, or not of a guarded metric "
                f"({', '.join(names)}): give another"
            )


def default_margin(bench: Bench, name: str, own: float) -> float:
    """The loss of a metric that is allowed where the user does not say it.

    Args:
        bench: it may say which loss cannot be seen.
        name: the metric.
        own: its mean under the model's own settings, on tuning prompts.
    """
    if name in bench.margins:
        return bench.margins[name]
    metric = bench.metrics[name]
    if metric.unit == SHARE:
        return MARGIN
    return DECIBELS if metric.unit == "dB" else HALF * abs(own)


def first_candidates(
    planner: Planner, steps: Sequence[int] = (), samplers: Sequence[str] = (), dtype: str | None = None
) -> list[Candidate]:
    """The coarse candidates: each sampler with each number of steps.

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


class Sampler:
    """Samples and measures candidates block by block, and stores each block in a file of its own.

    Processes that work in one folder share the blocks. An interrupted search goes on from the blocks that are there.

    Args:
        pipe: the model.
        bench: what measures.
        folder: where blocks are stored.
        shared: choices of all settings.
        block: clips that are denoised and stored together.
        say: called with each message for the user.
    """

    def __init__(
        self, pipe: Pipeline, bench: Bench, folder: Path, *, shared: Choices, block: int, say: Callable[[str], None]
    ) -> None:
        self.pipe, self.bench, self.folder, self.block, self.say = pipe, bench, folder, block, say
        self.shared = shared
        folder.mkdir(parents=True, exist_ok=True)
        self.weights = {part: own.model_dump(mode="json") for part, own in bench.weights.items()}

    def __call__(
        self, candidates: Sequence[Candidate], captions: Sequence[str], on_clip: Callable[[int], None] | None = None
    ) -> list[Measured]:
        """Candidates on the same captions and noise. ``on_clip(clips)`` is called with the clips of each block.

        Raises:
            InputError: a choice is not valid for the model, or a file of the folder is damaged.
        """
        starts = range(0, len(captions), self.block)
        asked = [(c, start, self._request(c, captions, start)) for c in candidates for start in starts]
        waiting, found = list(asked), dict[tuple[int, int], tuple[Values, float]]()
        numbers = {id(candidate): number for number, candidate in enumerate(candidates)}
        idle = 0
        while waiting:
            candidate, start, request = waiting.pop(0)
            block = self._known(request) or self._sampled(request, captions[start : start + self.block])
            if block is None:  # another process has it: look again after all others
                waiting.append((candidate, start, request))
                idle += 1
                if idle >= len(waiting):
                    idle = 0
                    time.sleep(POLL)
                continue
            idle = 0
            found[numbers[id(candidate)], start] = block
            if on_clip is not None:
                on_clip(len(request.prompts))
        return [
            Measured(
                candidate,
                {name: np.concatenate([found[k, start][0][name] for start in starts]) for name in self.bench.metrics},
                float(np.median([found[k, start][1] for start in starts])),
            )
            for k, candidate in enumerate(candidates)
        ]

    def _request(self, candidate: Candidate, captions: Sequence[str], start: int) -> Request:
        """The request of a block. The seed of caption k is k, under every candidate."""
        own = cast("Choices", {**self.shared, **candidate.choices, "seed": start, "seed_per_prompt": True})
        return self.pipe.complete(captions[start : start + self.block], (0,), batch_size=self.block, **own)

    def _asked(self, request: Request) -> dict[str, Any]:
        """What decides the values of a block."""
        own = {"request": request.model_dump(mode="json"), "weights": self.pipe.hashes, "bench": self.bench.name}
        return own | ({"bench_weights": self.weights} if self.weights else {})

    def _path(self, request: Request) -> Path:
        return self.folder / f"{hash_settings(self._asked(request))[:24]}.json"

    def _known(self, request: Request) -> tuple[Values, float] | None:
        """The values of a block and its seconds a clip; None if it was not sampled.

        Raises:
            InputError: its file is damaged.
        """
        path = self._path(request)
        if not path.exists():
            return None
        return read_block(path, self._asked(request), list(self.bench.metrics), len(request.prompts))

    def _sampled(self, request: Request, captions: Sequence[str]) -> tuple[Values, float] | None:
        """Sample a block and store it; None if another process does."""
        path = self._path(request)
        with try_held(self.folder, f".{path.stem}.lock", "guidon calibrate-fast") as ours:
            if not ours:
                return None
            if (known := self._known(request)) is not None:
                return known
            clock = time.process_time if self.pipe.device.type == "cpu" else time.perf_counter
            waits = f"finishing the {len(captions)} clips in work; press Ctrl-C again to stop now and lose them"
            with finished_first(lambda: self.say(waits)):
                began = clock()
                videos = self.pipe.generate(request, batch_size=self.block)
                seconds = (clock() - began) / len(captions)
                values = self.bench.measure(np.stack([video.frames for video in videos]), captions)
                store_block(path, self._asked(request), seconds, values)
            return self._known(request)


def store_block(path: Path, asked: Mapping[str, Any], seconds: float, values: Values) -> None:
    """Write the file of a block, whole or not at all."""
    plain = {name: [_number(float(x)) for x in column] for name, column in values.items()}
    kept = {"asked": dict(asked), "seconds": seconds, "values": plain}
    write_json(path, kept | {"digest": hash_settings(kept)})


def read_block(path: Path, asked: Mapping[str, Any], metrics: Sequence[str], clips: int) -> tuple[Values, float]:
    """The values of a block's clips, and the seconds that one took.

    Raises:
        InputError: the file is damaged, or of another block than what is asked for.
    """
    what = "a block of a calibration"
    stored = read_object(path, what)
    with reading(path, what, "delete it to sample the block again"):
        kept = {name: stored[name] for name in ("asked", "seconds", "values")}
        if stored["digest"] != hash_settings(kept) or kept["asked"] != asked:
            raise ValueError("its content is not what was written")
        values = {name: np.array(kept["values"][name], float) for name in metrics}
        if any(column.shape != (clips,) for column in values.values()):
            raise ValueError("it holds no value for each clip")
        return values, float(kept["seconds"])


def calibrate(
    pipe: Pipeline,
    folder: Path,
    *,
    prompts: int | Sequence[str] = 64,
    held_out: int | Sequence[str] = 200,
    candidates: Sequence[Candidate],
    finer: bool = True,
    metrics: Sequence[str] = (),
    margins: Mapping[str, float] = {},
    finalists: int = 2,
    bench: Bench | None = None,
    block: int = BLOCK,
    say: Callable[[str], None] = print,
    on_clip: OnStep | None = None,
    **shared: Any,
) -> Calibration:
    """Search for fast settings on tuning prompts, and verify the cheapest on held-out ones.

    Args:
        pipe: the model.
        folder: where blocks of clips are stored as they are measured; the same call goes on from them.
        prompts: the prompts on which candidates are chosen; or how many captions of the bench.
        held_out: the other prompts on which they are verified; or how many captions of the bench.
        candidates: the first ones to try; see ``first_candidates``.
        finer: vary the best of them further; see ``finer_candidates``.
        metrics: what must not be worse; if empty, what the bench guards.
        margins: by metric, the loss that must be excluded, in its unit; ``default_margin`` where one is missing.
        finalists: how many candidates are verified at most.
        bench: what measures; None for the model's own.
        block: clips that are denoised and stored together.
        say: called with each message for the user, one line.
        on_clip: called as ``on_clip(done, total)``; the total grows with each round.
        shared: choices of all settings, the model's own included, such as ``cfg_scale``.

    Raises:
        InputError: a candidate is not valid for the model, a metric does not exist, the bench has no captions of its
            own, or the folder's files are damaged.
    """
    bench = bench or find_bench(pipe.planner.bench)
    names = guarded_metrics(bench, metrics)
    check_margins(margins, names)
    captions = bench.captions(None, TUNING_SEED, prompts) if isinstance(prompts, int) else tuple(prompts)
    judges = bench.captions(None, EVALUATION_SEED, held_out) if isinstance(held_out, int) else tuple(held_out)
    sample = Sampler(pipe, bench, folder, shared=cast("Choices", shared), block=block, say=say)
    progress = _Progress(on_clip)

    # Search on the tuning prompts, from coarse to fine.
    def sampled(tried: Iterable[Candidate], texts: Sequence[str]) -> list[Measured]:
        chosen = list(tried)
        return sample(chosen, texts, progress.more(len(chosen) * len(texts)))

    own, *tuned = sampled([Candidate({}), *candidates], captions)
    allowed = {n: margins.get(n, default_margin(bench, n, _mean(own.values[n]))) for n in names}
    for name, margin in allowed.items():
        say(f"margin of {name}: {margin:.3g} {bench.metrics[name].unit}")

    def seems_no_worse(each: Measured) -> bool:
        return all(_mean(_loss(bench, n, own, each)) < margin for n, margin in allowed.items())

    def best() -> Measured:
        fine = [each for each in tuned if seems_no_worse(each)]
        if fine:
            return min(fine, key=lambda each: each.seconds)
        return max(tuned, key=lambda each: -_mean(_loss(bench, names[0], own, each)))

    if finer:
        counts = sorted({each.choices["steps"] for each in candidates})
        for number in range(2):
            first = best().candidate
            smaller = [count for count in counts if count < first.choices["steps"]]
            rounds = finer_candidates(first, smaller[-1] if smaller else None, pipe.preset.timing)
            new = [each for each in rounds[number] if each not in [known.candidate for known in tuned]]
            say(f"varying {first.name}")
            tuned += sampled(new, captions)

    # Verify the cheapest on the held-out prompts.
    fine = sorted((each for each in tuned if seems_no_worse(each)), key=lambda each: each.seconds)
    chosen = [each.candidate for each in (fine or [best()])[:finalists]]
    say(f"verifying {'; '.join(each.name for each in chosen)}")
    reference, *found = sampled([Candidate({}), *chosen], judges)
    confidence = 1 - 0.05 / len(chosen)
    verified = tuple(verify(bench, reference, each, allowed, confidence) for each in found)
    return Calibration(pipe.preset.name, bench, allowed, (own, *tuned), reference, verified, confidence)


def verify(
    bench: Bench, own: Measured, each: Measured, margins: Mapping[str, float], confidence: float = 0.95
) -> Verified:
    """A candidate against the model's own settings on the same held-out prompts."""
    judged: dict[str, Judgement] = {}
    for name, margin in margins.items():
        loss = _loss(bench, name, own, each)
        both = np.isfinite(by_prompt(own.values[name]) + by_prompt(each.values[name]))
        means = [_mean(by_prompt(side.values[name])[both]) for side in (own, each)]
        judged[name] = Judgement(means[0], means[1], mean_interval(loss, confidence=confidence), margin)
    return Verified(each, judged, own.seconds / each.seconds)


def _loss(bench: Bench, name: str, own: Measured, each: Measured) -> np.ndarray:
    """By how much each prompt is worse, where both have a value."""
    change = by_prompt(own.values[name]) - by_prompt(each.values[name])
    change = change if bench.metrics[name].better == "higher" else -change
    return change[np.isfinite(change)]


class _Progress:
    """The clips of all rounds so far."""

    def __init__(self, report: OnStep | None) -> None:
        self.report, self.done, self.total = report, 0, 0

    def more(self, clips: int) -> Callable[[int], None]:
        """A further round; what to call with the clips of each of its blocks."""
        self.total += clips

        def note(count: int) -> None:
            self.done += count
            if self.report is not None:
                self.report(self.done, self.total)

        return note
