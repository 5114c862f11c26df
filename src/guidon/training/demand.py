"""What a recipe needs of the machine. A run that it cannot do is refused before anything is allocated."""

from __future__ import annotations

import math
import multiprocessing
from typing import Any

import torch

from ..core.errors import InputError
from ..core.limits import require_memory
from ..core.ranks import ALONE, Ranks
from ..models.trained.config import CONFIGS
from ..world import SIZE
from .recipe import DenoiserRecipe, DistillRecipe, Recipe, RolloutRecipe, VAERecipe, VideosRecipe

FLOAT = 4  # bytes
COPIES = 4  # of trained weights: the weights, their gradients, a moment of the optimiser, their average
LAYER = 10_000.0  # bytes that PyTorch takes for a layer of any width
IMAGES = 4  # copies of a batch of frames: frames, reconstruction, error, gradient


def require_resources(recipe: Recipe, device: torch.device, ranks: Ranks = ALONE) -> None:
    """Refuse a recipe whose network or batch cannot fit in the device's memory, or whose workers cannot be started.

    The estimate is a lower bound: it counts the large matrices and leaves out activations. Ranks that shard a network
    share its memory, but each builds all weights at first.

    Raises:
        InputError: it does not fit. The message holds the estimate and what to lower. Or ``workers`` is not 0, and the
            system cannot fork processes.
    """
    if recipe.workers and "fork" not in multiprocessing.get_all_start_methods():
        raise InputError(f"workers is {recipe.workers}, but this system cannot fork processes: give 0")
    needed = _network(recipe)
    if needed > COPIES * FLOAT * float(recipe.shard_above):
        needed = max(needed / len(ranks), needed / COPIES)
    require_memory("the weights of the recipe's network", needed, device, lower="make model, text or finisher smaller")
    if isinstance(recipe, VAERecipe):
        pixels = SIZE * SIZE if recipe.data is None else max(map(math.prod, recipe.data.all_sizes))
        frames = float(recipe.batch_size) * 3 * pixels * FLOAT * IMAGES
        require_memory(f"batches of {recipe.batch_size} frames", frames, device, lower="batch_size")


def require_batch(
    recipe: DenoiserRecipe | RolloutRecipe | DistillRecipe | VideosRecipe,
    latent_shape: tuple[int, ...],
    device: torch.device,
) -> None:
    """Refuse batches of latents that cannot fit: the clean latents, the noise, the noisy ones, and twice as many
    channels of prediction and of its gradient.

    Raises:
        InputError: they do not fit.
    """
    needed = 7.0 * recipe.batch_size * math.prod(latent_shape) * FLOAT
    require_memory(f"batches of {recipe.batch_size} clips", needed, device, lower="batch_size")


def _network(recipe: Recipe) -> float:
    """Bytes of the weights that are trained and of what the optimiser keeps for them."""
    if isinstance(recipe, VAERecipe):
        shape = recipe.model
        layers = 2.0 * shape.layers_per_block + 1  # those of the encoder and of the decoder, two convolutions each
        weights = sum(layers * 2 * 9 * channels * channels for channels in map(float, shape.block_out_channels))
        return COPIES * FLOAT * weights + LAYER * layers * len(shape.block_out_channels)
    if isinstance(recipe, RolloutRecipe):
        finisher = recipe.finisher
        return COPIES * FLOAT * _convolutions(finisher.channels, finisher.depth) + LAYER * finisher.depth
    if isinstance(recipe, DistillRecipe):
        return COPIES * FLOAT * 1000.0 * recipe.rank  # the network's width is not known before its file is read
    if isinstance(recipe, VideosRecipe):
        return _released(recipe)
    model, text = recipe.model, recipe.text
    width, features = float(model.hidden_size), float(text.features)
    blocks = float(model.depth) * (12 + 2 * model.mlp_ratio) * width * width  # three attentions and an MLP each
    encoder = float(text.layers) * 8 * features * features + float(text.max_length) * features
    refiner = _convolutions(model.refiner_channels, model.refiner_depth)
    patch = width * math.prod(map(float, model.patch_size))
    overhead = LAYER * (float(model.depth) + text.layers + (model.refiner_depth if model.refiner_channels else 0))
    return COPIES * FLOAT * (blocks + encoder + refiner + patch) + overhead


def _released(recipe: VideosRecipe) -> float:
    """Bytes of a new network; of one that starts from weights nothing is known before they are read."""
    if recipe.family is None:
        return 0.0
    config: Any = CONFIGS[recipe.family](**recipe.shape)
    attentions = {"stdit": 3, "stdit2": 3, "stdit3": 4, "dit": 1, "pixart": 2}[recipe.family]
    mlps = 2 if recipe.family == "stdit3" else 1
    width, depth = float(config.hidden_size), float(config.depth)
    return COPIES * FLOAT * depth * (4 * attentions + 2 * mlps * config.mlp_ratio) * width * width + LAYER * depth


def _convolutions(channels: int, depth: int) -> float:
    """Weights of a refiner's or finisher's layers: two convolutions in space and one along time each."""
    return 23.0 * depth * channels * channels
