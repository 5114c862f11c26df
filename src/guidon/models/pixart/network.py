"""PixArt-alpha, a text-to-image diffusion transformer (Chen et al. 2310.00426; github.com/PixArt-alpha/PixArt-alpha).

DiT with captions by cross-attention and one modulation network for all blocks (adaLN-single). The 1024-MS model also
embeds the image's size and aspect ratio and takes any size. Parameter names are the released ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from ...core.errors import InputError
from ..parts.conditions import Caption, CaptionedTransformer
from ..parts.layers import Attention, CrossAttention, Mlp, PatchEmbed, modulate, sincos_2d, timestep_embedding

PIXELS_PER_LATENT = 8  # Stable Diffusion's VAE; the size embedders were trained on pixels


@dataclass(frozen=True)
class PixArtConfig:
    """``input_size`` is the latent's side; ``lewei_scale`` divides positions (1 at 256 and 512 px, 2 at 1024 px).

    ``micro_condition`` is what the 1024-MS model adds: embedders of image size and aspect ratio, and any image size.
    """

    input_size: int = 32
    patch_size: int = 2
    in_channels: int = 4
    hidden_size: int = 1152
    depth: int = 28
    num_heads: int = 16
    mlp_ratio: float = 4.0
    caption_channels: int = 4096
    model_max_length: int = 120
    lewei_scale: float = 1.0
    learn_sigma: bool = True
    micro_condition: bool = False


class SizeEmbedder(nn.Module):
    """Each of a few numbers to a third of the width, side by side: (B, K) -> (B, K D / 3)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, sizes: Tensor) -> Tensor:
        embedded = self.mlp(timestep_embedding(sizes.flatten()).to(next(self.parameters()).dtype))
        return embedded.view(len(sizes), -1)


class Block(nn.Module):
    def __init__(self, config: PixArtConfig) -> None:
        super().__init__()
        d, heads = config.hidden_size, config.num_heads
        self.norm1 = nn.LayerNorm(d, eps=1e-6, elementwise_affine=False)
        self.attn = Attention(d, heads)
        self.cross_attn = CrossAttention(d, heads)
        self.norm2 = nn.LayerNorm(d, eps=1e-6, elementwise_affine=False)
        self.mlp = Mlp(d, int(d * config.mlp_ratio), d)
        self.scale_shift_table = nn.Parameter(torch.randn(6, d) / d**0.5)

    def forward(self, x: Tensor, t: Tensor, keys_values: Tensor, mask: Tensor | None) -> Tensor:
        """x (B, N, D), t (B, 6, D)."""
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = (self.scale_shift_table + t).chunk(6, dim=1)  # (B, 1, D)
        x = torch.addcmul(x, gate, self.attn(modulate(self.norm1(x), shift, scale)))
        x = x + self.cross_attn(x, keys_values, mask)
        return torch.addcmul(x, gate_mlp, self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp)))


class PixArt(CaptionedTransformer):
    """Noisy image latents to the noise in them (first C channels) and the variance interpolation (last C)."""

    pos_embed: Tensor

    def __init__(self, config: PixArtConfig) -> None:
        d, patch = config.hidden_size, config.patch_size
        self.out_channels = config.in_channels * (2 if config.learn_sigma else 1)
        super().__init__(config, patch**2 * self.out_channels)
        self.config = config
        self.x_embedder = PatchEmbed((patch, patch), config.in_channels, d)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        if config.micro_condition:
            self.csize_embedder = SizeEmbedder(d // 3)
            self.ar_embedder = SizeEmbedder(d // 3)
        for name, table in self.position_tables().items():
            self.register_buffer(name, table)
        self.initialise()

    def position_tables(self) -> dict[str, Tensor]:
        """The position buffer, which follows from the configuration alone."""
        side = self.config.input_size // self.config.patch_size
        return {"pos_embed": self.positions(side, side)[None]}

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(C, H, W) of one sample at the size the model was made for."""
        return self.config.in_channels, self.config.input_size, self.config.input_size

    def positions(self, rows: int, columns: int) -> Tensor:
        """Positions of a grid, stretched to the range of the trained one: (rows * columns, D)."""
        base, scale = self.config.input_size // self.config.patch_size, self.config.lewei_scale
        return sincos_2d(self.config.hidden_size, rows, columns, (rows / base * scale, columns / base * scale))

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        y: Tensor | Caption,
        mask: Tensor | None = None,
        *,
        size: Tensor | None = None,
        aspect_ratio: Tensor | None = None,
    ) -> Tensor:
        """x (B, C, H, W), original timesteps (B,), a prepared caption or its features -> fp32 (B, 2C, H, W).

        ``size`` (B, 2) is the image's height and width in pixels and ``aspect_ratio`` (B, 1) their quotient, for models
        with ``micro_condition``; both are those of x unless given.
        """
        caption = y if isinstance(y, Caption) else self.prepare(y, mask)
        patch = self.config.patch_size
        rows, columns = x.shape[-2] // patch, x.shape[-1] // patch
        h = self.x_embedder(x.to(self.dtype)) + self._positions(x, rows, columns)
        t = self.t_embedder(timestep)
        if self.config.micro_condition:
            height, width = (PIXELS_PER_LATENT * side for side in x.shape[-2:])
            size = x.new_tensor([[height, width]]).expand(len(x), -1) if size is None else size
            aspect_ratio = x.new_full((len(x), 1), height / width) if aspect_ratio is None else aspect_ratio
            t = t + torch.cat([self.csize_embedder(size), self.ar_embedder(aspect_ratio)], dim=1)
        modulation = self.t_block(t).unflatten(1, (6, -1))
        for k, block in enumerate(self.blocks):
            h = block(h, modulation, caption.keys_values[k], caption.mask)
        return rearrange(
            self.final_layer(h, t).float(),
            "b (nh nw) (ph pw c) -> b c (nh ph) (nw pw)", nh=rows, nw=columns, ph=patch, pw=patch,
        )  # fmt: skip

    def _positions(self, x: Tensor, rows: int, columns: int) -> Tensor:
        side = self.config.input_size // self.config.patch_size
        if (rows, columns) == (side, side):
            return self.pos_embed.to(self.dtype)
        if not self.config.micro_condition:
            raise InputError(
                f"this PixArt was made for latents of {self.config.input_size} x {self.config.input_size}, "
                f"given {x.shape[-2]} x {x.shape[-1]}: only the multi-scale (MS) model takes other sizes"
            )
        return self.positions(rows, columns).to(x.device, self.dtype)
