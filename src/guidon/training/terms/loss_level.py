"""The running mean of a loss at each noise level."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LossLevel(nn.Module):
    """A running mean of a loss for each band of timesteps. Divided by it, the loss counts equally at all noise levels.

    An eps loss spans three orders of magnitude over the timesteps. It is smallest at the noise levels at which position
    and motion are decided. This is the uncertainty weighting of EDM2 (Karras et al. 2312.02696, eq. 21), with bands
    instead of an MLP.
    """

    level: Tensor
    """Running mean of each band."""
    seen: Tensor
    """Divisor that corrects the bias of ``level`` from its start at zero, as in Adam, for each band."""

    def __init__(self, floor: float = 0.001, bands: int = 50, decay: float = 0.99) -> None:
        super().__init__()
        self.floor, self.decay = floor, decay
        self.register_buffer("level", torch.zeros(bands))
        self.register_buffer("seen", torch.zeros(bands))

    @torch.no_grad()
    def weights(self, loss: Tensor, t: Tensor, steps: int) -> Tensor:
        """Update the means with losses (B,) at timesteps t (B,) of ``steps``. Returns each sample's weight, (B,)."""
        band = (t * len(self.level) // steps).long().clamp(max=len(self.level) - 1)
        count = torch.bincount(band, minlength=len(self.level))
        mean = torch.bincount(band, loss, minlength=len(self.level)) / count.clamp_min(1)
        for running, now in ((self.level, mean), (self.seen, torch.ones_like(self.seen))):
            running.lerp_(torch.where(count > 0, now, running).to(running.dtype), 1 - self.decay)
        return 1 / (self.level / self.seen)[band].clamp_min(self.floor)
