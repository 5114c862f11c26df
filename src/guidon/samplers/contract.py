"""What samplers share: the contracts they are written against, and how a step is reported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

Noise = Callable[[Tensor], Tensor]
OnStep = Callable[[int, int, Tensor], None]  # steps done, steps in all, x


class Denoiser(Protocol):
    """What a sampler sees of a model: the prediction (B, C or 2C, ...) for x (B, C, ...) at a step or a timestep."""

    def __call__(self, x: Tensor, step: int) -> Tensor: ...

    def at(self, x: Tensor, timestep: float) -> Tensor:
        """The same at an original timestep, which may lie between whole ones."""
        ...
