"""The recipes by task. A new task needs a file beside this one, and a line in each table here."""

from __future__ import annotations

from .denoiser import DenoiserRecipe
from .distill import DistillRecipe
from .rollout import RolloutRecipe
from .vae import VAERecipe
from .videos import VideosRecipe

Recipe = VAERecipe | DenoiserRecipe | RolloutRecipe | DistillRecipe | VideosRecipe
RECIPES: dict[str, type[Recipe]] = {
    "vae": VAERecipe,
    "denoiser": DenoiserRecipe,
    "rollout": RolloutRecipe,
    "distill": DistillRecipe,
    "videos": VideosRecipe,
}
MODEL_TASKS = ("denoiser", "rollout", "distill")
"""The tasks whose result is a model folder of the world."""
RESULTS = (*MODEL_TASKS, "videos")
"""The tasks whose result is a model, which a staged recipe can export."""
PARENTS: dict[str, dict[str, tuple[str, ...]]] = {
    "vae": {"start": ("vae",)},
    "denoiser": {"vae": ("vae",), "start": MODEL_TASKS},
    "rollout": {"start": MODEL_TASKS},
    "distill": {"start": MODEL_TASKS},
    "videos": {"vae": ("vae",), "start": ("videos",)},
}
"""For each task: the fields that take the result of another run -> the tasks of that run."""
FROM_FILES = ("videos",)
"""The tasks whose such fields may name files that no stage makes, such as released weights."""
