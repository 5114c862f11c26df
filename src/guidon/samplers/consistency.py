"""Multistep consistency sampling (Song et al. 2303.01469, algorithm 1): every step adds new noise to what it predicts.

It is for networks that predict a clean sample well in a few steps, as distilled ones do. What a step drew wrong is
hidden by noise that does not know of it, as in training. While noise hides the sample, the same noise is kept (DDIM at
eta 0): it has decided already what is drawn, and new noise would decide anew.
"""

from __future__ import annotations

from torch import Tensor

from ..core.broadcasting import at_least_single
from ..core.progress import OnStep
from ..diffusion import DiscreteLevel, NoiseSchedule, Process, predicted_x0, split_prediction
from .contract import AfterStep, Denoiser, Noise, checked
from .ddim import ddim_towards
from .frames import FrameMask
from .walk import walk

HIDDEN = 0.15
"""Noise hides a sample where alpha, its share in x_t, is below this."""


def sample_consistency(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x: Tensor,
    noise: Noise,
    *,
    process: Process = Process(),
    on_step: OnStep | None = None,
    after_step: AfterStep | None = None,
    frames: FrameMask | None = None,
) -> Tensor:
    """From noise x (B, C, ...) to x_0, through every level of the schedule.

    Raises:
        InputError: a prediction is not finite, or the frame mask does not fit.
    """
    predict = checked(denoiser)

    def step(x: Tensor, level: DiscreteLevel, _: int) -> Tensor:
        x = at_least_single(x)
        x_0 = predicted_x0(split_prediction(predict(x, level), x.shape[1])[0], x, level, process)
        drawn = noise(x)  # at every step, whether it is used or not
        if float(level.alphas_cumprod.max()) < HIDDEN**2:
            return ddim_towards(x_0, x, level, None, 0.0)
        next_signal = level.alphas_cumprod_prev
        return next_signal.sqrt() * x_0 + (1 - next_signal).sqrt() * drawn

    return walk(predict, schedule.levels, x, noise, step, on_step=on_step, after_step=after_step, frames=frames)
