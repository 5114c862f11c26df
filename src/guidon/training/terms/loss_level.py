"""What is usual of a loss at each noise level."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LossLevel(nn.Module):
    """A running mean of a loss per band of timesteps. Dividing by it lets every noise level count alike.

    An eps loss spans three orders of magnitude over the timesteps, and it is smallest where position and motion are
    decided. This is the uncertainty weighting of EDM2 (Karras et al. 2312.02696, eq. 21), by bands in place of an MLP.
    """

    level: Tensor
    """Running mean of each band."""
    seen: Tensor
    """The share of ``level`` that losses make up, as in Adam's bias correction."""

    def __init__(self, floor: float = 0.001, bands: int = 50, decay: float = 0.99) -> None:
        super().__init__()
        self.floor, self.decay = floor, decay
        self.register_buffer("level", torch.zeros(bands))
        self.register_buffer("seen", torch.zeros(bands))

    @torch.no_grad()
    def weights(self, loss: Tensor, t: Tensor, steps: int) -> Tensor:
        """Note the losses (B,) at timesteps t (B,) of ``steps``; return the weight of each sample, (B,)."""
        band = t * len(self.level) // steps
        count = torch.bincount(band, minlength=len(self.level))
        mean = torch.bincount(band, loss, minlength=len(self.level)) / count.clamp_min(1)
        for running, now in ((self.level, mean), (self.seen, torch.ones_like(self.seen))):
            running.lerp_(torch.where(count > 0, now, running).to(running.dtype), 1 - self.decay)
        return 1 / (self.level / self.seen)[band].clamp_min(self.floor)
