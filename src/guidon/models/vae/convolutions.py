"""The layers of a frame-wise autoencoder: those of diffusers' ``AutoencoderKL``, for models that come with no library.

Parameter names, the order in which layers are made and all arithmetic are the library's, so weights of either load into
the other and give the same bits. The library's import takes four seconds of CPU time, more than a clip.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from .config import FrameVAEConfig

EPS = 1e-6  # of every normalisation


class Residual(nn.Module):
    """Normalise, SiLU, convolve, twice; added to the input: (N, C, h, w) -> (N, C', h, w)."""

    def __init__(self, config: FrameVAEConfig, inner: int, outer: int) -> None:
        super().__init__()
        self.norm1 = _norm(config, inner)
        self.conv1 = _convolution(config, inner, outer)
        self.norm2 = _norm(config, outer)
        self.conv2 = _convolution(config, outer, outer)
        self.conv_shortcut = None if inner == outer else nn.Conv2d(inner, outer, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(nn.Module):
    """Attention of one head over all places, added to the input: (N, C, h, w) -> (N, C, h, w)."""

    def __init__(self, config: FrameVAEConfig, channels: int) -> None:
        super().__init__()
        self.group_norm = _norm(config, channels)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.group_norm(x.flatten(2)).transpose(1, 2)
        q, k, v = (layer(tokens)[:, :, None].transpose(1, 2) for layer in (self.to_q, self.to_k, self.to_v))
        out = self.to_out[0](F.scaled_dot_product_attention(q, k, v).transpose(1, 2)[:, :, 0])
        return out.transpose(1, 2).reshape(x.shape) + x


class Middle(nn.Module):
    """Two residual blocks, and attention between them if the configuration asks for it."""

    def __init__(self, config: FrameVAEConfig) -> None:
        super().__init__()
        channels = config.block_out_channels[-1]
        first = Residual(config, channels, channels)
        if config.mid_block_attention:
            self.attentions = nn.ModuleList([Attention(config, channels)])
        self.resnets = nn.ModuleList([first, Residual(config, channels, channels)])
        self.attends = config.mid_block_attention

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        if self.attends:
            x = self.attentions[0](x)
        return self.resnets[1](x)


class Halve(nn.Module):
    """A convolution of stride 2. Where it sees zeros beyond the border, they are at the right and the bottom alone."""

    def __init__(self, config: FrameVAEConfig, channels: int) -> None:
        super().__init__()
        self.zeros = config.padding == "zeros"
        self.conv = _convolution(config, channels, channels, stride=2, padding=0 if self.zeros else 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.zeros else x)


class Double(nn.Module):
    """Every place becomes four, then a convolution."""

    def __init__(self, config: FrameVAEConfig, channels: int) -> None:
        super().__init__()
        self.conv = _convolution(config, channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Down(nn.Module):
    """Residual blocks; all levels but the last then halve the side."""

    def __init__(self, config: FrameVAEConfig, inner: int, outer: int, last: bool) -> None:
        super().__init__()
        widths = [inner] + [outer] * config.layers_per_block
        self.resnets = nn.ModuleList(Residual(config, *pair) for pair in pairwise(widths))
        self.downsamplers = nn.ModuleList([] if last else [Halve(config, outer)])

    def forward(self, x: Tensor) -> Tensor:
        return through((*self.resnets, *self.downsamplers), x)


class Up(nn.Module):
    """Residual blocks, one more than in ``Down``; all levels but the last then double the side."""

    def __init__(self, config: FrameVAEConfig, inner: int, outer: int, last: bool) -> None:
        super().__init__()
        widths = [inner] + [outer] * (config.layers_per_block + 1)
        self.resnets = nn.ModuleList(Residual(config, *pair) for pair in pairwise(widths))
        self.upsamplers = nn.ModuleList([] if last else [Double(config, outer)])

    def forward(self, x: Tensor) -> Tensor:
        return through((*self.resnets, *self.upsamplers), x)


class Encoder(nn.Module):
    """Images (N, C, H, W) -> mean and log variance of their latents (N, 2 C_latent, h, w)."""

    def __init__(self, config: FrameVAEConfig, channels: int) -> None:
        super().__init__()
        widths = (config.block_out_channels[0], *config.block_out_channels)
        levels = range(len(widths) - 1)
        self.conv_in = _convolution(config, channels, widths[0])
        self.down_blocks = nn.ModuleList(Down(config, widths[k], widths[k + 1], k == levels[-1]) for k in levels)
        self.mid_block = Middle(config)
        self.conv_norm_out = _norm(config, widths[-1])
        self.conv_out = _convolution(config, widths[-1], 2 * config.latent_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(through(self.down_blocks, self.conv_in(x)))
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Decoder(nn.Module):
    """Latents (N, C_latent, h, w) -> images (N, C, H, W)."""

    def __init__(self, config: FrameVAEConfig, channels: int) -> None:
        super().__init__()
        widths = config.block_out_channels[::-1]
        widths = (widths[0], *widths)
        levels = range(len(widths) - 1)
        self.conv_in = _convolution(config, config.latent_channels, widths[0])
        self.up_blocks = nn.ModuleList()  # before the middle, which draws its numbers first
        self.mid_block = Middle(config)
        self.up_blocks.extend(Up(config, widths[k], widths[k + 1], k == levels[-1]) for k in levels)
        self.conv_norm_out = _norm(config, widths[-1])
        self.conv_out = _convolution(config, widths[-1], channels)

    def forward(self, z: Tensor) -> Tensor:
        x = through(self.up_blocks, self.mid_block(self.conv_in(z)))
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Convolutions(nn.Module):
    """Encoder, decoder, and the 1x1 convolutions next to the latents."""

    def __init__(self, config: FrameVAEConfig) -> None:
        super().__init__()
        channels = 3 * config.pixel_unshuffle**2
        self.encoder = Encoder(config, channels)
        self.decoder = Decoder(replace(config, padding=config.decoder_padding or config.padding), channels)
        self.quant_conv = nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)


def _norm(config: FrameVAEConfig, channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(config.norm_num_groups, channels, EPS)


def _convolution(config: FrameVAEConfig, inner: int, outer: int, stride: int = 1, padding: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inner, outer, 3, stride, padding, padding_mode=config.padding)


def between(convolution: nn.Module | None, x: Tensor) -> Tensor:
    """Apply the 1x1 convolution next to the latents, if there is one. Some released autoencoders have none."""
    return x if convolution is None else convolution(x)


def through(layers: nn.ModuleList | tuple[nn.Module, ...], x: Tensor) -> Tensor:
    """Apply layers one after the other."""
    for layer in layers:
        x = cast("Tensor", layer(x))
    return x
