"""Makes an STDiT from PixArt's weights. At first, every frame of its video is PixArt's image."""

from __future__ import annotations

import torch
from torch import nn

from ...checkpoints import refuse_broken
from ...core.errors import InputError
from ..family import Checkpoint
from ..stdit.checkpoint import READER as STDIT
from ..stdit.network import STDiT, STDiTConfig
from .network import PixArtConfig


def inflate(checkpoint: Checkpoint, image: PixArtConfig, frames: int, time_scale: float, dtype: torch.dtype) -> STDiT:
    """The STDiT with ``frames`` latent frames.

    The patch kernel becomes 3D. Temporal attention adds zero at first.

    Raises:
        InputError: the weights are of the multi-scale model, are broken, or do not fit.
    """
    path, tensors = checkpoint.file.path, checkpoint.tensors
    if image.micro_condition:
        raise InputError(f"{path} is the multi-scale PixArt, whose size embedders have no place in STDiT")
    config = STDiTConfig(
        input_size=(frames, image.input_size, image.input_size),
        in_channels=image.in_channels,
        patch_size=(1, image.patch_size, image.patch_size),
        hidden_size=image.hidden_size,
        depth=image.depth,
        num_heads=image.num_heads,
        mlp_ratio=image.mlp_ratio,
        caption_channels=image.caption_channels,
        model_max_length=image.model_max_length,
        learn_sigma=image.learn_sigma,
        space_scale=image.lewei_scale,
        time_scale=time_scale,
    )
    refuse_broken(tensors, path)
    given = dict(tensors) | {"x_embedder.proj.weight": tensors["x_embedder.proj.weight"].unsqueeze(2)}
    for block in range(config.depth):
        for layer, values in _temporal_attention(config.hidden_size, block).items():
            for name, value in values.state_dict().items():
                given[f"blocks.{block}.attn_temp.{layer}.{name}"] = value
    return STDIT.assemble(config, given, f"{path}", dtype)


def _temporal_attention(size: int, block: int) -> dict[str, nn.Linear]:
    """New temporal attention layers of one block, by name. They are the same in every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(block)
        qkv, proj = nn.Linear(size, 3 * size), nn.Linear(size, size)
        nn.init.xavier_uniform_(qkv.weight)
    nn.init.zeros_(qkv.bias)
    nn.init.zeros_(proj.weight)
    nn.init.zeros_(proj.bias)
    return {"qkv": qkv, "proj": proj}
