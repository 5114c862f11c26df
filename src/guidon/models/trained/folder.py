"""Reads the weights of a trained model's folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...checkpoints import TensorFile, load_component, read_tensors, refuse_broken
from ...checkpoints.finding import AGAIN, WHAT, locate
from ...core.errors import InputError
from ...core.hashing import hash_samples
from ...core.reading import reading
from ...diffusion import FlowPath, NoiseSchedule, Process
from ..dit.classes import ClassLabels
from ..family import Checkpoint, Description, Facts, Reader
from ..finding import T5, find_autoencoder, find_on_hub, find_t5
from ..model import Model
from ..network import Network
from ..parts.offload import place_network
from ..released import weight_files
from ..sources import Sources
from ..stages import Stage
from ..text import TextEncoder
from ..text.captions import CaptionEncoder, CaptionEncoderConfig
from ..vae import Autoencoder
from ..vae.config import FrameVAEConfig
from .config import CHECKPOINT, FEATURES, ModelConfig, read_network_config
from .networks import as_network, reader_of

WORDS, FRAMES = "text.safetensors", "vae.safetensors"


def find_model(folder: Path, config: ModelConfig, facts: Facts, sources: Sources, device: torch.device) -> Model:
    """The stages of a trained model. See ``Family.find_model``.

    Raises:
        InputError: a file is missing, damaged or of another model.
    """
    keep = sources.offload in (None, "none")
    files = {"checkpoint": (folder / CHECKPOINT,), "vae": weight_files(vae_place(folder, config))}
    text, read, precision = _text(folder, config, sources, device)
    if read:
        files["text"] = read
    hashes = {part: hash_samples(paths) for part, paths in files.items()}
    if precision is not None:
        hashes["text_dtype"] = precision

    def network(dtype: torch.dtype) -> Network[Any]:
        def load(device: torch.device) -> Any:
            return load_network(folder, config, dtype).to(device)

        return as_network(config.network, place_network(load, device, sources.offload))

    def autoencoder() -> Autoencoder:
        return load_autoencoder(folder, config).to(device).eval()  # type: ignore[attr-defined]

    steps = config.diffusion_steps
    schedule = NoiseSchedule.named(config.noise_schedule, steps) if config.path == "diffusion" else None
    return Model(
        text=Stage(text, keep),
        network=Stage(network, keep),
        vae=Stage(autoencoder, keep),
        schedule=schedule or FlowPath(steps, by_size=config.by_size),
        process=Process.trained(config.prediction),
        facts=facts,
        hashes=hashes,
        read_with=(config.text.tokens, config.text.classes),
    )


def load_network(folder: Path, config: ModelConfig, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The network of a trained model's folder, on the CPU.

    Raises:
        InputError: it is missing, damaged, or does not fit config.json.
    """
    reader = reader_of(config.network)
    file = read_tensors(folder / CHECKPOINT)
    refuse_broken(file.tensors, file.path)
    shape = read_network_config(folder, config.network)
    with reading(file.path, WHAT, AGAIN):
        network = reader.assemble(shape, file.tensors, str(file.path), dtype)
    return network.eval().requires_grad_(False)


def vae_place(folder: Path, config: ModelConfig) -> Path:
    """Where the autoencoder is: its file, or the folder of its files.

    Raises:
        InputError: it is not there.
    """
    if config.vae == "frames":
        return folder / FRAMES
    return find_autoencoder(folder / "vae") if config.vae == "hub" else locate(folder / "vae").parent


def load_autoencoder(folder: Path, config: ModelConfig) -> Autoencoder:
    """The autoencoder of a trained model's folder, on the CPU."""
    from ..vae.checkpoint import load_video_vae
    from ..vae.frames import FrameVAE

    if config.vae == "frames":
        return load_component(folder / FRAMES, "vae").build(FrameVAE, FrameVAEConfig).eval()
    if config.vae == "hub":
        return FrameVAE.load(folder / "vae")
    return load_video_vae(folder / "vae")


def _text(
    folder: Path, config: ModelConfig, sources: Sources, device: torch.device
) -> tuple[Any, tuple[Path, ...], str | None]:
    """What makes the text encoder, the files that it reads, and its precision, if the user can choose it."""
    source = config.text
    if source.kind == "classes":
        names = {name: number for number, name in enumerate(source.classes)}
        return (lambda: ClassLabels(len(names), names)), (), None
    if source.kind == "words":
        part = load_component(folder / WORDS, "text")
        return (lambda: part.build(CaptionEncoder, CaptionEncoderConfig).to(device).eval()), (part.path,), None
    features = sources.features
    if source.kind == "features" and sources.text_encoder is None:
        features = features or folder / FEATURES
    tokens = source.tokens or 120
    if features is not None:
        from ..text.features import load_features

        path = features
        return (lambda: load_features(path, tokens)), (path,), None
    place = sources.text_encoder or source.folder
    if place is None or not place.is_dir():
        place = find_on_hub(T5, None, sources.download, "text_encoder")
    dtype = sources.text_dtype

    def t5() -> TextEncoder:
        from ..text.t5 import T5Encoder

        return T5Encoder.load(place, max_length=tokens, dtype=dtype, device=device)

    return t5, weight_files(find_t5(place)[0]), dtype


class NoReader(Reader):
    """Recognises nothing: the file of a network is a checkpoint of its own family."""

    def recognise(self, file: TensorFile) -> Checkpoint | None:
        return None

    def describe(self, checkpoint: Checkpoint, known: Mapping[str, Any]) -> Description:
        raise InputError(f"{checkpoint.file.path} is no checkpoint of this family")

    def load(
        self, checkpoint: Checkpoint, known: Mapping[str, Any], assumed: Mapping[str, Any], dtype: torch.dtype
    ) -> nn.Module:
        raise InputError(f"{checkpoint.file.path} is no checkpoint of this family")
