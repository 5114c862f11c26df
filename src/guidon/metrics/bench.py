"""All benches by name. A loaded model names its bench in ``pipe.model.facts.bench``.

A new bench needs a module that defines ``BENCH``, and an entry in ``BENCHES``.
"""

from __future__ import annotations

from ..core.errors import InputError, nearest
from . import video, world, world_1
from .metric import Bench

BENCHES: dict[str, Bench] = {bench.name: bench for bench in (world.BENCH, world_1.BENCH, video.BENCH)}


def find_bench(name: str) -> Bench:
    """The bench of that name. Raises InputError, with the nearest name, if there is none."""
    if name not in BENCHES:
        raise InputError(f"the bench {name!r} does not exist{nearest(name, BENCHES)}")
    return BENCHES[name]
