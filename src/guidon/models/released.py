"""Finds the stages of a released model: its checkpoint, T5 or classes, and Stable Diffusion's autoencoder.

Each is a file or folder that the user names, or is in the hub's local cache. Families call these functions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..checkpoints import read_tensors
from ..checkpoints.finding import locate, whole
from ..core.errors import InputError, setting
from ..core.hashing import hash_samples
from ..core.warn import warn
from ..diffusion import NoiseSchedule, Process
from .checkpoint import load_checkpoint, recognise
from .family import Facts, Preset, Released
from .finding import T5, find_autoencoder, find_on_hub, find_t5
from .model import Model
from .network import Network
from .parts.offload import place_network
from .sources import NetworkOnly, Sources
from .stages import Stage
from .text import TextEncoder
from .text.stand_in import RandomCaptions
from .vae.checkpoint import load_video_vae, refuse_incomplete
from .vae.frames import FrameVAE
from .vae.video import VideoVAE


@dataclass(frozen=True)
class Text:
    """The source of a model's conditions: a text encoder, stored features, or class numbers."""

    make: Callable[[], TextEncoder]
    files: tuple[Path, ...] = ()
    """The files that it reads. Their hash identifies its weights."""
    dtype: str | None = None
    """The text encoder's precision, if the user can choose it; else None."""
    tokens: int | None = None
    """How many tokens its captions have; None for class numbers."""


FindText = Callable[[Sources, torch.device], Text]


def find_captions(tokens: int) -> FindText:
    """The ``FindText`` for T5 with captions padded to ``tokens``, or for features that T5 made."""

    def find(sources: Sources, device: torch.device) -> Text:
        if isinstance(sources, NetworkOnly) and sources.checkpoint is not None:
            checkpoint = sources.checkpoint
            return Text(lambda: RandomCaptions(tokens, _caption_width(checkpoint)), tokens=tokens)
        if sources.features is not None:
            return _kept_features(sources.features, tokens)
        from .text.t5 import T5Encoder

        folder = sources.text_encoder or find_on_hub(T5, None, sources.download, "text_encoder")
        dtype = sources.text_dtype
        return Text(
            lambda: T5Encoder.load(folder, max_length=tokens, dtype=dtype, device=device),
            weight_files(find_t5(folder)[0]),
            dtype,
            tokens,
        )

    return find


def _caption_width(checkpoint: Path) -> int:
    """How wide the caption features are that the network in a checkpoint reads."""
    _, found = recognise(read_tensors(checkpoint))
    return found.tensors["y_embedder.y_proj.fc1.weight"].shape[1]


def _kept_features(path: Path, tokens: int) -> Text:
    from .text.features import load_features

    return Text(lambda: load_features(path, tokens), (path,), tokens=tokens)


def find_released(
    preset: Preset[Released],
    facts: Facts,
    sources: Sources,
    device: torch.device,
    *,
    text: FindText,
    adapt: Callable[[Any], Network[Any]] | None = None,
) -> Model:
    """The stages of a released model.

    Args:
        preset: one with released weights.
        facts: what is known of it.
        sources: files that the user names.
        device: where the stages run.
        text: finds the source of its conditions.
        adapt: makes of the network of a checkpoint what is sampled from; None if it is that.

    Raises:
        InputError: files are missing (which, and where to get them), or are not what the preset needs.
    """
    # Find the files.
    released = preset.weights
    checkpoint = sources.checkpoint or find_on_hub(released.repository, released.file, sources.download, "checkpoint")
    vae = None
    if not isinstance(sources, NetworkOnly):
        vae = sources.vae or find_on_hub(released.vae, None, sources.download, "vae")
    condition = text(sources, device)

    # Refuse files of another kind, and hash the files, before any of them is used.
    family, found = recognise(read_tensors(checkpoint))
    if family.name != preset.family:
        raise InputError(f"{checkpoint} holds a {family.name}, expected a {preset.family}")
    null = found.tensors.get("y_embedder.y_embedding")
    if condition.tokens is not None and null is not None and len(null) != condition.tokens:
        done = "cut" if len(null) > condition.tokens else "made longer by its last row"
        warn(f"the null caption of {checkpoint} has {len(null)} tokens, captions have {condition.tokens}: it is {done}")
    if vae is not None and released.video_vae:
        refuse_incomplete(read_tensors(vae))
    place = None if vae is None else locate(vae) if released.video_vae else find_autoencoder(vae)
    files = {
        "checkpoint": weight_files(checkpoint),
        "vae": () if place is None else weight_files(place),
        "text": condition.files,
    }
    hashes = {part: hash_samples(paths) for part, paths in files.items() if paths}
    if condition.dtype is not None:
        hashes["text_dtype"] = condition.dtype

    # Make the stages. Large files are read when a stage is first used.
    def network(dtype: torch.dtype) -> Network[Any]:
        found = place_network(partial(_network, checkpoint, preset, condition.tokens, dtype), device, sources.offload)
        return found if adapt is None else adapt(found)

    keep = sources.offload == "none"
    return Model(
        text=Stage(condition.make, keep),
        network=Stage(network, keep),
        vae=Stage(lambda: _autoencoder(vae, released).to(device).eval(), keep),
        schedule=NoiseSchedule.named("linear", facts.timesteps),
        process=Process(),
        facts=facts,
        hashes=hashes,
    )


def _autoencoder(place: Path | None, released: Released) -> FrameVAE | VideoVAE:
    """The autoencoder in a folder.

    Raises:
        InputError: there is none, because only the network was asked for.
    """
    if place is None:
        raise InputError(f"only the network was loaded: give the autoencoder, {released.vae}, as {setting('vae')}")
    return load_video_vae(place) if released.video_vae else FrameVAE.load(place)


def _network(
    checkpoint: Path,
    preset: Preset[Released],
    tokens: int | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Any:
    """The network in a checkpoint. If the file has no positions, the preset gives the values that they would give.

    Its null caption gets as many ``tokens`` as prompts have, as in Open-Sora.

    Raises:
        InputError: it is the checkpoint of another size, or cannot be loaded.
    """
    released = preset.weights
    size = released.latent_shape[1:] if len(released.latent_shape) == 4 else released.latent_shape[-1]
    assumed = {"input_size": size, **released.config}
    how: dict[str, Any] = {"dtype": dtype, "device": device, "architecture": preset.family, "assumed": assumed}
    if tokens is not None:
        how["model_max_length"] = tokens
    model = load_checkpoint(checkpoint, **how)
    for name, value in released.config.items():
        if abs(getattr(model.config, name) - value) > 1e-3:
            raise InputError(
                f"{checkpoint} has {name} {getattr(model.config, name):g}, {preset.name} expects {value:g}: "
                "it is another size's checkpoint"
            )
    if model.latent_shape != released.latent_shape:
        made, expected = (" x ".join(map(str, shape)) for shape in (model.latent_shape, released.latent_shape))
        warn(f"{checkpoint} makes latents of {made}, {preset.name} is for {expected}")
    return model


def weight_files(place: Path) -> tuple[Path, ...]:
    """The files of weights in a folder, or the file itself; of an index of shards, the shards too."""
    if place.is_file():
        return whole(place)
    suffixes = (".safetensors", ".bin", ".pt", ".pth")
    return tuple(sorted(path for path in place.iterdir() if path.suffix in suffixes and path.is_file()))
