"""How much the decoded object's area varies over the frames because of the error."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import PositiveFloat

from .loss_level import LossLevel
from .term import Loss, Term, TermSettings, TrainingStep


class AreaSettings(TermSettings):
    """The squared coefficient of variation of the decoded object's area over the frames, to first order.

    It is divided by what is usual at that noise, as ``weighting: balanced`` divides the whole error.
    """

    needs = frozenset({"areas"})
    weight: PositiveFloat
    """What the term is multiplied by."""

    def build(self) -> Area:
        """The term with these settings."""
        return Area(self.weight)


class Area(Term):
    """See ``AreaSettings``."""

    def __init__(self, weight: float) -> None:
        super().__init__(weight)
        self.loss_level = LossLevel(floor=1e-7)

    def forward(self, step: TrainingStep, earlier: Mapping[str, Loss]) -> Loss:
        """The variance over the frames of the relative area that the error adds, of each sample."""
        assert step.area_gradients is not None  # the settings say that the term needs them
        values = (step.error * step.area_gradients).sum((1, 3, 4)).var(1, correction=0)
        known = values.detach()
        weights = step.counts * step.visible * self.loss_level.weights(known, step.t, step.level.steps)
        return Loss(values, weights, by_noise={"area_cv": lambda samples: known[samples].mean().sqrt()})
