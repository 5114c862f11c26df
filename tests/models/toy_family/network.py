"""The network, its text encoder and its autoencoder."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

FRAMES, SIDE, WORDS = 4, 8, 5


@dataclass(frozen=True)
class Words:
    """A batch of prompts: how often each kind of word occurs, (B, WORDS)."""

    counts: torch.Tensor

    def cat(self, other):
        return Words(torch.cat([self.counts, other.counts]))


class ToyNetwork(nn.Module):
    """A convolution over space and time, and a shift for the prompt and one for the noise; it predicts v."""

    latent_shape = (3, FRAMES, SIDE, SIDE)

    def __init__(self, width):
        super().__init__()
        self.entrance = nn.Conv3d(3, width, 3, padding=1)
        self.words = nn.Linear(WORDS, width)
        self.noise = nn.Linear(2, width)
        self.exit = nn.Conv3d(width, 3, 1)

    @property
    def dtype(self):
        return self.exit.weight.dtype

    def prepare(self, y, mask=None):
        assert mask is None
        return Words(y.to(self.dtype))

    def null(self, rows, mask=None):
        return Words(torch.zeros(rows, WORDS, dtype=self.dtype, device=self.exit.weight.device))

    def forward(self, x, level, cond):
        noise = torch.tensor([level.alpha, level.sigma], dtype=self.dtype, device=x.device)
        shift = self.words(cond.counts) + self.noise(noise)
        h = F.silu(self.entrance(x.to(self.dtype)) + shift[:, :, None, None, None])
        return self.exit(h).float()


class WordCounter:
    """A ``TextEncoder`` without tokens: (B, WORDS) and no mask."""

    def encode(self, prompts):
        counts = torch.zeros(len(prompts), WORDS)
        for row, prompt in enumerate(prompts):
            for word in prompt.split():
                counts[row, len(word) % WORDS] += 1
        return counts, None


class Pixels:
    """An ``Autoencoder`` that codes nothing: a latent pixel is two pixels wide."""

    def encode(self, frames):
        return F.avg_pool3d(frames, (1, 2, 2))

    def decode(self, latents, micro_batch=1, frames=None):
        return latents.clamp(-1, 1).repeat_interleave(2, -1).repeat_interleave(2, -2)
