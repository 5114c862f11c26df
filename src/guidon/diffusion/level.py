"""The noise level of a latent: what samplers visit, and what networks and guidance are told.

A ``NoiseSchedule`` yields the levels from noise to data.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class NoiseLevel:
    """How noisy x_t is: x_t = alpha x_0 + sigma eps.

    Numbers are floats where the whole batch shares the level. In training every sample has a level of its own: then
    ``timestep`` is (B,), and ``alpha`` and ``sigma`` are shaped to multiply the batch, (B, 1, ...).
    """

    timestep: float | Tensor
    """The original timestep, which is passed to the network. It may lie between whole numbers."""
    alpha: float | Tensor
    """How much of the clean sample is left, in [0, 1]."""
    sigma: float | Tensor
    """How much noise there is, at least 0."""
    progress: float | Tensor
    """How far sampling has come: 0 at pure noise, 1 at the data, linear in the timestep."""
    next: NoiseLevel | None = field(default=None, repr=False)
    """The level that is visited after this one, nearer to the data. None where it is not known."""
    noisy: Tensor | None = field(default=None, repr=False)
    """(B, T), True where a frame is at this level; the other frames are clean. None: all frames are at this level.
    A network reads it for a batch of whole copies of these B rows."""

    @property
    def shown(self) -> str:
        """The timestep as text for people: of the first sample, where every sample has its own."""
        return f"{self.timestep.flatten()[0].item() if isinstance(self.timestep, Tensor) else self.timestep:g}"

    @property
    def steps_left(self) -> int | None:
        """How many steps are left from this level to the data; None where the levels after it are not known."""
        level, count = self, 0
        while level.next is not None:
            level, count = level.next, count + 1
        return count if level is CLEAN else None

    def timesteps(self, x: Tensor) -> Tensor:
        """The timestep of every sample of x, (B,), on x's device: fp32 where the batch shares the level."""
        if isinstance(self.timestep, Tensor):
            return self.timestep
        return torch.full((len(x),), self.timestep, device=x.device, dtype=torch.float32)


CLEAN = NoiseLevel(timestep=0.0, alpha=1.0, sigma=0.0, progress=1.0)
"""The data itself."""


@dataclass(frozen=True, eq=False)
class DiscreteLevel(NoiseLevel):
    """A level of a discrete schedule, with the coefficients of the process at its step.

    The coefficients are entries of the schedule's tables in fp32: a scalar tensor, or (B, 1, ...) where every sample
    has a level of its own. They keep the originals' rounding, which alpha and sigma alone would not. The notation is
    that of Ho et al. 2020: alphas_cumprod is the share of signal variance.
    """

    step: int | Tensor = field(kw_only=True)
    """Index into the schedule, 0 next to the data; (B,) where every sample has its own."""
    steps: int = field(kw_only=True)
    """How many steps the schedule has."""
    alphas_cumprod: Tensor = field(kw_only=True)
    alphas_cumprod_prev: Tensor = field(kw_only=True)
    """At the step before in the schedule, nearer to the data; 1 at step 0."""
    alphas_cumprod_next: Tensor = field(kw_only=True)
    """At the step after in the schedule, nearer to the noise; 0 at the last step."""
    log_one_minus_alphas_cumprod: Tensor = field(kw_only=True)
    sqrt_recip_alphas_cumprod: Tensor = field(kw_only=True)
    sqrt_recipm1_alphas_cumprod: Tensor = field(kw_only=True)
    log_betas: Tensor = field(kw_only=True)
    posterior_variance: Tensor = field(kw_only=True)
    posterior_log_variance_clipped: Tensor = field(kw_only=True)
    posterior_mean_coef1: Tensor = field(kw_only=True)
    """Weight of x_0 in the posterior mean."""
    posterior_mean_coef2: Tensor = field(kw_only=True)
    """Weight of x_t in the posterior mean."""
    fixed_large_variance: Tensor = field(kw_only=True)
    fixed_large_log_variance: Tensor = field(kw_only=True)

    @property
    def reaches_data(self) -> bool | Tensor:
        """Whether this step reaches the data; (B,) where every sample has a level of its own."""
        return self.step == 0
