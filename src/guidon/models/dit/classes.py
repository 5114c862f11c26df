"""DiT's text encoder: a prompt is a class number."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...core.errors import InputError, setting
from ..released import FindText, Text
from ..sources import Sources


class ClassLabels:
    """A ``TextEncoder`` of class numbers."""

    def __init__(self, classes: int) -> None:
        self.classes = classes

    def encode(self, prompts: Sequence[str]) -> tuple[Tensor, None]:
        """Labels (B,).

        Raises:
            InputError: a prompt is not the number of a class.
        """
        labels = [int(prompt) if prompt.strip().isdecimal() else -1 for prompt in prompts]
        for prompt, label in zip(prompts, labels, strict=True):
            if not 0 <= label < self.classes:
                raise InputError(f"{prompt!r} is not a class of this model: give a number from 0 to {self.classes - 1}")
        return torch.tensor(labels), None


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
