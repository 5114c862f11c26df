"""DiT's text encoder: a prompt is a class number, or the name of a class where the model has names."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ...core.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


class ClassLabels:
    """A ``TextEncoder`` of classes.

    Args:
        classes: how many there are.
        names: class numbers by name; a class may have several names.
    """

    def __init__(self, classes: int, names: Mapping[str, int] | None = None) -> None:
        self.classes, self.names = classes, dict(names or {})

    def encode(self, prompts: Sequence[str]) -> tuple[Tensor, None]:
        """Labels (B,).

        Raises:
            InputError: a prompt is neither the number nor the name of a class.
        """
        import torch

        return torch.tensor([self._label(prompt) for prompt in prompts]), None

    def check(self, prompts: Sequence[str]) -> None:
        """Raise as ``encode`` does."""
        for prompt in prompts:
            self._label(prompt)

    def _label(self, prompt: str) -> int:
        prompt = prompt.strip()
        label = self.names.get(prompt, int(prompt) if prompt.isdecimal() else -1)  # a name may be a number, too
        if not 0 <= label < self.classes:
            close = difflib.get_close_matches(prompt, self.names, n=3)
            named = f", or a name such as {', '.join(close or list(self.names)[:3])}" if self.names else ""
            raise InputError(
                f"{prompt!r} is not a class of this model: give a number from 0 to {self.classes - 1}{named}"
            )
        return label
