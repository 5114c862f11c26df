"""Training: read a recipe, train what it describes, and export weights that the package loads."""

from .recipe import DenoiserRecipe, RolloutRecipe, StagedRecipe, VAERecipe, load_recipe
from .stages import PlannedStage, plan_recipe, run_recipe

__all__ = [
    "DenoiserRecipe", "PlannedStage", "RolloutRecipe", "StagedRecipe", "VAERecipe", "load_recipe", "plan_recipe",
    "run_recipe",
]  # fmt: skip
