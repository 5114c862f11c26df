"""Where the latent channels are in a pipeline's tensors, and how to bring them to dimension 1.

Guidon's axes are (batch, channel, [time,] height, width). Pipelines also put channels third or last, and some pack a
patch of pixels into the features of a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Grid(Protocol):
    """The size of a packed latent in tokens: (height, width) or (time, height, width); None where it is not told."""

    def __call__(self, given: Mapping[str, Any], /) -> tuple[int, ...] | None:
        """Read from the keyword arguments that the pipeline gives its network."""
        ...


@dataclass(frozen=True)
class Layout:
    """One axis of features; ``patch`` x ``patch`` neighbouring features are one latent channel."""

    axis: int = 1
    """The axis of the features."""
    patch: int = 1
    """Side of the patch of latent pixels that one token holds. Feature k belongs to channel k // patch^2."""
    grid: Grid | None = None
    """Tells how the tokens of a packed latent lie."""

    def channels(self, tensor: Tensor) -> int:
        """How many latent channels a tensor has."""
        return tensor.shape[self.axis] // self.patch**2

    def first(self, tensor: Tensor, channels: int) -> Tensor:
        """A view of a tensor's first latent channels."""
        return tensor.narrow(self.axis, 0, channels * self.patch**2)

    def unpack(self, tensor: Tensor, grid: tuple[int, ...] | None) -> Tensor:
        """A tensor as (B, C, [T,] H, W), or as (B, C, N) where tokens are packed on an unknown grid."""
        found = tensor.movedim(self.axis, 1)
        if self.grid is None:
            return found
        batch, features, tokens = found.shape
        if grid is None or prod(grid) != tokens:
            return found.reshape(batch, features // self.patch**2, self.patch**2 * tokens)
        if self.patch == 1:
            return found.reshape(batch, features, *grid)
        p, (*time, height, width) = self.patch, grid
        found = found.reshape(batch, -1, p, p, *time, height, width)
        found = found.movedim((2, 3), (-3, -1))  # (B, C, [T,] H, p, W, p)
        return found.reshape(batch, -1, *time, height * p, width * p)

    def pack(self, latent: Tensor, like: Tensor, grid: tuple[int, ...] | None) -> Tensor:
        """The inverse of ``unpack``; ``like`` has the shape that is wanted."""
        if self.grid is None:
            return latent.movedim(1, self.axis)
        batch, tokens, features = like.shape
        if grid is None or prod(grid) != tokens or self.patch == 1:
            return latent.reshape(batch, features, tokens).movedim(1, self.axis)
        p, (*time, height, width) = self.patch, grid
        found = latent.reshape(batch, -1, *time, height, p, width, p).movedim((-3, -1), (2, 3))
        return found.reshape(batch, features, tokens).movedim(1, self.axis)


def grid_of_sizes(given: Mapping[str, Any]) -> tuple[int, ...] | None:
    """From ``num_frames``, ``height`` and ``width``, counted in tokens (LTX)."""
    sizes = [given.get(name) for name in ("num_frames", "height", "width")]
    return tuple(int(size) for size in sizes if size is not None) if None not in sizes else None


def grid_of_ids(given: Mapping[str, Any]) -> tuple[int, ...] | None:
    """From ``img_ids``, whose columns 1 and 2 number the rows and columns of tokens (Flux, Chroma). Column 0 tells the
    tokens of a reference image, which come after the others, from them."""
    ids: Any = given.get("img_ids")
    if not hasattr(ids, "ndim"):  # it is no tensor; the table of families is read without torch
        return None
    ids = ids[0] if ids.ndim == 3 else ids
    ids = ids[ids[:, 0] == ids[0, 0]]
    return tuple(int(size) + 1 for size in ids[:, 1:3].amax(0).tolist())


def grid_of_shapes(given: Mapping[str, Any]) -> tuple[int, ...] | None:
    """From ``img_shapes``, one list of (frames, height, width) a sample (Qwen-Image)."""
    shapes = given.get("img_shapes")
    if not shapes:
        return None
    first = shapes[0][0] if isinstance(shapes[0], list) else shapes[0]
    frames, height, width = (int(size) for size in first)
    return (height, width) if frames == 1 else (frames, height, width)


CHANNELS_FIRST = Layout()
CHANNELS_THIRD = Layout(axis=2)  # (B, T, C, H, W)
CHANNELS_LAST = Layout(axis=-1)  # (B, T, H, W, C)
