"""Weights from files and to files: our own components, and the originals' released checkpoints, strictly and safely."""

from .component import DIFFUSION, Component, load_component, load_weights, save_component
from .released import Report, inspect_checkpoint, load_checkpoint

__all__ = [
    "DIFFUSION", "Component", "Report", "inspect_checkpoint", "load_checkpoint", "load_component", "load_weights",
    "save_component",
]  # fmt: skip
