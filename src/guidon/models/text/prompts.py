"""Encodes all prompts of a request together, and keeps the result for later requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..stages import Stage
from . import TextEncoder

REMEMBERED = 16  # encoded requests to keep: a study uses the same prompts at every setting


@dataclass(frozen=True)
class Prompts:
    """Encoded prompts."""

    features: Tensor
    """Token features (P, L, F), or class labels (P,)."""
    mask: Tensor | None
    """Which tokens count, (P, L)."""
    negative: Prompts | None = None
    """The negative prompt, one for all or one for each; None to use the network's null caption."""

    def rows(self, numbers: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Features and mask of a batch, one row for each prompt number."""
        index = list(numbers)
        return self.features[index].to(device), None if self.mask is None else self.mask[index].to(device)


class PromptMemory:
    """Encodes prompts, and remembers the last ones."""

    def __init__(self, encoder: Stage[[], TextEncoder]) -> None:
        self.encoder = encoder
        self._known: dict[tuple[tuple[str, ...], str | tuple[str, ...] | None], Prompts] = {}

    def encode(self, prompts: tuple[str, ...], negative: str | tuple[str, ...] | None) -> Prompts:
        """Encode all prompts in one use of the encoder, so that it can be dropped before the network is loaded.

        Args:
            prompts: what to show.
            negative: what to steer away from, one text for all prompts or one for each.

        Raises:
            InputError: a prompt cannot be read.
        """
        key = prompts, negative
        if key not in self._known:
            with self.encoder.in_use() as text:
                texts = [negative] if isinstance(negative, str) else negative
                avoided = None if texts is None else Prompts(*text.encode(texts))
                found = Prompts(*text.encode(prompts), avoided)
            if len(self._known) >= REMEMBERED:
                del self._known[next(iter(self._known))]
            self._known[key] = found
        return self._known[key]
