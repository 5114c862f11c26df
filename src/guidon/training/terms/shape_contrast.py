"""The error in the differences between the clips of a family."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import PositiveFloat
from torch import Tensor

from .term import Loss, Term, TermSettings, TrainingStep


class ShapeContrastSettings(TermSettings):
    """Gives more weight to errors in the differences between the clips of a family, which differ only in shape.

    All clips of a family have the same noise, timestep and caption dropout. The error from what the noise hides is
    therefore nearly equal in all of them and cancels in the differences. What remains is the error in the shape.
    """

    needs = frozenset({"families"})
    weight: PositiveFloat
    """Weight of errors in the differences. With 1, clips are drawn in families and the loss does not change."""

    def build(self) -> ShapeContrast:
        """The term with these settings."""
        return ShapeContrast(self.weight - 1)  # the term mse counts them once already


class ShapeContrast(Term):
    """See ``ShapeContrastSettings``."""

    def forward(self, step: TrainingStep, earlier: Mapping[str, Loss]) -> Loss:
        """The squared error of each sample's difference from its family's mean, weighted as in the term mse."""
        within, whole = (within_family(value, step.family_size) for value in (step.error, step.x_0))
        known = within.detach()
        weights = earlier["mse"].weights * step.per_x0
        # the error as a share of the true differences between the shapes
        missed = {"missed": lambda samples: known[samples].mean() / whole[samples].mean()}
        return Loss(within, weights, by_noise=missed)


def within_family(value: Tensor, family_size: int) -> Tensor:
    """The mean square of each sample's difference from its family's mean, (B,), of ``value`` (B, ...)."""
    families = value.unflatten(0, (-1, family_size))
    return (families - families.mean(1, keepdim=True)).flatten(0, 1).square().flatten(1).mean(1)
