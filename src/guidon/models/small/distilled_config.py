"""The shape of a distilled network. It is read without torch."""

from __future__ import annotations

from dataclasses import dataclass

DISTILLED_KIND = "denoiser-fast"
"""The kind of the component that holds one."""


@dataclass(frozen=True)
class DistilledConfig:
    """The shape of a distilled network."""

    rank: int
    """Rank of the matrices that are added to the weights."""
    channels: int
    """Latent channels, which each have a strength."""
    hidden_size: int
    """Width of the network."""
    timesteps: tuple[int, ...]
    """The timesteps that the network was trained at, falling. It runs at no others."""
    end: int
    """At timesteps below this one, the model's own network runs."""
    refiner_end: int = 0
    """The refiner acts at timesteps below this one; 0 where it acts at all."""
    denoiser: str = ""
    """A hash of the weights that the matrices are added to."""
