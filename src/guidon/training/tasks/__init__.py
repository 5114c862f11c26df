"""Training tasks: autoencoder, denoiser, rollout, distill, videos.

A new task needs a file here, a recipe, and a line in ``prepare``.
"""

from __future__ import annotations

import torch

from ...core.ranks import ALONE, Ranks
from ..data.checking import Checked
from ..loop import Task
from ..recipe import DistillRecipe, Recipe, RolloutRecipe, VAERecipe, VideosRecipe
from .denoiser import DenoiserTask
from .distill import DistillTask
from .inputs import Inputs
from .rollout import RolloutTask
from .vae import VAETask, prepare_frames
from .videos import VideosTask


def prepare(recipe: Recipe, device: torch.device, ranks: Ranks = ALONE) -> Task:
    """The task of a recipe, ready for the loop.

    Args:
        recipe: the recipe.
        device: the device of the module that is trained.
        ranks: those that train together. All call this: they encode and sample clips together.

    Raises:
        InputError: a file that the recipe names is missing or does not fit.
        RankFailed, MemoryError, RankLost: another rank failed, or ended.
    """
    if isinstance(recipe, VAERecipe):
        return VAETask.prepare(recipe, device)
    if isinstance(recipe, RolloutRecipe):
        return RolloutTask.prepare(recipe, device, ranks)
    if isinstance(recipe, DistillRecipe):
        return DistillTask.prepare(recipe, device, ranks)
    if isinstance(recipe, VideosRecipe):
        return VideosTask.prepare(recipe, device)
    return DenoiserTask.prepare(recipe, device, ranks)


def prepare_data(recipe: Recipe, device: torch.device) -> Checked | None:
    """Store what a recipe's training takes of a user's own files, where it is not stored yet.

    Returns:
        The files that are trained on; None if the recipe has no data section.

    Raises:
        InputError: files cannot be used, or a file that the recipe names is missing or does not fit.
    """
    if isinstance(recipe, VAERecipe):
        frames = prepare_frames(recipe)
        return None if frames is None else frames.checked
    if isinstance(recipe, VideosRecipe):
        return Inputs.find(recipe, device).clips(device).checked
    return None
