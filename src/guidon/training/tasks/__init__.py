"""Training tasks: autoencoder, denoiser, rollout, distill.

A new task needs a file here, a recipe, and a line in ``prepare``.
"""

from __future__ import annotations

import torch

from ..loop import Task
from ..recipe import DistillRecipe, Recipe, RolloutRecipe, VAERecipe
from .denoiser import DenoiserTask
from .distill import DistillTask
from .rollout import RolloutTask
from .vae import VAETask


def prepare(recipe: Recipe, device: torch.device) -> Task:
    """The task of a recipe, ready for the loop.

    Raises:
        InputError: a file that the recipe names is missing or does not fit.
    """
    if isinstance(recipe, VAERecipe):
        return VAETask.prepare(recipe, device)
    if isinstance(recipe, RolloutRecipe):
        return RolloutTask.prepare(recipe, device)
    if isinstance(recipe, DistillRecipe):
        return DistillTask.prepare(recipe, device)
    return DenoiserTask.prepare(recipe, device)
