"""Reads checkpoints of DiT, in the authors' layout and in diffusers' layout."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from ...core.errors import InputError
from ..parts.diffusers import TRANSLATED, translate
from ..parts.reading import Tensors, TransformerReader, image_values
from . import NAME
from .network import DiT, DiTConfig

_FIRST = "transformer_blocks.0.norm1.emb"
DIFFUSERS = ("transformer_blocks.0.norm1.linear.weight", f"{_FIRST}.class_embedder.embedding_table.weight")
LAYERS = {
    "pos_embed.proj": "x_embedder.proj",
    "pos_embed.pos_embed": "pos_embed",
    f"{_FIRST}.timestep_embedder.linear_1": "t_embedder.mlp.0",
    f"{_FIRST}.timestep_embedder.linear_2": "t_embedder.mlp.2",
    f"{_FIRST}.class_embedder.embedding_table": "y_embedder.embedding_table",
    "proj_out_1": "final_layer.adaLN_modulation.1",
    "proj_out_2": "final_layer.linear",
}
BLOCK = {
    "norm1.linear": "adaLN_modulation.1",
    "attn1.to_out.0": "attn.proj",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
}
JOINED = {"attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v")}


def from_diffusers(tensors: Tensors) -> tuple[Tensors, tuple[str, ...]] | None:
    """See ``TransformerReader.from_diffusers``. diffusers gives every block a copy of the embedders.

    Raises:
        InputError: the copies differ.
    """
    if not all(name in tensors for name in DIFFUSERS):
        return None
    copies = {name for name in tensors if re.match(r"transformer_blocks\.(?!0\.)\d+\.norm1\.emb\.", name)}
    for name in sorted(copies):
        first = re.sub(r"transformer_blocks\.\d+", "transformer_blocks.0", name)
        if first not in tensors or not torch.equal(tensors[first], tensors[name]):
            raise InputError(f"{name} differs from the first block's copy: it is not a DiT that diffusers converted")
    rest = {name: value for name, value in tensors.items() if name not in copies}
    left_out = f"{len(copies)} copies of the timestep and class embedders, all equal, left out"
    return translate(rest, LAYERS, BLOCK, JOINED), (TRANSLATED, *([left_out] if copies else []))


def shapes(tensors: Tensors, hub: Mapping[str, Any]) -> dict[str, Any]:
    """Patch size and number of classes; also the side of the latents if positions or ``config.json`` give it."""
    return image_values(tensors, hub) | {"num_classes": tensors["y_embedder.embedding_table.weight"].shape[0] - 1}


READER = TransformerReader(
    name=NAME,
    network=DiT,
    config=DiTConfig,
    marks=("blocks.0.adaLN_modulation.1.weight", "y_embedder.embedding_table.weight"),
    shapes=shapes,
    size="the latent's side",
    from_diffusers=from_diffusers,
)
