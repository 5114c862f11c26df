"""What is known of a trained model before its weights are read: its preset and its facts. It needs no torch."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ...checkpoints.config import read_config
from ...core.errors import InputError, setting
from ..dit.classes import ClassLabels
from ..family import Facts, Preset, as_they_are, one_for_each
from ..small.words import Words
from ..sources import READERS, Sources
from ..stdit3 import CHUNK_LATENTS, latent_frames, with_scores
from ..text.headers import refuse_unstored, stored_prompts
from . import NAME
from .config import (
    ANY_SIZE,
    CHECKPOINT,
    CONFIG,
    FAMILIES,
    FEATURES,
    IMAGES,
    ModelConfig,
    NetworkConfig,
    read_model_config,
    read_network_config,
)


def preset_of(folder: Path, config: ModelConfig, shape: NetworkConfig) -> Preset[Path]:
    """The preset of a folder, whose network has this configuration."""
    image = config.network in IMAGES
    any_size = any(getattr(shape, key, False) for key in ("micro_condition", "any_size"))
    sizes: tuple[Any, ...] = ("size", "frames") if not image else ("size",) if any_size else ()
    what = "images" if image else "videos"
    return Preset(
        name=str(folder),
        family=NAME,
        summary=f"a trained {FAMILIES[config.network]}, {what} of {config.clip.width}x{config.clip.height}",
        weights=folder,
        source=str(folder),
        bench="video",
        fps=config.clip.played or config.clip.fps,
        source_fps=config.clip.fps,
        sizes=sizes,
        is_image=image,
        classes=len(config.text.classes),
        dtype="bf16" if config.network in ANY_SIZE and config.knows_given_frames else "fp32",
        seed=config.seed,
        **config.sampling.for_preset(config.path),
    )


def facts_of(preset: Preset[Path], sources: Sources) -> Facts:
    """What is known of a model; see ``Family.facts``.

    Raises:
        InputError: a file of the folder is missing, or prompts cannot be read.
    """

    folder, config = preset.weights, config_of(preset.weights)
    refuse_sources(preset.name, config, sources)
    if not (folder / CHECKPOINT).is_file():
        raise InputError(f"{folder} holds no {CHECKPOINT}: copy or train it again")
    facts = facts_of_network(config, read_network_config(folder, config.network))
    if config.text.kind == "classes":
        names = {name: number for number, name in enumerate(config.text.classes)}
        return replace(facts, check_prompts=ClassLabels(len(names), names).check)
    if config.text.kind == "words":
        words = words_of(folder)
        return replace(facts, read_prompts=as_they_are if words is None else words.read_prompts)
    features = sources.features
    if config.text.kind == "features" and sources.text_encoder is None:
        features = features or folder / FEATURES
    if features is not None:
        facts = replace(facts, check_prompts=partial(refuse_unstored, features, stored_prompts(features)))
    return with_scores(facts) if config.text.scored else facts


def facts_of_network(config: ModelConfig, shape: NetworkConfig) -> Facts:
    """What is known of a model but for its prompts.

    Args:
        config: of the model folder.
        shape: the network's own configuration.
    """
    size: Any = shape.input_size
    patch: Any = shape.patch_size
    clip = config.clip
    image, video = config.network in IMAGES, config.vae == "video"
    return Facts(
        latent_shape=(shape.in_channels, size, size) if image else (shape.in_channels, *size),
        patch=(patch, patch) if image else (1, 1, 1) if config.network in ANY_SIZE else patch,
        downsampling=config.downsampling,
        timesteps=config.diffusion_steps,
        bench="video",
        path=config.path,
        blocks=shape.depth * (2 if config.network == "stdit3" else 1),
        knows_given_frames=config.knows_given_frames,
        latent_frames=latent_frames if video else one_for_each,
        latents_together=CHUNK_LATENTS if video else 1,
        clip=(clip.frames, clip.height, clip.width) if config.network in ANY_SIZE else None,
    )


def refuse_sources(name: str, config: ModelConfig, sources: Sources) -> None:
    """Raise an InputError if the user names files that the folder brings along."""
    allowed = ("offload", "download", *(READERS if config.reads_captions else ()))
    for key, value in sources:
        if key not in allowed and value != type(sources).model_fields[key].default:
            raise InputError(f"model {name!r} brings its own weights: leave out {setting(key)}")


def words_of(folder: Path) -> Words | None:
    """The words of the small encoder in a folder."""

    return Words.of(read_config(folder / "text.safetensors", "text"))


def config_of(folder: Path) -> ModelConfig:
    """What config.json of a trained model's folder says.

    Raises:
        InputError: it is not there, or is damaged.
    """

    found = read_model_config(folder)
    if found is None:
        raise InputError(f"{folder / CONFIG} is not there any more, or is another model's: train or copy it again")
    return found
