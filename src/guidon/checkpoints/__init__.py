"""Weights from files and to files, strictly and safely; knows no model."""

from .component import Component, load_component, load_weights, refuse_broken, refuse_misfit, save_component
from .files import TensorFile, read_safetensors, read_tensors

__all__ = [
    "Component", "TensorFile", "load_component", "load_weights", "read_safetensors", "read_tensors", "refuse_broken",
    "refuse_misfit", "save_component",
]  # fmt: skip
