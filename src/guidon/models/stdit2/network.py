"""STDiT2, the video transformer of Open-Sora 1.1 (github.com/hpcaitech/Open-Sora, v1.1.0).

As STDiT, each block attends within a frame, along time and to the caption, and applies an MLP. New are rotary positions
along time (RoPE, 2104.09864), a modulation of the temporal attention, embeddings of size, length and frame rate, any
size, and frames that are clean beside others that are noisy. Parameter names are the released ones.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from ...core.errors import InputError
from ...diffusion import NoiseLevel
from ..network import IMAGE_FPS, ClipFacts
from ..parts.captioned import Caption, for_all, repeated
from ..parts.layers import Absorbed, Attention, CrossAttention, Mlp, SizeEmbedder, modulate
from ..parts.sized import (
    FPS,
    PIXELS,
    SizedTransformer,
    along_time,
    caption_of,
    of_frames,
    to_caption,
    within_frames,
)
from .config import STDiT2Config


class Block(nn.Module):
    """Attention within a frame, attention along time, attention to the caption, MLP."""

    def __init__(self, config: STDiT2Config) -> None:
        super().__init__()
        d, heads = config.hidden_size, config.num_heads
        self.norm1, self.norm_temp, self.norm2 = (nn.LayerNorm(d, eps=1e-6, elementwise_affine=False) for _ in range(3))
        self.attn = Attention(d, heads, qk_norm=config.qk_norm)
        self.attn_temp = Attention(d, heads, qk_norm=config.qk_norm, rotate_first=config.qk_norm_legacy)
        self.cross_attn = CrossAttention(d, heads)
        self.mlp = Mlp(d, int(d * config.mlp_ratio), d)
        self.scale_shift_table = nn.Parameter(torch.randn(6, d) / d**0.5)
        self.scale_shift_table_temporal = nn.Parameter(torch.randn(3, d) / d**0.5)

    def forward(
        self, x: Tensor, t: Tensor, t_temp: Tensor, angles: Tensor, keys_values: Tensor | Absorbed, mask: Tensor | None
    ) -> Tensor:
        """x (B, T, S, D); t (B, T or 1, 6, D) and t_temp (B, T or 1, 3, D) modulate every frame or all of them.

        Where the caption has more rows, x and t are repeated to them as soon as it is read.
        """
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = (self.scale_shift_table + t).chunk(6, dim=2)
        shift_temp, scale_temp, gate_temp = (self.scale_shift_table_temporal + t_temp).chunk(3, dim=2)
        x = torch.addcmul(x, gate, within_frames(self.attn, modulate(self.norm1(x), shift, scale)))
        temporal = modulate(self.norm_temp(x), shift_temp, scale_temp)
        x = torch.addcmul(x, gate_temp, along_time(self.attn_temp, temporal, angles))
        x, shift_mlp, scale_mlp, gate_mlp = for_all(keys_values, x, shift_mlp, scale_mlp, gate_mlp)
        x = x + to_caption(self.cross_attn, x, keys_values, mask)
        return torch.addcmul(x, gate_mlp, self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp)))


class STDiT2(SizedTransformer):
    """Noisy video latents to the noise in them (first C channels) and the variance interpolation (last C)."""

    branches_share_rows = True
    reads_frame_mask = True

    def __init__(self, config: STDiT2Config) -> None:
        super().__init__(config)
        d = config.hidden_size
        if d % 3:
            raise InputError(f"a hidden size of {d} cannot hold height, width and aspect ratio: give a multiple of 3")
        self.config = config
        self.t_block_temp = nn.Sequential(nn.SiLU(), nn.Linear(d, 3 * d))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.csize_embedder = SizeEmbedder(d // 3)
        self.ar_embedder = SizeEmbedder(d // 3)
        self.fl_embedder = SizeEmbedder(d)
        self.initialise()
        nn.init.normal_(next(self.t_block_temp.parameters()), std=0.02)

    def told(self, clip: ClipFacts) -> Callable[[Tensor, NoiseLevel, Caption], Tensor]:
        """The network that knows size, length and frame rate of the clip that it makes."""
        size = {"height": clip.height, "width": clip.width, "ar": clip.height / clip.width}
        return partial(self, num_frames=clip.frames, fps=clip.fps, **size)

    def forward(
        self,
        x: Tensor,
        timestep: Tensor | NoiseLevel,
        y: Tensor | Caption,
        mask: Tensor | None = None,
        x_mask: Tensor | None = None,
        num_frames: Tensor | float | None = None,
        height: Tensor | float | None = None,
        width: Tensor | float | None = None,
        ar: Tensor | float | None = None,
        fps: Tensor | float | None = None,
    ) -> Tensor:
        """Predict, with fp32 output (B, 2C, T, H, W), or (B, C, T, H, W) without a learned variance.

        What is said of the clip is one number, or one for each row; fewer rows are repeated whole to the batch, as
        where the branches of guidance share them. What is left out is that of x.

        Args:
            x: noisy latents (B, C, T, H, W) of any size, or those that n branches of a prepared caption share: then its
                rows, and those of all numbers that follow, are an n-th of the caption's.
            timestep: original timesteps (B,), or a noise level, whose frame mask is read.
            y: a prepared caption, or caption features as in ``prepare``.
            mask: of features, as in ``prepare``.
            x_mask: (B, T), true for frames at the timestep; the others are clean. None: all are noisy.
            num_frames: length of the video.
            height, width: in pixels. Those of the first row scale the positions of all rows.
            ar: height over width.
            fps: frames per second of the video that the clip is like; 120 for an image.

        Raises:
            InputError: a mask or a number does not fit the batch.
        """
        caption = caption_of(self, y, mask)
        x, timestep = self.shared(x, timestep, caption)
        noisy = self.noisy(x_mask, timestep, x)
        # what the clip is
        frames, rows, columns = x.shape[2:]
        high, wide = self.each("height", height, PIXELS * rows, x), self.each("width", width, PIXELS * columns, x)
        aspect = self.each("ar", ar, rows / columns, x)
        length = self.each("num_frames", num_frames, frames, x)
        rate = self.each("fps", fps, FPS if frames > 1 else IMAGE_FPS, x)
        size = torch.cat([self.csize_embedder(torch.stack([high, wide], 1)), self.ar_embedder(aspect[:, None])], 1)
        time = self.fl_embedder(length[:, None]) + self.fps_embedder(rate[:, None])

        # modulation, that of a clean frame from timestep 0
        t = self.t_embedder(self.timesteps(timestep, x))
        clean = None if noisy is None else self.t_embedder(torch.zeros_like(high))
        space_6 = self._modulation(self.t_block, 6, noisy, t, clean, size)
        time_3 = self._modulation(self.t_block_temp, 3, noisy, t, clean, time)

        h, grid = self.tokens(x, height, width)
        angles = self.rope(grid[0])
        read = self.read_caption(caption, h.shape[1] * h.shape[2])
        for k, block in enumerate(self.blocks):
            h = block(h, space_6, time_3, angles, read[k], caption.mask)
            space_6, time_3 = repeated(space_6, len(h)), repeated(time_3, len(h))
        # of a clean frame the head is told the size, too, and of a noisy one it is not: so it is in the original
        return self.pixels(h, grid, x.shape[2:], t, None if clean is None else clean + size, noisy)

    @staticmethod
    def _modulation(
        block: nn.Module, parts: int, noisy: Tensor | None, t: Tensor, clean: Tensor | None, told: Tensor
    ) -> Tensor:
        """What modulates the frames, (B, T or 1, parts, D)."""
        moving, still = (None if at is None else block(at + told).unflatten(1, (parts, -1)) for at in (t, clean))
        return of_frames(noisy, moving, still)  # type: ignore[arg-type]
