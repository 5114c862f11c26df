"""Guidon's own weights: one self-describing safetensors file for each component of a model, read strictly.

A file's header holds the kind of the component, the configuration that rebuilds it, the record of how it was trained,
and a hash of all this and of the tensors. A truncated, changed or unsuitable file is refused.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from ..core.atomic import write_bytes
from ..core.errors import InputError
from ..core.hashing import hash_files, hash_tensors
from ..core.reading import parse_json, reading
from .config import AGAIN, FORMAT, configured, refuse_absent, refuse_other_kind
from .files import read_safetensors
from .writing import safetensors_bytes

C = TypeVar("C")
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Component:
    """The content of one file."""

    path: Path
    kind: str
    """What it is: "denoiser", "text" or "vae"."""
    config: dict[str, Any]
    """The configuration that rebuilds it, as plain data."""
    record: dict[str, Any]
    """How it was trained, as plain data."""
    weights: dict[str, Tensor]
    """The tensors as they are stored."""
    sha256: str
    """SHA-256 of the file."""

    @property
    def what(self) -> str:
        """What it is, with an article."""
        return f"a {self.kind}"

    def configure(self, of: type[C], *leave: str) -> C:
        """The configuration object that rebuilds the component, from all keys of ``config`` except those in ``leave``.

        Raises:
            InputError: a key is unknown to the object, missing, of another type, or of a senseless value.
        """
        values = {name: value for name, value in self.config.items() if name not in leave}
        return configured(self.path, of, values)

    def build(self, model: Callable[[Any], M], of: type[Any], *leave: str) -> M:
        """Make the module from the configuration and load its weights strictly.

        No random numbers are drawn, so it may be built in another thread. The module is built on the meta device: it
        must create a buffer that the file does not hold on an explicit device.

        Raises:
            InputError: the configuration or the tensors do not fit.
        """
        config = self.configure(of, *leave)
        with reading(self.path, self.what, AGAIN), on_meta(len(self.weights)):
            built = model(config)
        expected = built.state_dict()
        _refuse_other(expected, self)
        filled = {name: value.to(expected[name].dtype, copy=True) for name, value in self.weights.items()}
        built.load_state_dict(filled, assign=True)
        return built


def save_component(
    path: Path,
    kind: str,
    config: dict[str, Any],
    weights: dict[str, Tensor],
    record: dict[str, Any],
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write a component atomically.

    Args:
        path: the file.
        kind: what it is: "denoiser", "text" or "vae".
        config: the configuration that rebuilds it, as plain data.
        weights: its state dict.
        record: how it was trained, as plain data.
        dtype: the dtype in which floating-point tensors are stored.

    Raises:
        InputError: a tensor holds NaN or infinity, or does in that dtype. Nothing is written.
    """
    stored = {
        name: (value.to(dtype) if value.is_floating_point() else value).cpu().contiguous()
        for name, value in weights.items()
    }
    refuse_broken(stored, path)  # a value that is too large for the dtype is infinite now
    header = {
        "format": FORMAT,
        "kind": kind,
        "config": json.dumps(config, sort_keys=True),
        "record": json.dumps(record),
    }
    header["digest"] = _digest(header, stored)
    write_bytes(path, safetensors_bytes(stored, header))


def load_component(path: Path, kind: str) -> Component:
    """Read a component.

    Raises:
        InputError: the file does not exist, is damaged, or does not hold a component of that kind.
    """
    refuse_absent(path, kind)
    weights, header = read_safetensors(path)
    refuse_other_kind(path, header, kind)
    return open_component(path, weights, header)


def open_component(path: Path, weights: dict[str, Tensor], header: Mapping[str, str]) -> Component:
    """The component in a file that was read already.

    Args:
        path: the file.
        weights: its tensors.
        header: the text fields of its header.

    Raises:
        InputError: the digest differs, a tensor holds NaN or infinity, or the header lacks a part.
    """
    with reading(path, "a component", AGAIN):
        if header["digest"] != _digest(header, weights):
            raise InputError(f"{path} is damaged: its content is not what was written; copy or train it again")
        refuse_broken(weights, path)
        kind = header["kind"]
        config, record = (parse_json(header.get(name, "{}"), path, "a component") for name in ("config", "record"))
        if not isinstance(config, dict) or not isinstance(record, dict):
            raise ValueError("its configuration or its record is no JSON object")
    return Component(path, kind, config, record, weights, hash_files(path))


class _Unfilled(TorchFunctionMode):
    """Leaves parameters as they are where they would get their first values.

    Without memory there is nothing to fill, and torch would import its compiler for it, which takes as long as torch.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def on_meta(tensors: int) -> Iterator[None]:
    """In the block, this thread makes modules without memory and without random numbers.

    A configuration may ask for any depth, and even a module without memory takes time. The block fails once a module
    has many more parameters than the file has tensors.

    Args:
        tensors: how many tensors there are to fill the module.

    Raises:
        ValueError: the module has more than twice as many parameters (layers may be made and then replaced).
    """
    made, most, thread = 0, 2 * tensors + 64, threading.get_ident()

    def count(*_: object) -> None:
        nonlocal made
        made += threading.get_ident() == thread
        if made > most:
            raise ValueError(f"its configuration asks for more than {most} parameters, there are {tensors} tensors")

    hook = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"), _Unfilled():
            yield
    finally:
        hook.remove()


def load_weights(module: nn.Module, component: Component) -> None:
    """Copy a component's weights into a module, strictly.

    Raises:
        InputError: tensors are missing, unexpected or mis-shaped; all of them are named.
    """
    _refuse_other(module.state_dict(), component)
    module.load_state_dict(component.weights)


def _refuse_other(expected: Mapping[str, Tensor], component: Component) -> None:
    refuse_misfit(expected, component.weights, f"{component.path} does not fit its {component.kind}")


def refuse_broken(weights: Mapping[str, Tensor], path: Path) -> None:
    """Raise an InputError if a tensor holds NaN or infinity."""
    with reading(path, "tensors"):
        broken = [name for name, value in weights.items() if not _finite(value)]
    if broken:
        raise InputError(f"{path}: {len(broken)} tensors hold NaN or infinity, the first is {broken[0]!r}")


def refuse_numbers(weights: Mapping[str, Tensor], where: Path | str) -> None:
    """Raise an InputError if a tensor holds whole numbers, which are no weights."""
    for name, value in weights.items():
        if not value.is_floating_point():
            raise InputError(f"{where}: {name!r} holds {value.dtype}, weights are floats")


def _finite(value: Tensor) -> bool:
    # torch.isfinite does not know the types of 8 bits.
    return bool(torch.isfinite(value.float() if value.is_floating_point() and value.itemsize == 1 else value).all())


def refuse_misfit(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], what: str) -> None:
    """Raise an InputError that begins with ``what`` and names all missing, unexpected and mis-shaped tensors."""
    missing = sorted(expected.keys() - given.keys())
    unexpected = sorted(given.keys() - expected.keys())
    shapes = [
        f"{name} {tuple(given[name].shape)} for {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & given.keys())
        if expected[name].shape != given[name].shape
    ]
    faults = [
        f"{word} {names}"
        for word, names in (("missing", missing), ("unexpected", unexpected), ("mis-shaped", shapes))
        if names
    ]
    if faults:
        raise InputError(f"{what}: " + "; ".join(faults))


def _digest(header: Mapping[str, str], weights: Mapping[str, Tensor]) -> str:
    """A hash of the header's other fields and of every tensor."""
    fields = {name: value for name, value in header.items() if name != "digest"}
    return hash_tensors(weights, json.dumps(fields, sort_keys=True))
