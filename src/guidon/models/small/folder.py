"""A Guidon model folder: files of denoiser, text encoder and autoencoder, and optionally a denoiser for low noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...checkpoints import Component, TensorFile, is_component, load_component, open_component
from ...core.errors import InputError
from ...diffusion import FlowPath, NoiseSchedule, Process
from ..family import Checkpoint, Description, Preset, Reader
from ..model import Model
from ..network import Network
from ..parts.offload import place_network
from ..parts.reading import count
from ..sources import Sources
from ..stages import Stage
from ..stdit.config import STDiTConfig
from ..stdit.network import STDiT
from ..text.captions import CaptionEncoder, CaptionEncoderConfig
from ..vae.config import FrameVAEConfig
from ..vae.frames import FrameVAE
from . import BOUNDARY, DENOISER, DIFFUSION, DISTILLED, LOW_NOISE, TEXT, VAE
from .distilled import DistilledNetwork, build_distilled
from .distilled_config import DISTILLED_KIND
from .experts import Experts
from .facts import facts_of, read_diffusion, refuse_incomplete, refuse_sources

TEMPORAL = ".attn_temp.qkv.weight"
CUT_FROM = "cut_from"
"""In the record of a file that leaves weights out: the SHA-256 of the whole file."""


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
    refuse_incomplete(folder)
    denoiser = load_denoiser(folder / DENOISER)
    text, vae = load_component(folder / TEXT, "text"), load_component(folder / VAE, "vae")
    read_diffusion(denoiser.path, denoiser.config)
    low = folder / LOW_NOISE
    return ModelFolder(denoiser, text, vae, _read_low(low, denoiser) if low.is_file() else None)


def load_denoiser(path: Path) -> Component:
    """A denoiser's file. What was left out of it is zero, and its hash is that of the file that it was cut from.

    Where a clip is one token long, attention along time has one token to attend to, and its queries and keys are never
    used. A file for such clips may leave them out (``without_unused``).

    Raises:
        InputError: it is missing, damaged or of another kind.
    """
    found = load_component(path, "denoiser")
    cut = {name: value for name, value in found.weights.items() if _is_cut(name, value)}
    if not cut:
        return found
    whole = {name: torch.cat([value.new_zeros(2 * len(value), len(value)), value]) for name, value in cut.items()}
    return replace(found, weights=found.weights | whole, sha256=str(found.record.get(CUT_FROM, found.sha256)))


def without_unused(denoiser: Component) -> dict[str, Tensor]:
    """The weights of a denoiser without the queries and keys of attention along time.

    Raises:
        InputError: its clips are longer than a token, so it uses them.
    """
    shape = denoiser.configure(STDiTConfig, *DIFFUSION, BOUNDARY)
    if shape.input_size[0] != shape.patch_size[0]:
        raise InputError(f"{denoiser.path} has clips of several tokens along time: it uses all of its weights")
    return {
        name: value[2 * value.shape[1] :].clone() if name.endswith(TEMPORAL) else value
        for name, value in denoiser.weights.items()
    }


def _is_cut(name: str, value: Tensor) -> bool:
    return name.endswith(TEMPORAL) and value.ndim == 2 and value.shape[0] == value.shape[1]


def _read_low(path: Path, denoiser: Component) -> Component:
    low = load_denoiser(path)
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
    refuse_sources(preset, sources)
    files = read_folder(preset.weights)
    facts = facts_of(preset, files.denoiser.config, files.text.config, files.vae.config)
    keep = sources.offload in (None, "none")
    trained = read_diffusion(files.denoiser.path, files.denoiser.config)
    steps = trained.diffusion_steps

    def network(dtype: torch.dtype) -> STDiT | Experts:
        def placed(file: Component, *own: str) -> STDiT:
            def load(device: torch.device) -> STDiT:
                return file.build(STDiT, STDiTConfig, *own).to(device, dtype).eval()

            return place_network(load, device, sources.offload)

        high = placed(files.denoiser, *DIFFUSION)
        if files.low is None:
            return high
        return Experts(high, placed(files.low, *DIFFUSION, BOUNDARY), files.low.config[BOUNDARY])

    path = preset.weights / DISTILLED

    def distilled(dtype: torch.dtype) -> Network[Any]:
        parts = build_distilled(files.denoiser, load_component(path, DISTILLED_KIND), *DIFFUSION)
        told = parts.told.to(device, dtype).eval()
        return DistilledNetwork(parts.merge().to(device, dtype).eval(), told, network(dtype), parts.config)

    stage: Stage[[torch.dtype], Network[Any]] = Stage(network, keep)
    with stage.in_use(torch.float32):  # refuse now a file that does not fit
        pass
    return Model(
        text=Stage(lambda: files.text.build(CaptionEncoder, CaptionEncoderConfig).to(device).eval(), keep),
        network=stage,
        vae=Stage(lambda: files.vae.build(FrameVAE, FrameVAEConfig).to(device).eval(), keep),
        schedule=FlowPath(steps) if trained.path == "flow" else NoiseSchedule.named(trained.noise_schedule, steps),
        process=Process.trained(trained.prediction),
        facts=facts,
        hashes=files.hashes,
        distilled=Stage(distilled, keep) if path.is_file() else None,
        distilled_file=path if path.is_file() else None,
    )


class ComponentReader(Reader):
    """Reads one file of a model folder as a checkpoint. It carries its own configuration."""

    def recognise(self, file: TensorFile) -> Checkpoint | None:
        return Checkpoint(file, file.tensors) if is_component(file.metadata) else None

    def describe(self, checkpoint: Checkpoint, known: Mapping[str, Any]) -> Description:
        file = checkpoint.file
        component = open_component(file.path, dict(file.tensors), file.metadata)
        learned = bool(component.config.get("learn_sigma", False))
        kind = {"text": "text encoder", "vae": "autoencoder"}.get(component.kind, component.kind)
        return Description(f"Guidon's own {kind}", component.config, count(checkpoint.tensors), learned)

    def load(
        self, checkpoint: Checkpoint, known: Mapping[str, Any], assumed: Mapping[str, Any], dtype: torch.dtype
    ) -> nn.Module:
        path = checkpoint.file.path
        if known:
            raise InputError(f"{path} carries its own configuration: leave out {', '.join(known)}")
        return load_denoiser(path).build(STDiT, STDiTConfig, *DIFFUSION, BOUNDARY).to(dtype)
