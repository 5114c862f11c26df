"""Euler's method on rectified flow: straight steps along the velocity (Liu et al. 2209.03003, sec. 2.1)."""

from __future__ import annotations

from torch import Tensor

from ..core.broadcasting import at_least_single
from ..core.progress import OnStep
from ..diffusion import FlowLevel, FlowPath, NoiseLevel, Process, convert, split_prediction
from .contract import AfterStep, Denoiser, Noise, checked
from .frames import FrameMask
from .walk import walk


def velocity(prediction: Tensor, x: Tensor, level: NoiseLevel, process: Process) -> Tensor:
    """eps - x_0, (B, C, ...), by a prediction (B, C or 2C, ...) of x at a level. A learned variance is not used."""
    output, _ = split_prediction(prediction, x.shape[1])
    return convert(output, x, level, process.parameterization, "flow")


def euler_step(velocity: Tensor, x: Tensor, level: NoiseLevel, after: NoiseLevel) -> Tensor:
    """x at the level after, along dx/dsigma = eps - x_0; at least in fp32."""
    return at_least_single(x) + (after.sigma - level.sigma) * velocity


def sample_euler(
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
    """From noise x (B, C, ...) to x_0 through every level of the path, one evaluation a step.

    Only a frame mask draws noise.

    Raises:
        InputError: a prediction is not finite, or the frame mask does not fit.
    """
    predict = checked(denoiser)

    def step(x: Tensor, level: FlowLevel, _: int) -> Tensor:
        assert level.next is not None  # the data comes after the last level
        return euler_step(velocity(predict(x, level), x, level, process), x, level, level.next)

    return walk(predict, path.levels, x, noise, step, on_step=on_step, after_step=after_step, frames=frames)
