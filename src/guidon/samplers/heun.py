"""Heun's method on rectified flow: Euler's step, corrected by the velocity where it ends (Karras et al. 2206.00364,
algorithm 1)."""

from __future__ import annotations

from torch import Tensor

from ..core.progress import OnStep
from ..diffusion import FlowPath, Process
from .contract import AfterStep, Denoiser, Noise, checked
from .euler import euler_step, velocity


def sample_heun(
    denoiser: Denoiser,
    path: FlowPath,
    x: Tensor,
    noise: Noise,
    *,
    process: Process = Process("flow"),
    on_step: OnStep | None = None,
    after_step: AfterStep | None = None,
) -> Tensor:
    """From noise x (B, C, ...) to x_0 through every level of the path: two evaluations a step, of second order.

    The last step, which ends at the data, is Euler's. No noise is drawn.

    Raises:
        InputError: a prediction is not finite.
    """
    predict = checked(denoiser)
    for done, level in enumerate(path.levels, 1):
        after = level.next
        assert after is not None  # the data comes after the last level
        here = velocity(predict(x, level), x, level, process)
        ahead = euler_step(here, x, level, after)
        if after.sigma:
            there = velocity(predict(ahead, after), ahead, after, process)
            ahead = euler_step((here + there) / 2, x, level, after)
        x = ahead
        if after_step:
            x = after_step(done - 1, level, x)
        if on_step:
            on_step(done, len(path))
    predict.finish()
    return x
