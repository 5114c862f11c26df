"""Frames of a video that are kept, or edited from some step on, while a sampler makes the others.

Open-Sora 1.1 and 1.2 condition on images and videos in this way.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from ..core.broadcasting import at_least_single, per_frame
from ..core.errors import InputError
from ..diffusion import DiscreteLevel, FlowLevel, NoiseLevel, q_sample
from .contract import Noise

L = TypeVar("L", bound=NoiseLevel)


@dataclass(frozen=True, eq=False)
class FrameMask:
    """How much of every frame is made. A sampler calls ``begin`` before the network, and ``end`` after its step.

    A frame joins the run, noised to the level, at the step at which its edit begins. From then on it moves like the
    others. Before, it is kept as it is.
    """

    made: Tensor
    """(B, T), in [0, 1]: 1 makes the frame from noise, 0 keeps it, between them it is edited in that last share of the
    run. On a discrete schedule a frame of 0 still takes part in the last step, as in Open-Sora 1.1, and comes back
    nearly; on other paths it comes back exactly."""
    clean: Tensor | None = None
    """(B, C, T, h, w), the latents of the frames that are not made from noise. None: they are in the sample that the
    run starts from."""
    replace: bool = False
    """Show the network the kept frames noised to the level. It is for networks that do not read
    ``NoiseLevel.noisy``."""

    def __post_init__(self) -> None:
        inside = (self.made >= 0) & (self.made <= 1)
        if self.made.ndim != 2 or not (inside.is_meta or bool(inside.all())):
            raise InputError(
                f"a frame mask of shape {tuple(self.made.shape)} was given: it needs one value in [0, 1] for every "
                "frame of every clip, (B, T)"
            )

    def begin(self, x: Tensor, level: L, noise: Noise, last: NoiseLevel | None = None) -> tuple[Tensor, L]:
        """What the network is called with at a step.

        Args:
            x: the sample (B, C, T, h, w).
            level: the level of the step.
            noise: it is called once, whether a frame joins or not.
            last: the level that ``begin`` gave at the step before; None at the first.

        Returns:
            x with the frames that join noised to the level, and the level with ``noisy``.

        Raises:
            InputError: the mask or the clean frames do not fit x.
        """
        self._check(x)
        moving, joining, told = self._states(x, level, last)
        still = x if self.clean is None else torch.where(per_frame(moving), x, self.clean.to(x.device))
        noised = q_sample(at_least_single(still), level, at_least_single(noise(x)))
        shown = torch.where(per_frame(~moving if self.replace else joining), noised, still)
        return shown, dataclasses.replace(level, noisy=told)

    def end(self, before: Tensor, x: Tensor, level: NoiseLevel) -> Tensor:
        """The sample after a step: the frames that are kept are what they were.

        Args:
            before: the sample that ``begin`` was given.
            x: what the step made of what ``begin`` gave.
            level: the level of the step.
        """
        kept = before if self.clean is None else self.clean.to(x.device)
        return torch.where(per_frame(self._kept(x, level)), kept, x)

    def _check(self, x: Tensor) -> None:
        expected = (len(x), *x.shape[2:3])
        if x.ndim != 5 or tuple(self.made.shape) != expected:
            raise InputError(f"mask is {tuple(self.made.shape)}, expected one value a frame: {expected}")
        if self.clean is not None and self.clean.shape != x.shape:
            raise InputError(
                f"the clean frames of a mask are {tuple(self.clean.shape)}, but the sample is {tuple(x.shape)}"
            )

    def _states(self, x: Tensor, level: NoiseLevel, last: NoiseLevel | None) -> tuple[Tensor, Tensor, Tensor]:
        """Which frames are at the level already, which join now, and of which the network is told: (B, T) each."""
        if isinstance(level, DiscreteLevel):
            start, step = self._start(x, level)
            # Open-Sora 1.1 tells the network only at the step after the one at which a frame joins
            return start > step, start == step, start > step
        here = self._joined(x, level)
        moving = here & (self.made.to(x.device) == 1 if last is None or last.noisy is None else last.noisy)
        return moving, here & ~moving, here

    def _kept(self, x: Tensor, level: NoiseLevel) -> Tensor:
        """(B, T), True where a frame has not joined."""
        if isinstance(level, DiscreteLevel):
            start, step = self._start(x, level)
            return start < step
        return ~self._joined(x, level)

    def _joined(self, x: Tensor, level: NoiseLevel) -> Tensor:
        """(B, T), which frames are at a level of a continuous path. Open-Sora 1.2 compares timesteps in this way."""
        made = self.made.to(x.device)
        if not isinstance(level, FlowLevel):
            return made >= 1 - level.progress
        timestep = level.timestep[:, None] if isinstance(level.timestep, Tensor) else level.timestep
        return made * level.num_timesteps >= timestep

    def _start(self, x: Tensor, level: DiscreteLevel) -> tuple[Tensor, Tensor | int]:
        """The step at which each frame joins, (B, T), and the step of the level, (B, 1) where rows have their own."""
        start = (self.made * level.steps).int().to(x.device)
        return start, level.step[:, None] if isinstance(level.step, Tensor) else level.step
