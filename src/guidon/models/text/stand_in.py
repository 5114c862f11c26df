"""Captions for a network whose text encoder is not there: they cost the network what any full caption costs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class RandomCaptions:
    """A ``TextEncoder`` that gives random features, the same for the same number of prompts.

    Args:
        tokens: of every caption; all of them count.
        width: of the features.
    """

    def __init__(self, tokens: int, width: int) -> None:
        self.tokens, self.width = tokens, width

    def encode(self, prompts: Sequence[str], /) -> tuple[Tensor, Tensor]:
        """Features (B, L, F) and mask (B, L), whatever the prompts say."""
        shape = len(prompts), self.tokens, self.width
        features = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        return features, torch.ones(shape[:2], dtype=torch.long)
