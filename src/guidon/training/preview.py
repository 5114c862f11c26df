"""A model that is being trained, ready to be sampled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..models.family import Preset
from ..models.model import Model


@dataclass(frozen=True)
class Preview:
    """A model that is being trained. Its weights are those of the block that ``VideosTask.preview`` opens."""

    preset: Preset[Any]
    """Its settings."""
    model: Model
    """Its stages."""
    device: torch.device
    """Where they run."""
    prompts: tuple[str, ...]
    """What to show."""
    sheets: Path
    """The folder of sheets."""

    def sheet(self, step: int) -> Path:
        """The sheet of a step."""
        return self.sheets / f"{step:07}.png"
