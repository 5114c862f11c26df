"""UniPC (Zhao et al. 2302.04867): a predictor of the diffusion ODE, corrected by the next step's prediction at no cost.

It predicts the data, with B(h) = exp(h) - 1, in multistep form and second order, which its authors advise under
guidance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from torch import Tensor

from ..core.broadcasting import at_least_single
from ..core.progress import OnStep
from ..diffusion import NoiseLevel, NoiseSchedule, Process, Spacing
from ..diffusion.spacing import UNIFORM
from .contract import AfterStep, Denoiser, Noise, checked
from .dpm_solver import Past, half_log_snr, levels_of, predicted_data
from .frames import FrameMask
from .walk import walk


@dataclass(frozen=True, eq=False)
class _Step(Past):
    """A step, with what it began with."""

    x: Tensor = field(kw_only=True)

    def to(self, after: NoiseLevel) -> tuple[float, Tensor]:
        """The length of a step to a level, and where it leads at first order."""
        h = half_log_snr(after) - half_log_snr(self.level)
        return h, (after.sigma / self.level.sigma) * self.x - after.alpha * math.expm1(-h) * self.x_0


def sample_unipc(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    x: Tensor,
    noise: Noise,
    *,
    process: Process = Process(),
    on_step: OnStep | None = None,
    after_step: AfterStep | None = None,
    frames: FrameMask | None = None,
    steps: int = 20,
    spacing: Spacing = UNIFORM,
) -> Tensor:
    """From noise x (B, C, ...) to x_0 in ``steps`` evaluations. Only a frame mask draws noise.

    Pass the full schedule, not a respaced one. The last step is of first order and ends at the data, as the first one
    is, and the one at which a frame joins for that frame. Where ``after_step`` changed the sample, the step that led
    there is not corrected, and the next one is of first order. ``spacing`` places the steps.

    Raises:
        InputError: fewer than 1 step, more than the schedule has, a prediction is not finite, or the frame mask or the
            spacing does not fit.
    """
    predict = checked(denoiser)
    levels = levels_of(schedule, steps, spacing, to_data=True)
    last: _Step | None = None
    earlier: _Step | None = None

    def step(x: Tensor, level: NoiseLevel, k: int) -> Tensor:
        nonlocal last, earlier
        after = levels[k + 1]
        x_0 = predicted_data(predict(x, level), x, level, process)
        if last is not None:  # what is predicted here corrects the step that led here (alg. 1, UniC)
            x = last.known(_corrected(last, earlier, level, x_0), x)
        here = _Step(level, x_0, x=x)
        h, x = here.to(after)
        if after.sigma and last is not None:  # eq. 3 of second order, UniP
            slope = (x_0 - last.x_0) * (h / (half_log_snr(level) - half_log_snr(last.level)))
            x = last.known(x - 0.5 * after.alpha * math.expm1(-h) * slope, x)
        last, earlier = here, last
        return x

    def change(changed: Tensor) -> None:
        nonlocal last
        last = None if last is None else replace(last, changed=changed)

    return walk(
        predict, levels[:-1], at_least_single(x), noise, step,
        on_step=on_step, after_step=after_step, frames=frames, on_change=change,
    )  # fmt: skip


def _corrected(last: _Step, earlier: _Step | None, level: NoiseLevel, x_0: Tensor) -> Tensor:
    """The sample at a level, by the prediction there and those of the steps before."""
    h, straight = last.to(level)
    ahead = x_0 - last.x_0
    scale = level.alpha * math.expm1(-h)
    first = straight - 0.5 * scale * ahead
    if earlier is None:
        return first
    r = (half_log_snr(earlier.level) - half_log_snr(last.level)) / h  # below 0
    back = (earlier.x_0 - last.x_0) / r
    # the weights for which the step is of third order: sum a = b_1, a_back r + a_ahead = b_2
    b_1 = (math.expm1(-h) / -h - 1) / math.expm1(-h)
    b_2 = 2 * ((math.expm1(-h) / -h - 1) / -h - 0.5) / math.expm1(-h)
    of_back = (b_1 - b_2) / (1 - r)
    second = straight - scale * (of_back * back + (b_1 - of_back) * ahead)
    return earlier.known(second, first)
