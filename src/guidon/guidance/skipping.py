"""Some blocks of a network skipped for some rows of a batch: the weak branch of skip guidance.

A block is skipped by a forward hook of torch's own, which gives what the block was given. The hook is there for one
call of the network and leaves nothing behind. The block still runs, so that whatever else sits on it (offloading, for
instance) goes on as it does without.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import InputError, setting

HIDDEN = ("hidden_states", "x")
"""Names under which blocks take the residual stream, where it is not the first argument."""


class BlockSkip:
    """Blocks of a network that can be skipped.

    Args:
        blocks: the blocks. Each must take the residual stream, rows first, and give one tensor of its shape.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        self.blocks = tuple(blocks)

    @contextmanager
    def rows(self, rows: slice) -> Generator[None]:
        """Skip the blocks for these rows of the batch, in the calls of the network inside, by this thread.

        Raises:
            InputError: no block was skipped in such a call, or a block gives something else.
        """
        skipped, thread = set[int](), threading.get_ident()

        def give_input(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            # another run of the same network; a graph, which cannot ask, is traced by the run itself
            if not torch.compiler.is_compiling() and threading.get_ident() != thread:
                return output
            given = args[0] if args else next((kwargs[name] for name in HIDDEN if name in kwargs), None)
            if not isinstance(given, Tensor) or not isinstance(output, Tensor) or given.shape != output.shape:
                raise InputError(
                    f"{setting('guidance')} stg skips blocks that give one tensor of the shape of their input, and "
                    f"{type(block).__name__} does not: choose another rule"
                )
            skipped.add(id(block))
            if rows == slice(None):
                return given
            result = output.clone()
            result[rows] = given[rows]
            return result

        with ExitStack() as hooks:
            for block in self.blocks:
                hooks.callback(block.register_forward_hook(give_input, with_kwargs=True).remove)
            yield
        if not skipped:
            raise InputError(
                f"{setting('guidance')} stg skipped no block: the network did not run them as modules, or was compiled "
                "before: give one that is not compiled"
            )
