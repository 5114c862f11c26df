"""Training: read a recipe, train what it describes, and export weights that the package loads."""

from typing import TYPE_CHECKING

from ..core.lazy import imported_later
from .recipe import DenoiserRecipe, RolloutRecipe, StagedRecipe, VAERecipe, check_recipe, load_recipe

if TYPE_CHECKING:
    from .stages import PlannedStage, plan_recipe, run_recipe

__all__ = [
    "DenoiserRecipe", "PlannedStage", "RolloutRecipe", "StagedRecipe", "VAERecipe", "check_recipe", "load_recipe",
    "plan_recipe", "run_recipe",
]  # fmt: skip
__getattr__ = imported_later(__name__, "stages")
