"""Adds adapters to the weights of a network.

An adapter changes a weight W (N, K) to W + factor * up @ down, with down (rank, K) and up (N, rank).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...checkpoints import read_safetensors, refuse_broken
from ...checkpoints.finding import AGAIN
from ...core.errors import InputError, nearest
from ...core.reading import reading
from ..dit import checkpoint as dit
from ..model import Model
from ..network import Network
from ..parts.diffusers import translate
from ..pixart import checkpoint as pixart
from ..stages import Stage
from .files import AdapterFile, AdapterSource

PREFIXES = ("base_model.model.", "transformer.", "denoiser.")
DOWN, UP = (r"\.(lora_A|lora\.down|lora_down)(\.\w+)?\.weight$", r"\.(lora_B|lora\.up|lora_up)(\.\w+)?\.weight$")
TABLES: dict[str, tuple[Mapping[str, str], Mapping[str, str], Mapping[str, tuple[str, ...]]]] = {
    "PixArt": (pixart.LAYERS, pixart.BLOCK, pixart.JOINED),
    "DiT": (dit.LAYERS, dit.BLOCK, dit.JOINED),
}
"""diffusers' names for the layers of a network, by its class; see ``translate``."""


def with_adapters(model: Model, sources: tuple[AdapterSource, ...]) -> Model:
    """A model whose network has adapters in its weights. Its manifests name them.

    Raises:
        InputError: an adapter is missing. One that does not fit is refused when the network is made.
    """
    files = [source.find() for source in sources]
    make = model.network.make

    def network(dtype: torch.dtype) -> Network[Any]:
        made = make(dtype)
        for file in files:
            several = f"{file.path} is for one network, and this model has several: give a model of one network"
            merge(network_of(made, several), file)
        return made

    own = {file.part(number): file.sha256 for number, file in enumerate(files, 1)}
    return replace(
        model,
        network=Stage(network, model.network.keep),
        hashes=model.hashes | own,
        distilled=None,
        distilled_file=None,
    )


def network_of(network: Network[Any], refusal: str) -> nn.Module:
    """The module whose weights an adapter changes.

    Raises:
        InputError: there are several; the refusal is its message.
    """
    found = getattr(network, "network", network)
    if not isinstance(found, nn.Module):
        raise InputError(refusal)
    return found


@torch.no_grad()
def merge(network: nn.Module, file: AdapterFile) -> None:
    """Add the adapters of a file to the weights of a network, in place.

    Raises:
        InputError: they are damaged, or of another network: of another class, with other layers or shapes.
    """
    kind = type(network).__name__
    if file.network not in (None, kind):
        raise InputError(f"{file.path} holds adapters of a {file.network}, the network is a {kind}: give its own")
    for name, change in changes_of(network, file).items():
        weight = network.get_parameter(name)
        weight.copy_(weight.float() + file.scale * change.to(weight.device))


def changes_of(network: nn.Module, file: AdapterFile) -> dict[str, Tensor]:
    """What the adapters of a file add to the weights of a network at scale 1, fp32, by the name of the weight.

    Raises:
        InputError: see ``merge``.
    """
    tensors, _ = read_safetensors(file.path)
    refuse_broken(tensors, file.path)
    with reading(file.path, "adapters", AGAIN):
        found = _products(tensors, file)
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, nn.Linear)}
    if not any(name.removesuffix(".weight") in layers for name in found):
        found = _translated(found, network, file)
    for name, change in found.items():
        layer = layers.get(name.removesuffix(".weight"))
        if layer is None:
            raise InputError(
                f"{file.path} has an adapter for {name.removesuffix('.weight')}, which is no linear layer of this "
                f"{type(network).__name__}{nearest(name.removesuffix('.weight'), layers)}"
            )
        if change.shape != layer.weight.shape:
            raise InputError(
                f"{file.path} has an adapter of {tuple(change.shape)} for {name}, which is {tuple(layer.weight.shape)} "
                f"in this {type(network).__name__}: give the adapters of this network"
            )
    return found


def _products(tensors: Mapping[str, Tensor], file: AdapterFile) -> dict[str, Tensor]:
    """factor * up @ down by the name of the weight, without the prefixes that libraries write."""
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        for part, pattern in (("down", DOWN), ("up", UP), ("alpha", r"\.alpha$")):
            if re.search(pattern, name):
                pairs.setdefault(re.sub(pattern, "", name), {})[part] = value
                break
        else:
            raise InputError(f"{file.path} holds {name!r}, which is no adapter of low rank: give a LoRA of peft")
    found: dict[str, Tensor] = {}
    for name, pair in pairs.items():
        if not {"down", "up"} <= pair.keys() or pair["down"].ndim != 2 or pair["up"].ndim != 2:
            raise InputError(f"{file.path}: the adapter {name} is no pair of matrices, lora_A and lora_B")
        down, up = pair["down"].float(), pair["up"].float()
        if len(down) != up.shape[1]:
            raise InputError(f"{file.path}: the matrices of {name} are of ranks {len(down)} and {up.shape[1]}")
        factor = float(pair["alpha"]) / len(down) if "alpha" in pair else file.factor(len(down))
        for prefix in PREFIXES:
            name = name.removeprefix(prefix)
        found[f"{name}.weight"] = factor * (up @ down)
    if not found:
        raise InputError(f"{file.path} holds no adapters: it is empty")
    return found


def _translated(found: Mapping[str, Tensor], network: nn.Module, file: AdapterFile) -> dict[str, Tensor]:
    """Changes under diffusers' names, as changes of this network. Layers that are joined in it are joined here."""
    kind = type(network).__name__
    if kind not in TABLES or not any(name.startswith("transformer_blocks.") for name in found):
        example = next(iter(found)).removesuffix(".weight")
        raise InputError(
            f"{file.path} has an adapter for {example}, which is no layer of this {kind}: give the adapters of this "
            "network"
        )
    layers, block, joined = TABLES[kind]
    whole = dict(found)
    for name in found:  # a joined layer of which a part is not adapted: zeros for that part
        if (match := re.fullmatch(r"(transformer_blocks\.\d+)\.(.+)\.weight", name)) is None:
            continue
        for parts in joined.values():
            if match[2] in parts:
                for part in parts:
                    whole.setdefault(f"{match[1]}.{part}.weight", torch.zeros_like(found[name]))
    return translate(whole, layers, block, joined)
