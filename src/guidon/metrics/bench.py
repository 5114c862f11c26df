"""All benches, by the name that a loaded model carries in ``pipe.model.bench``.

A new bench is a module that defines ``BENCH``, and its entry here.
"""

from __future__ import annotations

from ..core.errors import InputError, nearest
from . import video, world
from .metric import Bench

BENCHES: dict[str, Bench] = {bench.name: bench for bench in (world.BENCH, video.BENCH)}


def find_bench(name: str) -> Bench:
    """The bench of that name; InputError with the nearest one where there is none."""
    if name not in BENCHES:
        raise InputError(f"the bench {name!r} does not exist{nearest(name, BENCHES)}")
    return BENCHES[name]
