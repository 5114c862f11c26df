"""Reads networks of transformers from folders, strictly: every weight comes from the files, nothing from the hub."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..checkpoints import count_values, on_meta, read_tensors
from ..checkpoints.finding import AGAIN
from ..core.errors import InputError
from ..core.limits import require_memory
from ..core.reading import reading


@contextmanager
def reading_quietly(folder: Path, what: str) -> Iterator[None]:
    """``reading`` for a library that logs what it finds wrong. Its log is silent in the block.

    Raises:
        InputError: the block failed.
    """
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        with reading(folder, what, AGAIN):
            yield
    finally:
        logging.set_verbosity(verbosity)


def read_network(kind: Any, folder: Path, config: Any, dtype: torch.dtype | None, **options: Any) -> Any:
    """A network whose weights are all from the folder, ready for inference. Call it inside ``reading_quietly``.

    Args:
        kind: a class of transformers.
        folder: config.json and weights.
        config: what was read from config.json.
        dtype: what it computes in; None if an option says it.
        options: further arguments of the class.

    Raises:
        InputError: weights are missing or of another shape, or do not fit into memory.
        ValueError: the configuration asks for much more than the files hold.
    """
    # The library would fill a network of any size with random numbers.
    given = read_tensors(folder, checksums=False).tensors
    with on_meta(len(given)):
        wanted = count_values(kind(config).state_dict())
    if wanted > 2 * count_values(given):
        raise ValueError(f"config.json asks for {wanted:,} values, there are {count_values(given):,}")
    if dtype is not None:
        require_memory(f"the weights in {folder} in {str(dtype).removeprefix('torch.')}", wanted * dtype.itemsize)
        options["dtype"] = dtype
    model, found = kind.from_pretrained(
        folder, local_files_only=True, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    # The library fills missing tensors with random numbers and raises no error.
    unread = sorted(found["missing_keys"]) + sorted(name for name, *_ in found["mismatched_keys"])
    if unread:
        raise InputError(
            f"the weights in {folder} are incomplete or another model's: {len(unread)} of the tensors that its "
            f"config.json asks for are missing or of another shape, such as {unread[0]}"
        )
    return model.eval().requires_grad_(False)
