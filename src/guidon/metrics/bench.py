"""All benches by name. A loaded model names its bench in ``pipe.model.facts.bench``.

A new bench that needs no weights needs a module that defines ``BENCH``, and an entry in ``BENCHES`` and in
``choice.BASES``. A learned part needs an entry in ``choice.PARTS`` and in ``learned.METRICS``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from . import video, world, world_1
from .choice import BenchChoice, describe_weights, find_weights, learned_parts
from .learned import Judges, with_learned
from .metric import Bench

if TYPE_CHECKING:
    import torch

BLANK = 64, 64  # px of the clip on which weights are tried
BENCHES: dict[str, Bench] = {bench.name: bench for bench in (world.BENCH, world_1.BENCH, video.BENCH)}


def find_bench(name: str) -> Bench:
    """The bench of a name, which may name learned parts: "video+clip". One with parts defines its metrics, but does not
    measure: ``open_bench`` does.

    Raises:
        InputError: there is no such bench; the message has the nearest name.
    """
    if name in BENCHES:
        return BENCHES[name]
    full = BenchChoice(name=name).full_name("video")
    base = BENCHES[full.partition("+")[0]]
    return with_learned(base, full) if learned_parts(full) else base


def open_bench(choice: BenchChoice, default: str, *, device: torch.device | str = "cpu", keep: bool = True) -> Bench:
    """A bench that measures. The weights of its learned parts are found, read, and tried on a blank clip.

    Args:
        choice: what the user wants.
        default: the base that holds if the choice names none: a model's ``facts.bench``, or "video".
        device: where networks run.
        keep: whether they stay in memory after use.

    Raises:
        InputError: there is no such bench, a library is not installed, or weights are missing, damaged or of another
            kind, or do not fit each other.
    """
    bench = find_bench(choice.full_name(default))
    if not learned_parts(bench.name):
        return bench
    places = find_weights(choice, bench.name)
    base, judges = BENCHES[bench.name.partition("+")[0]], Judges.of(places, device, keep)
    judges.measure(np.zeros((1, 2, *BLANK, 3), np.uint8), ["nothing"])  # before hours of sampling
    return replace(
        bench,
        measure=lambda frames, captions: judges.measure(frames, captions) | base.measure(frames, captions),
        weights=describe_weights(choice, places),
    )
