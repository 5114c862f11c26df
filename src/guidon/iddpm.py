"""IDDPM, the scheduler of Open-Sora 1.0 and 1.1, and other names that scripts of Open-Sora, DiT and PixArt import."""

from .bridges.opensora.dpms import DPMS
from .bridges.opensora.iddpm import IDDPM, create_diffusion, get_named_beta_schedule, space_timesteps
from .bridges.opensora.kinds import LossType, ModelMeanType, ModelVarType
from .bridges.opensora.speed import SpeeDiffusion
from .bridges.opensora.timesteps import (
    LossAwareSampler,
    LossSecondMomentResampler,
    ScheduleSampler,
    UniformSampler,
    create_named_schedule_sampler,
)
from .models.parts.guided import forward_with_cfg

__all__ = [
    "DPMS", "IDDPM", "LossAwareSampler", "LossSecondMomentResampler", "LossType", "ModelMeanType", "ModelVarType",
    "ScheduleSampler", "SpeeDiffusion", "UniformSampler", "create_diffusion", "create_named_schedule_sampler",
    "forward_with_cfg", "get_named_beta_schedule", "space_timesteps",
]  # fmt: skip
