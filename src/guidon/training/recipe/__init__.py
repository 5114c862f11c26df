"""The settings in a recipe, read from YAML: those of one training run, or of several stages.

``section`` and ``run`` hold what all recipes share; each task has a file, and ``kinds`` lists them. ``staged`` joins
runs to stages, ``reading`` reads files.
"""

from .denoiser import SWAPPED_FROM, DenoiserRecipe, Expert
from .distill import DistillRecipe
from .kinds import Recipe
from .reading import check_recipe, load_recipe
from .rollout import RolloutRecipe, Sampling
from .run import Optimiser, Run
from .section import DIFFUSION_STEPS, Section
from .staged import StagedRecipe
from .vae import VAERecipe
from .videos import VideosRecipe

__all__ = [
    "DIFFUSION_STEPS",
    "SWAPPED_FROM",
    "DenoiserRecipe",
    "DistillRecipe",
    "Expert",
    "Optimiser",
    "Recipe",
    "RolloutRecipe",
    "Run",
    "Sampling",
    "Section",
    "StagedRecipe",
    "VAERecipe",
    "VideosRecipe",
    "check_recipe",
    "load_recipe",
]
