"""Reads the reference numbers: the shared set when it lies beside the repository, else the small cases committed here."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

HERE = Path(__file__).resolve().parent
SHARED = HERE.parent.parent / "shared" / "goldens"


def _find(name: str) -> Path:
    for folder in (SHARED, HERE / "goldens"):
        if (folder / name).exists():
            return folder / name
    pytest.skip(f"the golden {name} is not in this checkout")


def golden(name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors of a case and its settings."""
    with safe_open(_find(name + ".safetensors"), "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return tensors, json.loads((file.metadata() or {}).get("case", "{}"))


def golden_json(name: str) -> Any:
    return json.loads(_find(name).read_text())


def relative_error(given: torch.Tensor, expected: torch.Tensor) -> float:
    """||a - b|| / ||b||, in float64."""
    given, expected = given.detach().double(), expected.detach().double()
    return ((given - expected).norm() / expected.norm().clamp_min(1e-30)).item()
