"""The squared error of the prediction, with weights for noise levels and for the object."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...core.broadcasting import per_sample
from ...diffusion import target
from .loss_level import LossLevel
from .settings import Weighting
from .term import Loss, Term, TrainingStep

MIN_SNR = 5  # gamma of Hang et al. 2303.09556


class MSE(Term):
    """See ``MSESettings``."""

    def __init__(self, weighting: Weighting = "uniform", foreground: float = 1.0) -> None:
        super().__init__(weight=1.0)
        self.weighting, self.foreground = weighting, foreground
        self.loss_level = LossLevel() if weighting == "balanced" else None

    def forward(self, step: TrainingStep, earlier: Mapping[str, Loss]) -> Loss:
        """The mean squared error of each sample."""
        wanted = target(step.x_0, step.noise, step.level, step.process.parameterization)
        squared = (wanted - step.output).square() * self.importance(step)
        values = squared.flatten(1).mean(1)
        known = values.detach()
        weights = step.counts * self.weights(step, known)
        return Loss(values, weights, {"mse": known.mean()}, {"mse": lambda samples: known[samples].mean()})

    def importance(self, step: TrainingStep) -> Tensor:
        """Weight of each latent pixel, (B, 1, T, H, W), with mean 1 in every sample.

        Where noise hides the object, all pixels count equally. Weights that depend on information that x_t does not
        contain would bias the prediction away from E[x_0 | x_t].
        """
        weights = 1 + (self.foreground - 1) * per_sample(step.visible, step.objects) * step.objects
        return weights / weights.mean((1, 2, 3, 4), keepdim=True)

    def weights(self, step: TrainingStep, mse: Tensor) -> Tensor:
        """Weight of each sample's error (B,) by its noise level."""
        if self.loss_level is not None:
            return self.loss_level.weights(mse, step.t, step.timesteps)
        if self.weighting == "min-snr":  # min(SNR, gamma) on the error of x_0
            return step.snr.clamp(max=MIN_SNR) / step.per_x0
        return torch.ones_like(mse)
