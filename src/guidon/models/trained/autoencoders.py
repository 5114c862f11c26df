"""The autoencoder that a network is trained on: a file of our own, or a folder in hub layout."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from ...checkpoints import load_component, read_tensors
from ...checkpoints.config import configured
from ...checkpoints.finding import locate, whole
from ...core.errors import InputError
from ...core.hashing import hash_files
from ...core.reading import read_object
from ..family import one_for_each
from ..finding import AUTOENCODER_WEIGHTS, DOWNSAMPLING, find_autoencoder
from ..released import weight_files
from ..stdit3 import latent_frames
from ..vae import Autoencoder
from ..vae.checkpoint import load_video_vae, refuse_incomplete
from ..vae.config import FrameVAEConfig
from ..vae.frames import FrameVAE


@dataclass(frozen=True)
class AutoencoderSource:
    """An autoencoder's files, and what must be known before they are read."""

    kind: Literal["frames", "hub", "video"]
    """See ``ModelConfig.vae``."""
    path: Path
    """Its file, or the folder of its files."""
    sha256: str
    """SHA-256 of its weights."""
    channels: int
    """Latent channels."""
    downsampling: int
    """Pixels of a latent pixel, along one side."""

    @classmethod
    def find(cls, path: Path) -> AutoencoderSource:
        """The autoencoder that a path means.

        Raises:
            InputError: it is missing or damaged, or no autoencoder.
        """
        if path.is_file() and path.suffix == ".safetensors" and "video" not in _kind_of(path):
            part = load_component(path, "vae")
            config = configured(path, FrameVAEConfig, part.config)
            return cls("frames", path, part.sha256, config.latent_channels, config.downsampling)
        if path.is_dir() and _has_library_layout(path):
            place = find_autoencoder(path)
            values = read_object(place / "config.json", "the configuration of an autoencoder")
            channels, levels = values.get("latent_channels", 4), values.get("block_out_channels", [0] * 4)
            if not isinstance(channels, int) or not isinstance(levels, list):
                raise InputError(f"{place / 'config.json'} says no latent_channels: download it again")
            return cls("hub", place, hash_files(*weight_files(place)), channels, 2 ** (len(levels) - 1))
        if path.exists():
            file = read_tensors(path)
            tensors = refuse_incomplete(file)
            channels = tensors["temporal_vae.quant_conv.conv.weight"].shape[0] // 2
            return cls("video", file.path.parent, hash_files(*whole(file.path)), channels, DOWNSAMPLING)
        raise InputError(f"vae: {path} is not there: give a trained vae.safetensors, or a folder in hub layout")

    def latent_frames(self, frames: int) -> int:
        """Frames of a clip -> frames of its latents."""
        return latent_frames(frames) if self.kind == "video" else one_for_each(frames)

    def load(self) -> Autoencoder:
        """The autoencoder, on the CPU."""
        if self.kind == "frames":
            return load_component(self.path, "vae").build(FrameVAE, FrameVAEConfig).eval().requires_grad_(False)
        return FrameVAE.load(self.path) if self.kind == "hub" else load_video_vae(self.path)

    def load_on(self, device: torch.device) -> Autoencoder:
        """The autoencoder on a device."""
        found: Any = self.load()
        return found.to(device)

    def copy_to(self, folder: Path) -> None:
        """Copy it into a model folder."""
        if self.kind == "frames":
            shutil.copyfile(self.path, folder / "vae.safetensors")
            return
        weights = whole(locate(self.path)) if self.kind == "video" else (self._weights(),)
        (folder / "vae").mkdir()
        for path in (*weights, self.path / "config.json"):
            if path.is_file():
                shutil.copyfile(path, folder / "vae" / path.name)

    def _weights(self) -> Path:
        return next(self.path / name for name in AUTOENCODER_WEIGHTS if (self.path / name).is_file())


def _has_library_layout(folder: Path) -> bool:
    places = (folder, folder / "vae")
    return any((place / name).is_file() for place in places for name in AUTOENCODER_WEIGHTS)


def _kind_of(path: Path) -> str:
    """Which autoencoder a safetensors file holds, by the names in it: ours, or Open-Sora 1.2's ("video")."""
    from ...checkpoints.finding import read_header

    return "frames" if read_header(path).get("format") == "guidon" else "video"
