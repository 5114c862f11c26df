"""Denoiser + schedule + noise -> x_0. Samplers know no model and no guidance."""

from .contract import Denoiser, Noise, OnStep
from .ddim import ddim_reverse_step, ddim_step, sample_ddim
from .ddpm import ddpm_step, sample_ddpm
from .dpm_solver import sample_dpm_solver
from .noise import LegacyNoise, SampleNoise
from .philox import CudaGenerator

__all__ = [
    "CudaGenerator", "Denoiser", "LegacyNoise", "Noise", "OnStep", "SampleNoise", "ddim_reverse_step", "ddim_step",
    "ddpm_step", "sample_ddim", "sample_ddpm", "sample_dpm_solver",
]  # fmt: skip
