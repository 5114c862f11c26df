"""SHA-256 of texts, of settings, of tensors and of files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK = 1 << 22  # bytes that are read at a time


def hash_text(text: str) -> str:
    """The hash of a text, in hexadecimal."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def hash_settings(values: Any) -> str:
    """The hash of plain data that JSON can hold. The order of keys does not matter."""
    return hash_text(json.dumps(values, sort_keys=True, ensure_ascii=True))


def hash_files(*paths: Path) -> str:
    """The hash of the bytes of files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()


def hash_stream(file: IO[bytes]) -> str:
    """The hash of the rest of an open file."""
    digest = hashlib.sha256()
    while block := file.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()


def hash_samples(paths: Iterable[Path], blocks: int = 64, size: int = 65536) -> str:
    """The hash of the size of each file and of blocks spread evenly over it. Takes milliseconds for gigabytes."""
    digest = hashlib.sha256()
    for path in paths:
        length = path.stat().st_size
        digest.update(f"{length} ".encode())
        with path.open("rb") as file:
            for k in range(blocks):
                file.seek(k * max(0, length - size) // max(1, blocks - 1))
                digest.update(file.read(size))
    return digest.hexdigest()


def hash_tensors(tensors: Mapping[str, Tensor], start: str = "") -> str:
    """The hash of a text and of every tensor: its name, type, shape and values."""
    import torch

    digest = hashlib.sha256(start.encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
