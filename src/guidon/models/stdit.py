"""STDiT, the spatial-temporal diffusion transformer of Open-Sora 1.0 (github.com/hpcaitech/Open-Sora, STDiT).

Each block attends within a frame, then along time, then to the caption, then applies an MLP. Modulation is
adaLN-single (PixArt-alpha, 2310.00426, sec. 2.3): one projection of the timestep, plus a table per block.
Temporal attention reads the un-normalised residual stream, as the original does. Parameter names are the released
ones, so a released state dict loads strictly once its position buffers are set aside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn

from .layers import (
    Attention,
    CaptionEmbedder,
    CrossAttention,
    FinalLayer,
    Mlp,
    PatchEmbed3D,
    TimestepEmbedder,
    modulate,
    sincos_1d,
    sincos_2d,
)


@dataclass(frozen=True)
class STDiTConfig:
    """``input_size`` is the latent's (T, H, W); the scales divide positions (space 0.5 at 256 px, 1.0 at 512 px)."""

    input_size: tuple[int, int, int] = (16, 32, 32)
    in_channels: int = 4
    patch_size: tuple[int, int, int] = (1, 2, 2)
    hidden_size: int = 1152
    depth: int = 28
    num_heads: int = 16
    mlp_ratio: float = 4.0
    caption_channels: int = 4096
    model_max_length: int = 120
    learn_sigma: bool = True
    space_scale: float = 1.0
    time_scale: float = 1.0


@dataclass(frozen=True)
class Caption:
    """What a prompt is to the model, computed once: keys and values of every block, and the token mask.

    ``keys_values`` holds one (2, B, H, L, D / H) per block; ``mask`` is (B, 1, 1, L), True where a token counts.
    """

    keys_values: tuple[Tensor, ...]
    mask: Tensor | None

    def __len__(self) -> int:
        return self.keys_values[0].shape[1]

    def cat(self, other: Caption) -> Caption:
        """Rows of both, these first, each with its own token mask."""
        mask = None
        if self.mask is not None or other.mask is not None:
            mask = torch.cat([self._full_mask(), other._full_mask()])
        pairs = zip(self.keys_values, other.keys_values, strict=True)
        return Caption(tuple(torch.cat(pair, dim=1) for pair in pairs), mask)

    def _full_mask(self) -> Tensor:
        if self.mask is not None:
            return self.mask
        tokens = self.keys_values[0].shape[3]
        return torch.ones(len(self), 1, 1, tokens, dtype=torch.bool, device=self.keys_values[0].device)


class Block(nn.Module):
    def __init__(self, config: STDiTConfig) -> None:
        super().__init__()
        d, heads = config.hidden_size, config.num_heads
        self.norm1 = nn.LayerNorm(d, eps=1e-6, elementwise_affine=False)
        self.attn = Attention(d, heads)
        self.cross_attn = CrossAttention(d, heads)
        self.norm2 = nn.LayerNorm(d, eps=1e-6, elementwise_affine=False)
        self.mlp = Mlp(d, int(d * config.mlp_ratio), d)
        self.attn_temp = Attention(d, heads)
        self.scale_shift_table = nn.Parameter(torch.randn(6, d) / d**0.5)

    def forward(
        self, x: Tensor, t: Tensor, frames: int, positions: Tensor | None, keys_values: Tensor, mask: Tensor | None
    ) -> Tensor:
        """x (B, N, D), t (B, 6, D); ``positions`` (T, D) are added before temporal attention in the first block."""
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = (self.scale_shift_table + t).chunk(6, dim=1)  # (B, 1, D)

        spatial = rearrange(modulate(self.norm1(x), shift, scale), "b (t s) d -> (b t) s d", t=frames)
        x = torch.addcmul(x, gate, rearrange(self.attn(spatial), "(b t) s d -> b (t s) d", t=frames))

        temporal = rearrange(x, "b (t s) d -> (b s) t d", t=frames)
        if positions is not None:
            temporal = temporal + positions
        x = torch.addcmul(x, gate, rearrange(self.attn_temp(temporal), "(b s) t d -> b (t s) d", b=x.shape[0]))

        x = x + self.cross_attn(x, keys_values, mask)
        return torch.addcmul(x, gate_mlp, self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp)))


class STDiT(nn.Module):
    """Noisy video latents to the noise in them (first C channels) and the variance interpolation (last C)."""

    pos_embed: Tensor
    pos_embed_temporal: Tensor

    def __init__(self, config: STDiTConfig) -> None:
        super().__init__()
        self.config = config
        d = config.hidden_size
        self.out_channels = config.in_channels * (2 if config.learn_sigma else 1)
        self.tokens = tuple(size // patch for size, patch in zip(config.input_size, config.patch_size, strict=True))
        t, h, w = self.tokens
        self.x_embedder = PatchEmbed3D(config.patch_size, config.in_channels, d)
        self.t_embedder = TimestepEmbedder(d)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(d, 6 * d))
        self.y_embedder = CaptionEmbedder(config.caption_channels, d, config.model_max_length)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        patch_volume = config.patch_size[0] * config.patch_size[1] * config.patch_size[2]
        self.final_layer = FinalLayer(d, patch_volume * self.out_channels)
        temporal = sincos_1d(d, torch.arange(t) / config.time_scale).float()
        self.register_buffer("pos_embed", sincos_2d(d, h, w, config.space_scale)[None])
        self.register_buffer("pos_embed_temporal", temporal[None])
        self._initialise()

    @property
    def _blocks(self) -> list[Block]:
        return cast("list[Block]", self.blocks)

    def _initialise(self) -> None:
        """Xavier everywhere; what would disturb the residual stream (temporal, cross, head) starts at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.view(self.config.hidden_size, -1))
        for stem in (self.t_embedder, self.t_block, self.y_embedder.y_proj):
            for layer in stem.modules():
                if isinstance(layer, nn.Linear):
                    nn.init.normal_(layer.weight, std=0.02)
        for block in self._blocks:
            nn.init.zeros_(block.attn_temp.proj.weight)
            nn.init.zeros_(block.cross_attn.proj.weight)
        nn.init.zeros_(self.final_layer.linear.weight)

    def prepare(self, y: Tensor, mask: Tensor | None = None) -> Caption:
        """All that depends on the prompt alone.

        Args:
            y: caption features (B, L, caption_channels), or (B, 1, L, caption_channels) as in the original.
            mask: (B or fewer, L), nonzero where a token counts; fewer rows are repeated to the batch.
        """
        y = y.flatten(1, 2) if y.ndim == 4 else y
        tokens = self.y_embedder(y.to(self.final_layer.linear.weight.dtype))
        if mask is not None:
            mask = mask.to(torch.bool).repeat(y.shape[0] // mask.shape[0], 1)[:, None, None]
        return Caption(tuple(block.cross_attn.keys_values(tokens) for block in self._blocks), mask)

    def null(self, rows: int, mask: Tensor | None = None) -> Caption:
        """The null caption, ``rows`` times; as in the original it is read under the prompt's token mask."""
        return self.prepare(self.y_embedder.y_embedding[None].expand(rows, -1, -1), mask)

    def forward(self, x: Tensor, timestep: Tensor, y: Tensor | Caption, mask: Tensor | None = None) -> Tensor:
        """x (B, C, T, H, W), original timesteps (B,), a prepared caption or its features -> fp32 (B, 2C, T, H, W)."""
        caption = y if isinstance(y, Caption) else self.prepare(y, mask)
        dtype = self.final_layer.linear.weight.dtype
        frames, height, width = self.tokens
        tokens = self.x_embedder(x.to(dtype)).unflatten(1, (frames, -1))
        h = (tokens + self.pos_embed.to(dtype)).flatten(1, 2)
        t = self.t_embedder(timestep)
        modulation = self.t_block(t).unflatten(1, (6, -1))
        positions = self.pos_embed_temporal.to(dtype)
        for k, block in enumerate(self._blocks):
            h = block(h, modulation, frames, positions if k == 0 else None, caption.keys_values[k], caption.mask)
        pt, ph, pw = self.config.patch_size
        return rearrange(
            self.final_layer(h, t).float(),
            "b (nt nh nw) (pt ph pw c) -> b c (nt pt) (nh ph) (nw pw)",
            nt=frames, nh=height, nw=width, pt=pt, ph=ph, pw=pw,
        )  # fmt: skip
