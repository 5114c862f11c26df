"""Weights from files and to files: our own components, and the originals' released checkpoints, strictly and safely."""

from .component import (
    BOUNDARY,
    DENOISER,
    DIFFUSION,
    LOW_NOISE,
    TEXT,
    VAE,
    Component,
    load_component,
    load_weights,
    save_component,
)
from .released import Report, inspect_checkpoint, load_checkpoint

__all__ = [
    "BOUNDARY", "DENOISER", "DIFFUSION", "LOW_NOISE", "TEXT", "VAE", "Component", "Report", "inspect_checkpoint",
    "load_checkpoint", "load_component", "load_weights", "save_component",
]  # fmt: skip
