"""Layers that the transformers share: embeddings, positions, attention. Parameter names are the released ones.

Shapes: B batch, T frames (tokens in time), S tokens in a frame, N = T S, L caption tokens, D hidden, H heads.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from ...core.errors import InputError
from ...diffusion import NoiseLevel
from .products import LEAST_ROWS, LEAST_WIDTH, Linear, gelu_of, product


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


def places(count: int, scale: float) -> Tensor:
    """0, 1, ... divided by ``scale``: (count,) fp32. Without memory there are no values; see ``scaled_normal``."""
    found = torch.empty(count)
    return found if found.is_meta else torch.arange(count) / scale


def sincos_1d(width: int, positions: Tensor, rounded: torch.dtype = torch.float64) -> Tensor:
    """Sines then cosines of positions: (P,) -> (P, width), frequency 10000^(-i / (width / 2)), in float64.

    ``rounded`` is the precision that the frequencies have.
    """
    if positions.is_meta:  # see ``scaled_normal``
        return positions.new_empty(positions.numel(), width // 2 * 2, dtype=torch.float64)
    steps = torch.arange(width // 2, dtype=torch.float64, device=positions.device)
    omega = (10000.0 ** (-steps / (width / 2))).to(rounded).double()
    angles = positions.double().reshape(-1, 1) * omega
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sincos_2d(
    width: int,
    rows: int,
    columns: int,
    scale: float | tuple[float, float] = 1.0,
    rounded: torch.dtype = torch.float64,
) -> Tensor:
    """Positions of an image grid, row by row, x in the first half of the width: (rows * columns, width) fp32.

    Positions are divided by ``scale``: one number for both axes, or (y, x). ``rounded``: see ``sincos_1d``.
    """
    down, across = scale if isinstance(scale, tuple) else (scale, scale)
    if (none := torch.empty(0)).is_meta:
        return none.new_empty(rows * columns, width // 2 // 2 * 4)
    y, x = torch.meshgrid(places(rows, down), places(columns, across), indexing="ij")
    halves = [sincos_1d(width // 2, axis.flatten(), rounded) for axis in (x, y)]
    return torch.cat(halves, dim=1).float()


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (1 + scale) + shift, the vectors broadcast over tokens: x (B, N, D), shift and scale (B, 1, D)."""
    return torch.addcmul(shift, x, 1 + scale)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """x over its root mean square along the last axis, times a weight. The norm is computed in fp32."""
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn each pair of neighbouring values of x (..., N, W) by its angle (N, W / 2) (RoPE, 2104.09864, eq. 34)."""
    cosines, sines = (each.repeat_interleave(2, dim=-1) for each in (angles.cos(), angles.sin()))
    turned = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)  # each pair (a, b) as (-b, a)
    return x * cosines + turned * sines


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


class SizeEmbedder(nn.Module):
    """Embeds each of K numbers as a vector and concatenates the vectors: (B, K) -> (B, K width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, sizes: Tensor) -> Tensor:
        embedded = self.mlp(timestep_embedding(sizes.flatten()).to(next(self.parameters()).dtype))
        return embedded.view(len(sizes), -1)


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, in_features: int, hidden_features: int, out_features: int) -> None:
        super().__init__()
        self.fc1 = Linear(in_features, hidden_features)
        self.fc2 = Linear(hidden_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(gelu_of(self.fc1, x))


def scaled_normal(*shape: int) -> Tensor:
    """Normal values of variance 1 / width, the last of the shape.

    Without memory none are drawn: torch would import its compiler for it, which takes as long as torch itself.
    """
    table = torch.empty(shape)
    return table if table.is_meta else torch.randn(shape) / shape[-1] ** 0.5


class CaptionEmbedder(nn.Module):
    """Caption features to the model's width, and the null caption (a buffer that is never trained)."""

    y_embedding: Tensor

    def __init__(self, in_channels: int, hidden_size: int, tokens: int) -> None:
        super().__init__()
        self.y_proj = Mlp(in_channels, hidden_size, hidden_size)
        self.register_buffer("y_embedding", scaled_normal(tokens, in_channels))

    def forward(self, y: Tensor) -> Tensor:
        return self.y_proj(y)


def refuse_heads(hidden_size: int, num_heads: int) -> None:
    """Raise an InputError if the heads do not divide the width."""
    if num_heads < 1 or hidden_size % num_heads:
        raise InputError(f"{num_heads} attention heads do not divide a hidden size of {hidden_size}")


class RMSNorm(nn.Module):
    """``rms_norm`` with a weight that is learned."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight)


class Rotary(nn.Module):
    """The angles by which ``rotate`` turns positions 0 to N - 1: (N, width / 2).

    The frequencies are a frozen parameter, as in the released files. In half precision they are rounded like every
    other parameter, and so are the angles: the released weights were trained so.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.freqs = nn.Parameter(self.frequencies(width), requires_grad=False)

    @staticmethod
    def frequencies(width: int) -> Tensor:
        """10000^(-2i / width), (width / 2,)."""
        return 1 / 10000 ** (torch.arange(0, width, 2) / width)

    def forward(self, length: int) -> Tensor:
        return torch.arange(length, device=self.freqs.device, dtype=self.freqs.dtype)[:, None] * self.freqs


class Attention(nn.Module):
    """Multi-head self-attention: (B, N, D) -> (B, N, D).

    Args:
        hidden_size: D.
        num_heads: divides D.
        qk_norm: normalise queries and keys by ``rms_norm``.
        rotate_first: rotate queries and keys before they are normalised, not after.
    """

    def __init__(self, hidden_size: int, num_heads: int, *, qk_norm: bool = False, rotate_first: bool = False) -> None:
        super().__init__()
        refuse_heads(hidden_size, num_heads)
        self.num_heads, self.rotate_first = num_heads, rotate_first
        self.qkv = Linear(hidden_size, 3 * hidden_size)
        self.proj = Linear(hidden_size, hidden_size)
        self.q_norm, self.k_norm = (RMSNorm(hidden_size // num_heads) if qk_norm else nn.Identity() for _ in range(2))

    def forward(self, x: Tensor, angles: Tensor | None = None) -> Tensor:
        """``angles`` (N, D / H / 2) rotate queries and keys; None where positions are in x already."""
        if x.shape[1] == 1:  # one token attends to itself alone, so its value is the result
            d = x.shape[-1]
            if type(self.qkv) is not Linear:  # somebody's own layer, such as one with an adapter
                return self.proj(self.qkv(x)[..., 2 * d :])
            return self.proj(product(x, self.qkv.weight[2 * d :], self.qkv.bias[2 * d :]))
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.num_heads)
        if angles is not None and self.rotate_first:
            q, k = rotate(q, angles), rotate(k, angles)
        q, k = self.q_norm(q), self.k_norm(k)
        if angles is not None and not self.rotate_first:
            q, k = rotate(q, angles), rotate(k, angles)
        return self.proj(rearrange(attend(q, k, v), "b h n d -> b n (h d)"))


MOST_KEYS = 256
"""Tokens that are attended to, up to which attention in bf16 keeps its scores in memory."""
MOST_SCORES = 1 << 24
"""Scores that it keeps at most, in all rows and heads."""


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention of q (B, H, N, D) to k and v (B, H, L, D), of which those count whose mask (B, 1, 1, L) is True.

    In bf16 on a CPU, torch's fused attention takes longer than products for few tokens: 6.6 ms in place of 3.7 for 32
    rows of 6 heads and 64 tokens. Scores are then rounded to bf16, as in the originals. Narrow networks do without.
    """
    heads, tokens, width = q.shape[1:]
    length = k.shape[2]
    few = length <= MOST_KEYS and q[..., 0].numel() * length <= MOST_SCORES and len(q) == len(k)
    if (
        not few
        or heads * width < LEAST_WIDTH
        or q.dtype != torch.bfloat16
        or q.device.type != "cpu"
        or torch.is_grad_enabled()
    ):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    bias = q.new_empty(1, 1, 1)
    if mask is not None:  # where no token counts, all weights are the same, and all values 0
        v = v * mask.transpose(2, 3)
        lowest = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, torch.finfo(q.dtype).min)
        bias = lowest.expand(len(q), heads, -1, -1).flatten(0, 1)
    q, k, v = q.reshape(-1, tokens, width), k.reshape(-1, length, width), v.reshape(-1, length, width)
    scores = torch.baddbmm(bias, q, k.transpose(1, 2), beta=0 if mask is None else 1, alpha=width**-0.5)
    return torch.bmm(scores.softmax(-1), v).unflatten(0, (-1, heads))


class Absorbed(NamedTuple):
    """A short caption, multiplied with a block's projections, so that attention to it is two narrow products.

    The score of token x for caption token l in head h is x Wq_h K_hl, and its value reaches the result as V_hl Wo_h:
    both products of weights and caption are taken once for all steps. That saves work where H L < D + L.
    """

    scores: Tensor
    """Wq K^T / sqrt(D / H), (B, D, H L)."""
    bias: Tensor
    """What queries' biases add to the scores; -inf where a token does not count: (B, 1, H L)."""
    values: Tensor
    """V Wo, (B, H L, D)."""


MOST_TABLES = 4
"""Absorbed captions take at most so many times the memory of the weights that they stand for."""


def absorbs(cross: CrossAttention, keys_values: Tensor, tokens: int) -> bool:
    """Whether ``Absorbed`` saves time, for keys and values (2, B, H, L, D / H) and ``tokens`` tokens a row.

    It does on a CPU where captions are short. Sums are taken in another order, so narrow networks do without it, and
    whatever needs gradients.
    """
    rows, heads, length = keys_values.shape[1:4]
    width = cross.q_linear.weight.shape[0]
    return (
        keys_values.device.type == "cpu"
        and keys_values.dtype in (torch.float32, torch.bfloat16)
        and width >= LEAST_WIDTH
        and tokens >= LEAST_ROWS
        and heads * length < width + length
        and rows * heads * length <= MOST_TABLES * width
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and forward_ad._current_level < 0
        and type(cross.q_linear) is type(cross.proj) is Linear
    )


class CrossAttention(nn.Module):
    """Attention to caption tokens whose keys and values were projected once per prompt."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        refuse_heads(hidden_size, num_heads)
        self.num_heads = num_heads
        self.q_linear = Linear(hidden_size, hidden_size)
        self.kv_linear = Linear(hidden_size, 2 * hidden_size)
        self.proj = Linear(hidden_size, hidden_size)

    def keys_values(self, y: Tensor) -> Tensor:
        """Caption tokens (B, L, D) -> keys and values (2, B, H, L, D / H)."""
        return rearrange(self.kv_linear(y), "b l (two h d) -> two b h l d", two=2, h=self.num_heads)

    def absorb(self, keys_values: Tensor, mask: Tensor | None, whole: bool = False) -> Absorbed | Tensor:
        """The caption multiplied with the projections; as it is where a row has no token that counts.

        Its padding at the end is left out, unless it is wanted ``whole``.
        """
        counts = torch.ones_like(keys_values[0, :, :1, :, 0], dtype=torch.bool) if mask is None else mask.flatten(1, 2)
        if not bool(counts.any(-1).all()):
            return keys_values
        end = counts.shape[-1] if whole else int(counts.flatten(0, 1).any(0).nonzero()[-1]) + 1
        keys, values = keys_values[..., :end, :].float()
        wide, heads = self.q_linear.weight.dtype, self.num_heads
        query = self.q_linear.weight.float().unflatten(0, (heads, -1)) * keys.shape[-1] ** -0.5
        shift = self.q_linear.bias.float().view(heads, -1, 1) * keys.shape[-1] ** -0.5
        bias = (keys @ shift).squeeze(-1).masked_fill(~counts[..., :end], -math.inf)
        scores = (keys @ query).flatten(1, 2).transpose(1, 2)
        out = (values @ self.proj.weight.float().unflatten(1, (heads, -1)).permute(1, 2, 0)).flatten(1, 2)
        return Absorbed(scores.to(wide), bias.flatten(1)[:, None].to(wide), out.to(wide))

    def forward(self, x: Tensor, keys_values: Tensor | Absorbed, mask: Tensor | None) -> Tensor:
        """``mask`` (B, 1, 1, L) is True where a caption token may be attended to. ``Absorbed`` holds its own."""
        if isinstance(keys_values, Absorbed):
            scores = torch.baddbmm(keys_values.bias, x, keys_values.scores).unflatten(-1, (self.num_heads, -1))
            return torch.baddbmm(self.proj.bias, scores.softmax(-1).flatten(2), keys_values.values)
        q = rearrange(self.q_linear(x), "b n (h d) -> b h n d", h=self.num_heads)
        out = attend(q, keys_values[0], keys_values[1], mask)
        return self.proj(rearrange(out, "b h n d -> b n (h d)"))


class FinalLayer(nn.Module):
    """adaLN-single head: normalise, modulate by table + t, project to patches."""

    def __init__(self, hidden_size: int, out_features: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(hidden_size, eps=1e-6, elementwise_affine=False)
        self.linear = Linear(hidden_size, out_features)
        self.scale_shift_table = nn.Parameter(scaled_normal(2, hidden_size))

    def modulated(self, x: Tensor, t: Tensor) -> Tensor:
        """x (B, N, D) normalised and modulated by t (B, D)."""
        shift, scale = (self.scale_shift_table + t[:, None]).chunk(2, dim=1)
        return modulate(self.norm_final(x), shift, scale)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.linear(self.modulated(x, t))
