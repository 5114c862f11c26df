"""Reads checkpoints of DiT, in the authors' layout and in diffusers' layout."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

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
EMBEDDERS = {  # of the blocks behind the first, where they differ from its own
    "norm1.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "norm1.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "norm1.emb.class_embedder.embedding_table": "y_embedder.embedding_table",
}
JOINED = {"attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v")}


OWN_EMBEDDERS = "blocks.1.t_embedder.mlp.0.weight"
"""The tensor that tells a network whose blocks have embedders of their own."""


def from_diffusers(tensors: Tensors) -> tuple[Tensors, tuple[str, ...]] | None:
    """See ``TransformerReader.from_diffusers``.

    In diffusers every block has embedders. Those of a converted network are copies of the first block's, and are left
    out. A network that was trained in diffusers has other weights in each.
    """
    if not all(name in tensors for name in DIFFUSERS):
        return None
    others = {name for name in tensors if re.match(r"transformer_blocks\.(?!0\.)\d+\.norm1\.emb\.", name)}
    if not all(_is_copy(tensors, name) for name in others):
        own = "every block has timestep and class embedders of its own: it was trained in diffusers"
        return translate(tensors, LAYERS, BLOCK | EMBEDDERS, JOINED), (TRANSLATED, own)
    rest = {name: value for name, value in tensors.items() if name not in others}
    left_out = f"{len(others)} copies of the timestep and class embedders, all equal, left out"
    return translate(rest, LAYERS, BLOCK, JOINED), (TRANSLATED, *([left_out] if others else []))


def _is_copy(tensors: Tensors, name: str) -> bool:
    first = tensors.get(re.sub(r"transformer_blocks\.\d+", "transformer_blocks.0", name))
    return first is not None and torch.equal(first, tensors[name])


def shapes(tensors: Tensors, hub: Mapping[str, Any]) -> dict[str, Any]:
    """Patch size and number of classes; also the side of the latents if positions or ``config.json`` give it.

    A network that was trained in diffusers has diffusers' frequencies and its epsilon.
    """
    values = image_values(tensors, hub) | {"num_classes": tensors["y_embedder.embedding_table.weight"].shape[0] - 1}
    if OWN_EMBEDDERS in tensors:
        values |= {"own_embedders": True, "frequency_shift": 1, "mlp_norm_eps": hub.get("norm_eps", 1e-5)}
    return values


READER = TransformerReader(
    name=NAME,
    network=DiT,
    config=DiTConfig,
    marks=("blocks.0.adaLN_modulation.1.weight", "y_embedder.embedding_table.weight"),
    shapes=shapes,
    size="the latent's side",
    from_diffusers=from_diffusers,
)
