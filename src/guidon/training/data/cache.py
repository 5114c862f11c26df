"""Tensors that are computed once and stored in a file. If the file is damaged, they are computed again.

Several runs may store the same file at the same time. Each writes the whole file, and the last one stays.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ...checkpoints.writing import safetensors_bytes
from ...core.atomic import sweep, write_bytes
from ...core.errors import InputError
from ...core.hashing import hash_tensors
from ...core.progress import progress
from ...core.ranks import ALONE, Ranks, seen_in_time
from ...core.reading import reading, regular_file


def store(path: Path, key: str, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors with their key and a digest of both, atomically.

    Args:
        path: the file.
        key: what the tensors were computed from.
        tensors: by name, contiguous, on the CPU.
    """
    write_bytes(path, safetensors_bytes(tensors, {"key": key, "digest": hash_tensors(tensors, key)}))


def stored(
    path: Path, key: str, what: str, fits: Callable[[Mapping[str, Tensor]], bool] | None = None
) -> dict[str, Tensor] | None:
    """The tensors in a file of ``store``; None where they must be computed.

    A line on stderr says so if there is a file that cannot be used: it is damaged, belongs to another key, or has no
    digest, as files of earlier versions.

    Args:
        path: the file.
        key: what the tensors must have been computed from.
        what: what they are, for messages, such as "latents".
        fits: whether tensors have the names, shapes and types that are needed; None for any.

    Raises:
        InputError: the path is no regular file.
    """
    if not path.exists():
        return None
    regular_file(path, f"stored {what}")
    try:
        with reading(path, f"stored {what}", "they are made again"), safe_open(path, framework="pt") as file:
            fields = file.metadata() or {}
            # Copied: a file that is damaged later must not change what was checked.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            if "digest" not in fields:
                raise ValueError("an earlier version wrote it, without a digest")
            if fields["digest"] != hash_tensors(tensors, fields.get("key", "")):
                raise ValueError("its content is not what was written")
            if fields["key"] != key:
                raise ValueError("it was made with other settings")
            if fits is not None and not fits(tensors):
                raise ValueError("its tensors are not of the shapes that are needed")
    except InputError as error:
        print(error, file=sys.stderr)
        return None
    return tensors


def is_block(
    block: Mapping[str, Tensor], numbers: range, forms: Mapping[str, tuple[Sequence[int], torch.dtype]]
) -> bool:
    """Whether a stored block is one of clips of these numbers, and its values are finite.

    Args:
        block: tensors by name.
        numbers: the numbers of clips that may be in it; those that are, (rows,), are its "numbers".
        forms: of each other tensor, the shape of a row and the type.
    """
    found = block.get("numbers")
    if found is None or block.keys() != {"numbers", *forms}:
        return False
    if found.ndim != 1 or found.dtype != torch.int64 or not set(found.tolist()) <= set(numbers):
        return False
    wanted = {name: ((len(found), *shape), dtype) for name, (shape, dtype) in forms.items()}
    fitting = all((tuple(block[name].shape), block[name].dtype) == form for name, form in wanted.items())
    return fitting and all(bool(value.isfinite().all()) for value in block.values())


def sampled_rollouts(
    place: Path,
    key: str,
    count: int,
    size: int,
    fits: Callable[[range, Mapping[str, Tensor]], bool],
    sample: Callable[[range], dict[str, Tensor]],
    ranks: Ranks = ALONE,
) -> dict[str, Tensor]:
    """Clips that a model samples, block by block: the tensors of all blocks, joined along their first axis.

    A block that was stored is read, so an interrupted run continues with the next one.

    Args:
        place: the folder of the blocks.
        key: what they are sampled from.
        count: how many clips are sampled.
        size: how many in a block.
        fits: whether stored tensors are those of clips of these numbers.
        sample: samples the clips of these numbers. Those that cannot be read are left out of "numbers".
        ranks: those that sample together, each a block at a time. All call this, and read what the others stored.

    Raises:
        InputError: not one clip can be read, or the ranks do not share the folder.
        RankFailed, MemoryError, RankLost: another rank failed, or ended.
    """
    starts, blocks = range(0, count, size), dict[int, dict[str, Tensor]]()  # blocks by their first number

    def place_of(first: int) -> tuple[Path, str, range]:
        numbers = range(first, min(first + size, count))
        return place / f"{first:06}.safetensors", f"{key} {len(numbers)}", numbers

    def missing() -> list[int]:
        """Read the blocks that are stored and not known yet. Returns those that are missing."""
        for first in starts:
            path, own, numbers = place_of(first)
            if first not in blocks and (block := stored(path, own, "rollouts", partial(fits, numbers))) is not None:
                blocks[first] = block
        return [first for first in starts if first not in blocks]

    def make(firsts: Sequence[int]) -> None:
        for first in firsts:
            path, own, numbers = place_of(first)
            blocks[first] = sample(numbers)
            store(path, own, blocks[first])

    def left() -> list[int]:
        sweep(place)
        return missing()

    with progress("sampling rollouts") as on_step:
        wanted = ranks.from_first_at_length(left)
        done = len(starts) - len(wanted)
        on_step(done, len(starts))
        own = wanted[ranks.index :: len(ranks)]
        for turn in range(-(-len(wanted) // len(ranks))):
            ranks.together_at_length(partial(make, own[turn : turn + 1]))
            on_step(min(done + (turn + 1) * len(ranks), len(starts)), len(starts))
    if not seen_in_time(lambda: not missing()) and (lacking := missing()):
        path, _, _ = place_of(lacking[0])
        raise InputError(f"{path}, which another rank stored, cannot be read here: all ranks must share its folder")
    found = {name: torch.cat([blocks[first][name] for first in starts]) for name in blocks[0]}
    if not len(found["numbers"]):
        raise InputError(f"no clip of {count} that the model sampled can be read: train it further, then try again")
    return found
