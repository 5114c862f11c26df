"""Samplers: a denoiser, a schedule and noise give x_0. They know no model and no guidance."""

from typing import TYPE_CHECKING

from ..core.lazy import imported_later
from .contract import (
    CLIPS_TOGETHER,
    SAMPLERS,
    WHOLE,
    AfterStep,
    CheckedDenoiser,
    Denoiser,
    Noise,
    PathName,
    SamplerName,
    checked,
)

if TYPE_CHECKING:
    from .consistency import sample_consistency
    from .ddim import ddim_away, ddim_reverse_step, ddim_step, ddim_towards, sample_ddim
    from .ddpm import ddpm_step, sample_ddpm
    from .dpm_solver import sample_dpm_solver
    from .dpm_solver_sde import sample_dpm_solver_sde
    from .euler import euler_step, sample_euler
    from .frames import FrameMask
    from .heun import sample_heun
    from .noise import LegacyNoise, SampleNoise, replayed_noise
    from .philox import CudaGenerator
    from .unipc import sample_unipc

__all__ = [
    "CLIPS_TOGETHER", "SAMPLERS", "WHOLE", "AfterStep", "CheckedDenoiser", "CudaGenerator", "Denoiser", "FrameMask",
    "LegacyNoise", "Noise", "PathName", "SampleNoise", "SamplerName", "checked", "ddim_away", "ddim_reverse_step",
    "ddim_step", "ddim_towards", "ddpm_step", "euler_step", "replayed_noise", "sample_consistency",
    "sample_ddim", "sample_ddpm", "sample_dpm_solver", "sample_dpm_solver_sde", "sample_euler", "sample_heun",
    "sample_unipc",
]  # fmt: skip
__getattr__ = imported_later(
    __name__, "consistency", "ddim", "ddpm", "dpm_solver", "dpm_solver_sde", "euler", "frames", "heun", "noise",
    "philox", "unipc",
)  # fmt: skip
