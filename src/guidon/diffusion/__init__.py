"""The diffusion process: noise levels, schedules, parameterisations, the reverse step, losses. Knows no network."""

from typing import TYPE_CHECKING

from ..core.lazy import imported_later

if TYPE_CHECKING:
    from .flow import FlowLevel, FlowPath, clip_shift, levels_at, velocity_loss
    from .level import CLEAN, DiscreteLevel, NoiseLevel
    from .losses import BitsPerDimension, LossKind, bits_per_dimension, training_losses
    from .posterior import (
        Posterior,
        Process,
        eps_from_x0,
        learned_log_variance,
        p_mean_variance,
        predicted_x0,
        q_mean_variance,
        q_posterior,
        q_sample,
        x0_from_eps,
    )
    from .prediction import Parameterization, convert, find_parameterization, split_prediction, target
    from .schedule import NoiseSchedule, space_timesteps
    from .spacing import Spacing, parse_spacing

__all__ = [
    "CLEAN", "BitsPerDimension", "DiscreteLevel", "FlowLevel", "FlowPath", "LossKind", "NoiseLevel",
    "NoiseSchedule", "Parameterization", "Posterior", "Process", "Spacing", "bits_per_dimension", "clip_shift",
    "convert", "eps_from_x0", "find_parameterization", "learned_log_variance", "levels_at", "p_mean_variance",
    "parse_spacing", "predicted_x0", "q_mean_variance", "q_posterior", "q_sample", "space_timesteps",
    "split_prediction", "target", "training_losses", "velocity_loss", "x0_from_eps",
]  # fmt: skip
__getattr__ = imported_later(__name__, "spacing", "flow", "level", "losses", "posterior", "prediction", "schedule")
