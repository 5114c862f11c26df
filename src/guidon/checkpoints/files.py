"""Reads any file of tensors into a flat state dict, memory-mapped if possible. Code in a file is never run.

Formats: safetensors, shards with an index, and torch's zip and legacy files.
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..core.errors import InputError, first_line

WRAPPINGS = ("ema", "state_dict_ema", "state_dict", "model", "module")  # the first one present holds the weights
WEIGHTS = (
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "diffusion_pytorch_model.bin",
    "pytorch_model.bin",
)


@dataclass(frozen=True)
class TensorFile:
    """The content of a file of tensors."""

    path: Path
    """The file that was read; for a folder, the file found in it."""
    format: str
    """"safetensors", "shards", "torch zip" or "torch legacy"."""
    tensors: dict[str, Tensor]
    """By name; memory-mapped where the format allows it."""
    wrapping: tuple[str, ...]
    """Keys that were followed to the tensors, such as "ema", and prefixes that were removed, such as "module."."""
    config: dict[str, Any]
    """The ``config.json`` beside the file, or {}."""
    metadata: dict[str, str]
    """The text fields of a safetensors header, or {}."""


def read_tensors(path: str | Path) -> TensorFile:
    """All tensors of a checkpoint file, or of a folder in hub layout.

    Args:
        path: a safetensors, .pt or .pth file, an index of shards, or a folder that holds one of them.

    Raises:
        InputError: the file does not exist, is no checkpoint, is truncated or damaged, or holds more than tensors.
    """
    path = _locate(Path(path))
    metadata: dict[str, str] = {}
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from None
    if path.name.endswith(".index.json"):
        kind, content = "shards", _shards(path)
    elif head[:4] == b"PK\x03\x04":
        kind, content = "torch zip", _torch_file(path, mapped=True)
    elif head[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04"):
        kind, content = "torch legacy", _torch_file(path, mapped=False)
    elif head[8:9] == b"{" or path.suffix == ".safetensors":
        kind = "safetensors"
        content, metadata = read_safetensors(path)
    else:
        raise InputError(f"{path} is not a checkpoint: {_guess(head)}; expected safetensors, .pt or .pth")
    tensors, wrapping = _unwrap(content, path)
    config = path.parent / "config.json"
    return TensorFile(path, kind, tensors, wrapping, _json(config) if config.is_file() else {}, metadata)


def _locate(path: Path) -> Path:
    if not path.is_dir():
        if not path.exists():
            raise InputError(f"{path} is not there")
        return path
    for name in WEIGHTS:
        for candidate in (path / name, path / f"{name}.index.json"):
            if candidate.is_file():
                return candidate
    raise InputError(f"the folder {path} holds none of {', '.join(WEIGHTS)}, nor an index of their shards")


def _guess(head: bytes) -> str:
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, fetch the file itself with `git lfs pull`"
    if head.lstrip()[:1] == b"<":
        return "it is a web page, the download went wrong"
    return "it is empty" if not head else f"it starts with {head[:8]!r}"


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not readable JSON: {error}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} holds {type(values).__name__}, expected an object")
    return values


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, memory-mapped, and the text fields of the header."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} is not a readable safetensors file (truncated or damaged): {error}") from None


def _shards(index: Path) -> dict[str, Tensor]:
    places = _json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(v, str) and Path(v).name == v for v in places.values()):
        raise InputError(f"{index} has no usable 'weight_map' from tensor names to files beside it")
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(places.values())):
        if not (index.parent / shard).is_file():
            raise InputError(f"{index} names the shard {shard}, which is not there: download it again")
        place = index.parent / shard
        tensors |= read_safetensors(place)[0] if place.suffix == ".safetensors" else _unwrap(_torch(place), place)[0]
    missing = sorted(places.keys() - tensors.keys())
    if missing:
        raise InputError(f"{index} promises tensors that its shards lack: {missing[:5]}")
    return tensors


def _torch(path: Path) -> Any:
    """The content of a torch file, in zip or legacy format."""
    with path.open("rb") as file:
        return _torch_file(path, mapped=file.read(4) == b"PK\x03\x04")


def _torch_file(path: Path, *, mapped: bool) -> Any:
    if mapped:
        try:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
        except (zipfile.BadZipFile, OSError, NotImplementedError, EOFError, RuntimeError, ValueError) as error:
            raise InputError(f"{path} is truncated or damaged: {error}; copy or download it again") from None
        if damaged:
            raise InputError(f"{path} is damaged in {damaged} (checksum differs); copy or download it again")
    try:
        with _namespaces_allowed():
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found is None:
            raise InputError(f"{path} is damaged: it does not unpickle; copy or download it again") from None
        raise InputError(
            f"{path} holds more than tensors ({found[1]}), which could run code and was not loaded; if you trust it, "
            f"save its tensors alone: torch.save(torch.load(FILE, weights_only=False)['state_dict'], NEW_FILE)"
        ) from None
    except Exception as error:  # a damaged pickle can fail in any way
        raise InputError(f"{path} is truncated or damaged: {first_line(error)}; copy or download it again") from None


def _namespaces_allowed() -> AbstractContextManager[None]:
    """A context in which ``torch.load`` accepts ``argparse.Namespace``, which checkpoints of DiT's training hold."""
    if hasattr(torch.serialization, "safe_globals"):
        return torch.serialization.safe_globals([argparse.Namespace])
    torch.serialization.add_safe_globals([argparse.Namespace])  # torch 2.4 can only allow it globally
    return nullcontext()


def _unwrap(content: Any, path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The mapping of names to tensors in a file's content, and the keys and prefixes that were removed."""
    wrapping: list[str] = []
    while isinstance(content, Mapping) and not all(isinstance(value, Tensor) for value in content.values()):
        inner = next((key for key in WRAPPINGS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        wrapping.append(inner)
        content = content[inner]
    if not isinstance(content, Mapping) or not content:
        raise InputError(f"{path} holds {type(content).__name__}, expected a mapping of names to tensors")
    strange = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if strange:
        raise InputError(f"{path} holds no state dict under {', '.join(WRAPPINGS)}; it has {strange[:5]}")
    tensors = {str(name): value for name, value in content.items()}
    while all(name.startswith("module.") for name in tensors):
        wrapping.append("module.")
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors, tuple(wrapping)
