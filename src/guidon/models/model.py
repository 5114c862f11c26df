"""The parts of a model, made when first used: its three stages, and the diffusion that it was trained for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from ..diffusion import NoiseSchedule, Process
from .family import Facts
from .network import Network
from .stages import Stage
from .text import TextEncoder
from .vae import Autoencoder


@dataclass(frozen=True)
class Model:
    """All that a pipeline is made of."""

    text: Stage[[], TextEncoder]
    """Prompts to features, or to class labels."""
    network: Stage[[torch.dtype], Network[Any]]
    """The network, made for a dtype."""
    vae: Stage[[], Autoencoder]
    """Latents to frames."""
    schedule: NoiseSchedule
    """Every noise level that the network was trained at."""
    process: Process
    """What the network predicts, its variance included."""
    facts: Facts
    """What settings are checked against."""
    hashes: dict[str, str] = field(default_factory=dict[str, str])
    """A hash of each part's weights; for T5 its precision too. Manifests hold them."""
