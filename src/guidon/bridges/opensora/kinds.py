"""What a diffusion model predicts and how it is trained, under the names of improved-diffusion."""

from __future__ import annotations

from enum import Enum


class ModelMeanType(Enum):
    """What a model predicts."""

    PREVIOUS_X = 1
    START_X = 2
    EPSILON = 3


class ModelVarType(Enum):
    """The variance of the reverse step."""

    LEARNED = 1
    FIXED_SMALL = 2
    FIXED_LARGE = 3
    LEARNED_RANGE = 4


class LossType(Enum):
    """What a model is trained on."""

    MSE = 1
    RESCALED_MSE = 2
    KL = 3
    RESCALED_KL = 4

    def is_vb(self) -> bool:
        """Whether it is the variational bound alone."""
        return self in (LossType.KL, LossType.RESCALED_KL)
