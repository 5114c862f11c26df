"""Two networks that share the timesteps: what an image is about is settled in noise, its details without much of it.

Such experts double what a model can hold at the cost of one (eDiff-I, 2211.01324, sec. 4; Wan 2.2).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..errors import InputError
from .conditions import Caption
from .stdit import STDiT


@dataclass(frozen=True)
class ExpertCaption:
    """A prompt to both networks."""

    high: Caption
    low: Caption

    def cat(self, other: ExpertCaption) -> ExpertCaption:
        """Rows of both, these first."""
        return ExpertCaption(self.high.cat(other.high), self.low.cat(other.low))


class Experts:
    """``low`` predicts below the timestep ``boundary``, ``high`` from there; ``at`` a timestep it is one of them.

    Raises:
        InputError: they are made for different latents.
    """

    def __init__(self, high: STDiT, low: STDiT, boundary: int) -> None:
        if high.latent_shape != low.latent_shape:
            raise InputError(
                f"the low-noise network is made for latents of {low.latent_shape}, the other for {high.latent_shape}: "
                "give two of one model"
            )
        self.high, self.low, self.boundary = high, low, boundary

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(C, T, H, W) of one sample at the size the model was made for."""
        return self.high.latent_shape

    def prepare(self, y: Tensor, mask: Tensor | None = None) -> ExpertCaption:
        """All that depends on the prompt alone; arguments as of ``STDiT.prepare``."""
        return ExpertCaption(self.high.prepare(y, mask), self.low.prepare(y, mask))

    def null(self, rows: int, mask: Tensor | None = None) -> ExpertCaption:
        """The null caption, ``rows`` times."""
        return ExpertCaption(self.high.null(rows, mask), self.low.null(rows, mask))

    def at(self, timestep: float) -> Expert:
        """The network for an original timestep; chosen on the host, so that nothing waits for the device."""
        return Expert(self.low, "low") if timestep < self.boundary else Expert(self.high, "high")


@dataclass(frozen=True)
class Expert:
    """One of the two, which finds its part of a caption."""

    network: STDiT
    side: str

    def __call__(self, x: Tensor, timestep: Tensor, caption: ExpertCaption) -> Tensor:
        """x (B, C, T, H, W), original timesteps (B,) -> fp32 (B, 2C, T, H, W)."""
        return self.network(x, timestep, getattr(caption, self.side))
