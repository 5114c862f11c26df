"""STDiT, the spatial-temporal diffusion transformer of Open-Sora 1.0 (github.com/hpcaitech/Open-Sora).

Each block attends within a frame, then along time, then to the caption, then applies an MLP. Modulation is
adaLN-single (PixArt-alpha, 2310.00426, sec. 2.3): one projection of the timestep, plus a table per block.
Temporal attention reads the un-normalised residual stream, as the original does. Parameter names are the released
ones, so a released state dict loads strictly once its position buffers are set aside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from ...core.broadcasting import per_sample
from ...core.errors import InputError
from ...diffusion import NoiseLevel
from ..parts.captioned import Caption, CaptionedTransformer, for_all, repeated
from ..parts.layers import (
    Absorbed,
    Attention,
    CrossAttention,
    Mlp,
    PatchEmbed,
    modulate,
    places,
    scaled_normal,
    sincos_1d,
    sincos_2d,
    timesteps_of,
    unpatch,
)
from ..parts.refiner import Finisher, Refiner
from ..parts.tables import Last
from .config import STDiTConfig


class Block(nn.Module):
    """Attention within a frame, attention along time, attention to the caption, MLP."""

    def __init__(self, config: STDiTConfig) -> None:
        super().__init__()
        d, heads = config.hidden_size, config.num_heads
        self.norm1 = nn.LayerNorm(d, eps=1e-6, elementwise_affine=False)
        self.attn = Attention(d, heads)
        self.cross_attn = CrossAttention(d, heads)
        self.norm2 = nn.LayerNorm(d, eps=1e-6, elementwise_affine=False)
        self.mlp = Mlp(d, int(d * config.mlp_ratio), d)
        self.attn_temp = Attention(d, heads)
        self.scale_shift_table = nn.Parameter(scaled_normal(6, d))

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        frames: int,
        positions: Tensor | None,
        keys_values: Tensor | Absorbed,
        mask: Tensor | None,
    ) -> Tensor:
        """x (B, N, D), t (B, 6, D); ``positions`` (T, D) are added before temporal attention in the first block.

        Where the caption has more rows, x and t are repeated to them as soon as it is read.
        """
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = (self.scale_shift_table + t).chunk(6, dim=1)  # (B, 1, D)

        spatial = rearrange(modulate(self.norm1(x), shift, scale), "b (t s) d -> (b t) s d", t=frames)
        x = torch.addcmul(x, gate, rearrange(self.attn(spatial), "(b t) s d -> b (t s) d", t=frames))

        # of one row this would be a view, for which torch copies the weights for each place
        temporal = rearrange(x, "b (t s) d -> (b s) t d", t=frames).contiguous()
        if positions is not None:
            temporal = temporal + positions
        x = torch.addcmul(x, gate, rearrange(self.attn_temp(temporal), "(b s) t d -> b (t s) d", b=x.shape[0]))

        x, shift_mlp, scale_mlp, gate_mlp = for_all(keys_values, x, shift_mlp, scale_mlp, gate_mlp)
        x = x + self.cross_attn(x, keys_values, mask)
        return torch.addcmul(x, gate_mlp, self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp)))


class STDiT(CaptionedTransformer):
    """Noisy video latents to the noise in them (first C channels) and the variance interpolation (last C)."""

    branches_share_rows = True

    pos_embed: Tensor
    pos_embed_temporal: Tensor

    def __init__(self, config: STDiTConfig) -> None:
        d = config.hidden_size
        self.out_channels = config.in_channels * (2 if config.learn_sigma else 1)
        super().__init__(config, math.prod(config.patch_size) * self.out_channels)
        self.config = config
        self.x_embedder = PatchEmbed(config.patch_size, config.in_channels, d)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        for name, table in self.position_tables().items():
            self.register_buffer(name, table)
        self._other_positions = Last()
        self.initialise()
        self.refiner: Refiner | None = None
        if config.refiner_channels:  # after initialise(), which would overwrite the layers that start at zero
            self.refiner = Refiner(
                config.in_channels, config.patch_size, d, config.refiner_channels, config.refiner_depth
            )
        self.finisher: Finisher | None = None
        if config.finisher_channels:
            shape = config.finisher_channels, config.finisher_depth
            wide = Refiner(config.in_channels, config.patch_size, d, *shape, normalised=True)
            self.finisher = Finisher(wide, d, config.num_heads, config.finisher_end)

    def crossings(self) -> list[CrossAttention]:
        """The layers that read the caption: that of each block, then the finisher's."""
        blocks = super().crossings()
        return blocks if self.finisher is None else [*blocks, self.finisher.cross_attn]

    def position_tables(self) -> dict[str, Tensor]:
        """The position buffers, which follow from the configuration alone."""
        t, h, w = self._grid(self.config.input_size)
        return {"pos_embed": self._in_space(h, w)[None], "pos_embed_temporal": self._in_time(t)[None]}

    def _grid(self, size: Sequence[int]) -> tuple[int, ...]:
        """Tokens along time, height and width of latents (T, H, W)."""
        patch = self.config.patch_size
        if any(length % p for length, p in zip(size, patch, strict=True)):
            raise InputError(f"latents of {tuple(size)} are not whole patches of {patch}: give multiples of them")
        return tuple(length // p for length, p in zip(size, patch, strict=True))

    def _in_space(self, rows: int, columns: int) -> Tensor:
        return sincos_2d(self.config.hidden_size, rows, columns, self.config.space_scale)

    def _in_time(self, frames: int) -> Tensor:
        return sincos_1d(self.config.hidden_size, places(frames, self.config.time_scale)).float()

    def _positions(self, frames: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """Positions (1, S, D) within a frame and (1, T, D) along time."""
        trained, like = self._grid(self.config.input_size), self.x_embedder.proj.weight
        if (frames, rows, columns) == trained:
            return self.pos_embed.to(like), self.pos_embed_temporal.to(like)

        def make() -> tuple[Tensor, Tensor]:
            space = self.pos_embed if (rows, columns) == trained[1:] else self._in_space(rows, columns)[None]
            time = self.pos_embed_temporal if frames == trained[0] else self._in_time(frames)[None]
            return space.to(like), time.to(like)

        return self._other_positions.of((frames, rows, columns, like.device, like.dtype), make)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """(C, T, H, W) of one sample at the size the model was made for."""
        return self.config.in_channels, *self.config.input_size

    def forward(
        self, x: Tensor, timestep: Tensor | NoiseLevel, y: Tensor | Caption, mask: Tensor | None = None
    ) -> Tensor:
        """Predict, with fp32 output (B, 2C, T, H, W), or (B, C, T, H, W) without a learned variance.

        Args:
            x: noisy latents (B, C, T, H, W), or (B / n, C, T, H, W) that n branches of a prepared caption share.
            timestep: original timesteps of the rows of x, or a noise level.
            y: a prepared caption, or caption features as in ``prepare``.
            mask: of features, as in ``prepare``.
        """
        caption = y if isinstance(y, Caption) else self.prepare(y, mask)
        x, timestep = self.shared(x, timestep, caption)
        frames, height, width = self._grid(x.shape[2:])
        in_space, in_time = self._positions(frames, height, width)
        tokens = self.x_embedder(x.to(self.dtype)).unflatten(1, (frames, -1))
        h = (tokens + in_space).flatten(1, 2)
        t = self.t_embedder(timesteps_of(timestep, x))
        if caption.told is not None:
            t = t + caption.told.to(t)
        modulation = self.t_block(t).unflatten(1, (6, -1))
        read = self.read_caption(caption, h.shape[1])
        for k, block in enumerate(self.blocks):
            h = block(h, modulation, frames, in_time if k == 0 else None, read[k], caption.mask)
            modulation = repeated(modulation, len(h))
        t, x = repeated(t, len(h)), repeated(x, len(h))
        grid = (frames, height, width)
        out = unpatch(self.final_layer(h, t).float(), grid, self.config.patch_size)
        refines = self._refines(timestep, x)
        acts = self._finishes(timestep, x)
        if refines is None and acts is None:
            return out
        prediction, variance = out[:, : x.shape[1]], out[:, x.shape[1] :]
        tokens = self.final_layer.norm_final(h)
        if self.refiner is not None and refines is not None:
            more = self.refiner(x, prediction, tokens, t, grid)
            prediction = prediction + per_sample(repeated(refines, len(more)), more) * more
        if self.finisher is not None and acts is not None:
            more = self.finisher(x, prediction, tokens, t, grid, caption.keys_values[-1], caption.mask)
            prediction = prediction + per_sample(repeated(acts, len(more)), more) * more
        return torch.cat([prediction, variance], dim=1)

    def _refines(self, timestep: Tensor | NoiseLevel, x: Tensor) -> Tensor | None:
        """At which samples the refiner acts, bool (B,); None if it acts at none.

        In training it is also computed where none of a batch's own timesteps needs it: ranks have other samples, and
        all must have the same gradients to sum.
        """
        if self.refiner is None:
            return None
        found = _below(self.config.refiner_end or math.inf, timestep, x)
        if found is None or not self.config.refiner_end or not _is_mixed(timestep) or self.training:
            return found
        return found if bool(found.any()) else None

    def _finishes(self, timestep: Tensor | NoiseLevel, x: Tensor) -> Tensor | None:
        """At which samples the finisher acts, bool (B,); None if it acts at none."""
        return None if self.finisher is None else _below(self.finisher.end, timestep, x)


def _is_mixed(timestep: Tensor | NoiseLevel) -> bool:
    """Whether each sample has a timestep of its own."""
    return isinstance(timestep if isinstance(timestep, Tensor) else timestep.timestep, Tensor)


def _below(end: float, timestep: Tensor | NoiseLevel, x: Tensor) -> Tensor | None:
    """Which samples are at a timestep below ``end``, bool (B,); None where they share one that is not.

    A level that the batch shares is a number on the CPU, so that sampling does not wait for the device.
    """
    if isinstance(timestep, NoiseLevel) and not _is_mixed(timestep) and timestep.timestep >= end:
        return None
    return timesteps_of(timestep, x) < end
