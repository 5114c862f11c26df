"""How the parts of a network that is trained are run: compiled, and keeping little for the backward pass."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

from torch import nn
from torch.utils.checkpoint import checkpoint

from ...models.parts.compiling import keep_rearranging_whole
from ...models.parts.refiner import Layer


def prepare_blocks(network: nn.Module, *, checkpointing: bool, compiling: bool) -> None:
    """Change how the blocks of a network are run, and the layers of its refiner and finisher.

    Args:
        network: has ``blocks``.
        checkpointing: keep the inputs of a block alone, and compute the rest again in the backward pass.
        compiling: compile each block, and each layer of a refiner.
    """
    if compiling:
        keep_rearranging_whole()
    for block in list(cast("Any", network).blocks):
        if checkpointing:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        if compiling:
            block.compile()
    if compiling:
        for layer in (part for part in network.modules() if isinstance(part, Layer)):
            layer.compile()
