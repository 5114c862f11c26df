"""Reads any file of tensors into a flat state dict, memory-mapped if possible. Code in a file is never run.

Formats: safetensors, shards with an index, and torch's zip and legacy files.
"""

from __future__ import annotations

import argparse
import io
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..core.errors import InputError, quoted
from ..core.reading import TEXT_BYTES, is_there, read_object, reading
from .finding import AGAIN, WHAT, ZIP, header_length, kind_of, locate, shards_of
from .pickles import MOST_STEPS, refuse_bombs

LEGACY_PICKLES = 4  # a magic number, a version, the system, the content; the names of the values follow
SHARED = 4  # times that the values of a torch file may be used by several of its tensors, on average
WRAPPINGS = ("ema", "state_dict_ema", "state_dict", "model", "module")  # the first one present holds the weights
MOST_WRAPPINGS = 8  # a mapping in a pickle may even hold itself


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


def read_tensors(path: str | Path, *, checksums: bool = True) -> TensorFile:
    """All tensors of a checkpoint file, or of a folder in hub layout.

    Args:
        path: a safetensors, .pt or .pth file, an index of shards, or a folder that holds one of them.
        checksums: check those of a torch zip file, which reads all of it.

    Raises:
        InputError: the file does not exist, is no checkpoint, is truncated or damaged, or holds more than tensors.
    """
    if not isinstance(path, str | Path):
        raise InputError(f"the checkpoint is {quoted(path)}: give the path of a file or folder")
    path = locate(Path(path))
    metadata: dict[str, str] = {}
    kind = kind_of(path)
    if kind == "shards":
        content = _shards(path, checksums)
    elif kind == "safetensors":
        content, metadata = read_safetensors(path)
    else:
        content = _torch_file(path, checksums)
    tensors, wrapping = _unwrap(content, path)
    config = path.parent / "config.json"
    values = read_object(config, "a configuration") if config.is_file() else {}
    return TensorFile(path, kind, tensors, wrapping, values, metadata)


def count_values(tensors: Mapping[str, Tensor]) -> int:
    """How many numbers the tensors hold together."""
    return sum(value.numel() for value in tensors.values())


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, memory-mapped, and the text fields of the header.

    Raises:
        InputError: it is no file, is truncated or damaged, or its header is too large.
    """
    header_length(path)
    with reading(path, "safetensors", AGAIN), safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def _shards(index: Path, checksums: bool) -> dict[str, Tensor]:
    names, files = shards_of(index)
    tensors: dict[str, Tensor] = {}
    for place in files:
        if not is_there(place, "a shard"):
            raise InputError(f"{index} names the shard {place.name}, which is not there: download it again")
        if place.suffix == ".safetensors":
            tensors |= read_safetensors(place)[0]
        else:
            tensors |= _unwrap(_torch_file(place, checksums), place)[0]
    missing = sorted(set(names) - tensors.keys())
    if missing:
        raise InputError(f"{index} promises tensors that its shards lack: {missing[:5]}")
    return tensors


def _torch_file(path: Path, checksums: bool) -> Any:
    """The content of a torch file, in zip or legacy format."""
    with reading(path, WHAT, AGAIN):
        with path.open("rb") as file:
            zipped = file.read(4) == ZIP
            if not zipped:
                file.seek(0)
                refuse_bombs(file, LEGACY_PICKLES)
        if zipped:
            refuse_bad_archive(path, checksums)
        try:
            with _namespaces_allowed(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Detected pickle protocol")  # a failure below says it
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
        except pickle.UnpicklingError as error:
            found = re.search(r"GLOBAL ([\w.]+)", str(error))
            if found is None and (protocol := _protocol(path, zipped)) > 3:
                raise InputError(
                    f"{path} was pickled with protocol {protocol}, which torch does not read without running code; if "
                    "you trust it, save it again: torch.save(torch.load(FILE, weights_only=False), NEW_FILE)"
                ) from None
            if found is None:
                raise ValueError("it does not unpickle") from error
            raise InputError(
                f"{path} holds more than tensors ({found[1]}), which could run code and was not loaded; if you trust "
                "it, save its tensors alone: torch.save(torch.load(FILE, weights_only=False)['state_dict'], NEW_FILE)"
            ) from None
        _refuse_unbacked(content, path)
        return content


def _protocol(path: Path, zipped: bool) -> int:
    """The protocol of a torch file's pickle."""
    if not zipped:
        with path.open("rb") as file:
            return file.read(2)[1]
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        with archive.open(name) as content:
            return content.read(2)[1]


def refuse_bad_archive(path: Path, checksums: bool, any_length: bool = False) -> None:
    """Refuse a zip file that PyTorch did not write, or that is damaged. PyTorch stores values as they are.

    Args:
        path: the file.
        checksums: check those of its parts, which reads all of it.
        any_length: its pickle may have any length, as that of a checkpoint of training, which holds a long log.

    Raises:
        ValueError: a checksum differs, or values are compressed, doubled or overlap, as in a zip bomb.
        InputError: its pickle is too large.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len({member.filename for member in members}) < len(members):
            raise ValueError("two of its parts have one name")
        if not any(member.filename.endswith("/data.pkl") for member in members):
            raise InputError(f"{path} is a zip file that torch.save did not write; expected safetensors, .pt or .pth")
        stored = sum(member.file_size for member in members)
        if any(member.compress_type != zipfile.ZIP_STORED for member in members) or stored > path.stat().st_size:
            raise ValueError(f"it would unpack to {stored:,} bytes, and PyTorch never packs a checkpoint")
        for member in members:
            if member.filename.endswith(".pkl"):
                if not any_length:
                    TEXT_BYTES.check(member.file_size, path)
                # a pickle is read byte by byte, which is slow without a buffer
                with archive.open(member) as part, io.BufferedReader(part) as content:  # pyright: ignore[reportArgumentType]
                    refuse_bombs(content, 1, member.file_size if any_length else MOST_STEPS)
        if checksums and (damaged := archive.testzip()):
            raise ValueError(f"the checksum of {damaged} differs")


def _namespaces_allowed() -> AbstractContextManager[None]:
    """A context in which ``torch.load`` accepts ``argparse.Namespace``, which checkpoints of DiT's training hold."""
    if hasattr(torch.serialization, "safe_globals"):
        return torch.serialization.safe_globals([argparse.Namespace])
    torch.serialization.add_safe_globals([argparse.Namespace])  # torch 2.4 can only allow it globally
    return nullcontext()


def _unwrap(content: Any, path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The mapping of names to tensors in a file's content, and the keys and prefixes that were removed."""
    wrapping: list[str] = []
    while (
        len(wrapping) < MOST_WRAPPINGS
        and isinstance(content, Mapping)
        and not all(isinstance(value, Tensor) for value in content.values())
    ):
        inner = next((key for key in WRAPPINGS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        wrapping.append(inner)
        content = content[inner]
    if not isinstance(content, Mapping) or not content:
        raise InputError(f"{path} holds {type(content).__name__}, expected a mapping of names to tensors")
    strange = [str(key)[:60] for key, value in content.items() if not isinstance(value, Tensor)]
    if strange:
        raise InputError(f"{path} holds no state dict under {', '.join(WRAPPINGS)}; it has {strange[:5]}")
    tensors = {str(name): value for name, value in content.items()}
    while len(wrapping) < MOST_WRAPPINGS and all(name.startswith("module.") for name in tensors):
        wrapping.append("module.")
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors, tuple(wrapping)


def _refuse_unbacked(content: Any, path: Path) -> None:
    """Refuse tensors that are larger than what the file holds: a few bytes can be viewed as any number of values.

    Raises:
        ValueError: a tensor has more values than are stored for it, is sparse, quantized or without values, or the
            same values are used many times.
    """
    total, seen, waiting = 0, set[int](), [content]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Tensor):
            if part.layout != torch.strided or part.is_quantized or part.device.type != "cpu":
                raise ValueError(f"it holds a tensor that is not stored value by value: {part.layout}, {part.device}")
            needed, held = part.numel() * part.element_size(), part.untyped_storage().nbytes()
            if needed > held:
                raise ValueError(f"a tensor of shape {tuple(part.shape)} needs {needed:,} bytes, {held:,} are stored")
            total += needed
        elif isinstance(part, Mapping | list | tuple) and id(part) not in seen:
            seen.add(id(part))
            waiting.extend(part.values() if isinstance(part, Mapping) else part)
    if total > SHARED * path.stat().st_size:
        raise ValueError(f"its tensors need {total:,} bytes, the file has {path.stat().st_size:,}")
