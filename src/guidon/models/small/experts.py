"""Two networks that share the timesteps: what an image is about is settled in noise, its details without much of it.

Such experts double what a model can hold, and its memory, at one network's cost a step (eDiff-I, 2211.01324, sec. 4).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ...core.errors import InputError
from ..parts.conditions import Caption
from ..stdit.network import STDiT


@dataclass(frozen=True)
class ExpertCaption:
    """A prompt to both networks, the same rows in each."""

    high: Caption
    low: Caption

    def cat(self, other: ExpertCaption) -> ExpertCaption:
        """Rows of both, these first."""
        return ExpertCaption(self.high.cat(other.high), self.low.cat(other.low))


class Experts:
    """``low`` predicts below ``boundary``, an original timestep, and ``high`` from there; ``at`` finds the one.

    Raises:
        InputError: they are made for different latents, patches or captions.
    """

    def __init__(self, high: STDiT, low: STDiT, boundary: int) -> None:
        for name in ("input_size", "in_channels", "patch_size", "caption_channels", "model_max_length", "learn_sigma"):
            ours, theirs = getattr(low.config, name), getattr(high.config, name)
            if ours != theirs:
                raise InputError(
                    f"the low-noise network's {name} is {ours}, the other's {theirs}: give two of one model"
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

    def at(self, timestep: float) -> Callable[[Tensor, Tensor, ExpertCaption], Tensor]:
        """The network for an original timestep, (x (B, C, T, H, W), timesteps (B,), caption) -> fp32 (B, 2C, T, H, W).

        It is chosen on the host, so that nothing waits for the device.
        """
        if timestep < self.boundary:
            return lambda x, t, caption: self.low(x, t, caption.low)
        return lambda x, t, caption: self.high(x, t, caption.high)
