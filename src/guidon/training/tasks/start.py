"""The model folder that a run starts from: weights that are loaded, and files that an expert copies unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...checkpoints import Component
from ...core.errors import InputError
from ...models.small import BOUNDARY, DENOISER, LOW_NOISE, TEXT, VAE
from ...models.small.folder import different_diffusion, read_folder
from ...models.text.captions import CaptionEncoderConfig
from ..recipe import Expert


@dataclass(frozen=True)
class Start:
    """The weights that a run starts from."""

    network: Component
    """The network to start from."""
    text: Component
    """The caption encoder to start from."""
    kept: Mapping[str, Component] = field(default_factory=dict)
    """Only for an expert: the other files of its model folder, by name. They are exported unchanged."""

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of the files in ``kept``, by name."""
        return {name: part.sha256 for name, part in sorted(self.kept.items())}


def read_start(
    folder: Path, expert: Expert | None, diffusion: Mapping[str, Any], vae: Component, text_config: CaptionEncoderConfig
) -> Start:
    """What a run takes from a model folder.

    Args:
        folder: the model folder.
        expert: which of two expert networks is trained; None for a single network.
        diffusion: noise schedule, steps and prediction of the run.
        vae: the autoencoder of the run.
        text_config: the caption encoder of the run.

    Raises:
        InputError: a file is missing or has another diffusion process; the boundary between the folder's networks is
            not the recipe's; or an expert's autoencoder or caption encoder is not the folder's.
    """
    files = read_folder(folder)
    denoiser, low, text = files.denoiser, files.low, files.text
    if (name := different_diffusion(denoiser.config, diffusion)) is not None:
        verb = "predicts" if name == "prediction" else f"has the {name}"
        given, said = denoiser.config[name], diffusion[name]
        raise InputError(f"start: {denoiser.path} {verb} {given}, the recipe says {said}: give the same")
    if expert is None:
        if low is not None:
            raise InputError(f"start: {folder} holds two experts: say which one to train, expert: {{noise: low, ...}}")
        return Start(denoiser, text)
    # The expert's own network, the one beside it, and the boundary at which they meet.
    if expert.noise == "low":  # a single network was trained on all timesteps, so any boundary is possible
        own, other, met = low or denoiser, {DENOISER: denoiser}, denoiser.record.get("timesteps", [expert.boundary])[0]
    elif low is not None:
        own, other, met = denoiser, {LOW_NOISE: low}, low.config.get(BOUNDARY)
    else:
        raise InputError(f"start: {folder} holds no {LOW_NOISE}: train the expert for low noise first")
    if met != expert.boundary:
        raise InputError(f"start: the experts of {folder} meet at {met}, the recipe says {expert.boundary}: give {met}")
    if files.vae.sha256 != vae.sha256:
        raise InputError(f"start: {files.vae.path} is not {vae.path}: experts share their latents")
    if text.configure(CaptionEncoderConfig) != text_config:
        raise InputError(f"start: {text.path} is another encoder than the recipe's text: give the same")
    return Start(own, text, {TEXT: text, VAE: files.vae} | other)
