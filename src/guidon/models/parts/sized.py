"""Code that STDiT2 and STDiT3 share: video transformers that take any size and length, and are told which.

Shapes: B batch, T frames (tokens in time), S tokens in a frame, D hidden.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.broadcasting import whole_rows
from ...core.errors import InputError
from ...diffusion import NoiseLevel
from .captioned import Caption, CaptionedConfig, CaptionedTransformer, repeated
from .layers import Absorbed, PatchEmbed, Rotary, SizeEmbedder, sincos_2d, timesteps_of, unpatch
from .tables import Last

PIXELS = 8  # a latent pixel is as many pixels wide and high: the sizes that a network is told are in pixels
FPS = 24.0  # of the videos that the released weights were trained on


class SizedConfig(CaptionedConfig, Protocol):
    """The part of a configuration that the base class reads."""

    @property
    def input_size(self) -> tuple[int, int, int]: ...
    @property
    def input_sq_size(self) -> int: ...
    @property
    def in_channels(self) -> int: ...
    @property
    def patch_size(self) -> tuple[int, int, int]: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def learn_sigma(self) -> bool: ...


class SizedTransformer(CaptionedTransformer):
    """Base of a captioned video transformer for any size and length.

    Latents that are no whole patches are padded at the end with zeros, and the prediction is cropped. Positions along
    time are rotations; those within a frame are scaled by the size in pixels.
    """

    guided_channels = None

    def __init__(self, config: SizedConfig) -> None:
        self.out_channels = config.in_channels * (2 if config.learn_sigma else 1)
        super().__init__(config, math.prod(config.patch_size) * self.out_channels)
        self.sizes = config
        d = config.hidden_size
        if d % config.num_heads or d // config.num_heads % 2 or d % 4:
            raise InputError(
                f"a hidden size of {d} with {config.num_heads} attention heads has no positions: give a multiple of 4 "
                "and of twice the heads"
            )
        self.x_embedder = PatchEmbed(config.patch_size, config.in_channels, d)
        self.rope = Rotary(d // config.num_heads)
        self.fps_embedder = SizeEmbedder(d)
        self._positions = Last()

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(C, T, H, W) of one sample at the size that is made unless another is asked for."""
        return self.sizes.in_channels, *self.sizes.input_size

    def position_tables(self) -> dict[str, Tensor]:
        """The frozen parameter that follows from the configuration alone."""
        return {"rope.freqs": Rotary.frequencies(self.sizes.hidden_size // self.sizes.num_heads)}

    def tokens(
        self, x: Tensor, height: Tensor | float | None, width: Tensor | float | None
    ) -> tuple[Tensor, tuple[int, int, int]]:
        """Latents (B, C, T, H, W) to tokens with positions (B, T, S, D), and their grid (T, rows, columns).

        Args:
            x: latents of any size.
            height, width: of the video in pixels, as ``each`` takes them; those of the first row scale the positions of
                all. A tensor is asked for its number in every step, so a clip's own numbers are better.
        """
        for name, value in (("height", height), ("width", width)):
            if isinstance(value, Tensor):
                whole_rows(value.flatten(), len(x), name)
        high, wide = (
            self._rounded(PIXELS * own if value is None else value)
            for value, own in zip((height, width), x.shape[3:], strict=True)
        )
        padding = [-length % p for length, p in zip(x.shape[2:], self.sizes.patch_size, strict=True)]
        x = F.pad(x.to(self.dtype), [n for after in reversed(padding) for n in (0, after)])
        frames, rows, columns = (length // p for length, p in zip(x.shape[2:], self.sizes.patch_size, strict=True))
        scale = (high * wide) ** 0.5 / self.sizes.input_sq_size if high * wide > 0 else 0.0
        if not scale > 0:
            raise InputError(f"a video of {high:g}x{wide:g} pixels does not exist: give its height and width")
        embedded = self.x_embedder(x).unflatten(1, (frames, -1))
        return embedded + self._in_space(rows, columns, scale), (frames, rows, columns)

    def _in_space(self, rows: int, columns: int, scale: float) -> Tensor:
        """Positions within a frame, (S, D). The last ones are kept, since every step of a run asks for the same."""
        like = self.x_embedder.proj.weight

        def make() -> Tensor:
            base = round((rows * columns) ** 0.5)
            steps = rows / base * scale, columns / base * scale
            # in half precision the frequencies are rounded, as they were where the released weights were trained
            rounded = torch.float64 if like.dtype == torch.float32 else like.dtype
            return sincos_2d(self.sizes.hidden_size, rows, columns, steps, rounded).to(like)

        return self._positions.of((rows, columns, scale, like.device, like.dtype), make)

    def pixels(
        self,
        x: Tensor,
        grid: tuple[int, int, int],
        size: Sequence[int],
        t: Tensor,
        clean: Tensor | None,
        noisy: Tensor | None,
    ) -> Tensor:
        """Tokens (B, T, S, D) to the prediction in fp32, cropped to latents of ``size`` (T, H, W).

        Args:
            x: the tokens.
            grid: of the tokens, (T, rows, columns).
            size: of the latents, (T, H, W).
            t: modulates the head, (B, D). It, ``clean`` and ``noisy`` may be of the rows that branches share.
            clean: modulates it at the frames that are clean. As in the original, there it comes on top of ``t``.
            noisy: which frames are not clean.
        """
        t, clean, noisy = repeated(t, len(x)), *(None if at is None else repeated(at, len(x)) for at in (clean, noisy))
        out = self.final_layer.modulated(x.flatten(1, 2), t)
        if noisy is not None and clean is not None:
            again = self.final_layer.modulated(out, clean)
            out = torch.where(noisy.repeat_interleave(x.shape[2], 1)[..., None], out, again)
        frames, height, width = size
        predicted = unpatch(self.final_layer.linear(out), grid, self.sizes.patch_size)
        return predicted[:, :, :frames, :height, :width].float()

    def timesteps(self, timestep: Tensor | NoiseLevel, x: Tensor) -> Tensor:
        """The timesteps (B,) of a batch. A tensor is rounded to the network's precision, as the original does."""
        found = timesteps_of(timestep, x)
        return found.to(self.dtype) if isinstance(timestep, Tensor) else found

    def each(self, name: str, value: Tensor | float | None, own: float, x: Tensor) -> Tensor:
        """A number that the network is told of every row of x, (B,).

        Args:
            name: of the argument, for errors.
            value: one number, or one for each row, or fewer: then they are repeated whole to the batch.
            own: taken where it is not given.
            x: the batch.
        """
        if not isinstance(value, Tensor):  # made where x is: nothing is copied to the device
            return torch.full(
                (len(x),), self._rounded(own if value is None else value), dtype=self.dtype, device=x.device
            )
        return whole_rows(value.flatten().to(x.device), len(x), name)

    def _rounded(self, value: Tensor | float) -> float:
        """A number, or the first one of a tensor; rounded to the network's precision, as in the original's scripts."""
        if isinstance(value, Tensor):
            return value.flatten()[0].item()
        return torch.tensor(value, dtype=self.dtype, device="cpu").item()

    def noisy(self, x_mask: Tensor | None, timestep: Tensor | NoiseLevel, x: Tensor) -> Tensor | None:
        """Which frames of each row are at the timestep, bool (B, T); the others are clean. None where all are.

        Args:
            x_mask: the mask, of the batch or of fewer rows, which are repeated whole.
            timestep: a level may have a mask of its own, which is taken where ``x_mask`` is None.
            x: the batch, of as many tokens in time as the mask.

        Raises:
            InputError: the mask is of another number of frames.
        """
        if x_mask is None and isinstance(timestep, NoiseLevel):
            x_mask = timestep.noisy
        if x_mask is None:
            return None
        frames = -(-x.shape[2] // self.sizes.patch_size[0])
        if x_mask.ndim != 2 or x_mask.shape[1] != frames:
            raise InputError(f"x_mask is {tuple(x_mask.shape)}, expected one value a frame: {(len(x), frames)}")
        return whole_rows(x_mask.to(x.device, torch.bool), len(x), "x_mask")


def of_frames(noisy: Tensor | None, moving: Tensor, still: Tensor | None) -> Tensor:
    """What modulates each frame: ``moving`` (B, ...) where it is noisy, else ``still``: (B, T or 1, ...)."""
    if noisy is None or still is None:
        return moving[:, None]
    return torch.where(noisy.view(*noisy.shape, *[1] * (moving.ndim - 1)), moving[:, None], still[:, None])


def within_frames(attention: nn.Module, x: Tensor) -> Tensor:
    """Attention of the tokens of each frame to each other, x (B, T, S, D)."""
    return attention(x.flatten(0, 1)).view_as(x)


def along_time(attention: nn.Module, x: Tensor, angles: Tensor) -> Tensor:
    """Attention of the tokens at each place to each other, x (B, T, S, D)."""
    # of one row this would be a view, for which torch copies the weights for each place
    turned = x.transpose(1, 2).contiguous()
    return attention(turned.flatten(0, 1), angles).view_as(turned).transpose(1, 2)


def to_caption(attention: nn.Module, x: Tensor, keys_values: Tensor | Absorbed, mask: Tensor | None) -> Tensor:
    """Attention of all tokens to the caption, x (B, T, S, D)."""
    return attention(x.flatten(1, 2), keys_values, mask).view_as(x)


def caption_of(network: CaptionedTransformer, y: Tensor | Caption, mask: Tensor | None) -> Caption:
    """The prepared caption, whether it is given or the features."""
    return y if isinstance(y, Caption) else cast("Caption", network.prepare(y, mask))
