"""A network with what it is conditioned on, as training and its measurements call it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...core.broadcasting import per_sample
from ...models.network import Network
from ...models.text.captions import CaptionEncoder
from ...models.trained.config import NetworkName
from ...models.trained.networks import as_network
from ..data.clips import OwnBatch


@dataclass(frozen=True, eq=False)
class Conditioned:
    """A network, and what reads the captions of a user's clips for it."""

    family: NetworkName
    """The network's name."""
    denoiser: nn.Module
    """The network."""
    text: CaptionEncoder | None
    """The small encoder; None for features that are stored, or classes."""
    classes: int
    """How many classes there are; the null class is the one after them."""
    device: torch.device
    """Where they are."""

    @cached_property
    def network(self) -> Network[Any]:
        """The network as it is sampled from."""
        return as_network(self.family, self.denoiser)

    def told(self, clips: OwnBatch) -> Callable[..., Tensor]:
        """The network, told of the clips if it wants to be: their common size, and the frame rate of each."""
        told = getattr(self.network, "told", None)
        if told is None:
            return self.network
        return told(dataclasses.replace(clips.clip, fps=cast("Any", clips.fps.to(self.device))))

    def condition(self, clips: OwnBatch, dropped: Tensor) -> Any:
        """The condition of clips, of which those without a caption, or that are dropped, have the null one.

        Args:
            clips: B clips.
            dropped: bool (B,).
        """
        if clips.labels is not None:
            labels = torch.where(dropped, self.classes, clips.labels)
            return self.network.prepare(labels.to(self.device))
        empty = torch.tensor([not caption.strip() for caption in clips.captions])
        if self.text is not None:
            ids = self.text.known_ids(clips.captions)
            empty |= ~(ids > 0).any(1)
            ids[:, 0] = torch.where(empty, 1, ids[:, 0])  # attention needs a word
            features, mask = self.text(ids.to(self.device))
        else:
            assert clips.features is not None
            assert clips.mask is not None
            features, mask = clips.features.to(self.device), clips.mask.to(self.device)
        gone, empty = (dropped | empty).to(self.device), empty.to(self.device)
        null = cast("Any", self.denoiser).y_embedder.y_embedding
        features = torch.where(per_sample(gone, features), null, features)
        return self.network.prepare(features, mask | empty[:, None])
