"""The temporal autoencoder of Open-Sora 1.2: latents of single frames to latents of several frames, and back.

Every convolution is causal: a frame sees itself and frames before it. The number of frames need not be a multiple of
the compression: zero frames are put in front before encoding, and dropped after decoding. Module names are those of the
released weights (Open-Sora v1.2.0, ``VAE_Temporal``).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.errors import InputError, setting
from .config import TemporalVAEConfig
from .convolutions import through


@dataclass(frozen=True, eq=False)
class Posterior:
    """The distribution of latents, a Gaussian whose values are independent."""

    mean: Tensor
    logvar: Tensor
    """Its log variance, in [-30, 20]."""

    @classmethod
    def of(cls, moments: Tensor) -> Posterior:
        """From what an encoder gives: means, then log variances, along dimension 1."""
        mean, logvar = moments.chunk(2, dim=1)
        return cls(mean, logvar.clamp(-30, 20))

    def sample(self, noise: Callable[[Tensor], Tensor]) -> Tensor:
        """One draw. ``noise(mean)`` gives standard normal values shaped like the mean."""
        return self.mean + (0.5 * self.logvar).exp() * noise(self.mean)


class CausalConv3d(nn.Module):
    """A convolution over (T, H, W) that sees no later frame: zeros are put in front of the first one.

    Args:
        into, out: channels.
        kernel: its side, along all three axes.
        stride: of time alone.
        bias: whether it has one.
    """

    def __init__(self, into: int, out: int, kernel: int = 3, *, stride: int = 1, bias: bool = True) -> None:
        super().__init__()
        side = kernel // 2
        self.padding = (side, side, side, side, kernel - stride, 0)
        self.conv = nn.Conv3d(into, out, kernel, stride=(stride, 1, 1), bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.padding))


class ResBlock(nn.Module):
    """x + conv2(silu(norm2(conv1(silu(norm1(x)))))), without biases; norms are over all frames that are given."""

    def __init__(self, into: int, out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, into)
        self.conv1 = CausalConv3d(into, out, bias=False)
        self.norm2 = nn.GroupNorm(groups, out)
        self.conv2 = CausalConv3d(out, out, bias=False)
        self.conv3 = CausalConv3d(into, out, 1, bias=False) if into != out else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.conv3 is None else self.conv3(x))


def _blocks(into: int, out: int, config: TemporalVAEConfig) -> nn.ModuleList:
    """The residual blocks of a level; the first one changes the channels."""
    width = [into] + [out] * config.num_res_blocks
    return nn.ModuleList(ResBlock(a, b, config.num_groups) for a, b in itertools.pairwise(width))


class Encoder(nn.Module):
    """(B, C, T, H, W) -> (B, 2 latent_embed_dim, T / compression, H, W)."""

    def __init__(self, config: TemporalVAEConfig) -> None:
        super().__init__()
        widths = [config.filters * multiplier for multiplier in config.channel_multipliers]
        before = [config.filters, *widths[:-1]]
        self.conv_in = CausalConv3d(config.in_out_channels, config.filters, bias=False)
        self.block_res_blocks = nn.ModuleList(_blocks(a, b, config) for a, b in zip(before, widths, strict=True))
        self.conv_blocks = nn.ModuleList(
            CausalConv3d(width, width, stride=2) if halve else nn.Identity()
            for width, halve in zip(widths[:-1], config.temporal_downsample, strict=True)
        )
        self.res_blocks = _blocks(widths[-1], widths[-1], config)
        self.norm1 = nn.GroupNorm(config.num_groups, widths[-1])
        self.conv2 = CausalConv3d(widths[-1], 2 * config.latent_embed_dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level, blocks in enumerate(self.block_res_blocks):
            x = through(blocks, x)  # type: ignore[arg-type]
            if level < len(self.conv_blocks):
                x = self.conv_blocks[level](x)
        return self.conv2(F.silu(self.norm1(through(self.res_blocks, x))))


class Decoder(nn.Module):
    """(B, latent_embed_dim, T', H, W) -> (B, C, T' compression, H, W). Levels are numbered as in the encoder."""

    def __init__(self, config: TemporalVAEConfig) -> None:
        super().__init__()
        self.doubles = config.temporal_downsample
        widths = [config.filters * multiplier for multiplier in config.channel_multipliers]
        before = [*widths[1:], widths[-1]]
        self.conv1 = CausalConv3d(config.latent_embed_dim, widths[-1])
        self.res_blocks = _blocks(widths[-1], widths[-1], config)
        self.block_res_blocks = nn.ModuleList(_blocks(a, b, config) for a, b in zip(before, widths, strict=True))
        self.conv_blocks = nn.ModuleList(
            CausalConv3d(width, 2 * width) if double else nn.Identity()
            for width, double in zip(widths[1:], self.doubles, strict=True)
        )
        self.norm1 = nn.GroupNorm(config.num_groups, widths[0])
        self.conv_out = CausalConv3d(widths[0], config.in_out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = through(self.res_blocks, self.conv1(x))
        for level in reversed(range(len(self.block_res_blocks))):
            x = through(self.block_res_blocks[level], x)  # type: ignore[arg-type]
            if level and self.doubles[level - 1]:
                x = self.conv_blocks[level - 1](x)
                x = x.unflatten(1, (-1, 2)).movedim(2, 3).flatten(2, 3)  # (C 2) T -> C (T 2)
        return self.conv_out(F.silu(self.norm1(x)))


class TemporalVAE(nn.Module):
    """Latents of frames (B, C, T, h, w) to latents (B, C', ceil(T / compression), h, w), and back."""

    def __init__(self, config: TemporalVAEConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or TemporalVAEConfig()
        self.encoder = Encoder(config)
        self.quant_conv = CausalConv3d(2 * config.latent_embed_dim, 2 * config.embed_dim, 1)
        self.post_quant_conv = CausalConv3d(config.embed_dim, config.latent_embed_dim, 1)
        self.decoder = Decoder(config)

    def latent_frames(self, frames: int) -> int:
        """The latent frames of so many frames."""
        return -(-frames // self.config.compression)

    def get_latent_size(self, input_size: Sequence[int | None]) -> list[int | None]:
        """(T, H, W) of its input -> (T', H, W) of the latents. None stays None."""
        frames, *sides = input_size
        return [None if frames is None else self.latent_frames(frames), *sides]

    def encode(self, x: Tensor) -> Posterior:
        """The distribution of the latents of x (B, C, T, h, w), of any number of frames."""
        missing = -x.shape[2] % self.config.compression
        return Posterior.of(self.quant_conv(self.encoder(F.pad(x, (0, 0, 0, 0, missing, 0)))))

    def decode(self, z: Tensor, num_frames: int | None = None) -> Tensor:
        """Latents (B, C', T', h, w) -> (B, C, num_frames, h, w).

        Args:
            z: the latents.
            num_frames: how many frames were encoded; None for as many as the latents hold.

        Raises:
            InputError: so many frames give another number of latents.
        """
        held = z.shape[2] * self.config.compression
        frames = held if num_frames is None else num_frames
        if self.latent_frames(frames) != z.shape[2]:
            raise InputError(
                f"{setting('frames')} {frames} are {self.latent_frames(frames)} latent frames, and {z.shape[2]} were "
                f"given: {held - self.config.compression + 1} to {held} frames go with them"
            )
        return self.decoder(self.post_quant_conv(z))[:, :, held - frames :]

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return next(self.parameters()).dtype
