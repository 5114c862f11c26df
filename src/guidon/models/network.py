"""The interface of a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from ..diffusion import NoiseLevel
from ..guidance import Condition

C = TypeVar("C", bound=Condition)
IMAGE_FPS = 120.0
"""What networks that are told a frame rate are told of a single image: they were trained so."""


@dataclass(frozen=True)
class ClipFacts:
    """What a network may have to be told of the clip that it makes. Such a network has a method ``told(clip)``, which
    gives a callable of the network's own arguments."""

    height: int
    """In pixels."""
    width: int
    """In pixels."""
    frames: int
    """Frames of the video; 1 for an image."""
    fps: float
    """Frames per second that the model was trained on: how fast things move. It is not the speed of the file."""


class Network(Protocol[C]):
    """What is sampled from: noisy latents, their noise level and a condition in, a prediction out."""

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one sample at the size the network was made for: (C, T, H, W), or (C, H, W) of an image."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        ...

    def prepare(self, y: Tensor, mask: Tensor | None = None) -> C:
        """The condition of a batch of prompts: all that depends on them alone.

        Args:
            y: what the text encoder made of the prompts: features (B, L, F), or class labels (B,).
            mask: (B, L), nonzero where a token counts.
        """
        ...

    def null(self, rows: int, mask: Tensor | None = None) -> C:
        """The unconditional (null) condition, ``rows`` times. It uses the token mask of the prompts."""
        ...

    def __call__(self, x: Tensor, level: NoiseLevel, cond: C, /) -> Tensor:
        """The prediction for x (B, C, ...): (B, C, ...), or (B, 2C, ...) where the variance is learned; fp32.

        A network with an attribute ``branches_share_rows`` that is true takes a condition of n B rows, too: those of n
        branches, each of which is given x. It predicts n B rows.
        """
        ...


@runtime_checkable
class ToldOfGuidance(Protocol):
    """A network that is told how strong guidance is, and runs one branch."""

    def under(self, strengths: Tensor) -> Callable[[Tensor, NoiseLevel, Any], Tensor]:
        """The network under guidance of these strengths, (C,): ``(x, level, condition)`` -> the guided prediction."""
        ...
