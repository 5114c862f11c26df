"""A Guidon model folder: files of denoiser, text encoder and autoencoder, and optionally a denoiser for low noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import PositiveInt
from torch import nn

from ... import world
from ...checkpoints import Component, TensorFile, is_component, load_component, open_component
from ...core.errors import InputError, setting
from ...core.settings import Settings, validated
from ...diffusion import NoiseSchedule, Parameterization, Process
from ..family import Checkpoint, Description, Preset, Reader
from ..model import Model
from ..network import Network
from ..parts.reading import count
from ..sources import Sources
from ..stages import Stage
from ..stdit.network import STDiT, STDiTConfig
from ..text.captions import CaptionEncoder, CaptionEncoderConfig
from ..vae.frames import FrameVAE, FrameVAEConfig
from . import BOUNDARY, DENOISER, DIFFUSION, LOW_NOISE, TEXT, VAE
from .experts import Experts


class Diffusion(Settings):
    """The keys of a denoiser's configuration besides its shape: what it was trained for."""

    noise_schedule: str
    diffusion_steps: PositiveInt
    prediction: Parameterization


@dataclass(frozen=True)
class ModelFolder:
    """The components in a model folder."""

    denoiser: Component
    text: Component
    vae: Component
    low: Component | None
    """The denoiser for low noise; None if the folder has none."""

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of every file, by the name of the file without its suffix."""
        parts = {"denoiser": self.denoiser, "text": self.text, "vae": self.vae, "denoiser-low": self.low}
        return {name: part.sha256 for name, part in parts.items() if part is not None}


def read_folder(folder: Path) -> ModelFolder:
    """All files of a model folder.

    Raises:
        InputError: one is missing, damaged or of another kind, or the two denoisers do not belong together.
    """
    missing = [name for name in (DENOISER, TEXT, VAE) if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{folder} holds no {', '.join(missing)}: a model folder has {DENOISER}, {TEXT} and {VAE}")
    denoiser = load_component(folder / DENOISER, "denoiser")
    text, vae = load_component(folder / TEXT, "text"), load_component(folder / VAE, "vae")
    if BOUNDARY in denoiser.config:
        raise InputError(f"{denoiser.path} is an expert for low noise: it belongs beside a denoiser, as {LOW_NOISE}")
    unsaid = [name for name in DIFFUSION if name not in denoiser.config]
    if unsaid:
        raise InputError(f"{denoiser.path}: its configuration lacks {', '.join(unsaid)}: train or export it again")
    validated(Diffusion, {name: denoiser.config[name] for name in DIFFUSION}, f"{denoiser.path}")
    low = folder / LOW_NOISE
    return ModelFolder(denoiser, text, vae, _read_low(low, denoiser) if low.is_file() else None)


def _read_low(path: Path, denoiser: Component) -> Component:
    low = load_component(path, "denoiser")
    boundary, steps = low.config.get(BOUNDARY), denoiser.config["diffusion_steps"]
    if not isinstance(boundary, int) or not 0 < boundary < steps:
        raise InputError(
            f"{path}: its boundary is {boundary!r}, an expert for low noise has a timestep between 0 and {steps}"
        )
    name = different_diffusion(low.config, denoiser.config)
    if name is not None:
        raise InputError(
            f"{path}: its {name} is {low.config.get(name)!r}, that of {denoiser.path.name} "
            f"{denoiser.config[name]!r}: give two of one model"
        )
    return low


def different_diffusion(config: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """The first of ``DIFFUSION`` in which the diffusion processes of two networks differ; None where they are equal."""
    return next((name for name in DIFFUSION if config.get(name) != other.get(name)), None)


def find_model(preset: Preset[Path], sources: Sources, device: torch.device) -> Model:
    """The stages of a model folder. See ``Family.find_model``."""
    changed = [
        name for name, value in sources if name != "offload" and value != type(sources).model_fields[name].default
    ]
    if changed:
        raise InputError(f"model {preset.name!r} brings its own weights: leave out {setting(changed[0])}")
    files = read_folder(preset.weights)
    keep = sources.offload != "stages"
    shape, trained = files.denoiser.configure(STDiTConfig, *DIFFUSION), files.denoiser.config

    def network(dtype: torch.dtype) -> Network[Any]:
        high = files.denoiser.build(STDiT, STDiTConfig, *DIFFUSION).to(device, dtype).eval()
        if files.low is None:
            return high
        low = files.low.build(STDiT, STDiTConfig, *DIFFUSION, BOUNDARY).to(device, dtype).eval()
        return Experts(high, low, files.low.config[BOUNDARY])

    stage = Stage(network, keep)
    with stage.in_use(torch.float32):  # refuse now a file that does not fit
        pass
    downsampling = files.vae.configure(FrameVAEConfig).downsampling
    pixels = tuple(side * downsampling for side in shape.input_size[1:])
    of_the_world = pixels == (world.SIZE, world.SIZE)
    return Model(
        text=Stage(lambda: files.text.build(CaptionEncoder, CaptionEncoderConfig).to(device).eval(), keep),
        network=stage,
        vae=Stage(lambda: files.vae.build(FrameVAE, FrameVAEConfig).to(device).eval(), keep),
        schedule=NoiseSchedule.named(trained["noise_schedule"], trained["diffusion_steps"]),
        process=Process.trained(trained["prediction"]),
        latent_shape=(shape.in_channels, *shape.input_size),
        patch=shape.patch_size,
        downsampling=downsampling,
        bench=preset.bench if of_the_world else "video",  # the bench "world" measures clips of one size only
        hashes=files.hashes,
    )


class ComponentReader(Reader):
    """Reads one file of a model folder as a checkpoint. It carries its own configuration."""

    def recognise(self, file: TensorFile) -> Checkpoint | None:
        return Checkpoint(file, file.tensors) if is_component(file.metadata) else None

    def describe(self, checkpoint: Checkpoint, known: Mapping[str, Any]) -> Description:
        file = checkpoint.file
        component = open_component(file.path, dict(file.tensors), file.metadata)
        learned = bool(component.config.get("learn_sigma", False))
        return Description(f"Guidon's own {component.kind}", component.config, count(checkpoint.tensors), learned)

    def load(
        self, checkpoint: Checkpoint, known: Mapping[str, Any], assumed: Mapping[str, Any], dtype: torch.dtype
    ) -> nn.Module:
        path = checkpoint.file.path
        if known:
            raise InputError(f"{path} carries its own configuration: leave out {', '.join(known)}")
        return load_component(path, "denoiser").build(STDiT, STDiTConfig, *DIFFUSION, BOUNDARY).to(dtype)
