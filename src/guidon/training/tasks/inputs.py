"""The files that a run on a user's clips reads, checked before any clip is encoded."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from ...checkpoints import on_meta
from ...core.errors import InputError
from ...core.hashing import hash_files, hash_samples, hash_text
from ...core.reading import read_object
from ...models.finding import check_t5, find_t5
from ...models.released import weight_files
from ...models.text import TextEncoder
from ...models.text.features import load_features
from ...models.trained.autoencoders import AutoencoderSource
from ...models.trained.config import IMAGES, NetworkConfig
from ...samplers.contract import SAMPLERS
from ..data.clips import PreparedClips
from ..demand import require_batch
from ..recipe import VideosRecipe
from ..recipe.videos import TOKENS
from .beginning import Beginning, find_beginning


@dataclass(frozen=True)
class EncodedText:
    """A text encoder that is not trained, whose features of all captions are computed once."""

    load: Callable[[torch.device], TextEncoder]
    """Loads it on a device."""
    sha256: str
    """A hash of its weights and settings."""
    tokens: int
    """Of a caption."""
    width: int
    """Of the features."""


@dataclass(frozen=True)
class Inputs:
    """What a recipe names beside its clips."""

    recipe: VideosRecipe
    vae: AutoencoderSource
    beginning: Beginning
    text: EncodedText | None
    """The text encoder whose features are computed once; None where there is none."""
    derived: dict[str, Any]
    """The settings of the network's configuration that follow from the files."""

    @classmethod
    def find(cls, recipe: VideosRecipe, device: torch.device) -> Inputs:
        """Read the files that a recipe names.

        Raises:
            InputError: a file is missing or does not fit, there is no network of this shape, or a batch is too large.
        """
        vae, beginning = AutoencoderSource.find(recipe.vae), find_beginning(recipe)
        _refuse_other_latents(recipe, beginning, vae)
        _refuse_other_sampler(recipe, beginning)
        derived: dict[str, Any] = {"in_channels": vae.channels, "input_size": _latent_size(recipe, beginning, vae)}
        text = _text_to_encode(recipe, beginning)
        if text is not None:
            derived |= {"caption_channels": text.width, "model_max_length": text.tokens}
        shape = beginning.configured({"num_classes": 2, **derived})
        if beginning.tensors is None:
            with on_meta(1 << 20):
                beginning.build(shape, recipe.seed)
        require_batch(recipe, latent_shape_of(shape), device)
        return cls(recipe, vae, beginning, text, derived)

    def clips(self, device: torch.device) -> PreparedClips:
        """The recipe's clips, encoded where they are not yet.

        Raises:
            InputError: files cannot be used.
        """
        recipe, text = self.recipe, self.text
        return PreparedClips.prepare(
            recipe.data,
            recipe.cache or recipe.out,
            partial(self.vae.load_on, device),
            self.vae.sha256,
            seed=recipe.seed,
            wanted=recipe.wanted,
            text=None if text is None else partial(text.load, device),
            text_hash="" if text is None else text.sha256,
            images=self.beginning.family in IMAGES,
        )


def latent_shape_of(config: NetworkConfig) -> tuple[int, ...]:
    """(C, T, H, W) or (C, H, W) of the size that a network is made for."""
    size = config.input_size
    return (config.in_channels, *size) if isinstance(size, tuple) else (config.in_channels, size, size)


def _latent_size(recipe: VideosRecipe, beginning: Beginning, vae: AutoencoderSource) -> Any:
    """The network's ``input_size`` for the first of the recipe's sizes.

    Raises:
        InputError: sizes are not whole latent pixels or patches.
    """
    data, unit = recipe.data, vae.downsampling
    config: Any = beginning.configured({"num_classes": 2})
    patch = config.patch_size
    if beginning.family in ("stdit2", "stdit3"):  # they pad
        patch = 1
    patches = patch if isinstance(patch, tuple) else (1, patch, patch)
    data.require_multiple(unit * math.lcm(*patches[1:]), "latent pixels and patches of the network must divide size")
    frames = [vae.latent_frames(frames) for frames in data.lengths]
    if wrong := [count for count in frames if count % patches[0]]:
        raise InputError(f"patches of {patches[0]} frames must divide the {wrong[0]} latent frames of a clip")
    height, width = data.all_sizes[0]
    if beginning.family in IMAGES:
        return height // unit
    return frames[0], height // unit, width // unit


def _refuse_other_latents(recipe: VideosRecipe, beginning: Beginning, vae: AutoencoderSource) -> None:
    """Refuse weights that were trained on latents of another number of channels."""
    channels = beginning.config.get("in_channels", vae.channels)
    if channels != vae.channels:
        raise InputError(
            f"start: {beginning.place} is for latents of {channels} channels, {recipe.vae} gives {vae.channels}: give "
            "the autoencoder that it was trained with"
        )


def _refuse_other_sampler(recipe: VideosRecipe, beginning: Beginning) -> None:
    """Refuse a sampler with which the trained model could not be sampled."""
    valid, sampler = SAMPLERS["flow" if beginning.flows else "diffusion"], recipe.sampling.sampler
    if sampler is not None and sampler not in valid:
        kind = "a rectified flow" if beginning.flows else "a diffusion"
        raise InputError(f"sampling: sampler {sampler} is not for {kind}: give {' or '.join(valid)}")


def _text_to_encode(recipe: VideosRecipe, beginning: Beginning) -> EncodedText | None:
    """The text encoder whose features are computed once; None where there is none.

    Raises:
        InputError: it is missing, or not the one that the weights to start from were trained with.
    """
    text = recipe.text
    if text.kind not in ("t5", "features"):
        return None
    own = beginning.config if beginning.tensors is not None else {}
    if text.features is not None:
        path = text.features
        found = load_features(path)
        width, tokens = found.features.shape[2], found.features.shape[1]
        encoded = EncodedText(lambda _: found, hash_files(path), tokens, width)
    else:
        folder = cast("Path", text.t5)
        tokens = text.tokens or own.get("model_max_length") or TOKENS[beginning.family]
        check_t5(folder, tokens, text.dtype)
        weights, _ = find_t5(folder)
        width = read_object(weights / "config.json", "the configuration of T5").get("d_model")
        if not isinstance(width, int):
            raise InputError(f"{weights / 'config.json'} says no d_model: give the folder of T5")

        def load(device: torch.device) -> TextEncoder:
            from ...models.text.t5 import T5Encoder

            return T5Encoder.load(folder, max_length=tokens, dtype=text.dtype, device=device)

        sha256 = hash_text(f"{hash_samples(weight_files(weights))} {tokens} {text.dtype}")
        encoded = EncodedText(load, sha256, tokens, width)
    if (wide := own.get("caption_channels", encoded.width)) != encoded.width:
        raise InputError(
            f"start: {beginning.place} reads caption features {wide} wide, those of text are {encoded.width}: give the "
            "text encoder that it was trained with"
        )
    return encoded
