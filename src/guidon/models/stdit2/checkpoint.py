"""Reads checkpoints of STDiT2, and folders of Open-Sora 1.1 with their config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..parts.reading import NEEDED, Tensors, TransformerReader
from ..parts.sized_reading import STORED, sized_values
from . import NAME
from .network import STDiT2, STDiT2Config


def shapes(tensors: Tensors, hub: Mapping[str, Any]) -> dict[str, Any]:
    """What ``sized_values`` gives. Rotation comes first unless config.json says otherwise: that of 1.1 does not say."""
    values = sized_values(tensors, hub, "blocks", NAME)
    if hub.get("qk_norm_legacy") is not None:
        values["qk_norm_legacy"] = hub["qk_norm_legacy"]
    return values


READER = TransformerReader(
    name=NAME,
    network=STDiT2,
    config=STDiT2Config,
    marks=("blocks.0.attn_temp.qkv.weight", "blocks.0.scale_shift_table_temporal"),
    shapes=shapes,
    size=None,
    stored=STORED,
    needed=(*NEEDED, "y_embedder.y_proj.fc1.weight"),
    null="y_embedder.y_embedding",
)
