"""Heun's method on rectified flow: Euler's step, corrected by the velocity where it ends (Karras et al. 2206.00364,
algorithm 1)."""

from __future__ import annotations

from torch import Tensor

from ..core.progress import OnStep
from ..diffusion import FlowPath, Process
from .contract import AfterStep, Denoiser, Noise, checked
from .euler import euler_step, velocity
from .frames import FrameMask


def sample_heun(
    denoiser: Denoiser,
    path: FlowPath,
    x: Tensor,
    noise: Noise,
    *,
    process: Process = Process("flow"),
    on_step: OnStep | None = None,
    after_step: AfterStep | None = None,
    frames: FrameMask | None = None,
) -> Tensor:
    """From noise x (B, C, ...) to x_0 through every level of the path: two evaluations a step, of second order.

    The last step, which ends at the data, is Euler's. Only a frame mask draws noise.

    Raises:
        InputError: a prediction is not finite, or the frame mask does not fit.
    """
    predict, last = checked(denoiser), None
    for done, level in enumerate(path.levels, 1):
        before, after = x, level.next
        assert after is not None  # the data comes after the last level
        if frames is not None:
            x, level = frames.begin(x, level, noise, last)
            last = level
        here = velocity(predict(x, level), x, level, process)
        ahead = euler_step(here, x, level, after)
        if after.sigma:
            corrected = after
            if frames is not None:  # frames that are kept are shown as they are, there too
                ahead, corrected = frames.begin(frames.end(before, ahead, level), after, noise, last)
            there = velocity(predict(ahead, corrected), ahead, corrected, process)
            ahead = euler_step((here + there) / 2, x, level, after)
        x = ahead if frames is None else frames.end(before, ahead, level)
        if after_step:
            x = after_step(done - 1, level, x)
        if on_step:
            on_step(done, len(path))
    predict.finish()
    return x
