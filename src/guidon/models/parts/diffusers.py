"""diffusers' names for the layers of a transformer, translated to those of the released checkpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

TRANSLATED = "diffusers' layout, translated to the released names"


def translate(
    tensors: Mapping[str, Tensor],
    layers: Mapping[str, str],
    block: Mapping[str, str],
    joined: Mapping[str, tuple[str, ...]],
) -> dict[str, Tensor]:
    """Rename tensors to the released names. A tensor without a counterpart keeps its name, and loading refuses it.

    Args:
        tensors: under diffusers' names.
        layers: names of layers outside of the blocks.
        block: names of layers within a block.
        joined: a layer of the original within a block, and diffusers' layers that it is made of, in this order.
    """
    out: dict[str, Tensor] = {}
    parts: dict[tuple[str, str], dict[str, Tensor]] = {}  # (block, leaf) -> layers that are joined to another
    for name, value in tensors.items():
        stem, dot, last = name.rpartition(".")
        stem, leaf = (stem, dot + last) if last in ("weight", "bias") else (name, "")
        found = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", stem)
        if stem in layers:
            out[layers[stem] + leaf] = value
        elif found and found[2] in block:
            out[f"blocks.{found[1]}.{block[found[2]]}{leaf}"] = value
        elif found and any(found[2] in sources for sources in joined.values()):
            parts.setdefault((found[1], leaf), {})[found[2]] = value
        else:
            out[name] = value
    for (number, leaf), given in parts.items():
        for target, sources in joined.items():
            if all(source in given for source in sources):
                out[f"blocks.{number}.{target}{leaf}"] = torch.cat([given[source] for source in sources])
    return out
