"""The diffusion process; knows no network."""

from .losses import BitsPerDimension, bits_per_dimension, training_losses
from .posterior import (
    Posterior,
    Process,
    converted,
    eps_from_x0,
    p_mean_variance,
    predicted_x0,
    q_mean_variance,
    q_posterior,
    q_sample,
    split_prediction,
    x0_from_eps,
)
from .schedule import NoiseSchedule, ScheduleTables, space_timesteps

__all__ = [
    "BitsPerDimension", "NoiseSchedule", "Posterior", "Process", "ScheduleTables", "bits_per_dimension", "converted",
    "eps_from_x0", "p_mean_variance", "predicted_x0", "q_mean_variance", "q_posterior", "q_sample", "space_timesteps",
    "split_prediction", "training_losses", "x0_from_eps",
]  # fmt: skip
