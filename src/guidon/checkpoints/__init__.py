"""Reads and writes files of weights, strictly and safely. It knows nothing about models."""

from .component import (
    Component,
    load_component,
    load_weights,
    on_meta,
    open_component,
    refuse_broken,
    refuse_misfit,
    save_component,
)
from .files import TensorFile, read_safetensors, read_tensors

__all__ = [
    "Component", "TensorFile", "load_component", "load_weights", "on_meta", "open_component", "read_safetensors",
    "read_tensors", "refuse_broken", "refuse_misfit", "save_component",
]  # fmt: skip
