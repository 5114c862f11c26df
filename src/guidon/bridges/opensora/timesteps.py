"""How training draws its timesteps, by importance (Nichol & Dhariwal 2021, sec. 3.3).

A sampler draws from numpy's global generator, as the originals do, so that their seeds reproduce.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from ...core.errors import InputError, nearest


class _Steps(Protocol):
    """A diffusion process."""

    @property
    def num_timesteps(self) -> int: ...


class ScheduleSampler(ABC):
    """A distribution over timesteps."""

    @abstractmethod
    def weights(self) -> NDArray[np.float64]:
        """The unnormalised probability of every timestep, (T,), above 0."""

    def sample(self, batch_size: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
        """Timesteps (B,), long, and the weights (B,), fp32, of their losses, which leave the mean loss as it is."""
        weights = self.weights()
        p = weights / weights.sum()
        drawn = np.random.choice(len(p), size=(batch_size,), p=p)  # noqa: NPY002
        of_losses = 1 / (len(p) * p[drawn])
        return torch.from_numpy(drawn).long().to(device), torch.from_numpy(of_losses).float().to(device)


class UniformSampler(ScheduleSampler):
    """Every timestep is as likely as another.

    Args:
        diffusion: the process, such as an ``IDDPM``.
    """

    def __init__(self, diffusion: _Steps) -> None:
        self.diffusion = diffusion

    def weights(self) -> NDArray[np.float64]:
        return np.ones(self.diffusion.num_timesteps)


class LossAwareSampler(ScheduleSampler):
    """A distribution that follows the losses of training."""

    def update_with_local_losses(self, local_ts: Tensor, local_losses: Tensor) -> None:
        """Note the losses (B,) of timesteps (B,). All processes of a distributed training note those of all.

        Call it in every process, with any number of losses.
        """
        timesteps, losses = local_ts.tolist(), local_losses.tolist()
        if dist.is_available() and dist.is_initialized():
            of_all: list[tuple[list[int], list[float]]] = [([], [])] * dist.get_world_size()
            dist.all_gather_object(of_all, (timesteps, losses))
            timesteps = [t for ts, _ in of_all for t in ts]
            losses = [loss for _, some in of_all for loss in some]
        self.update_with_all_losses(timesteps, losses)

    @abstractmethod
    def update_with_all_losses(self, ts: Sequence[int], losses: Sequence[float]) -> None:
        """Note one loss for each of these timesteps, in their order."""


class LossSecondMomentResampler(LossAwareSampler):
    """A timestep is as likely as the root of its mean squared loss (Nichol & Dhariwal 2021, eq. 18).

    As long as some timestep has too few losses, all are as likely as another.

    Args:
        diffusion: the process, such as an ``IDDPM``.
        history_per_term: how many of the last losses of a timestep count.
        uniform_prob: the share of draws in which all timesteps are as likely as another.
    """

    def __init__(self, diffusion: _Steps, history_per_term: int = 10, uniform_prob: float = 0.001) -> None:
        self.diffusion, self.history_per_term, self.uniform_prob = diffusion, history_per_term, uniform_prob
        self._last = [list[float]() for _ in range(diffusion.num_timesteps)]

    def weights(self) -> NDArray[np.float64]:
        steps = self.diffusion.num_timesteps
        if any(len(losses) < self.history_per_term for losses in self._last):
            return np.ones(steps)
        roots = np.sqrt(np.square(self._last).mean(axis=1))
        return roots / roots.sum() * (1 - self.uniform_prob) + self.uniform_prob / steps

    def update_with_all_losses(self, ts: Sequence[int], losses: Sequence[float]) -> None:
        for t, loss in zip(ts, losses, strict=True):
            self._last[t] = [*self._last[t], loss][-self.history_per_term :]


SAMPLERS = {"uniform": UniformSampler, "loss-second-moment": LossSecondMomentResampler}


def create_named_schedule_sampler(name: str, diffusion: _Steps) -> ScheduleSampler:
    """``"uniform"`` or ``"loss-second-moment"``, over the timesteps of a process such as an ``IDDPM``.

    Raises:
        InputError: there is none of that name.
    """
    if name not in SAMPLERS:
        raise InputError(f"the timestep sampler {name!r} does not exist{nearest(name, SAMPLERS)}")
    return SAMPLERS[name](diffusion)
