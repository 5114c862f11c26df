"""The error in what sets the shapes of a family apart."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import PositiveFloat
from torch import Tensor

from .term import Loss, Term, TermSettings, TrainingStep


class ShapeContrastSettings(TermSettings):
    """Errors in the differences between clips of a family, which differ in shape alone, count more.

    A family shares its noise, timestep and caption dropout. What noise hides errs alike in all its clips, so the
    gradient of what sets the shapes apart is free of it.
    """

    needs = frozenset({"families"})
    weight: PositiveFloat
    """How many times errors in the differences count. 1 draws families, and adds nothing to the loss."""

    def build(self) -> ShapeContrast:
        """The term with these settings."""
        return ShapeContrast(self.weight - 1)  # the squared error has counted them once


class ShapeContrast(Term):
    """See ``ShapeContrastSettings``."""

    def forward(self, step: TrainingStep, earlier: Mapping[str, Loss]) -> Loss:
        """The squared error of each sample's difference from its family's mean, weighted as the whole error is."""
        within, whole = (within_family(value, step.family_size) for value in (step.error, step.x_0))
        known = within.detach()
        weights = earlier["mse"].weights * step.per_x0
        # the share that the prediction misses of what sets the shapes apart
        missed = {"missed": lambda samples: known[samples].mean() / whole[samples].mean()}
        return Loss(within, weights, by_noise=missed)


def within_family(value: Tensor, family_size: int) -> Tensor:
    """The mean square of each sample's difference from its family's mean, (B,), of ``value`` (B, ...)."""
    families = value.unflatten(0, (-1, family_size))
    return (families - families.mean(1, keepdim=True)).flatten(0, 1).square().flatten(1).mean(1)
