"""Noise schedules of the discrete process: betas, the tables they imply, the levels, and respacing.

Tables are in float64.

Notation of Ho et al. 2020 and Nichol & Dhariwal 2021: alphas_cumprod[t] is the share of signal variance left after
step t. Tables have length T, the number of steps of *this* schedule; ``timestep_map`` says which original timestep
each step stands for, and that is what networks are told.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.broadcasting import per_sample
from ..core.errors import InputError, nearest, setting
from .level import CLEAN, DiscreteLevel, NoiseLevel
from .spacing import Explicit, Spacing, whole_timesteps

Table = NDArray[np.floating]
COEFFICIENTS = (
    "alphas_cumprod", "alphas_cumprod_prev", "alphas_cumprod_next", "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "log_betas", "posterior_variance",
    "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2", "fixed_large_variance",
    "fixed_large_log_variance",
)  # fmt: skip


def linear_betas(steps: int) -> Table:
    """Ho et al. 2020: 1e-4 to 0.02 over 1000 steps, scaled so that every length of at least 21 steps ends at
    about the same noise level."""
    if steps <= 20:
        raise InputError(f"a linear schedule of {steps} steps would reach a beta of {20 / steps:g}: give at least 21")
    scale = 1000 / steps
    return np.asarray(np.linspace(scale * 1e-4, scale * 0.02, steps), np.float64)


def cosine_betas(steps: int) -> Table:
    """Nichol & Dhariwal 2021, eq. 17: the cosine schedule, betas capped at 0.999."""

    def signal(at: float) -> float:
        return math.cos((at + 0.008) / 1.008 * math.pi / 2) ** 2

    return np.array([min(1 - signal((i + 1) / steps) / signal(i / steps), 0.999) for i in range(steps)])


MOST_TIMESTEPS = 100_000  # a hundred times as many as any known model has
NAMED = {"linear": linear_betas, "squaredcos_cap_v2": cosine_betas}


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """A discrete diffusion process."""

    betas: Table
    """Variance added by each step, (T,), in (0, 1)."""
    timestep_map: NDArray[np.int64]
    """Original timestep of each step, (T,), increasing."""
    num_original_timesteps: int
    """T of the schedule that this one was respaced from."""

    @classmethod
    def named(cls, name: str = "linear", num_timesteps: int = 1000) -> NoiseSchedule:
        """``"linear"``, of at least 21 steps, or ``"squaredcos_cap_v2"``, of any number up to ``MOST_TIMESTEPS``.

        Raises:
            InputError: another name, or too few or too many steps.
        """
        if name not in NAMED:
            raise InputError(f"noise schedule {name!r} does not exist{nearest(name, NAMED)}")
        if not 1 <= num_timesteps <= MOST_TIMESTEPS:
            raise InputError(
                f"a noise schedule of {num_timesteps} steps was asked for: it needs from 1 to {MOST_TIMESTEPS:,}"
            )
        return cls.from_betas(NAMED[name](num_timesteps))

    @classmethod
    def from_betas(cls, betas: Sequence[float] | Table) -> NoiseSchedule:
        """A schedule of given betas.

        Raises:
            InputError: they are no list of numbers above 0 and below 1.
        """
        table = np.asarray(betas, np.float64)
        if table.ndim != 1 or not len(table) or not ((table > 0) & (table < 1)).all():
            raise InputError("betas must be a non-empty list of numbers above 0 and below 1")
        return cls(table, np.arange(len(table)), len(table))

    def respaced(self, spec: str | int | Sequence[int]) -> NoiseSchedule:
        """The process seen at fewer of its steps, with the same marginals there (improved-diffusion's respacing).

        Args:
            spec: see ``space_timesteps``. ``""`` and T itself give this schedule.
        """
        return self._keeping(space_timesteps(len(self.betas), spec))

    def spaced_by(self, steps: int, spacing: Spacing) -> NoiseSchedule:
        """The process seen at the steps that a spacing places.

        Args:
            steps: how many steps, at most as many as there are.
            spacing: where they are.

        Raises:
            InputError: fewer than 1 step, more than there are, or explicit timesteps are other than whole numbers of
                this schedule, or not so many.
        """
        if not 1 <= steps <= len(self):
            raise InputError(f"a schedule was asked for {setting('steps')} {steps}: give 1 to {len(self)}")
        last = len(self) - 1
        if not isinstance(spacing, Explicit):
            return self._keeping(whole_timesteps(spacing.fractions(steps, self._noise), last))
        spacing.check(steps, last, whole=True)
        return self._keeping([round(timestep) for timestep in reversed(spacing.timesteps)])

    def times_spaced_by(self, steps: int, spacing: Spacing) -> list[float]:
        """The times of ``between`` at which a solver of continuous time begins its steps, and where it ends.

        The end is the schedule's first level, next to the data. Where listed timesteps begin the last step there, it is
        the data itself: 0.

        Raises:
            InputError: explicit timesteps lie outside of this schedule, or are not so many.
        """
        end = 1 / len(self)
        if not isinstance(spacing, Explicit):
            return [end + (1 - end) * float(each) for each in spacing.with_end(steps, self._noise)]
        spacing.check(steps, len(self) - 1)
        times = [(timestep + 1) / len(self) for timestep in spacing.timesteps]
        return [*times, end] if times[-1] > end else [*times, 0.0]

    def _keeping(self, kept: list[int]) -> NoiseSchedule:
        """The process at some of its steps, which are increasing."""
        if len(kept) == len(self.betas):
            return self
        signal = self.alphas_cumprod[kept]
        betas = 1 - signal / np.append(np.ones(1, signal.dtype), signal[:-1])
        return NoiseSchedule(betas, self.timestep_map[kept], self.num_original_timesteps)

    def is_same(self, other: object) -> bool:
        """Whether another schedule has the same noise levels."""
        return isinstance(other, NoiseSchedule) and np.array_equal(self.alphas_cumprod, other.alphas_cumprod)

    def single_precision(self) -> NoiseSchedule:
        """The schedule with every table computed in float32, as Open-Sora 1.1 to 1.3 do."""
        return NoiseSchedule(self.betas.astype(np.float32), self.timestep_map, self.num_original_timesteps)

    @cached_property
    def levels(self) -> tuple[DiscreteLevel, ...]:
        """Every level of the schedule, from noise to data, in the order in which samplers visit them."""
        entries = {name: table.unbind() for name, table in _tables(self, torch.device("cpu")).items()}
        found: list[DiscreteLevel] = []
        for step in range(len(self)):  # begin at the data: each level holds the one that is visited after it
            coefficients: dict[str, Any] = {name: entries[name][step] for name in COEFFICIENTS}
            level = DiscreteLevel(
                timestep=float(self.timestep_map[step]),
                alpha=float(self.sqrt_alphas_cumprod[step]),
                sigma=float(self.sqrt_one_minus_alphas_cumprod[step]),
                progress=self._progress(float(self.timestep_map[step])),
                next=found[-1] if found else CLEAN,
                step=step,
                steps=len(self),
                **coefficients,
            )
            found.append(level)
        return tuple(reversed(found))

    def at(self, step: Tensor, like: Tensor) -> DiscreteLevel:
        """A level for every sample of a batch.

        Args:
            step: indices into this schedule, long (B,).
            like: the batch (B, ...) that the numbers are to multiply; they are on its device.
        """
        tables = _tables(self, like.device)
        timestep = tables["timestep_map"][step]
        coefficients: dict[str, Any] = {name: per_sample(tables[name][step], like) for name in COEFFICIENTS}
        return DiscreteLevel(
            timestep=timestep,
            alpha=per_sample(tables["sqrt_alphas_cumprod"][step], like),
            sigma=per_sample(tables["sqrt_one_minus_alphas_cumprod"][step], like),
            progress=1 - timestep / self._last_timestep,
            step=step,
            steps=len(self),
            **coefficients,
        )

    def between(self, time: float) -> NoiseLevel:
        """The level at a continuous time in [1/T, 1], where step n of T has time (n + 1) / T.

        The logarithm of alpha and the timestep are linear between steps (Lu et al. 2206.00927, app. D.3). The level
        that comes next is not known, because a solver chooses its own times.
        """
        log_alpha = float(np.interp(time, self._times, self._log_alphas))
        timestep = float(np.interp(time * len(self) - 1, np.arange(len(self)), self.timestep_map.astype(np.float64)))
        sigma = math.sqrt(-math.expm1(2 * log_alpha))
        return NoiseLevel(timestep, math.exp(log_alpha), sigma, self._progress(timestep))

    @cached_property
    def _times(self) -> Table:
        return np.arange(1, len(self) + 1) / len(self)

    @cached_property
    def _log_alphas(self) -> Table:
        return 0.5 * np.log(self.alphas_cumprod)

    @cached_property
    def _noise(self) -> NDArray[np.float64]:
        """log(sigma / alpha) at every step."""
        signal = self.alphas_cumprod.astype(np.float64)
        return 0.5 * (np.log1p(-signal) - np.log(signal))

    @property
    def _last_timestep(self) -> int:
        return max(1, self.num_original_timesteps - 1)

    def _progress(self, timestep: float) -> float:
        return min(1.0, max(0.0, 1 - timestep / self._last_timestep))

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles hold: the fields alone. The chain of levels is too deep to copy."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __len__(self) -> int:
        return len(self.betas)

    @property
    def num_timesteps(self) -> int:
        return len(self.betas)

    @cached_property
    def alphas_cumprod(self) -> Table:
        return torch.as_tensor(1 - self.betas).cumprod(0).numpy()  # torch's float32 products are the ones to reproduce

    @cached_property
    def alphas_cumprod_prev(self) -> Table:
        return np.append(np.ones(1, self.betas.dtype), self.alphas_cumprod[:-1])

    @cached_property
    def alphas_cumprod_next(self) -> Table:
        return np.append(self.alphas_cumprod[1:], np.zeros(1, self.betas.dtype))

    @cached_property
    def sqrt_alphas_cumprod(self) -> Table:
        return _sqrt(self.alphas_cumprod)

    @cached_property
    def sqrt_one_minus_alphas_cumprod(self) -> Table:
        return _sqrt(1 - self.alphas_cumprod)

    @cached_property
    def log_one_minus_alphas_cumprod(self) -> Table:
        return _log(1 - self.alphas_cumprod)

    @cached_property
    def sqrt_recip_alphas_cumprod(self) -> Table:
        return _sqrt(1 / self.alphas_cumprod)

    @cached_property
    def sqrt_recipm1_alphas_cumprod(self) -> Table:
        return _sqrt(1 / self.alphas_cumprod - 1)

    @cached_property
    def posterior_variance(self) -> Table:
        """Ho et al. 2020, eq. 7."""
        return self.betas * (1 - self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)

    @cached_property
    def posterior_log_variance_clipped(self) -> Table:
        """Logarithm of posterior_variance; at the first step, where that is 0, the second step's."""
        variance = self.posterior_variance
        return _log(np.concatenate([variance[1:2], variance[1:]]) if len(variance) > 1 else self.betas)

    @cached_property
    def posterior_mean_coef1(self) -> Table:
        return self.betas * _sqrt(self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)

    @cached_property
    def posterior_mean_coef2(self) -> Table:
        return (1 - self.alphas_cumprod_prev) * _sqrt(1 - self.betas) / (1 - self.alphas_cumprod)

    @cached_property
    def log_betas(self) -> Table:
        return _log(self.betas)

    @cached_property
    def fixed_large_variance(self) -> Table:
        """Beta as variance, Ho et al. 2020, sec. 3.2, first choice; at the first step the second's posterior."""
        return np.concatenate([self.posterior_variance[1:2], self.betas[1:]]) if len(self.betas) > 1 else self.betas

    @cached_property
    def fixed_large_log_variance(self) -> Table:
        return _log(self.fixed_large_variance)


def _sqrt(table: Table) -> Table:
    """The root; in float32 as torch rounds it, which is what the originals of such tables did."""
    return np.sqrt(table) if table.dtype == np.float64 else torch.as_tensor(table).sqrt().numpy()


def _log(table: Table) -> Table:
    """The logarithm, rounded as in ``_sqrt``."""
    return np.log(table) if table.dtype == np.float64 else torch.as_tensor(table).log().numpy()


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # they also serve training, whatever mode they are made in
def _tables(schedule: NoiseSchedule, device: torch.device) -> dict[str, Tensor]:
    """The tables that levels are made of, on a device: fp32 (T,); ``timestep_map`` is long."""
    names = ("sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod", *COEFFICIENTS)
    found = {name: torch.tensor(getattr(schedule, name), dtype=torch.float32, device=device) for name in names}
    return found | {"timestep_map": torch.tensor(schedule.timestep_map, dtype=torch.long, device=device)}


def space_timesteps(num_timesteps: int, spec: str | int | Sequence[int]) -> list[int]:
    """Which of T timesteps to keep, in OpenAI's notation, increasing.

    ``"100"`` keeps 100 evenly spaced ones; ``"10,15,20"`` cuts T into three sections and keeps that many of each;
    ``"ddim50"`` keeps every n-th, for the whole n that gives 50; ``""`` keeps all.

    Raises:
        InputError: the spec cannot be read, or asks for more steps than there are.
    """
    given = repr(spec)
    if isinstance(spec, str) and spec.strip().startswith("ddim"):
        return _strided(num_timesteps, _count(spec.strip()[4:], given), given)
    if isinstance(spec, str):
        counts = [_count(part, given) for part in spec.split(",")] if spec.strip() else [num_timesteps]
    else:
        counts = [_count(part, given) for part in ([spec] if isinstance(spec, int) else spec)]
    if not counts:
        raise InputError(f"respacing {given} keeps no steps: give a number from 1 to {num_timesteps}")
    size, longer = divmod(num_timesteps, len(counts))
    start, kept = 0, list[int]()
    for k, count in enumerate(counts):
        length = size + (k < longer)
        if count > length:
            if isinstance(spec, int):
                raise InputError(f"{setting('steps')} {spec} is more than the model has: give at most {length}")
            where = "" if len(counts) == 1 else f" in section {k + 1}"
            raise InputError(
                f"respacing {given} asks for {count} steps{where} where there are {length}: ask for at most {length}"
            )
        stride = 1.0 if count == 1 else (length - 1) / (count - 1)
        position = 0.0
        # accumulated, not multiplied: the published checkpoints were sampled with these roundings
        for _ in range(count):
            kept.append(start + round(position))
            position += stride
        start += length
    return kept


def _strided(num_timesteps: int, count: int, given: str) -> list[int]:
    for stride in range(1, num_timesteps + 1):
        kept = range(0, num_timesteps, stride)
        if len(kept) == count:
            return list(kept)
    raise InputError(
        f"respacing {given}: no whole stride through {num_timesteps} timesteps gives {count} steps: try '{count}'"
    )


def _count(part: str | int, given: str) -> int:
    try:
        number = int(part)
    except ValueError:
        number = 0
    if number < 1 or isinstance(part, bool):
        raise InputError(
            f"respacing {given} cannot be read: give a number of steps (at least 1), '10,15,20', or 'ddim50'"
        )
    return number
