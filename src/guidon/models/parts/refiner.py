"""A refiner: convolutions over latent pixels that correct what a transformer with large patches predicts.

A token of a large patch predicts the whole patch, with different weights for every frame and position in it. A
convolution has the same weights at all positions, so it learns edges from all of them, and it sees x_t at full
resolution. DDT (2504.05741) and PixNerd (2507.23268) divide the work in a similar way. A new refiner outputs zero, so
it can be added to a trained network.

A finisher is a wide refiner for the last steps of sampling that also reads the caption.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import CrossAttention, scaled_normal, unpatch

FEATURES = 8  # features of the tokens, per latent pixel
REACH = 5  # kernel size of the convolutions along time, in frames


class Layer(nn.Module):
    """A residual layer: convolutions in space, time, space, modulated by the timestep. It adds zero at first.

    With ``normalised``, it reads features of RMS 1 at every position. Wide layers diverge without it.
    """

    def __init__(self, channels: int, hidden_size: int, *, normalised: bool = False) -> None:
        super().__init__()
        self.normalised = normalised
        self.modulation = nn.Linear(hidden_size, 2 * channels)
        self.space = nn.Conv2d(channels, channels, 3, padding=1)
        self.time = nn.Conv2d(channels, channels, (REACH, 1), padding=(REACH // 2, 0))
        self.out = nn.Conv2d(channels, channels, 3, padding=1)
        for module in (self.modulation, self.out):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, h: Tensor, t: Tensor, frames: int) -> Tensor:
        """h (B T, channels, H, W), t (B, D)."""
        height = h.shape[2]
        shift, scale = self.modulation(t)[:, :, None, None].repeat_interleave(frames, 0).chunk(2, dim=1)
        seen = h * torch.rsqrt(h.square().mean(1, keepdim=True) + 1e-6) if self.normalised else h
        z = F.silu(torch.addcmul(shift, self.space(seen), 1 + scale))
        z = F.silu(self.time(rearrange(z, "(b t) c h w -> b c t (h w)", t=frames)))
        return h + self.out(rearrange(z, "b c t (h w) -> (b t) c h w", h=height))


class Refiner(nn.Module):
    """Computes a correction to add to a prediction, from the prediction, x_t and the tokens."""

    def __init__(
        self,
        in_channels: int,
        patch_size: tuple[int, int, int],
        hidden_size: int,
        channels: int,
        depth: int,
        *,
        normalised: bool = False,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.features = nn.Linear(hidden_size, math.prod(patch_size) * FEATURES)
        self.entrance = nn.Conv2d(2 * in_channels + FEATURES, channels, 3, padding=1)
        self.layers = nn.ModuleList(Layer(channels, hidden_size, normalised=normalised) for _ in range(depth))
        self.exit = nn.Conv2d(channels, in_channels, 3, padding=1)
        nn.init.zeros_(self.exit.weight)
        nn.init.zeros_(self.exit.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, prediction: Tensor, tokens: Tensor, t: Tensor, grid: tuple[int, ...]) -> Tensor:
        """x, prediction (B, C, T, H, W), normalised tokens (B, N, D) of ``grid``, t (B, D) -> fp32 (B, C, T, H, W)."""
        frames, t = x.shape[2], F.silu(t)
        known = unpatch(self.features(tokens), grid, self.patch_size)
        seen = torch.cat([x.to(known.dtype), prediction.to(known.dtype), known], dim=1)
        h = rearrange(seen, "b c t h w -> (b t) c h w").contiguous(memory_format=torch.channels_last)
        h = self.entrance(h)
        for layer in self.layers:
            h = layer(h, t, frames)
        return rearrange(self.exit(h).float(), "(b t) c h w -> b c t h w", t=frames)


class Finisher(nn.Module):
    """A refiner for the last steps of sampling, whose layers are modulated by the timestep and the caption.

    Args:
        refiner: its convolutions.
        hidden_size: width of the tokens.
        heads: attention heads that read the caption; divides ``hidden_size``.
        end: it acts at timesteps below this one.
    """

    def __init__(self, refiner: Refiner, hidden_size: int, heads: int, end: int) -> None:
        super().__init__()
        self.refiner, self.end = refiner, end
        self.query = nn.Parameter(scaled_normal(1, 1, hidden_size))
        self.cross_attn = CrossAttention(hidden_size, heads)

    def forward(
        self,
        x: Tensor,
        prediction: Tensor,
        tokens: Tensor,
        t: Tensor,
        grid: tuple[int, ...],
        keys_values: Tensor,
        mask: Tensor | None,
    ) -> Tensor:
        """The correction; see ``Refiner``. ``keys_values``, ``mask``: the caption's; see ``CrossAttention``."""
        told = self.cross_attn(self.query.expand(len(x), -1, -1), keys_values, mask)[:, 0]
        return self.refiner(x, prediction, tokens, t + told, grid)
