"""Rectified flow: the straight path from data to noise, its levels, shifts of its timesteps, and its loss.

x_t = (1 - u) x_0 + u eps with u = t / T (Liu et al. 2209.03003). t = T is pure noise, t = 0 the data. The velocity
dx/du = eps - x_0 is the parameterisation "flow". Timesteps are numbers in [0, T], not steps of a table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..core.broadcasting import per_sample
from ..core.errors import InputError, setting
from .level import CLEAN, NoiseLevel
from .losses import mean_of_frames
from .schedule import MOST_TIMESTEPS
from .spacing import Explicit, Spacing

U = TypeVar("U", float, Tensor)
TIMESTEPS = 1000
"""T where nobody says it: networks are told of timesteps in [0, 1000]."""
REFERENCE_AREA = 512 * 512
"""Pixels of the picture whose timesteps Open-Sora's transform leaves as they are."""
CHUNK, CHUNK_LATENTS = 17, 5
"""Frames of a chunk of Open-Sora's autoencoder, and the latent frames that it gives."""


@dataclass(frozen=True, eq=False)
class FlowLevel(NoiseLevel):
    """A level of rectified flow: alpha = 1 - t / T, sigma = t / T."""

    num_timesteps: float = field(kw_only=True, default=TIMESTEPS)
    """T, the timestep of pure noise."""


@dataclass(frozen=True)
class FlowPath:
    """Rectified flow as a schedule: the levels that a sampler visits, and those that training draws."""

    num_timesteps: int = TIMESTEPS
    """T, the timestep of pure noise."""
    steps: int = TIMESTEPS
    """How many steps a sampler takes."""
    shift: float = 1.0
    """Where a run spends its steps: u becomes r u / (1 + (r - 1) u) with this r. Above 1, more steps have much noise
    (Esser et al. 2403.03206, eq. 23)."""
    by_size: bool = False
    """Whether ``for_clip`` makes the shift larger for clips of more pixels and frames, as Open-Sora 1.2 does."""
    whole: bool = False
    """Round timesteps to whole numbers, before the shift."""
    dtype: torch.dtype | None = None
    """What the shift is rounded to, and the shift less 1, as in Open-Sora's scripts; None for neither."""
    spacing: Spacing | None = None
    """Where the steps lie; None for the originals' uniform ones. Steps that a spacing places by their noise, and listed
    ones, are not shifted."""

    def __post_init__(self) -> None:
        _check_count("a flow's number of timesteps", self.num_timesteps)
        _check_count(setting("steps"), self.steps)
        if not (0 < self.shift < math.inf):
            raise InputError(f"the shift of timesteps is {self.shift:g}: give a number above 0, 1 for none")

    def __len__(self) -> int:
        return self.steps

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles hold: the fields alone. The chain of levels is too deep to copy."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def respaced(self, steps: int) -> FlowPath:
        """The path in another number of steps, at least 1."""
        return replace(self, steps=steps)

    def spaced_by(self, steps: int, spacing: Spacing) -> FlowPath:
        """The path in another number of steps, at least 1, which a spacing places.

        Raises:
            InputError: explicit timesteps lie outside of the path, or are not so many.
        """
        if isinstance(spacing, Explicit):
            spacing.check(steps, self.num_timesteps, above_zero=True)
        return replace(self, steps=steps, spacing=spacing)

    def is_same(self, other: object) -> bool:
        """Whether another schedule is the same flow, in however many steps."""
        return isinstance(other, FlowPath) and replace(other, steps=self.steps, spacing=self.spacing) == self

    def for_clip(self, height: int, width: int, frames: int = 1, dtype: torch.dtype | None = None) -> FlowPath:
        """The path for a clip's size in pixels and its frames; this path itself where the shift does not depend on it.

        Its shift is the path's times ``clip_shift``.
        """
        if not self.by_size:
            return self
        dtype = _of_sizes(dtype)
        shift = self.shift * clip_shift(height, width, frames, dtype)
        return replace(self, shift=shift, by_size=False, dtype=dtype)

    @cached_property
    def levels(self) -> tuple[FlowLevel, ...]:
        """Every level that a sampler visits, from pure noise to the last before the data."""
        total = self.num_timesteps
        if self.spacing is not None:
            return levels_at(self._spaced_by(self.spacing), total)
        times = [(1 - step / self.steps) * total for step in range(self.steps)]
        times = [float(round(t)) if self.whole else t for t in times]
        return levels_at([shifted(t / total, self.shift, self.dtype) * total for t in times], total)

    def _spaced_by(self, spacing: Spacing) -> list[float]:
        """The timesteps that a spacing places."""
        total = self.num_timesteps
        if isinstance(spacing, Explicit):
            return list(spacing.timesteps)
        u = np.linspace(0.0, 1.0, total + 1)
        u[[0, -1]] = 0.5 / total, 1 - 0.5 / total  # there is no logarithm at the ends
        found = [float(each) for each in spacing.with_end(self.steps, np.log(u) - np.log1p(-u))[:-1]]
        return [each * total if spacing.by_noise else shifted(each, self.shift, self.dtype) * total for each in found]

    def at(self, timestep: Tensor, like: Tensor) -> FlowLevel:
        """A level for every sample of a batch.

        Args:
            timestep: t in [0, T], (B,).
            like: the batch (B, ...) that alpha and sigma are to multiply; they are fp32, on its device.
        """
        timestep = timestep.to(like.device)
        alpha = 1 - timestep.float() / self.num_timesteps
        return FlowLevel(
            timestep=timestep,
            alpha=per_sample(alpha, like),
            sigma=per_sample(1 - alpha, like),
            progress=alpha.clamp(min=0),
            num_timesteps=self.num_timesteps,
        )


def _check_count(name: str, count: object) -> None:
    if not isinstance(count, int) or not 1 <= count <= MOST_TIMESTEPS:
        raise InputError(f"{name} is {count!r:.40}: give a whole number from 1 to {MOST_TIMESTEPS:,}")


def levels_at(timesteps: Sequence[float], num_timesteps: float = TIMESTEPS) -> tuple[FlowLevel, ...]:
    """The levels at falling timesteps in (0, T], each with the one after it; after the last comes the data."""
    found: list[FlowLevel] = []
    for timestep in reversed(timesteps):  # begin at the data: each level holds the one that is visited after it
        sigma = timestep / num_timesteps
        found.append(
            FlowLevel(
                timestep=timestep,
                alpha=1 - sigma,
                sigma=sigma,
                progress=max(0.0, 1 - sigma),  # a shift may round pure noise to a little more than 1
                next=found[-1] if found else CLEAN,
                num_timesteps=num_timesteps,
            )
        )
    return tuple(reversed(found))


def shifted(u: U, shift: float, dtype: torch.dtype | None = None) -> U:
    """A time in [0, 1], or a tensor of them, after a shift: r u / (1 + (r - 1) u) (Esser et al. 2403.03206, eq. 23).

    ``dtype`` is what r - 1 is rounded to; None for none.
    """
    if dtype is not None:
        return shift * u / (1 + float(torch.tensor(shift, dtype=dtype) - 1) * u)
    return shift * u / (shift * u + (1 - u))  # so that 0 stays 0, and 1 stays 1


def clip_shift(height: int, width: int, frames: int = 1, dtype: torch.dtype | None = None) -> float:
    """The shift that Open-Sora 1.2 gives to a clip: sqrt(pixels / 512^2) sqrt(latent frames).

    Latent frames are those of its autoencoder without the rest of a chunk: 5 for every 17 frames. A clip of 2 to 16
    frames has none by that count, and the original's timesteps are then 0 or NaN: here it has those that the
    autoencoder gives, one for every 4 frames or fewer.

    ``dtype`` is what each step of the computation is rounded to, as in the original's scripts; None for none. fp16 does
    not hold so many pixels and is taken as fp32.
    """
    latents = frames // CHUNK * CHUNK_LATENTS or math.ceil(frames / 4)
    dtype = _of_sizes(dtype)
    if dtype is not None:
        down, across, length = (torch.tensor(float(each), dtype=dtype) for each in (height, width, latents))
        return float((down * across / REFERENCE_AREA).sqrt() * length.sqrt())
    return math.sqrt(height * width / REFERENCE_AREA) * math.sqrt(latents)


def _of_sizes(dtype: torch.dtype | None) -> torch.dtype | None:
    """The precision of sizes in a run of this one: fp16 holds numbers up to 65,504."""
    return torch.float32 if dtype == torch.float16 else dtype


def velocity_loss(
    velocity: Tensor,
    x_0: Tensor,
    noise: Tensor,
    *,
    frames: Tensor | None = None,
    importance: Tensor | None = None,
) -> Tensor:
    """The mean squared error of a velocity, (B,) (Liu et al. 2209.03003, eq. 1).

    Args:
        velocity: what the network predicts of eps - x_0, (B, C, ...).
        x_0: the clean sample (B, C, ...).
        noise: eps, the noise in x_t.
        frames: bool (B, T), the frames that count; None for all. A clip of which no frame counts has loss 0.
        importance: weights of the squared errors, broadcastable to x_0.
    """
    squared = (velocity - (noise - x_0)).square()
    return mean_of_frames(squared if importance is None else importance * squared, frames)
