"""Finds the files of a checkpoint, and reads the header of a safetensors file. It needs no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.errors import InputError
from ..core.reading import TEXT_BYTES, is_there, parse_json, read_object, reading, regular_file

ZIP = b"PK\x03\x04"
MAGIC = b"l\xfc\x9cF\xf9 j\xa8P\x19"  # the number at the start of a torch file that is no zip, as a pickle holds it
WHAT = "a checkpoint"
AGAIN = "it is truncated or damaged: copy or download it again"
WEIGHTS = (
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "diffusion_pytorch_model.bin",
    "pytorch_model.bin",
)


def locate(path: Path) -> Path:
    """The file of weights that a path means: the file itself, or the one in a folder in hub layout.

    Raises:
        InputError: there is none.
    """
    if not (is_there(path, WHAT) and path.is_dir()):
        return regular_file(path, WHAT)
    for name in WEIGHTS:
        for candidate in (path / name, path / f"{name}.index.json"):
            if candidate.is_file():
                return candidate
    if (path / "model_index.json").is_file():
        parts = ", ".join(sorted(part.name for part in path.iterdir() if part.is_dir())) or "of which it has none"
        raise InputError(f"the folder {path} is a pipeline of diffusers: give one of its folders, {parts}")
    raise InputError(f"the folder {path} holds none of {', '.join(WEIGHTS)}, nor an index of their shards")


def kind_of(path: Path) -> str:
    """How a file of weights is stored: "safetensors", "shards" (an index of them), "torch zip" or "torch legacy".

    Raises:
        InputError: it is no such file.
    """
    with reading(path, WHAT), path.open("rb") as file:
        head = file.read(64)
    if path.name.endswith(".index.json"):
        return "shards"
    if head[:4] == ZIP:
        return "torch zip"
    if head[:1] == b"\x80" and MAGIC in head:
        return "torch legacy"
    if head[8:9] == b"{" or path.suffix == ".safetensors":
        return "safetensors"
    raise InputError(f"{path} is not a checkpoint: {_guess(head)}; expected safetensors, .pt or .pth")


def _guess(head: bytes) -> str:
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, fetch the file itself with `git lfs pull`"
    if head.lstrip()[:1] == b"<":
        return "it is a web page, the download went wrong"
    if head[:1] == b"\x80":
        return "it is a pickle that torch.save did not write, and pickles can run code, so it was not loaded"
    if head[4:8] == b"ftyp":
        return "it is a video"
    if head[:1] in (b"{", b"["):
        return "it is JSON"
    if head and all(9 <= byte < 127 for byte in head):
        return "it is a text file"
    return "it is empty" if not head else f"it starts with {head[:8]!r}"


def shards_of(index: Path) -> tuple[list[str], list[Path]]:
    """The names of the tensors that an index of shards promises, and the files that hold them.

    Raises:
        InputError: it is no index, or names files that are not beside it.
    """
    places = read_object(index, "an index of shards").get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(v, str) and Path(v).name == v for v in places.values()):
        raise InputError(f"{index} has no usable 'weight_map' from tensor names to files beside it")
    return list(places), [index.parent / shard for shard in sorted(set(places.values()))]


def whole(path: Path) -> tuple[Path, ...]:
    """All files of a file of weights: the file itself; of an index of shards, the index and its shards in order.

    Raises:
        InputError: it is a damaged index.
    """
    return (path, *(shards_of(path)[1] if path.name.endswith(".index.json") else ()))


def header_length(path: Path) -> int:
    """Bytes of the header of a safetensors file.

    Raises:
        InputError: it is no file, is truncated or damaged, or its header is too large.
    """
    size = regular_file(path, "safetensors").stat().st_size
    with reading(path, "safetensors", AGAIN):
        # The first 8 bytes are the length of the header, which is JSON.
        with path.open("rb") as file:
            length, brace = int.from_bytes(file.read(8), "little"), file.read(1)
        if brace not in (b"{", b""):
            raise InputError(f"{path} is not a safetensors file: give one, or a path where nothing is yet")
        if length > size - 8:
            raise ValueError(f"its header should have {length:,} bytes, the file has {size:,}")
        TEXT_BYTES.check(length, path)
    return length


def read_header(path: Path) -> dict[str, str]:
    """The text fields in the header of a safetensors file. Its tensors are not read.

    Raises:
        InputError: it is no file, is truncated or damaged, or its header is too large.
    """
    with reading(path, "safetensors", AGAIN):
        fields = _header(path).get("__metadata__", {})
        return {str(name): str(value) for name, value in fields.items()}


def stored_types(path: Path) -> list[str]:
    """The type of every tensor in a safetensors file, as its header calls it: "F32", "BF16".

    Raises:
        InputError: it is no file, is truncated or damaged, or its header is too large.
    """
    with reading(path, "safetensors", AGAIN):
        return [str(tensor["dtype"]) for name, tensor in _header(path).items() if name != "__metadata__"]


def _header(path: Path) -> dict[str, Any]:
    length = header_length(path)
    with path.open("rb") as file:
        return parse_json(file.read(8 + length)[8:].decode(), path, "safetensors")
