"""A loaded model: its three stages and the diffusion that it was trained for; and the files that a user may name."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from ..core.settings import Settings
from ..diffusion import NoiseSchedule, Process
from .family import Network, Preset
from .registry import find_family
from .stages import Stage
from .text import TextEncoder
from .vae import Autoencoder


class Sources(Settings):
    """Where the parts of a model are that the package does not hold, and how they are kept."""

    checkpoint: Path | None = None
    """The network's weights. What is None is looked for in the hub's local cache, or downloaded if that is allowed."""
    text_encoder: Path | None = None
    """The text encoder, a folder in hub layout."""
    vae: Path | None = None
    """The autoencoder, a folder in hub layout."""
    features: Path | None = None
    """Caption features that ``guidon encode`` kept, in place of the text encoder."""
    text_dtype: Literal["fp32", "bf16", "fp16", "int8"] = "fp32"
    """What the text encoder computes in."""
    download: bool = False
    """Fetch what is missing from the hub."""
    offload: Literal["none", "stages"] | None = None
    """"stages" drops each stage after use, "none" keeps all; None is the family's choice."""


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
    latent_shape: tuple[int, ...]
    """(C, T, H, W) or (C, H, W) of the size that the model is for."""
    patch: tuple[int, ...]
    """Latent pixels of a token, along each axis of ``latent_shape`` but the first: a size is a multiple of it."""
    downsampling: int
    """Pixels of a latent pixel, along one side."""
    bench: str
    """The bench (``guidon.metrics.bench``) that its videos are measured on."""
    hashes: dict[str, str] = field(default_factory=dict[str, str])
    """What tells the weights apart, by part. Manifests hold it."""


def find_model(preset: Preset[Any], sources: Sources, device: torch.device) -> Model:
    """The stages of a preset's model. What is small is read and checked now, what is large when it is used.

    Raises:
        InputError: files are missing (which, and where to get them), or are not what the preset needs.
    """
    return find_family(preset.family).find_model(preset, sources, device)
