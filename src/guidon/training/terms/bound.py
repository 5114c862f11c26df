"""The variational bound, which trains the learned variance."""

from __future__ import annotations

from collections.abc import Mapping

from ...diffusion import DiscreteLevel
from ...diffusion.losses import variance_bound
from .term import Loss, Term, TrainingStep


class Bound(Term):
    """See ``BoundSettings``."""

    def forward(self, step: TrainingStep, earlier: Mapping[str, Loss]) -> Loss:
        """The bound of each sample. Swapped samples have weight 0: their x_t is not distributed as q(x_t | x_0)."""
        assert isinstance(step.level, DiscreteLevel)  # along a rectified flow there is no such term
        values = variance_bound(step.prediction, step.x_0, step.x_t, step.level, step.process)
        return Loss(values, step.counts * ~step.swapped, {"vb": values.detach().mean()})
