"""Reads checkpoints of STDiT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...core.errors import InputError
from ..parts.reading import NEEDED, Tensors, TransformerReader, caption_values, grid, position_scale
from . import NAME
from .network import STDiT, STDiTConfig


def shapes(tensors: Tensors, hub: Mapping[str, Any]) -> dict[str, Any]:
    """Patch size and captions; also size and position scales if the file holds positions."""
    patch = tuple(tensors["x_embedder.proj.weight"].shape[2:])
    if len(patch) == 2:
        raise InputError("its patch kernel is 2D: it is an image model; inflate it to frames (inflate=16)")
    values = caption_values(tensors) | {"patch_size": patch}
    if "pos_embed" in tensors and "pos_embed_temporal" in tensors:
        rows, columns = grid(tensors["pos_embed"])
        frames = tensors["pos_embed_temporal"].shape[1]
        values["input_size"] = (frames * patch[0], rows * patch[1], columns * patch[2])
        values["space_scale"] = position_scale(tensors["pos_embed"])
        values["time_scale"] = position_scale(tensors["pos_embed_temporal"], axes=1)
    return values


READER = TransformerReader(
    name=NAME,
    network=STDiT,
    config=STDiTConfig,
    marks=("blocks.0.attn_temp.qkv.weight", "t_block.1.weight"),
    shapes=shapes,
    size="(frames, height, width)",
    lacks=("blocks.0.scale_shift_table_temporal",),
    needed=(*NEEDED, "y_embedder.y_proj.fc1.weight"),
    null="y_embedder.y_embedding",
)
