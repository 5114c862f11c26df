"""Layers that the transformers share: embeddings, positions, attention. Parameter names are the released ones.

Shapes: B batch, T frames (tokens in time), S tokens in a frame, N = T S, L caption tokens, D hidden, H heads.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.errors import InputError
from ...diffusion import NoiseLevel


def timesteps_of(timestep: Tensor | NoiseLevel, x: Tensor) -> Tensor:
    """The timesteps (B,) of a batch x (B, ...): as given, or those of a noise level."""
    return timestep if isinstance(timestep, Tensor) else timestep.timesteps(x)


def timestep_embedding(timesteps: Tensor, width: int = 256, shift: int = 0) -> Tensor:
    """Sinusoids of the timestep, cosines first: (B,) -> (B, width).

    Frequency i is exp(-ln(1e4) i / (width / 2 - shift)). ``shift`` is 0 in DiT, PixArt and STDiT. It is 1 in the DiT of
    diffusers, where the lowest frequency is therefore exactly 1e-4.
    """
    half = width // 2
    exponents = -math.log(1e4) * torch.arange(half, dtype=torch.float32, device=timesteps.device) / (half - shift)
    frequencies = torch.exp(exponents)
    angles = timesteps.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def sincos_1d(width: int, positions: Tensor) -> Tensor:
    """Sines then cosines of positions: (P,) -> (P, width), frequency 10000^(-i / (width / 2)), in float64."""
    steps = torch.arange(width // 2, dtype=torch.float64, device=positions.device)
    omega = 10000.0 ** (-steps / (width / 2))
    angles = positions.double().reshape(-1, 1) * omega
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sincos_2d(width: int, rows: int, columns: int, scale: float | tuple[float, float] = 1.0) -> Tensor:
    """Positions of an image grid, row by row, x in the first half of the width: (rows * columns, width) fp32.

    Positions are divided by ``scale``: one number for both axes, or (y, x).
    """
    down, across = scale if isinstance(scale, tuple) else (scale, scale)
    y, x = torch.meshgrid(torch.arange(rows) / down, torch.arange(columns) / across, indexing="ij")
    return torch.cat([sincos_1d(width // 2, x.flatten()), sincos_1d(width // 2, y.flatten())], dim=1).float()


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (1 + scale) + shift, the vectors broadcast over tokens: x (B, N, D), shift and scale (B, 1, D)."""
    return torch.addcmul(shift, x, 1 + scale)


class PatchEmbed(nn.Module):
    """Latents to tokens by a strided convolution: (B, C, H, W) or (B, C, T, H, W) -> (B, N, D)."""

    def __init__(self, patch_size: tuple[int, ...], in_channels: int, hidden_size: int) -> None:
        super().__init__()
        convolution = nn.Conv3d if len(patch_size) == 3 else nn.Conv2d
        self.proj = convolution(in_channels, hidden_size, patch_size, patch_size)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        # a matrix product in place of the convolution: the same result, and several times faster on the CPU
        *t, h, w = self.proj.kernel_size
        if not t:
            x = x[:, :, None]
        patches = rearrange(x, "b c (nt t) (nh h) (nw w) -> b (nt nh nw) (c t h w)", t=t[0] if t else 1, h=h, w=w)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


def unpatch(tokens: Tensor, grid: tuple[int, ...], patch: tuple[int, int, int]) -> Tensor:
    """Tokens (B, N, values of a patch) over a grid of (T, H, W) patches -> (B, C, T, H, W)."""
    (nt, nh, nw), (pt, ph, pw) = grid, patch
    return rearrange(
        tokens,
        "b (nt nh nw) (pt ph pw c) -> b c (nt pt) (nh ph) (nw pw)",
        nt=nt, nh=nh, nw=nw, pt=pt, ph=ph, pw=pw,
    )  # fmt: skip


class TimestepEmbedder(nn.Module):
    """Timesteps to vectors: sinusoids, then an MLP.

    Args:
        hidden_size: width of the vectors.
        frequency_shift: see ``timestep_embedding``.
    """

    def __init__(self, hidden_size: int, frequency_shift: int = 0) -> None:
        super().__init__()
        self.frequency_shift = frequency_shift
        self.mlp = nn.Sequential(nn.Linear(256, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size))

    def forward(self, timesteps: Tensor) -> Tensor:
        """(B,) original timesteps, floats allowed -> (B, D)."""
        sinusoids = timestep_embedding(timesteps, shift=self.frequency_shift)
        return self.mlp(sinusoids.to(next(self.parameters()).dtype))


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, in_features: int, hidden_features: int, out_features: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_features, hidden_features)
        self.fc2 = nn.Linear(hidden_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class CaptionEmbedder(nn.Module):
    """Caption features to the model's width, and the null caption (a buffer that is never trained)."""

    y_embedding: Tensor

    def __init__(self, in_channels: int, hidden_size: int, tokens: int) -> None:
        super().__init__()
        self.y_proj = Mlp(in_channels, hidden_size, hidden_size)
        self.register_buffer("y_embedding", torch.randn(tokens, in_channels) / in_channels**0.5)

    def forward(self, y: Tensor) -> Tensor:
        return self.y_proj(y)


def refuse_heads(hidden_size: int, num_heads: int) -> None:
    """Raise an InputError if the heads do not divide the width."""
    if num_heads < 1 or hidden_size % num_heads:
        raise InputError(f"{num_heads} attention heads do not divide a hidden size of {hidden_size}")


class Attention(nn.Module):
    """Multi-head self-attention: (B, N, D) -> (B, N, D)."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        refuse_heads(hidden_size, num_heads)
        self.num_heads = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] == 1:  # one token attends to itself alone, so its value is the result
            d = x.shape[-1]
            return self.proj(F.linear(x, self.qkv.weight[2 * d :], self.qkv.bias[2 * d :]))
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.num_heads)
        return self.proj(rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)"))


class CrossAttention(nn.Module):
    """Attention to caption tokens whose keys and values were projected once per prompt."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        refuse_heads(hidden_size, num_heads)
        self.num_heads = num_heads
        self.q_linear = nn.Linear(hidden_size, hidden_size)
        self.kv_linear = nn.Linear(hidden_size, 2 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def keys_values(self, y: Tensor) -> Tensor:
        """Caption tokens (B, L, D) -> keys and values (2, B, H, L, D / H)."""
        return rearrange(self.kv_linear(y), "b l (two h d) -> two b h l d", two=2, h=self.num_heads)

    def forward(self, x: Tensor, keys_values: Tensor, mask: Tensor | None) -> Tensor:
        """``mask`` (B, 1, 1, L) is True where a caption token may be attended to."""
        q = rearrange(self.q_linear(x), "b n (h d) -> b h n d", h=self.num_heads)
        out = F.scaled_dot_product_attention(q, keys_values[0], keys_values[1], attn_mask=mask)
        return self.proj(rearrange(out, "b h n d -> b n (h d)"))


class FinalLayer(nn.Module):
    """adaLN-single head: normalise, modulate by table + t, project to patches."""

    def __init__(self, hidden_size: int, out_features: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(hidden_size, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(hidden_size, out_features)
        self.scale_shift_table = nn.Parameter(torch.randn(2, hidden_size) / hidden_size**0.5)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        shift, scale = (self.scale_shift_table + t[:, None]).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))
