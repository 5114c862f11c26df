"""Text encoders: prompts to what a network is conditioned on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class TextEncoder(Protocol):
    """What the pipeline asks of a text encoder; one of class labels is asked the same."""

    def encode(self, prompts: Sequence[str], /) -> tuple[Tensor, Tensor | None]:
        """Features (B, L, F) and token mask (B, L), nonzero where a token counts; or class labels (B,) and None.

        Raises:
            InputError: a prompt cannot be read.
        """
        ...
