"""DiT's text encoder: a prompt is a class number, or the name of a class where the model has names."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...core.errors import InputError, setting
from ..released import FindText, Text
from ..sources import Sources


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
        return torch.tensor([self._label(prompt.strip()) for prompt in prompts]), None

    def _label(self, prompt: str) -> int:
        label = int(prompt) if prompt.isdecimal() else self.names.get(prompt, -1)
        if not 0 <= label < self.classes:
            close = difflib.get_close_matches(prompt, self.names, n=3)
            named = f", or a name such as {', '.join(close or list(self.names)[:3])}" if self.names else ""
            raise InputError(
                f"{prompt!r} is not a class of this model: give a number from 0 to {self.classes - 1}{named}"
            )
        return label


def find_classes(classes: int) -> FindText:
    """The ``FindText`` of a model with this number of classes. It needs no files."""

    def find(name: str, sources: Sources, device: torch.device) -> Text:
        given = [part for part in ("text_encoder", "features") if getattr(sources, part) is not None]
        if given:
            raise InputError(f"{name} is conditioned on classes: leave out {setting(given[0])}")
        if sources.text_dtype != Sources().text_dtype:
            raise InputError(
                f"{setting('text_dtype')} {sources.text_dtype} is for T5, which {name} has not: leave it out"
            )
        return Text(lambda: ClassLabels(classes))

    return find
