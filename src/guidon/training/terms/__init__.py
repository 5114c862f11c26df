"""The terms of a denoiser's loss, one file each. A new term needs a file here and a field in ``Terms``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, cast

from pydantic import ConfigDict
from torch import Tensor

from ...core.settings import Settings
from .area import AreaSettings
from .bound import BoundSettings
from .mse import MSESettings
from .shape_contrast import ShapeContrastSettings
from .term import Loss, Term, TermSettings, TrainingStep

__all__ = ["Loss", "Term", "TermSettings", "Terms", "TrainingStep", "total_loss"]


class Terms(Settings):
    """The section ``terms`` of a recipe. The loss is the weighted sum of its terms, added in this order."""

    model_config = ConfigDict(use_attribute_docstrings=True, allow_inf_nan=False)

    mse: MSESettings = MSESettings()
    """The squared error of the prediction."""
    bound: BoundSettings = BoundSettings()
    """The variational bound, for the learned variance."""
    area: AreaSettings | None = None
    """How much the decoded object's area varies from frame to frame."""
    shape_contrast: ShapeContrastSettings | None = None
    """Errors in the differences between clips that differ only in shape."""

    @property
    def chosen(self) -> dict[str, TermSettings]:
        """The settings of the terms that the recipe has, by name."""
        found = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: cast("TermSettings", value) for name, value in found.items() if value is not None}

    def need(self, what: Literal["areas", "families"]) -> bool:
        """Whether a chosen term needs area gradients, or families of clips."""
        return any(what in settings.needs for settings in self.chosen.values())

    def build(self) -> dict[str, Term]:
        """The terms by name."""
        return {name: settings.build() for name, settings in self.chosen.items()}


def total_loss(terms: Mapping[str, Term], step: TrainingStep) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum of the terms, and values to log. The value of a noise band is NaN if no sample is in the band."""
    losses: dict[str, Loss] = {}
    total = step.x_0.new_zeros(())
    for name, term in terms.items():
        losses[name] = term(step, losses)
        total = total + term.weight * losses[name].mean
    logs: dict[str, Tensor] = {}
    for loss in losses.values():
        logs |= loss.logs
    for loss in losses.values():
        for name, of in loss.by_noise.items():
            logs |= {f"{name}_{band}": of(samples) for band, samples in step.bands.items()}
    return total, logs
