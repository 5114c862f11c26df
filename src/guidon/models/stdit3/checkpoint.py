"""Reads checkpoints of STDiT3, and folders of Open-Sora 1.2 with their config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..parts.reading import Tensors, TransformerReader
from ..parts.sized_reading import STORED, sized_values
from . import NAME
from .network import STDiT3, STDiT3Config

STACK = "spatial_blocks"  # beside temporal_blocks, as many
REFERENCES = "x_embedder_cond.proj.weight"  # reads reference frames beside the noisy ones, from Open-Sora 1.3 on


def shapes(tensors: Tensors, hub: Mapping[str, Any]) -> dict[str, Any]:
    """See ``sized_values``."""
    return sized_values(tensors, hub, STACK, NAME)


READER = TransformerReader(
    name=NAME,
    network=STDiT3,
    config=STDiT3Config,
    marks=("spatial_blocks.0.attn.qkv.weight", "temporal_blocks.0.attn.qkv.weight"),
    lacks=(REFERENCES,),
    shapes=shapes,
    size=None,
    stack=STACK,
    stored=STORED,
    needed=(
        "x_embedder.proj.weight",
        "final_layer.linear.weight",
        "spatial_blocks.0.mlp.fc1.weight",
        "y_embedder.y_proj.fc1.weight",
    ),
    null="y_embedder.y_embedding",
    relatives={REFERENCES: "the STDiT3 of Open-Sora 1.3, whose network Guidon does not have"},
)
