"""The search: from coarse to fine on tuning prompts, then the proof on held-out ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ...core.progress import OnStep
from ...metrics.bench import find_bench
from ...metrics.metric import EVALUATION_SEED, TUNING_SEED, Bench
from ...request import Choices
from .blocks import BLOCK, Measured, Sampler
from .candidates import Candidate, finer_candidates
from .judging import check_margins, default_margin, guarded_metrics, loss_of, mean_of, verify
from .result import Calibration

if TYPE_CHECKING:
    from ...pipeline import Pipeline


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
    allowed = {n: margins.get(n, default_margin(bench, n, mean_of(own.values[n]))) for n in names}
    for name, margin in allowed.items():
        say(f"margin of {name}: {margin:.3g} {bench.metrics[name].unit}")

    def seems_no_worse(each: Measured) -> bool:
        return all(mean_of(loss_of(bench, n, own, each)) < margin for n, margin in allowed.items())

    def best(of: Sequence[Measured]) -> Measured:
        fine = [each for each in of if seems_no_worse(each)]
        if fine:
            return min(fine, key=lambda each: each.seconds)
        return max(of, key=lambda each: -mean_of(loss_of(bench, names[0], own, each)))

    counts = sorted({each.choices["steps"] for each in candidates if "steps" in each.choices})
    if finer and counts:
        for number, what in enumerate(("where the steps lie", "which calls are left out")):
            first = best([each for each in tuned if "steps" in each.candidate.choices]).candidate
            smaller = [count for count in counts if count < first.choices["steps"]]
            rounds = finer_candidates(first, smaller[-1] if smaller else None, pipe.preset.timing)
            new = [each for each in rounds[number] if each not in [known.candidate for known in tuned]]
            say(f"varying {what}, from {first.name}")
            tuned += sampled(new, captions)

    # Verify the cheapest on the held-out prompts.
    fine = sorted((each for each in tuned if seems_no_worse(each)), key=lambda each: each.seconds)
    chosen = [each.candidate for each in (fine or [best(tuned)])[:finalists]]
    say(f"verifying {'; '.join(each.name for each in chosen)}")
    reference, *found = sampled([Candidate({}), *chosen], judges)
    confidence = 1 - 0.05 / len(chosen)
    verified = tuple(verify(bench, reference, each, allowed, confidence) for each in found)
    timed = "CPU s" if pipe.device.type == "cpu" else "s"
    tried = own, *tuned
    return Calibration(pipe.preset.name, bench, allowed, tried, reference, verified, confidence, timed, shared)


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
