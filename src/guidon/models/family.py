"""The contract of a model family, and the plain data that a family offers: its presets and its exact replays."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Exact:
    """How one of the originals samples, where Guidon would do otherwise. Noise is always drawn as they do."""

    source: str
    """Where the original's code is."""
    single_precision: bool = False
    """The schedule's tables are in float32."""
    noise_in_dtype: bool = False
    """The initial noise is rounded to the network's dtype."""
