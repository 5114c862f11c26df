"""The model folder that a run starts from: what it loads, and what an expert takes over as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...checkpoints.component import BOUNDARY, DENOISER, DIFFUSION, LOW_NOISE, TEXT, VAE, Component, load_component
from ...core.errors import InputError
from ...models.text.captions import CaptionEncoderConfig
from ..recipe import Expert


@dataclass(frozen=True)
class Start:
    """The network and caption encoder to start from; ``kept`` are an expert's other files, by name."""

    network: Component
    text: Component
    kept: Mapping[str, Component] = field(default_factory=dict)

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of what is exported beside the trained network."""
        return {name: part.sha256 for name, part in sorted(self.kept.items())}


def read_start(
    folder: Path, expert: Expert | None, diffusion: Mapping[str, Any], vae: Component, text_config: CaptionEncoderConfig
) -> Start:
    """What a run that diffuses by ``diffusion``, on latents of ``vae``, takes from a model folder.

    Raises:
        InputError: a file is missing or diffuses otherwise, the folder's networks do not share the timesteps as the
            recipe says, or an expert would not share its latents or captions with them.
    """
    denoiser, text = load_component(folder / DENOISER, "denoiser"), load_component(folder / TEXT, "text")
    low = load_component(folder / LOW_NOISE, "denoiser") if (folder / LOW_NOISE).is_file() else None
    for part in (denoiser, *([low] if low else [])):
        for name in DIFFUSION:
            if part.config.get(name, diffusion[name]) != diffusion[name]:
                verb = "predicts" if name == "prediction" else f"has the {name}"
                raise InputError(
                    f"start: {part.path} {verb} {part.config[name]}, the recipe says {diffusion[name]}: give the same"
                )
    if expert is None:
        if low is not None:
            raise InputError(f"start: {folder} holds two experts: say which one goes on, expert: {{noise: low, ...}}")
        return Start(denoiser, text)
    if expert.noise == "low":  # a denoiser that is no expert yet meets any boundary
        own, other, met = low or denoiser, {DENOISER: denoiser}, denoiser.record.get("timesteps", [expert.boundary])[0]
    elif low is not None:
        own, other, met = denoiser, {LOW_NOISE: low}, low.config.get(BOUNDARY)
    else:
        raise InputError(f"start: {folder} holds no {LOW_NOISE}: train the expert for low noise first")
    if met != expert.boundary:
        raise InputError(f"start: the experts of {folder} meet at {met}, the recipe says {expert.boundary}: give {met}")
    if load_component(folder / VAE, "vae").sha256 != vae.sha256:
        raise InputError(f"start: {folder / VAE} is not {vae.path}: experts share their latents")
    if text.configure(CaptionEncoderConfig) != text_config:
        raise InputError(f"start: {text.path} is another encoder than the recipe's text: give the same")
    return Start(own, text, {TEXT: text, VAE: vae} | other)
