"""The settings of the loss terms: the section ``terms`` of a recipe. They are read without torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, cast

from pydantic import ConfigDict, Field, PositiveFloat

from ...core.settings import Settings

if TYPE_CHECKING:
    from .area import Area
    from .bound import Bound
    from .mse import MSE
    from .shape_contrast import ShapeContrast
    from .term import Term

Weighting = Literal["uniform", "min-snr", "balanced"]


class TermSettings(Settings, ABC):
    """Base of the settings of a term, a section of a recipe."""

    model_config = ConfigDict(use_attribute_docstrings=True, allow_inf_nan=False)
    needs: ClassVar[frozenset[Literal["areas", "families"]]] = frozenset()
    """Data that the term needs: gradients of areas, or families of clips."""

    @abstractmethod
    def build(self) -> Term:
        """The term with these settings."""


class MSESettings(TermSettings):
    """The squared error of the network's own prediction (eps, v, x_0 or flow)."""

    weighting: Weighting = "uniform"
    """Weight of each noise level. "min-snr" is Hang et al. 2303.09556. "balanced" divides the error by its running mean
    at that noise level, so that all noise levels count equally."""
    foreground: PositiveFloat = 1.0
    """Weight of an error at the object, relative to 1 elsewhere. At high noise, where x_t does not show the object's
    position, the weight falls to 1."""

    def build(self) -> MSE:
        """The term with these settings."""
        from .mse import MSE

        return MSE(self.weighting, self.foreground)


class BoundSettings(TermSettings):
    """The variational bound with a detached mean (Nichol & Dhariwal 2021, eq. 16): it trains only the variance."""

    weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the bound, which is in bits per dimension."""

    def build(self) -> Bound:
        """The term with these settings."""
        from .bound import Bound

        return Bound(self.weight)


class AreaSettings(TermSettings):
    """The squared coefficient of variation of the decoded object's area over the frames, to first order.

    It is divided by its running mean at that noise level, as ``weighting: balanced`` does with the squared error.
    """

    needs = frozenset({"areas"})
    weight: PositiveFloat
    """Weight of the term."""

    def build(self) -> Area:
        """The term with these settings."""
        from .area import Area

        return Area(self.weight)


class ShapeContrastSettings(TermSettings):
    """Gives more weight to errors in the differences between the clips of a family that differ only in shape.

    Where a family has both sizes, each size counts as a family of its own.

    All clips of a family have the same noise, timestep and caption dropout. The error from what the noise hides is
    therefore nearly equal in all of them and cancels in the differences. What remains is the error in the shape.
    """

    needs = frozenset({"families"})
    weight: PositiveFloat
    """Weight of errors in the differences. With 1, clips are drawn in families and the loss does not change."""

    def build(self) -> ShapeContrast:
        """The term with these settings."""
        from .shape_contrast import ShapeContrast

        return ShapeContrast(self.weight - 1)  # the term mse counts them once already


class Terms(Settings):
    """The section ``terms`` of a recipe. The loss is the weighted sum of its terms, added in this order."""

    model_config = ConfigDict(use_attribute_docstrings=True, allow_inf_nan=False)

    mse: MSESettings = MSESettings()
    """The squared error of the prediction."""
    bound: BoundSettings = BoundSettings()
    """The variational bound, for the learned variance. A network that predicts flow has none, and no such term."""
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

    def build(self, *, has_variance: bool = True) -> dict[str, Term]:
        """The terms by name. Without a learned variance there is no ``bound``."""
        chosen = {name: settings for name, settings in self.chosen.items() if name != "bound" or has_variance}
        return {name: settings.build() for name, settings in chosen.items()}
