"""How noisy the latents of a diffusers pipeline are at every step of a run, as its scheduler says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from math import sqrt
from typing import Any

from torch import Tensor

from ...diffusion import NoiseLevel, Parameterization

DETERMINISTIC = (
    "DDIMScheduler", "DDIMParallelScheduler", "CogVideoXDDIMScheduler", "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
)  # fmt: skip
"""First-order schedulers that add no noise. Their levels know the one that comes next."""

_PREDICTED: dict[str, Parameterization] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
_UNKNOWN = float("nan")


@dataclass(frozen=True, eq=False)
class RunLevels:
    """The levels that one run of a scheduler visits."""

    levels: tuple[NoiseLevel, ...]
    """One a step, of the latents that the network is given. alpha and sigma are NaN where the scheduler is unknown."""
    parameterization: Parameterization | None
    """What the scheduler takes the network's output for; None where the scheduler is unknown."""
    sign: int
    """-1 where the scheduler expects that prediction with the opposite sign."""

    @classmethod
    def of(cls, scheduler: Any) -> RunLevels:
        """The levels of a diffusers scheduler after its ``set_timesteps``."""
        config, timesteps = scheduler.config, scheduler.timesteps.tolist()
        predicted, name = str(config.get("prediction_type", "epsilon")), type(scheduler).__name__
        given, products = getattr(scheduler, "sigmas", None), getattr(scheduler, "alphas_cumprod", None)
        between = hasattr(scheduler, "sigmas_interpol")  # KDPM2's steps in between are in another list
        sigmas: list[float] = given.tolist() if isinstance(given, Tensor) and not between else []
        parameterization, sign = _PREDICTED.get(predicted), 1
        straight = name.startswith("FlowMatch") or predicted == "flow_prediction" or config.get("use_flow_sigmas")
        if sigmas and straight:
            # rectified flow: x = (1 - sigma) x_0 + sigma eps. Mochi counts from 0 and predicts x_0 - eps;
            # Cosmos 2 counts sigma / alpha, up to 80
            parameterization = "flow"
            if max(sigmas) > 1.001:
                sigmas = [sigma / (1 + sigma) for sigma in sigmas]
            sigmas = [min(sigma, 1.0) for sigma in sigmas]  # float32 may round the first to 1.0000004
            if config.get("invert_sigmas", False):
                sigmas, sign = [1 - sigma for sigma in sigmas], -1
            points = [(1 - sigma, sigma, 1 - sigma) for sigma in sigmas]
        elif sigmas and name.startswith("EDM"):
            # Karras et al. 2206.00364, table 1: in units of sigma_data, x_t is variance preserving and the output is -v
            data = float(config.get("sigma_data", 0.5))
            parameterization, sign = "v", 1 if predicted == "v_prediction" else -1
            lengths = [sqrt(sigma**2 + data**2) for sigma in sigmas]
            points = [
                (data / length, sigma / length, 1 - sigma / length)
                for sigma, length in zip(sigmas, lengths, strict=True)
            ]
        elif isinstance(products, Tensor) and parameterization is not None:
            # variance preserving; sigmas, where the scheduler has them, are sigma / alpha
            table: list[float] = products.tolist()
            kept = [1 / (1 + sigma**2) for sigma in sigmas] or [_between(table, timestep) for timestep in timesteps]
            if len(kept) == len(timesteps):
                kept.append(float(getattr(scheduler, "final_alpha_cumprod", 1.0)))
            visited = timesteps
            if config.get("timestep_type") == "continuous":  # its timesteps are log(sigma) / 4
                visited = [min(range(len(table)), key=lambda k: abs(table[k] - share)) for share in kept[:-1]]
            progress = [*(1 - timestep / (len(table) - 1) for timestep in visited), 1.0]
            points = [(sqrt(share), sqrt(1 - share), p) for share, p in zip(kept, progress, strict=False)]
        else:
            parameterization = None
            points = [(_UNKNOWN, _UNKNOWN, k / len(timesteps)) for k in range(len(timesteps))]
        levels = [NoiseLevel(t, *point) for t, point in zip([*timesteps, 0.0], points, strict=False)]
        noisy = config.get("stochastic_sampling", False)
        if name in DETERMINISTIC and not noisy and len(levels) > len(timesteps):
            levels = [replace(level, next=after) for level, after in pairwise(levels)]
        return cls(tuple(levels[: len(timesteps)]), parameterization, sign)

    def step(self, scheduler: Any, timestep: Tensor | float | None) -> int:
        """The number of the scheduler's present step, from 0.

        Args:
            scheduler: the scheduler.
            timestep: the present one. It decides in the first step of a run that begins in the middle of its schedule,
                and in schedulers that do not count their steps.
        """
        counts = hasattr(scheduler, "step_index")
        counted = scheduler.step_index if counts else None
        if counted is None:  # the first step
            counted = getattr(scheduler, "begin_index", None)
        if counted is None and timestep is not None:
            value = float(timestep.flatten()[0]) if isinstance(timestep, Tensor) else float(timestep)
            far = [abs(float(level.timestep) - value) for level in self.levels]
            # schedulers that count look for the very timestep, and take the second where two are at one
            exact = [k for k, distance in enumerate(far) if distance == 0][:2] or [0]
            counted = exact[-1] if counts else far.index(min(far))
        return min(int(counted or 0), len(self.levels) - 1)


def _between(table: list[float], timestep: float) -> float:
    """The entry at a timestep, which may lie between whole numbers."""
    low = min(max(int(timestep), 0), len(table) - 1)
    high = min(low + 1, len(table) - 1)
    return table[low] + (timestep - low) * (table[high] - table[low])
