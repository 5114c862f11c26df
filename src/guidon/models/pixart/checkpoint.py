"""Reads checkpoints of PixArt, in the authors' layout and in diffusers' layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..family import Checkpoint
from ..parts.diffusers import TRANSLATED, translate
from ..parts.reading import NEEDED, Tensors, TransformerReader, caption_values, image_values, position_scale
from . import NAME
from .network import PixArt, PixArtConfig

DIFFUSERS = ("transformer_blocks.0.attn2.to_q.weight", "adaln_single.linear.weight")  # diffusers' layout has both
LAYERS = {
    "pos_embed.proj": "x_embedder.proj",
    "pos_embed.pos_embed": "pos_embed",
    "adaln_single.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "adaln_single.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "adaln_single.emb.resolution_embedder.linear_1": "csize_embedder.mlp.0",
    "adaln_single.emb.resolution_embedder.linear_2": "csize_embedder.mlp.2",
    "adaln_single.emb.aspect_ratio_embedder.linear_1": "ar_embedder.mlp.0",
    "adaln_single.emb.aspect_ratio_embedder.linear_2": "ar_embedder.mlp.2",
    "adaln_single.linear": "t_block.1",
    "caption_projection.linear_1": "y_embedder.y_proj.fc1",
    "caption_projection.linear_2": "y_embedder.y_proj.fc2",
    "caption_projection.y_embedding": "y_embedder.y_embedding",
    "proj_out": "final_layer.linear",
    "scale_shift_table": "final_layer.scale_shift_table",
}
BLOCK = {
    "scale_shift_table": "scale_shift_table",
    "attn1.to_out.0": "attn.proj",
    "attn2.to_q": "cross_attn.q_linear",
    "attn2.to_out.0": "cross_attn.proj",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
}
JOINED = {
    "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "cross_attn.kv_linear": ("attn2.to_k", "attn2.to_v"),
}


def from_diffusers(tensors: Tensors) -> tuple[Tensors, tuple[str, ...]] | None:
    """See ``TransformerReader.from_diffusers``."""
    if not all(name in tensors for name in DIFFUSERS):
        return None
    return translate(tensors, LAYERS, BLOCK, JOINED), (TRANSLATED,)


def shapes(tensors: Tensors, hub: Mapping[str, Any]) -> dict[str, Any]:
    """Patch size and captions; also side and position scale if positions or ``config.json`` give them."""
    values = caption_values(tensors) | image_values(tensors, hub)
    values["micro_condition"] = "csize_embedder.mlp.0.weight" in tensors
    if "pos_embed" in tensors:
        values["lewei_scale"] = position_scale(tensors["pos_embed"])
    elif "sample_size" in hub:
        values["lewei_scale"] = hub.get("interpolation_scale") or max(hub["sample_size"] // 64, 1)
    return values


def inflated(
    checkpoint: Checkpoint, frames: int, known: Mapping[str, Any], assumed: Mapping[str, Any], dtype: torch.dtype
) -> nn.Module:
    """See ``TransformerReader.inflated``."""
    from .inflate import inflate

    image = {name: value for name, value in known.items() if name != "time_scale"}
    config = READER.configure(checkpoint.tensors, checkpoint.file.config, image, assumed)
    return inflate(checkpoint, config, frames, known.get("time_scale", 1.0), dtype)


READER = TransformerReader(
    name=NAME,
    network=PixArt,
    config=PixArtConfig,
    marks=("blocks.0.cross_attn.q_linear.weight", "t_block.1.weight"),
    lacks=("blocks.0.attn_temp.qkv.weight",),
    shapes=shapes,
    size="the latent's side",
    needed=(*NEEDED, "y_embedder.y_proj.fc1.weight"),
    null="y_embedder.y_embedding",
    from_diffusers=from_diffusers,
    inflated=inflated,
)
