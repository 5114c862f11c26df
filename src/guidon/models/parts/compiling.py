"""What torch's compiler must know of the networks, and which parts of them it compiles."""

from typing import Any

import torch
from einops import rearrange
from torch import nn


def keep_rearranging_whole() -> None:
    """Let torch's compiler take ``rearrange`` as one operation, which its backend sees as what it does to a tensor.

    Without this, it traces how einops reads the pattern of each call, which is most of what it traces in a block.
    """
    torch.compiler.allow_in_graph(rearrange)


def compiled_parts(network: Any) -> list[nn.Module]:
    """The parts of a network that are compiled: its blocks, and what refines its prediction."""
    blocks: list[nn.Module] = list(getattr(network, "blocks", ()))
    return blocks + [part for name in ("refiner", "finisher") if (part := getattr(network, name, None)) is not None]
