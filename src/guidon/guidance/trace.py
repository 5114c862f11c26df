"""What guidance did: per sample, step and channel, how far apart the two branches were."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class GuidanceTrace:
    """Collects norms while sampling runs; nothing leaves the device before it is read.

    Steps at which the unconditional branch did not run leave no entry: ``as_arrays()["timestep"]`` says which did.
    """

    def __init__(self) -> None:
        self._timesteps: list[float] = []
        self._scales: list[tuple[float, ...]] = []
        self._norms: list[Tensor] = []

    def record(self, timestep: float, scales: tuple[float, ...], cond: Tensor, uncond: Tensor) -> None:
        """Note one guided step; cond and uncond are the eps of every channel, (B, C, ...)."""
        c, u = cond.flatten(2), uncond.flatten(2)
        difference, size, other = (x.square().sum(2).sqrt() for x in (c - u, c, u))
        cosine = (c * u).sum(2) / (size * other).clamp_min(1e-12)
        self._timesteps.append(timestep)
        self._scales.append(scales)
        self._norms.append(torch.stack([difference, size, cosine]))

    def __len__(self) -> int:
        return len(self._norms)

    def as_arrays(self) -> dict[str, NDArray[np.float64]]:
        """``difference`` ||cond - uncond||, ``cond`` ||cond|| and ``cosine`` cos(cond, uncond), each (samples, steps,
        channels); ``timestep`` (steps,); ``scale``, the effective one, (steps, channels)."""
        norms = torch.stack(self._norms).double().cpu().numpy() if self._norms else np.zeros((0, 3, 0, 0))
        names = ("difference", "cond", "cosine")
        arrays = {name: np.ascontiguousarray(norms[:, k].swapaxes(0, 1)) for k, name in enumerate(names)}
        return arrays | {"timestep": np.array(self._timesteps), "scale": np.array(self._scales)}
