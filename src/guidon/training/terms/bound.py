"""The variational bound, which trains the learned variance."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ...diffusion import DiscreteLevel, p_mean_variance
from ...diffusion.losses import bound_term
from .term import Loss, Term, TrainingStep


class Bound(Term):
    """See ``BoundSettings``."""

    def forward(self, step: TrainingStep, earlier: Mapping[str, Loss]) -> Loss:
        """The bound of each sample. Swapped samples have weight 0: their x_t is not distributed as q(x_t | x_0)."""
        assert isinstance(step.level, DiscreteLevel)  # along a rectified flow there is no such term
        channels = step.x_0.shape[1]
        frozen = torch.cat([step.output.detach(), step.prediction[:, channels:]], dim=1)
        posterior = p_mean_variance(frozen, step.x_t, step.level, step.process)
        values = bound_term(posterior, step.x_0, step.x_t, step.level)
        return Loss(values, step.counts * ~step.swapped, {"vb": values.detach().mean()})
