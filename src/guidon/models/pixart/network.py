"""PixArt-alpha, a text-to-image diffusion transformer (Chen et al. 2310.00426; github.com/PixArt-alpha/PixArt-alpha).

DiT with captions by cross-attention and one modulation network for all blocks (adaLN-single). The 1024-MS model also
embeds the image's size and aspect ratio and takes any size. Parameter names are the released ones.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from einops import rearrange
from torch import Tensor, nn

from ...core.errors import InputError
from ...diffusion import NoiseLevel
from ..parts.captioned import Caption, CaptionedTransformer, for_all, repeated
from ..parts.layers import (
    Absorbed,
    Attention,
    CrossAttention,
    Mlp,
    PatchEmbed,
    SizeEmbedder,
    modulate,
    sincos_2d,
    timesteps_of,
)
from ..parts.tables import Last
from .config import PixArtConfig

PIXELS_PER_LATENT = 8  # Stable Diffusion's VAE; the size embedders were trained on pixels


class Block(nn.Module):
    """Self-attention, attention to the caption, MLP."""

    def __init__(self, config: PixArtConfig) -> None:
        super().__init__()
        d, heads = config.hidden_size, config.num_heads
        self.norm1 = nn.LayerNorm(d, eps=1e-6, elementwise_affine=False)
        self.attn = Attention(d, heads)
        self.cross_attn = CrossAttention(d, heads)
        self.norm2 = nn.LayerNorm(d, eps=1e-6, elementwise_affine=False)
        self.mlp = Mlp(d, int(d * config.mlp_ratio), d)
        self.scale_shift_table = nn.Parameter(torch.randn(6, d) / d**0.5)

    def forward(self, x: Tensor, t: Tensor, keys_values: Tensor | Absorbed, mask: Tensor | None) -> Tensor:
        """x (B, N, D), t (B, 6, D). Where the caption has more rows, both are repeated to them when it is read."""
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = (self.scale_shift_table + t).chunk(6, dim=1)  # (B, 1, D)
        x = torch.addcmul(x, gate, self.attn(modulate(self.norm1(x), shift, scale)))
        x, shift_mlp, scale_mlp, gate_mlp = for_all(keys_values, x, shift_mlp, scale_mlp, gate_mlp)
        x = x + self.cross_attn(x, keys_values, mask)
        return torch.addcmul(x, gate_mlp, self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp)))


class PixArt(CaptionedTransformer):
    """Noisy image latents to the noise in them (first C channels) and the variance interpolation (last C)."""

    branches_share_rows = True

    pos_embed: Tensor

    def __init__(self, config: PixArtConfig) -> None:
        d, patch = config.hidden_size, config.patch_size
        self.out_channels = config.in_channels * (2 if config.learn_sigma else 1)
        super().__init__(config, patch**2 * self.out_channels)
        self.config = config
        self._other_positions = Last()
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
        timestep: Tensor | NoiseLevel,
        y: Tensor | Caption,
        mask: Tensor | None = None,
        *,
        size: Tensor | None = None,
        aspect_ratio: Tensor | None = None,
        data_info: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Predict, with fp32 output (B, 2C, H, W), or (B, C, H, W) without a learned variance.

        Args:
            x: noisy latents (B, C, H, W), or (B / n, C, H, W) that n branches of a prepared caption share.
            timestep: original timesteps of the rows of x, or a noise level.
            y: a prepared caption, or caption features as in ``prepare``.
            mask: of features, as in ``prepare``.
            size: (B, 2), the image's height and width in pixels, for ``micro_condition``; that of x unless given.
            aspect_ratio: (B, 1), height over width, for ``micro_condition``; that of x unless given.
            data_info: both, as the original is given them: "img_hw" and "aspect_ratio". Fewer rows than B are repeated.

        Raises:
            InputError: latents of another size than the model takes.
        """
        caption = y if isinstance(y, Caption) else self.prepare(y, mask)
        x, timestep = self.shared(x, timestep, caption)
        patch = self.config.patch_size
        rows, columns = x.shape[-2] // patch, x.shape[-1] // patch
        h = self.x_embedder(x.to(self.dtype)) + self._positions(x, rows, columns)
        t = self.t_embedder(timesteps_of(timestep, x))
        if self.config.micro_condition:
            if data_info is not None:
                given = (data_info["img_hw"], data_info["aspect_ratio"])
                size, aspect_ratio = (value.repeat(len(x) // len(value), 1) for value in given)
            height, width = (PIXELS_PER_LATENT * side for side in x.shape[-2:])
            size = x.new_tensor([[height, width]]).expand(len(x), -1) if size is None else size
            aspect_ratio = x.new_full((len(x), 1), height / width) if aspect_ratio is None else aspect_ratio
            t = t + torch.cat([self.csize_embedder(size), self.ar_embedder(aspect_ratio)], dim=1)
        modulation = self.t_block(t).unflatten(1, (6, -1))
        read = self.read_caption(caption, h.shape[1])
        for k, block in enumerate(self.blocks):
            h = block(h, modulation, read[k], caption.mask)
            modulation = repeated(modulation, len(h))
        t = repeated(t, len(h))
        return rearrange(
            self.final_layer(h, t).float(),
            "b (nh nw) (ph pw c) -> b c (nh ph) (nw pw)", nh=rows, nw=columns, ph=patch, pw=patch,
        )  # fmt: skip

    def _positions(self, x: Tensor, rows: int, columns: int) -> Tensor:
        side = self.config.input_size // self.config.patch_size
        if (rows, columns) == (side, side):
            return self.pos_embed.to(self.dtype)
        if not (self.config.micro_condition or self.config.any_size):
            raise InputError(
                f"this PixArt was made for latents of {self.config.input_size} x {self.config.input_size}, "
                f"given {x.shape[-2]} x {x.shape[-1]}: only the multi-scale (MS) model takes other sizes"
            )
        key = rows, columns, x.device, self.dtype
        return self._other_positions.of(key, lambda: self.positions(rows, columns).to(x.device, self.dtype))
