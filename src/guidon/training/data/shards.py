"""Tensors on disk by key, in files of many: written once, by several processes together, and read one by one.

A file (shard) is safetensors, with a digest of each tensor in its header. All are checked when the folder is opened: a
damaged file is deleted, and what it held is made again. A tensor is checked again each time it is read, and no more of
a file is read than that. So a set of tensors may be larger than memory.

``fill`` divides the missing tensors among all processes that fill the same folder. Each takes a group of keys by a
lock that ends with its process. A group is stored when it is done, after ``FLUSH`` seconds, and where work is stopped:
at the worst, a process that is killed loses this much work.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...checkpoints.writing import safetensors_bytes
from ...core.atomic import sweep, write_bytes
from ...core.errors import InputError
from ...core.hashing import hash_text
from ...core.limits import require_disk
from ...core.locks import try_held
from ...core.progress import OnStep
from ...core.reading import TEXT_BYTES, reading, regular_file
from ...core.warn import note
from .prefetch import prefetched

FORMAT = "guidon shard 1"
GROUP = 32  # keys that one process takes together
FLUSH = 30.0  # seconds after which what is done of a group is stored
MOST_BYTES = 1 << 26  # of tensors that wait to be stored
LOOK = 0.2  # seconds between two looks at what other processes do
AGAIN = "it is made again"
_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "U8": torch.uint8}


@dataclass(frozen=True)
class _Place:
    """Where a tensor is."""

    path: Path
    start: int
    """Of its first byte in the file."""
    size: int
    """In bytes."""
    dtype: torch.dtype
    shape: tuple[int, ...]
    digest: str


class Shards:
    """The tensors in the shards of a folder.

    Args:
        folder: the folder; it is made if it is missing.
        kind: what the tensors are, such as "latents": the first part of the files' names.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self.kind = folder, kind
        self._places: dict[str, _Place] = {}
        self._known: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        self.refresh()

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def refresh(self) -> None:
        """Take in the shards that were written since the last look. Damaged ones are deleted."""
        with os.scandir(self.folder) as entries:
            names = [entry.name for entry in entries if entry.name.startswith(f"{self.kind}-")]
        for name in sorted(name for name in names if name.endswith(".safetensors") and name not in self._known):
            path = self.folder / name
            try:
                places = _checked_places(path)
            except InputError as error:
                if path.is_file():
                    print(error, file=sys.stderr)
                    path.unlink(missing_ok=True)
                continue
            self._known.add(name)
            for key, place in places.items():
                self._places.setdefault(key, place)

    def read(self, key: str) -> Tensor:
        """A tensor.

        Raises:
            InputError: its file was damaged or deleted after it was checked.
        """
        place = self._places[key]
        with reading(place.path, f"stored {self.kind}", "start again: it will be made again"):
            with place.path.open("rb") as file:
                file.seek(place.start)
                data = file.read(place.size)
            if _digest(key, place.dtype, place.shape, data) != place.digest:
                raise ValueError("its content is not what was written")
            return torch.frombuffer(bytearray(data), dtype=place.dtype).reshape(place.shape)

    def write(self, tensors: Mapping[str, Tensor]) -> None:
        """Add a shard of tensors, which are contiguous and on the CPU."""
        digests = {key: _digest(key, value.dtype, value.shape, _bytes(value)) for key, value in tensors.items()}
        name = f"{self.kind}-{hash_text(' '.join(sorted(tensors)))[:16]}.safetensors"
        header = {"format": FORMAT, "digests": json.dumps(digests, sort_keys=True)}
        write_bytes(self.folder / name, safetensors_bytes(tensors, header))

    def fill(
        self,
        keys: Sequence[str],
        load: Callable[[str], object],
        make: Callable[[str, Any], Mapping[str, Tensor]],
        on_step: OnStep,
    ) -> dict[str, InputError]:
        """Make and store the tensors that are missing, together with other processes that do the same.

        Args:
            keys: of all tensors that are needed, each once. Processes that share work give the same ones.
            load: reads what a tensor is made from. Another thread calls it, one tensor ahead.
            make: makes the tensors of a key from what was loaded: the one named by the key, and others beside it.
            on_step: told how many of the keys are done.

        Returns:
            What could not be loaded, by key.
        """
        ordered = sorted(keys)
        groups = [ordered[k : k + GROUP] for k in range(0, len(ordered), GROUP)]
        failed: dict[str, InputError] = {}
        waited = False
        while waiting := [group for group in groups if self._missing(group, failed)]:
            done, worked = len(keys) - sum(len(self._missing(group, failed)) for group in waiting), False
            on_step(done, len(keys))
            for group in waiting:
                lock = f".{self.kind}-{hash_text(' '.join(group))[:16]}.lock"
                with try_held(self.folder, lock, f"encoding {self.kind}") as mine:
                    if not mine:
                        continue
                    worked = True
                    self.refresh()  # another process may have done it before it let go of the lock
                    with closing(self._made(self._missing(group, failed), load, make, failed)) as made:
                        for _ in made:
                            done += 1
                            on_step(done, len(keys))
            self.refresh()
            if not worked:
                if not waited:
                    note("waiting for another process, which does the rest")
                waited = True
                time.sleep(LOOK)
        on_step(len(keys), len(keys))
        return failed

    def _missing(self, group: Sequence[str], failed: Mapping[str, InputError]) -> list[str]:
        return [key for key in group if key not in self._places and key not in failed]

    def _made(
        self,
        keys: Sequence[str],
        load: Callable[[str], object],
        make: Callable[[str, Any], Mapping[str, Tensor]],
        failed: dict[str, InputError],
    ) -> Generator[None, None, None]:
        """Make and store the tensors of a group; yields after each key."""
        made: dict[str, Tensor] = {}
        stored = time.monotonic()

        def attempt(number: int) -> object:
            try:
                return load(keys[number])
            except InputError as error:
                return error

        try:
            with closing(prefetched(attempt, 0, len(keys))) as loaded:
                for key, found in zip(keys, loaded, strict=True):
                    if isinstance(found, InputError):
                        failed[key] = found
                    else:
                        made |= make(key, found)
                        require_disk(f"the {self.kind} of a few clips", sum(map(_size, made.values())), self.folder)
                    much = sum(map(_size, made.values())) > MOST_BYTES
                    if made and (much or time.monotonic() - stored > FLUSH):
                        self.write(made)
                        made, stored = {}, time.monotonic()
                    yield
        finally:  # also where Ctrl-C stops it
            if made:
                self.write(made)
        self.refresh()


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.flatten().view(torch.uint8).numpy().tobytes()


def _digest(key: str, dtype: torch.dtype, shape: Sequence[int], data: bytes) -> str:
    return hashlib.sha256(f"{key} {dtype} {tuple(shape)} ".encode() + data).hexdigest()[:32]


def _checked_places(path: Path) -> dict[str, _Place]:
    """The tensors of a shard, each of which was read and compared with its digest.

    Raises:
        InputError: it cannot be read, or is not what was written.
    """
    regular_file(path, "a shard")
    with reading(path, "a shard", AGAIN):
        places: dict[str, _Place] = {}
        with path.open("rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")  # the header is JSON, its length comes first
            TEXT_BYTES.check(start, path)
            tensors = json.loads(file.read(start - 8))
            fields = tensors.pop("__metadata__")
            if fields["format"] != FORMAT:
                raise ValueError(f"its format is {fields['format']!r:.60}, expected {FORMAT!r}")
            digests = json.loads(fields["digests"])
            if digests.keys() != tensors.keys():
                raise ValueError("its header does not name its tensors")
            for key, found in tensors.items():
                first, end = found["data_offsets"]
                shape, dtype = tuple(found["shape"]), _TYPES[found["dtype"]]
                file.seek(start + first)
                data = file.read(end - first)
                if len(data) != math.prod(shape) * dtype.itemsize or _digest(key, dtype, shape, data) != digests[key]:
                    raise ValueError("its content is not what was written")
                places[key] = _Place(path, start + first, end - first, dtype, shape, digests[key])
        return places
