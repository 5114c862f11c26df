"""Samplers: a denoiser, a schedule and noise give x_0. They know no model and no guidance."""

from typing import TYPE_CHECKING

from ..core.lazy import imported_later
from .contract import CLIPS_TOGETHER, AfterStep, CheckedDenoiser, Denoiser, Noise, SamplerName, checked

if TYPE_CHECKING:
    from .ddim import ddim_reverse_step, ddim_step, sample_ddim
    from .ddpm import ddpm_step, sample_ddpm
    from .dpm_solver import sample_dpm_solver
    from .frames import FrameMask
    from .noise import LegacyNoise, SampleNoise, replayed_noise
    from .philox import CudaGenerator

__all__ = [
    "CLIPS_TOGETHER", "AfterStep", "CheckedDenoiser", "CudaGenerator", "Denoiser", "FrameMask", "LegacyNoise",
    "Noise", "SampleNoise", "SamplerName", "checked", "ddim_reverse_step", "ddim_step", "ddpm_step", "replayed_noise",
    "sample_ddim", "sample_ddpm", "sample_dpm_solver",
]  # fmt: skip
__getattr__ = imported_later(__name__, "ddim", "ddpm", "dpm_solver", "frames", "noise", "philox")
