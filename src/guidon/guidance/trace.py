"""What guidance did: per sample, step, channel and frame, how far apart the two branches were."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..core.errors import InputError
from ..diffusion import convert
from .combine import GuidedStep
from .rotation import rotate


def added_energy(arrays: Mapping[str, NDArray[np.float64]]) -> float:
    """What plain guidance added to the predictions: the sum of ((scale - 1) ||cond - uncond||)^2.

    ``arrays`` are a trace's, not by frame.
    """
    return float((((arrays["scale"] - 1) * arrays["difference"]) ** 2).sum())


class GuidanceTrace:
    """An observer of one run that collects norms. Nothing but ``keep_x0``'s latents leaves the device before the trace
    is read.

    Steps at which the unconditional branch did not run leave no entry; ``as_arrays()["timestep"]`` says which did.

    Args:
        keep_x0: also keep both branches' x_0 of every step, on the CPU: two more copies of the latents a step.
    """

    def __init__(self, *, keep_x0: bool = False) -> None:
        self.keep_x0 = keep_x0
        self._progress = -math.inf
        self._timesteps: list[float] = []
        self._scales: list[tuple[float, ...]] = []
        self._products: list[Tensor] = []
        self._x0: list[Tensor] = []

    def __call__(self, step: GuidedStep) -> None:
        """Note one step. Norms are of the channels that are chosen from: the rotated ones where there is a rotation.

        Raises:
            InputError: the step belongs to another run.
        """
        progress = float(step.level.progress)
        if progress < self._progress:  # it may stay: schedulers of higher order visit a level twice
            raise InputError("a trace holds one run, and this one has seen another: use a new one")
        self._progress = progress
        branches = step.cond, step.uncond
        if self.keep_x0:
            kept = [convert(branch, step.x, step.level, step.parameterization, "x0") for branch in branches]
            self._x0.append(torch.stack(kept).cpu())
        frames = step.cond.shape[2] if step.cond.ndim == 5 else 1
        chosen_from = branches if step.rotation is None else [rotate(branch, step.rotation) for branch in branches]
        c, u = (branch.reshape(*branch.shape[:2], frames, -1) for branch in chosen_from)  # (B, C, T, H W)
        d = c - u
        self._timesteps.append(float(step.level.timestep))
        self._scales.append(step.scale.scales)
        self._products.append(torch.stack([d.square().sum(3), c.square().sum(3), (c * d).sum(3)]))

    def __len__(self) -> int:
        return len(self._products)

    def add_samples(self, other: GuidanceTrace) -> None:
        """Put the samples of another run's trace beside those of this one: the same steps on other clips.

        Raises:
            InputError: the runs were guided at other steps.
        """
        if not len(self):
            self._progress, self._timesteps, self._scales = other._progress, other._timesteps, other._scales
            self._products, self._x0 = other._products, other._x0
            return
        if (self._timesteps, self._scales) != (other._timesteps, other._scales):
            raise InputError("two runs were guided at other steps: trace each of them by itself")
        self._products = [torch.cat(pair, 1) for pair in zip(self._products, other._products, strict=True)]
        self._x0 = [torch.cat(pair, 1) for pair in zip(self._x0, other._x0, strict=True)]

    def keep_samples(self, count: int) -> None:
        """Keep the first ``count`` samples, and forget the others."""
        self._products = [each[:, :count] for each in self._products]
        self._x0 = [each[:, :count] for each in self._x0]

    def forget(self) -> None:
        """Forget every step, so that the run can be made again from its start."""
        self._progress = -math.inf
        for steps in (self._timesteps, self._scales, self._products, self._x0):
            steps.clear()

    def as_arrays(self, *, by_frame: bool = False) -> dict[str, NDArray[np.float64]]:
        """The trace as arrays.

        ``difference`` is ||cond - uncond||, ``cond`` is ||cond|| and ``cosine`` is cos(cond - uncond, cond), each
        (samples, steps, channels), with ``by_frame`` (samples, steps, channels, frames). ``timestep`` is (steps,).
        ``scale``, the one in effect, is (steps, channels).
        """
        products = torch.stack(self._products).double().cpu() if self._products else torch.zeros(0, 3, 0, 0, 0)
        products = products if by_frame else products.sum(-1)  # (steps, 3, B, C[, T])
        d2, c2, cd = (products[:, k].transpose(0, 1) for k in range(3))
        cosine = cd / (d2 * c2).sqrt().clamp_min(1e-12)
        arrays = {"difference": d2.sqrt(), "cond": c2.sqrt(), "cosine": cosine}
        return {name: np.ascontiguousarray(value.numpy()) for name, value in arrays.items()} | {
            "timestep": np.array(self._timesteps),
            "scale": np.array(self._scales),
        }

    @property
    def x0(self) -> tuple[Tensor, Tensor]:
        """Both branches' x_0, cond's and uncond's, (steps, samples, C, ...); only with ``keep_x0``."""
        if not self._x0:
            raise ValueError("no x_0 was kept: make the trace with keep_x0=True, and guide at least one step")
        cond, uncond = torch.stack(self._x0).unbind(1)
        return cond, uncond
