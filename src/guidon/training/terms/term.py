"""The interface of a loss term: its input (a training step) and its result (a loss)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from ...diffusion import DiscreteLevel, FlowLevel, Process, predicted_x0

SHOWN_FROM = 0.1  # the share of signal above which x_t shows the object's position
CLEANEST = 0.01  # the sigma of a rectified flow below which weights by the noise level stay as they are


@dataclass(frozen=True, eq=False)
class TrainingStep:
    """A batch and the network's prediction for it: the input of a loss term. B samples, C latent channels."""

    prediction: Tensor
    """(B, 2C, T, H, W): the prediction in C channels, then the learned variance in C channels. Along a rectified flow
    there is no variance: (B, C, T, H, W)."""
    x_0: Tensor
    """The clean latents (B, C, T, H, W)."""
    x_t: Tensor
    """The noisy latents that the network saw, (B, C, T, H, W)."""
    noise: Tensor
    """The noise that turns x_0 into x_t, (B, C, T, H, W)."""
    t: Tensor
    """Timesteps (B,), whole ones of a diffusion."""
    level: DiscreteLevel | FlowLevel
    """The noise level of every sample."""
    process: Process
    """The parameterisation of the prediction."""
    objects: Tensor
    """Where the object is, bool (B, 1, T, H, W)."""
    swapped: Tensor
    """Samples into which another clip of the family is mixed, bool (B,)."""
    counts: Tensor
    """Weight of each sample by its caption, (B,), 1 on average."""
    family_size: int
    """How many consecutive samples of the batch differ only in shape; 1 where clips are independent."""
    area_gradients: Tensor | None
    """The gradient of the decoded object's area by x_0, (B, C, T, H, W); None unless a term needs it."""

    @property
    def output(self) -> Tensor:
        """The prediction without the variance, (B, C, T, H, W)."""
        return self.prediction[:, : self.x_0.shape[1]]

    @cached_property
    def error(self) -> Tensor:
        """The error of the predicted clean latents, (B, C, T, H, W)."""
        return predicted_x0(self.output, self.x_t, self.level, self.process) - self.x_0

    @property
    def timesteps(self) -> int:
        """How many timesteps there are, from the data to pure noise."""
        return int(self.level.num_timesteps) if isinstance(self.level, FlowLevel) else self.level.steps

    @property
    def snr(self) -> Tensor:
        """Signal-to-noise ratio, (B,)."""
        return self.signal / (1 - self.signal)

    @cached_property
    def signal(self) -> Tensor:
        """The share of the signal in x_t, (B,): alpha^2 / (alpha^2 + sigma^2)."""
        if isinstance(self.level, DiscreteLevel):
            return self.level.alphas_cumprod.flatten()
        alpha, sigma = (torch.as_tensor(value).flatten() for value in (self.level.alpha, self.level.sigma))
        return alpha**2 / (alpha**2 + sigma.clamp_min(CLEANEST) ** 2)

    @property
    def visible(self) -> Tensor:
        """How well x_t shows the object's position, (B,), from 0 to 1."""
        return (self.signal / SHOWN_FROM).clamp(max=1)

    @property
    def per_x0(self) -> Tensor:
        """The squared error of the prediction for a squared error of 1 in x_0, (B,)."""
        kind = self.process.parameterization
        if kind == "flow":  # (x_t - x_0) / sigma, along a rectified flow
            return 1 / torch.as_tensor(self.level.sigma).flatten().clamp_min(CLEANEST) ** 2
        return {"eps": self.snr, "v": self.snr + 1, "x0": torch.ones_like(self.snr)}[kind]

    @property
    def bands(self) -> dict[str, Tensor]:
        """Masks of the samples with low, middle and high noise, bool (B,) each."""
        low, high = self.t < 250, self.t >= 600
        return {"low": low, "mid": ~low & ~high, "high": high}


@dataclass(frozen=True, eq=False)
class Loss:
    """The result of a term for a training step."""

    values: Tensor
    """The unweighted value of each sample, (B,)."""
    weights: Tensor
    """The weight of each sample's value, (B,)."""
    logs: dict[str, Tensor] = field(default_factory=dict)
    """Scalars for the log."""
    by_noise: dict[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    """Functions from a mask of samples, bool (B,), to a scalar. Each is logged for low, middle and high noise."""

    @property
    def mean(self) -> Tensor:
        """The mean over the batch of weight times value."""
        return (self.weights * self.values).mean()


class Term(nn.Module, ABC):
    """One term of a denoiser's loss. Its buffers are saved in checkpoints; it has no parameters."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight  # factor of the term in the sum of all terms

    @abstractmethod
    def forward(self, step: TrainingStep, earlier: Mapping[str, Loss]) -> Loss:
        """This term's loss of a step. ``earlier``: losses of the terms before it in ``Terms``, by name."""
