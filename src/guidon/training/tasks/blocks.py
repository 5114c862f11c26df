"""How the parts of a network that is trained are run: compiled, and keeping little for the backward pass."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

from torch import nn
from torch.utils.checkpoint import checkpoint

from ...models.parts.compiling import compiled_parts, keep_rearranging_whole


def prepare_blocks(network: nn.Module, *, checkpointing: bool, compiling: bool) -> None:
    """Change how the parts of a network are run.

    Args:
        network: has ``blocks``, and perhaps a refiner and a finisher.
        checkpointing: keep the inputs of a block alone, and compute the rest again in the backward pass.
        compiling: compile each block, the refiner and the finisher.
    """
    if checkpointing:
        for block in cast("Any", network).blocks:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    if compiling:
        keep_rearranging_whole()
        for part in compiled_parts(network):
            part.compile()
