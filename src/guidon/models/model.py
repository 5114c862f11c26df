"""The parts of a model, made when first used: its three stages, and the diffusion that it was trained for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..core.hashing import hash_files
from ..diffusion import FlowPath, NoiseSchedule, Process
from .family import Facts
from .network import Network
from .sources import DISTILLED, WEAK
from .stages import Stage
from .text import TextEncoder
from .vae import Autoencoder

NETWORK_PARTS = ("denoiser", "denoiser-low", "checkpoint", "vae")
"""Names of the hashed parts that do not read prompts. Neither do adapters, whose names have a space."""


@dataclass(frozen=True)
class Model:
    """All that a pipeline is made of."""

    text: Stage[[], TextEncoder]
    """Prompts to features, or to class labels."""
    network: Stage[[torch.dtype], Network[Any]]
    """The network, made for a dtype."""
    vae: Stage[[], Autoencoder]
    """Latents to frames."""
    schedule: NoiseSchedule | FlowPath
    """Every noise level that the network was trained at: those of a diffusion, or of rectified flow."""
    process: Process
    """What the network predicts, its variance included."""
    facts: Facts
    """What settings are checked against."""
    hashes: dict[str, str] = field(default_factory=dict[str, str])
    """A hash of each part's weights; for T5 its precision too. Manifests hold them."""
    distilled: Stage[[torch.dtype], Network[Any]] | None = None
    """The distilled network, which is told of guidance and runs one branch; None where the model has none."""
    distilled_file: Path | None = None
    """The file of what it changes, which is read where it is asked for."""
    read_with: object = None
    """What decides how prompts are read besides weights: tokens of a caption, names of classes."""
    weak: Model | None = None
    """A weaker model of the same latents and diffusion, for the rule "autoguidance"."""

    @property
    def distilled_hashes(self) -> dict[str, str]:
        """The hash of the distilled network's file, by its name."""
        return {} if self.distilled_file is None else {DISTILLED: hash_files(self.distilled_file)}

    @property
    def all_hashes(self) -> dict[str, str]:
        """The hashes of all weights, those of the weak model under names of their own."""
        weaker = {} if self.weak is None else self.weak.hashes
        return self.hashes | {f"{WEAK}{name}": value for name, value in weaker.items() if name != "vae"}

    @property
    def reads_as_weak(self) -> bool:
        """Whether the weak model reads prompts as this one does."""
        if self.weak is None or self.weak.read_with != self.read_with:
            return False
        ours, theirs = (
            {name: value for name, value in hashes.items() if name not in NETWORK_PARTS and " " not in name}
            for hashes in (self.hashes, self.weak.hashes)
        )
        return ours == theirs
