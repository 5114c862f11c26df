"""The error in the differences between the clips of a family."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .term import Loss, Term, TrainingStep


class ShapeContrast(Term):
    """See ``ShapeContrastSettings``."""

    def forward(self, step: TrainingStep, earlier: Mapping[str, Loss]) -> Loss:
        """The squared error of each sample's difference from its family's mean, weighted as in the term mse."""
        within, whole = (within_family(value, step.family_size) for value in (step.error, step.x_0))
        known = within.detach()
        weights = earlier["mse"].weights * step.per_x0

        def missed(samples: Tensor) -> Tensor:
            """The error as a share of the true differences between the shapes; NaN where there are none.

            The training split allows some families one shape only: they are left out.
            """
            differ = samples & (whole > 0)
            return known[differ].mean() / whole[differ].mean()

        return Loss(within, weights, by_noise={"missed": missed})


def within_family(value: Tensor, family_size: int) -> Tensor:
    """The mean square of each sample's difference from its family's mean, (B,), of ``value`` (B, ...)."""
    families = value.unflatten(0, (-1, family_size))
    return (families - families.mean(1, keepdim=True)).flatten(0, 1).square().flatten(1).mean(1)
