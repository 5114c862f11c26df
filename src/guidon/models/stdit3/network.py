"""STDiT3, the video transformer of Open-Sora 1.2 (github.com/hpcaitech/Open-Sora, v1.2.0), trained on rectified flow.

Blocks that attend within a frame and blocks that attend along time take turns. Both attend to the caption and have an
MLP. Size and length act through the positions alone; the frame rate is added to the timestep. Parameter names are the
released ones.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...diffusion import NoiseLevel
from ..network import IMAGE_FPS, ClipFacts
from ..parts.captioned import Caption, for_all, repeated
from ..parts.layers import Absorbed, Attention, CrossAttention, Mlp, modulate
from ..parts.sized import (
    FPS,
    SizedTransformer,
    along_time,
    caption_of,
    of_frames,
    to_caption,
    within_frames,
)
from .config import STDiT3Config


class Block(nn.Module):
    """Attention within a frame or along time, attention to the caption, MLP.

    Args:
        config: the network's.
        temporal: whether it attends along time.
    """

    def __init__(self, config: STDiT3Config, temporal: bool) -> None:
        super().__init__()
        d, heads = config.hidden_size, config.num_heads
        self.temporal = temporal
        self.norm1, self.norm2 = (nn.LayerNorm(d, eps=1e-6, elementwise_affine=False) for _ in range(2))
        self.attn = Attention(d, heads, qk_norm=config.qk_norm)
        self.cross_attn = CrossAttention(d, heads)
        self.mlp = Mlp(d, int(d * config.mlp_ratio), d)
        self.scale_shift_table = nn.Parameter(torch.randn(6, d) / d**0.5)

    def forward(
        self, x: Tensor, t: Tensor, angles: Tensor, keys_values: Tensor | Absorbed, mask: Tensor | None
    ) -> Tensor:
        """x (B, T, S, D); t (B, T or 1, 6, D) modulates every frame or all of them.

        Where the caption has more rows, both are repeated to them as soon as it is read.
        """
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = (self.scale_shift_table + t).chunk(6, dim=2)
        seen = modulate(self.norm1(x), shift, scale)
        attended = along_time(self.attn, seen, angles) if self.temporal else within_frames(self.attn, seen)
        x = torch.addcmul(x, gate, attended)
        x, shift_mlp, scale_mlp, gate_mlp = for_all(keys_values, x, shift_mlp, scale_mlp, gate_mlp)
        x = x + to_caption(self.cross_attn, x, keys_values, mask)
        return torch.addcmul(x, gate_mlp, self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp)))


class STDiT3(SizedTransformer):
    """Noisy video latents to the velocity x_0 - noise, in the first C channels of the output."""

    branches_share_rows = True
    reads_frame_mask = True

    def __init__(self, config: STDiT3Config) -> None:
        super().__init__(config)
        self.config = config
        self.spatial_blocks, self.temporal_blocks = (
            nn.ModuleList(Block(config, temporal) for _ in range(config.depth)) for temporal in (False, True)
        )
        self.initialise()
        # as in the original, temporal blocks and the frame rate add nothing at first
        nn.init.normal_(next(self.fps_embedder.parameters()), std=0.02)
        for name, parameter in self.named_parameters():
            ends = name.startswith("temporal_blocks.") and name.endswith(("attn.proj.weight", "mlp.fc2.weight"))
            if ends or name == "fps_embedder.mlp.2.weight":
                nn.init.zeros_(parameter)

    @property
    def blocks(self) -> list[Any]:
        """All blocks in the order in which they run."""
        return [block for pair in zip(self.spatial_blocks, self.temporal_blocks, strict=True) for block in pair]

    def told(self, clip: ClipFacts) -> Callable[[Tensor, NoiseLevel, Caption], Tensor]:
        """The network that knows size and frame rate of the clip that it makes."""
        return partial(self, height=clip.height, width=clip.width, fps=clip.fps)

    def forward(
        self,
        x: Tensor,
        timestep: Tensor | NoiseLevel,
        y: Tensor | Caption,
        mask: Tensor | None = None,
        x_mask: Tensor | None = None,
        fps: Tensor | float | None = None,
        height: Tensor | float | None = None,
        width: Tensor | float | None = None,
        **unused: Any,
    ) -> Tensor:
        """Predict, with fp32 output (B, 2C, T, H, W), or (B, C, T, H, W) where ``learn_sigma`` is False.

        What is said of the clip is one number, or one for each row; fewer rows are repeated whole to the batch, as
        where the branches of guidance share them. What is left out is that of x.

        Args:
            x: noisy latents (B, C, T, H, W) of any size, or those that n branches of a prepared caption share: then its
                rows, and those of all numbers that follow, are an n-th of the caption's.
            timestep: original timesteps (B,) in [0, 1000], or a noise level, whose frame mask is read.
            y: a prepared caption, or caption features as in ``prepare``.
            mask: of features, as in ``prepare``.
            x_mask: (B, T), true for frames at the timestep; the others are clean. None: all are noisy.
            fps: frames per second of the video that the clip is like; 120 for an image.
            height, width: in pixels. Only those of the first row are read: they scale the positions.
            unused: num_frames and ar, which the original's scripts pass, too.

        Raises:
            InputError: a mask or a number does not fit the batch.
        """
        caption = caption_of(self, y, mask)
        x, timestep = self.shared(x, timestep, caption)
        noisy = self.noisy(x_mask, timestep, x)
        rate = self.fps_embedder(self.each("fps", fps, FPS if x.shape[2] > 1 else IMAGE_FPS, x)[:, None])

        # modulation, that of a clean frame from timestep 0
        t, clean = self.t_embedder(self.timesteps(timestep, x)) + rate, None
        if noisy is not None:
            clean = self.t_embedder(x.new_zeros(len(x))) + rate
        moving, still = (None if at is None else self.t_block(at).unflatten(1, (6, -1)) for at in (t, clean))
        modulation = of_frames(noisy, moving, still)  # type: ignore[arg-type]

        h, grid = self.tokens(x, height, width)
        angles = self.rope(grid[0])
        for block, keys_values in zip(self.blocks, self.read_caption(caption, h.shape[1] * h.shape[2]), strict=True):
            h = block(h, modulation, angles, keys_values, caption.mask)
            modulation = repeated(modulation, len(h))
        return self.pixels(h, grid, x.shape[2:], t, clean, noisy)
