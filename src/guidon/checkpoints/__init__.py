"""Reads and writes files of weights, strictly and safely. It knows nothing about models."""

from typing import TYPE_CHECKING

from ..core.lazy import imported_later
from .config import is_component, make_config

if TYPE_CHECKING:
    from .component import (
        Component,
        load_component,
        load_weights,
        on_meta,
        open_component,
        refuse_broken,
        refuse_misfit,
        refuse_numbers,
        save_component,
    )
    from .files import TensorFile, count_values, read_safetensors, read_tensors

__all__ = [
    "Component", "TensorFile", "count_values", "is_component", "load_component", "load_weights", "make_config",
    "on_meta", "open_component", "read_safetensors", "read_tensors", "refuse_broken", "refuse_misfit",
    "refuse_numbers", "save_component",
]  # fmt: skip
__getattr__ = imported_later(__name__, "component", "files")
