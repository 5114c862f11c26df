"""What the readers of STDiT2 and STDiT3 share: configuration values from shapes and from Open-Sora's config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...core.errors import InputError
from .reading import Tensors, caption_values

STORED = {
    "hidden_size": "hidden_size",
    "depth": "depth",
    "num_heads": "num_heads",
    "mlp_ratio": "mlp_ratio",
    "in_channels": "in_channels",
    "patch_size": "patch_size",
    "caption_channels": "caption_channels",
    "model_max_length": "model_max_length",
    "pred_sigma": "learn_sigma",
    "qk_norm": "qk_norm",
}
"""Keys of Open-Sora's config.json that the shapes of the weights give, too, and the fields of ours."""


def sized_values(tensors: Tensors, hub: Mapping[str, Any], stack: str, name: str) -> dict[str, Any]:
    """Configuration values besides those of ``common_values``.

    Args:
        tensors: under the released names.
        hub: Open-Sora's config.json, or {}.
        stack: name of the list of blocks.
        name: of the network, as config.json calls it.

    Raises:
        InputError: it is an image model, or config.json is another model's.
    """
    patch = tuple(tensors["x_embedder.proj.weight"].shape[2:])
    if len(patch) != 3:
        raise InputError("its patch kernel is 2D: it is an image model")
    if (kind := hub.get("model_type", name)) != name:
        raise InputError(f"config.json beside it is of a {kind!r:.40}, its weights are of an {name}")
    if hub.get("skip_y_embedder"):
        raise InputError("config.json beside it says skip_y_embedder: captions that are projected already are not read")
    values = caption_values(tensors) | {"patch_size": patch, "qk_norm": f"{stack}.0.attn.q_norm.weight" in tensors}
    if hub.get("input_sq_size") is not None:
        values["input_sq_size"] = hub["input_sq_size"]
    return values
