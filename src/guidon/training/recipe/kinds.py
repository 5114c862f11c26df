"""The recipes by task. A new task needs a file beside this one, and a line in each table here."""

from __future__ import annotations

from .denoiser import DenoiserRecipe
from .distill import DistillRecipe
from .rollout import RolloutRecipe
from .vae import VAERecipe

Recipe = VAERecipe | DenoiserRecipe | RolloutRecipe | DistillRecipe
RECIPES: dict[str, type[VAERecipe] | type[DenoiserRecipe] | type[RolloutRecipe] | type[DistillRecipe]] = {
    "vae": VAERecipe,
    "denoiser": DenoiserRecipe,
    "rollout": RolloutRecipe,
    "distill": DistillRecipe,
}
MODEL_TASKS = ("denoiser", "rollout", "distill")
"""The tasks whose result is a model folder."""
PARENTS: dict[str, dict[str, tuple[str, ...]]] = {
    "vae": {"start": ("vae",)},
    "denoiser": {"vae": ("vae",), "start": MODEL_TASKS},
    "rollout": {"start": MODEL_TASKS},
    "distill": {"start": MODEL_TASKS},
}
"""For each task: the fields that take the result of another run -> the tasks of that run."""
