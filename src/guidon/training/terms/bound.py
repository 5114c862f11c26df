"""The variational bound, which trains the learned variance."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch

from ...diffusion import DiscreteLevel, learned_log_variance, p_mean_variance
from ...diffusion.losses import bound_term
from .term import Loss, Term, TrainingStep


class Bound(Term):
    """See ``BoundSettings``."""

    def forward(self, step: TrainingStep, earlier: Mapping[str, Loss]) -> Loss:
        """The bound of each sample. Swapped samples have weight 0: their x_t is not distributed as q(x_t | x_0)."""
        assert isinstance(step.level, DiscreteLevel)  # along a rectified flow there is no such term
        interpolation = step.prediction[:, step.x_0.shape[1] :]
        with torch.no_grad():  # the bound trains the variance alone
            posterior = p_mean_variance(step.prediction, step.x_t, step.level, step.process)
        learned = learned_log_variance(interpolation, step.level, step.process)
        values = bound_term(dataclasses.replace(posterior, log_variance=learned), step.x_0, step.x_t, step.level)
        return Loss(values, step.counts * ~step.swapped, {"vb": values.detach().mean()})
