"""How much the prediction's error makes the decoded object's area vary over the frames."""

from __future__ import annotations

from collections.abc import Mapping

from .loss_level import LossLevel
from .term import Loss, Term, TrainingStep


class Area(Term):
    """See ``AreaSettings``."""

    def __init__(self, weight: float) -> None:
        super().__init__(weight)
        self.loss_level = LossLevel(floor=1e-7)

    def forward(self, step: TrainingStep, earlier: Mapping[str, Loss]) -> Loss:
        """For each sample: the variance over frames of the change of relative area that the error causes."""
        assert step.area_gradients is not None  # the settings say that the term needs them
        values = (step.error * step.area_gradients).sum((1, 3, 4)).var(1, correction=0)
        known = values.detach()
        weights = step.counts * step.visible * self.loss_level.weights(known, step.t, step.timesteps)
        return Loss(values, weights, by_noise={"area_cv": lambda samples: known[samples].mean().sqrt()})
