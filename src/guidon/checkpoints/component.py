"""Our own weights: one self-describing safetensors file a component, read strictly.

A file's header carries its kind ("denoiser", "text", "vae"), the configuration that rebuilds it and the record of how
it was trained, and a hash over all of that and the tensors: a truncated, altered or unfit file is refused by name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save
from torch import Tensor, nn

from ..core.atomic import atomic_path
from ..core.errors import InputError
from .files import read_safetensors, sha256_of

FORMAT = "guidon"
DENOISER, LOW_NOISE, TEXT, VAE = (f"{name}.safetensors" for name in ("denoiser", "denoiser-low", "text", "vae"))
DIFFUSION = ("noise_schedule", "diffusion_steps", "prediction")  # what a denoiser's config says besides its shape
BOUNDARY = "boundary"  # and one for low noise: the first timestep that is not its own
C = TypeVar("C")
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Component:
    """What one file holds. ``weights`` are as stored; ``config`` and ``record`` are plain data."""

    path: Path
    kind: str
    config: dict[str, Any]
    record: dict[str, Any]
    weights: dict[str, Tensor]
    sha256: str

    def configure(self, of: type[C], *leave: str) -> C:
        """The configuration object that rebuilds the component, from all of ``config`` but the keys in ``leave``."""
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in self.config.items() if k not in leave}
        try:
            return of(**values)
        except TypeError as error:
            raise InputError(f"{self.path}: its configuration does not fit this version of Guidon: {error}") from None

    def build(self, model: Callable[[Any], M], of: type[Any], *leave: str) -> M:
        """The model itself: made from the configuration and filled, strictly."""
        with torch.random.fork_rng(devices=[]):  # weights that are overwritten next cost the caller no random numbers
            built = model(self.configure(of, *leave))
        load_weights(built, self)
        return built


def save_component(
    path: Path,
    kind: str,
    config: dict[str, Any],
    weights: dict[str, Tensor],
    record: dict[str, Any],
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write a component atomically, floating-point tensors as ``dtype``."""
    stored = {
        name: (value.to(dtype) if value.is_floating_point() else value).cpu().contiguous()
        for name, value in weights.items()
    }
    header = {
        "format": FORMAT,
        "kind": kind,
        "config": json.dumps(config, sort_keys=True),
        "record": json.dumps(record),
    }
    header["digest"] = _digest(header, stored)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(stored, metadata=header))


def load_component(path: Path, kind: str) -> Component:
    """Read a component of the kind asked for; anything else is an InputError that says what the file is."""
    if not path.is_file():
        raise InputError(f"{path} is not there: a Guidon model folder holds {DENOISER}, {TEXT}, {VAE}")
    weights, header = read_safetensors(path)
    if header.get("format") != FORMAT:
        raise InputError(
            f"{path} is a safetensors file, but not one of Guidon's: expected a {kind} written by `guidon train`"
        )
    if header.get("kind") != kind:
        raise InputError(f"{path} holds a {header.get('kind')!r}, expected a {kind!r}")
    if header.get("digest") != _digest(header, weights):
        raise InputError(f"{path} is damaged: its content is not what was written; copy or train it again")
    refuse_broken(weights, path)
    config, record = json.loads(header["config"]), json.loads(header.get("record", "{}"))
    return Component(path, kind, config, record, weights, sha256_of(path))


def load_weights(module: nn.Module, component: Component) -> None:
    """Fill a module strictly; every difference is listed in one line."""
    refuse_misfit(module.state_dict(), component.weights, f"{component.path} does not fit its {component.kind}")
    module.load_state_dict(component.weights)


def refuse_broken(weights: Mapping[str, Tensor], path: Path) -> None:
    """NaN and infinite weights are refused by name."""
    broken = [name for name, value in weights.items() if not torch.isfinite(value).all()]
    if broken:
        raise InputError(f"{path}: {len(broken)} tensors hold NaN or infinity, the first is {broken[0]!r}")


def refuse_misfit(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], what: str) -> None:
    """All missing, unexpected and mis-shaped tensors are named in one line that begins with ``what``."""
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
    """A hash of the header's other fields and of every tensor, name, type and shape included."""
    digest = hashlib.sha256(json.dumps({k: v for k, v in header.items() if k != "digest"}, sort_keys=True).encode())
    for name in sorted(weights):
        value = weights[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
