"""MMDiT, the network of Open-Sora 2.0: text and video tokens in two streams, then in one.

``network`` is the transformer, ``checkpoint`` says how its files are read. It is a network alone: HunyuanVideo's
autoencoder and the text encoders are not read here, so it has no preset.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Never

from ...core.errors import InputError
from ..family import Family, Preset, Reader

if TYPE_CHECKING:
    import torch

    from ..sources import Sources

NAME = "MMDiT"


class MMDiTFamily(Family):
    """See ``Family``."""

    name = NAME
    reads = ("MMDiT",)

    def reader(self) -> Reader:
        from .checkpoint import READER

        return READER

    def facts(self, preset: Preset[None], sources: Sources) -> Never:
        raise InputError(f"{NAME} has no preset: its autoencoder and its text encoders are not read here")

    def find_model(self, preset: Preset[None], sources: Sources, device: torch.device) -> Never:
        return self.facts(preset, sources)


FAMILY = MMDiTFamily()
