"""Latents of several streams that ComfyUI packs into one row a sample, such as LTX-2's video and audio.

A packed latent is (B, 1, N): each stream flattened, one after the other. The first stream is the video (or image); its
channels are the ones that guidance chooses from. The other streams are left to the sampler's own guidance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...core.errors import InputError


@dataclass(frozen=True)
class Packing:
    """Where the channels are in a latent."""

    first: tuple[int, ...] | None = None
    """The first stream's shape without the batch, (C, ...); None where the latent is not packed."""

    def channels(self, latent: Tensor) -> Tensor:
        """The latent's part that has channels, (B, C, ...)."""
        if self.first is None:
            return latent
        return latent[..., : math.prod(self.first)].reshape(len(latent), *self.first)

    def put(self, latent: Tensor, part: Tensor) -> Tensor:
        """The latent with another part (B, C, ...) in the place of ``channels``; the given latent stays as it is."""
        if self.first is None:
            return part
        rest = latent[..., math.prod(self.first) :]
        return torch.cat([part.reshape(len(latent), *latent.shape[1:-1], -1).to(latent.dtype), rest], -1)


def packing_of(args: Mapping[str, Any]) -> Packing:
    """Where the channels are, from what ComfyUI gives a pre-CFG function.

    Raises:
        InputError: the latent is packed, and it is not known how.
    """
    x = args["input"]
    if not isinstance(x, Tensor):
        raise InputError(
            f"the latent is a {type(x).__name__}, which has no one channel axis: give one tensor (B, C, ...)"
        )
    if x.ndim != 3 or x.shape[1] != 1:
        return Packing()
    shapes = _shapes(args)
    if shapes is None:
        raise InputError(
            f"the latent {tuple(x.shape)} is several streams in one row (such as video and audio), and this version of "
            "ComfyUI does not say where its channels are: update ComfyUI, or remove the node"
        )
    return Packing(tuple(shapes[0])[1:]) if len(shapes) > 1 else Packing()


def _shapes(args: Mapping[str, Any]) -> Sequence[Sequence[int]] | None:
    """The streams' shapes: newer versions keep them on the model, older ones in the conditionings."""
    shapes = getattr(args.get("model"), "latent_shapes", None)
    if shapes is not None:
        return shapes
    for conditioning in (args.get("conds") or [None])[0] or []:
        found = conditioning.get("model_conds", {}).get("latent_shapes")
        if found is not None:
            return found.cond
    return None
