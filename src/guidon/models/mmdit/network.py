"""MMDiT (Open-Sora 2.0), in the shape of FLUX: the velocity of packed video latents, from text and an image.

Shapes: B batch, N video tokens, L text tokens, D hidden, H heads. Module names are those of the released weights.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ...core.errors import InputError
from ..parts.layers import rms_norm
from .config import MMDiTConfig

_ROUNDED_UP = (13, 44)  # see ``_frequencies``
Turns = tuple[Tensor, Tensor]
"""Cosines and sines of every pair of a head, (B, 1, N, head_dim / 2) each."""


def pack(latents: Tensor, patch: int = 2) -> Tensor:
    """Latents (B, C, T, H, W) -> tokens (B, N, C patch patch)."""
    if latents.shape[-2] % patch or latents.shape[-1] % patch:
        raise InputError(
            f"latents of {latents.shape[-2]}x{latents.shape[-1]} hold no whole patches of {patch}x{patch}: give another"
            " size"
        )
    return rearrange(latents, "b c t (h p) (w q) -> b (t h w) (c p q)", p=patch, q=patch)


def unpack(tokens: Tensor, size: tuple[int, int, int], patch: int = 2) -> Tensor:
    """The inverse of ``pack``, for latents of ``size`` (T, H, W)."""
    t, h, w = size[0], size[1] // patch, size[2] // patch
    return rearrange(tokens, "b (t h w) (c p q) -> b c t (h p) (w q)", t=t, h=h, w=w, p=patch, q=patch)


def positions(size: tuple[int, int, int], patch: int = 2) -> Tensor:
    """The coordinates (time, row, column) of every token of latents of ``size`` (T, H, W): (N, 3)."""
    axes = (torch.arange(n, dtype=torch.float32) for n in (size[0], size[1] // patch, size[2] // patch))
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)


class MLPEmbedder(nn.Module):
    """A vector to the hidden width."""

    def __init__(self, into: int, width: int) -> None:
        super().__init__()
        self.in_layer = nn.Linear(into, width)
        self.out_layer = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_layer(F.silu(self.in_layer(x)))


class Scale(nn.Module):
    """The RMS norm of a head, with a weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.scale)


class QKNorm(nn.Module):
    """The norms of queries and keys."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query_norm, self.key_norm = Scale(width), Scale(width)


class Modulation(nn.Module):
    """Shift, scale and gate of every branch of a block, (B, 1, D) each."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.lin = nn.Linear(width, count * width)

    def forward(self, vec: Tensor) -> tuple[Tensor, ...]:
        return self.lin(F.silu(vec))[:, None].chunk(self.count, dim=-1)


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """(1 + scale) LayerNorm(x) + shift; the norm has no weights."""
    return (1 + scale) * F.layer_norm(x, x.shape[-1:], eps=1e-6) + shift


def heads(x: Tensor, count: int) -> Tensor:
    """(B, N, D) -> (B, H, N, head_dim)."""
    return rearrange(x, "b n (h d) -> b h n d", h=count)


class SelfAttention(nn.Module):
    """The layers of one stream's attention; the streams attend together, in ``DoubleStreamBlock``."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        width, bias = config.hidden_size, config.qkv_bias
        self.fused, self.heads = config.fused_qkv, config.num_heads
        if self.fused:
            self.qkv = nn.Linear(width, 3 * width, bias=bias)
        else:
            self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width, bias=bias) for _ in range(3))
        self.norm = QKNorm(config.head_dim)
        self.proj = nn.Linear(width, width)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised queries and keys, and values: (B, H, N, head_dim) each."""
        parts = self.qkv(x).chunk(3, dim=-1) if self.fused else (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        q, k, v = (heads(part, self.heads) for part in parts)
        return self.norm.query_norm(q), self.norm.key_norm(k), v


def _mlp(config: MMDiTConfig) -> nn.Sequential:
    hidden = int(config.hidden_size * config.mlp_ratio)
    return nn.Sequential(
        nn.Linear(config.hidden_size, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, config.hidden_size)
    )


class DoubleStreamBlock(nn.Module):
    """Text and video attend together; each has weights of its own."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.halves = bool(config.use_liger_rope)
        self.img_mod, self.txt_mod = Modulation(config.hidden_size, 6), Modulation(config.hidden_size, 6)
        self.img_attn, self.txt_attn = SelfAttention(config), SelfAttention(config)
        self.img_mlp, self.txt_mlp = _mlp(config), _mlp(config)

    def forward(self, img: Tensor, txt: Tensor, vec: Tensor, turns: Turns) -> tuple[Tensor, Tensor]:
        img_mod, txt_mod = self.img_mod(vec), self.txt_mod(vec)
        of_txt = self.txt_attn.project(modulated(txt, *txt_mod[:2]))
        of_img = self.img_attn.project(modulated(img, *img_mod[:2]))
        q, k, v = (torch.cat(pair, dim=2) for pair in zip(of_txt, of_img, strict=True))
        found = attend(q, k, v, turns, self.halves)
        for_txt, for_img = found.split([txt.shape[1], img.shape[1]], dim=1)
        img = img + img_mod[2] * self.img_attn.proj(for_img)
        img = img + img_mod[5] * self.img_mlp(modulated(img, *img_mod[3:5]))
        txt = txt + txt_mod[2] * self.txt_attn.proj(for_txt)
        return img, txt + txt_mod[5] * self.txt_mlp(modulated(txt, *txt_mod[3:5]))


class SingleStreamBlock(nn.Module):
    """All tokens in one stream; attention and MLP run side by side."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.halves, self.heads = bool(config.use_liger_rope), config.num_heads
        self.fused, self.width = config.fused_qkv, config.hidden_size
        self.hidden = int(config.hidden_size * config.mlp_ratio)
        width = config.hidden_size
        if self.fused:
            self.linear1 = nn.Linear(width, 3 * width + self.hidden)
        else:
            self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
            self.v_mlp = nn.Linear(width, width + self.hidden)
        self.linear2 = nn.Linear(width + self.hidden, width)
        self.norm = QKNorm(config.head_dim)
        self.modulation = Modulation(width, 3)

    def forward(self, x: Tensor, vec: Tensor, turns: Turns) -> Tensor:
        shift, scale, gate = self.modulation(vec)
        h = modulated(x, shift, scale)
        if self.fused:
            q, k, v, mlp = self.linear1(h).split([self.width] * 3 + [self.hidden], dim=-1)
        else:
            q, k = self.q_proj(h), self.k_proj(h)
            v, mlp = self.v_mlp(h).split([self.width, self.hidden], dim=-1)
        q, k, v = (heads(part, self.heads) for part in (q, k, v))
        found = attend(self.norm.query_norm(q), self.norm.key_norm(k), v, turns, self.halves)
        return x + gate * self.linear2(torch.cat([found, F.gelu(mlp, approximate="tanh")], dim=2))


class LastLayer(nn.Module):
    """Tokens to the velocity."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.hidden_size, config.in_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(config.hidden_size, 2 * config.hidden_size))

    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(vec)[:, None].chunk(2, dim=-1)
        return self.linear(modulated(x, shift, scale))


class MMDiT(nn.Module):
    """The velocity eps - x_0 of packed latents: ``net(img, img_ids, txt, txt_ids, timesteps, y_vec, cond)``."""

    def __init__(self, config: MMDiTConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or MMDiTConfig()
        width = config.hidden_size
        self.img_in = nn.Linear(config.in_channels, width)
        self.time_in = MLPEmbedder(256, width)
        self.vector_in = MLPEmbedder(config.vec_in_dim, width)
        self.guidance_in = MLPEmbedder(256, width) if config.guidance_embed else None
        self.cond_in = nn.Linear(config.cond_channels, width) if config.cond_embed else None
        self.txt_in = nn.Linear(config.context_in_dim, width)
        self.double_blocks = nn.ModuleList(DoubleStreamBlock(config) for _ in range(config.depth))
        self.single_blocks = nn.ModuleList(SingleStreamBlock(config) for _ in range(config.depth_single_blocks))
        self.final_layer = LastLayer(config)
        if self.cond_in is not None:  # an image adds nothing at first
            nn.init.zeros_(self.cond_in.weight)
            nn.init.zeros_(self.cond_in.bias)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return self.img_in.weight.dtype

    def forward(
        self,
        img: Tensor,
        img_ids: Tensor,
        txt: Tensor,
        txt_ids: Tensor,
        timesteps: Tensor,
        y_vec: Tensor,
        cond: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """The velocity of every video token, (B, N, in_channels).

        Args:
            img: noisy latents as tokens, (B, N, in_channels); see ``pack``.
            img_ids: their coordinates, (B, N, axes).
            txt: text features (B, L, context_in_dim). All of them count, padding too.
            txt_ids: coordinates of the text, zeros (B, L, axes).
            timesteps: (B,), 1 at pure noise, 0 at the data.
            y_vec: the pooled text feature (B, vec_in_dim).
            cond: mask and latents of the image as tokens, (B, N, cond_channels); zeros for none.
            guidance: the guidance scale (B,), for a network that is told it.

        Raises:
            InputError: what the network needs is missing, or a shape does not fit.
        """
        if img.ndim != 3 or txt.ndim != 3:
            shapes = f"{tuple(img.shape)} and {tuple(txt.shape)}"
            raise InputError(f"tokens are (B, N, values), given were {shapes}: pack them")
        axes = len(self.config.axes_dim)
        if img_ids.shape[-1] != axes or txt_ids.shape[-1] != axes:
            raise InputError(f"ids have {img_ids.shape[-1]} and {txt_ids.shape[-1]} coordinates, this network {axes}")
        x = self.img_in(img)
        if self.cond_in is not None:
            if cond is None:
                raise InputError("this network is given an image in cond: give zeros for none")
            x = x + self.cond_in(cond)
        vec = self.time_in(_embedded(timesteps, self.dtype))
        if self.guidance_in is not None:
            if guidance is None:
                raise InputError("this network is told the guidance scale: give guidance")
            vec = vec + self.guidance_in(_embedded(guidance, self.dtype))
        vec = vec + self.vector_in(y_vec)
        y = self.txt_in(txt)
        turns = self._turns(torch.cat([txt_ids, img_ids], dim=1))
        for block in self.double_blocks:
            x, y = block(x, y, vec, turns)
        both = torch.cat([y, x], dim=1)
        for block in self.single_blocks:
            both = block(both, vec, turns)
        return self.final_layer(both[:, y.shape[1] :], vec)

    def _turns(self, ids: Tensor) -> Turns:
        """The rotation of every token. Angles are in fp64 where neighbours are rotated, as in FLUX; else in fp32."""
        wide = torch.float32 if self.config.use_liger_rope else torch.float64
        angles: list[Tensor] = []
        for axis, width in enumerate(self.config.axes_dim):
            share = torch.arange(0, width, 2, dtype=wide, device=ids.device) / width
            angles.append(ids[..., axis, None].to(wide) / self.config.theta**share)
        turned = torch.cat(angles, dim=-1)[:, None]
        return turned.cos().float(), turned.sin().float()


def _embedded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Cosines, then sines, of 1000 times the values at 128 frequencies: (B,) -> (B, 256)."""
    angles = (1000 * values).float()[:, None] * _frequencies(values.device)
    return torch.cat([angles.cos(), angles.sin()], dim=-1).to(dtype)


def _frequencies(device: torch.device) -> Tensor:
    """exp(-ln(1e4) i / 128) in fp32, the same on every machine.

    The last bit of fp32's exp depends on the machine. At guidance 7.5 an angle is 7500, and one last bit moves the
    output by 1e-5. So every frequency is rounded correctly, but for two that lie near the middle of two numbers: these
    are as on the machine on which the original was measured.
    """
    exponents = -math.log(1e4) * torch.arange(128, dtype=torch.float32, device=device) / 128
    found = exponents.double().exp().float()
    found[list(_ROUNDED_UP)] = torch.nextafter(found[list(_ROUNDED_UP)], torch.ones((), device=device))
    return found


def attend(q: Tensor, k: Tensor, v: Tensor, turns: Turns, halves: bool) -> Tensor:
    """Attention of rotated queries and keys (B, H, N, head_dim): (B, N, D)."""
    q, k = (_rotated(x, turns, halves) for x in (q, k))
    return rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)")


def _rotated(x: Tensor, turns: Turns, halves: bool) -> Tensor:
    """x with each pair (a, b) turned: (a cos - b sin, a sin + b cos). Pairs are halves of a head, or neighbours."""
    cos, sin = turns
    a, b = x.float().chunk(2, dim=-1) if halves else x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = a * cos - b * sin, a * sin + b * cos
    return (torch.cat(turned, dim=-1) if halves else torch.stack(turned, dim=-1).flatten(-2)).to(x.dtype)
