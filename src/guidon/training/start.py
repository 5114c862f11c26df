"""The model folder that a run starts from: what it loads, and what an expert takes over as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoints import BOUNDARY, DENOISER, DIFFUSION, LOW_NOISE, TEXT, VAE, Component, load_component
from ..errors import InputError
from .config import Expert


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


def read_start(folder: Path, expert: Expert | None, diffusion: Mapping[str, Any]) -> Start:
    """What a run that diffuses by ``diffusion`` takes from a model folder.

    Raises:
        InputError: a file is missing or diffuses otherwise, or the folder's networks do not share the timesteps as the
            recipe says.
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
    if expert.noise == "high" and low is None:
        raise InputError(f"start: {folder} holds no {LOW_NOISE}: train the expert for low noise first")
    met = denoiser.record.get("timesteps", [expert.boundary])[0]  # a denoiser that is no expert yet meets any
    if expert.noise == "high" and low is not None:
        met = low.config.get(BOUNDARY)
    if met != expert.boundary:
        raise InputError(f"start: the experts of {folder} meet at {met}, the recipe says {expert.boundary}: give {met}")
    kept = {TEXT: text, VAE: load_component(folder / VAE, "vae")}
    if expert.noise == "low":
        return Start(low or denoiser, text, kept | {DENOISER: denoiser})
    return Start(denoiser, text, kept | ({LOW_NOISE: low} if low else {}))
