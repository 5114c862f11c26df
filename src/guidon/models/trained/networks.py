"""The networks that can be trained: made from a configuration, read from files, and adapted to be sampled."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from ..network import Network
from ..parts.reading import TransformerReader
from ..registry import find_family
from .config import FAMILIES, NetworkConfig, NetworkName


def reader_of(name: NetworkName) -> TransformerReader[Any, Any]:
    """How checkpoints of a network are read."""
    return cast("TransformerReader[Any, Any]", find_family(FAMILIES[name]).reader())


def new_network(name: NetworkName, config: NetworkConfig, seed: int) -> nn.Module:
    """A network with new weights.

    Raises:
        InputError: there is no network of this shape.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return reader_of(name).network(config)


def as_network(name: NetworkName, module: nn.Module) -> Network[Any]:
    """What is sampled from: the network itself, or the one that gives STDiT3's velocity in our direction."""
    if name == "stdit3":
        from ..stdit3.velocity import Velocity

        return Velocity(cast("Any", module))
    return cast("Network[Any]", module)
