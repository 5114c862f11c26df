"""RFlow, the scheduler of Open-Sora 1.2, and the other names of rectified flow in Open-Sora."""

from .bridges.opensora.mmdit import mmdit_condition, mmdit_schedule, oscillate, sample_mmdit
from .bridges.opensora.rflow import RFLOW, RFlow, timestep_transform

__all__ = ["RFLOW", "RFlow", "mmdit_condition", "mmdit_schedule", "oscillate", "sample_mmdit", "timestep_transform"]
