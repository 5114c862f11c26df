"""SpeeDiffusion, Open-Sora's scheduler for training in fewer steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...core.errors import InputError
from ...guidance import UNSET, Unset
from .foreign import Model
from .iddpm import IDDPM, Version


class SpeeDiffusion(IDDPM):
    """Open-Sora's ``iddpm-speed``, for training: timesteps and weights of SpeeD (Wang et al. 2405.17403).

    Timesteps at which the noise level changes are drawn more often, in pairs on either side of ``meaningful_steps``.

    Args:
        settings: those of ``IDDPM``.
    """

    def __init__(self, *settings: Any, version: Version = "1.1", **others: Any) -> None:
        super().__init__(*settings, version=version, **others)
        # numpy rounds this root alike on every machine, and torch does not; the slope of the table shows each bit
        root = np.sqrt(1 - self.schedule.alphas_cumprod.astype(np.float32))
        self.meaningful_steps = int(np.argmax(np.gradient(root) < 5e-5)) + 1
        """The first step at which the noise level hardly changes, and 1 more."""
        sigma = torch.as_tensor(root).to(self.device)
        likely = torch.tanh(1e6 * (torch.gradient(sigma)[0] - 1e-4)) + 1.5
        self.p = likely / likely.sum()
        """The probability of every timestep, fp32 (T,)."""
        signal = torch.as_tensor(self.schedule.alphas_cumprod).float().to(self.device)
        self.p2_gamma, self.p2_k = 1, 1
        self.snr = 1 / (1 - signal) - 1
        """The signal-to-noise ratio, fp32 (T,)."""
        self.weights = 1 / (self.p2_k + self.snr) ** self.p2_gamma
        """Weights of the squared error (P2, Choi et al. 2204.00227), fp32 (T,)."""

    def t_sample(self, n: int, device: torch.device | str) -> Tensor:
        """``n`` timesteps, long: the drawn ones, then their partners."""
        drawn = torch.multinomial(self.p, n // 2 + 1, replacement=True, generator=self.generator).to(device)
        m = self.meaningful_steps
        partner = torch.where(drawn < m, m - drawn, drawn - m).clamp_max(len(self.schedule) - 1)
        return torch.cat([drawn, partner])[:n]

    def training_losses(
        self,
        model: Model,
        x_start: Tensor,
        t: Tensor | dict[str, Any] | None = None,
        model_kwargs: dict[str, Any] | None = None,
        noise: Tensor | None = None,
        mask: Tensor | Unset | None = UNSET,
        weights: Tensor | NDArray[np.floating] | Unset | None = UNSET,
    ) -> dict[str, Tensor]:
        """The losses of ``IDDPM`` at steps that are drawn here, with weights of its own. ``t`` is not looked at."""
        if weights is not None and not isinstance(weights, Unset):
            raise InputError("SpeeDiffusion has weights of its own: give none")
        if isinstance(t, dict):
            model_kwargs = t
        drawn = self.t_sample(len(x_start), x_start.device)
        return super().training_losses(model, x_start, drawn, model_kwargs, noise, mask, self.weights)

    def sample(self, *args: Any, **options: Any) -> Tensor:
        """Refused: sample with ``IDDPM``."""
        raise InputError("SpeeDiffusion is for training only: sample with IDDPM, which takes the same settings")
