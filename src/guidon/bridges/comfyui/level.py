"""ComfyUI's sigma as a ``NoiseLevel``.

ComfyUI's samplers work on x of one of two forms, whatever the network predicts:

    x = x_0 + sigma noise                    models of noise, v and EDM, and Cosmos' flow (sigma may exceed 1)
    x = (1 - sigma) x_0 + sigma noise        rectified flow (comfy.model_sampling.CONST; sigma in [0, 1])
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from ...diffusion import NoiseLevel

_HALVINGS = 30  # of the interval of progress; more than float32's digits of sigma


class ModelSampling(Protocol):
    """What is used of a ``comfy.model_sampling`` object."""

    def percent_to_sigma(self, percent: float) -> float:
        """The sigma at a share of sampling: 0 is its start (noise), 1 its end."""
        ...

    def calculate_input(self, sigma: Tensor, noise: Tensor) -> Tensor:
        """x as the network is given it."""
        ...


def progress_at(sampling: ModelSampling, sigma: float) -> float:
    """The share of sampling that is over at a sigma, in [0, 1]: the inverse of ``percent_to_sigma``, to six digits.

    An interval in progress is therefore ComfyUI's ``start_percent`` and ``end_percent``.
    """
    before, after = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (before + after) / 2
        if float(sampling.percent_to_sigma(middle)) >= sigma:
            before = middle
        else:
            after = middle
    return round(after, 6)


def level_at(sampling: ModelSampling, sigma: float) -> tuple[NoiseLevel, float]:
    """The level of a sigma, and the factor that makes ComfyUI's x the level's x_t = alpha x_0 + sigma eps.

    Models of noise and v get the variance-preserving level, flow models the straight one, so that a rule's velocity
    is the one that the network was trained on. ``timestep`` is ComfyUI's sigma, which falls during sampling; no rule
    reads it.
    """
    if float(sampling.percent_to_sigma(0.0)) <= 1:  # where sampling begins, x is pure noise: sigma is 1, or unbounded
        alpha, factor = 1 - sigma, 1.0
    else:
        straight = _is_straight(sampling, sigma)
        alpha = factor = 1 / (1 + sigma) if straight else 1 / math.sqrt(1 + sigma**2)
    return NoiseLevel(sigma, alpha, sigma * factor, progress_at(sampling, sigma)), factor


def _is_straight(sampling: ModelSampling, sigma: float) -> bool:
    """Whether the network is given x / (1 + sigma), a flow's x, as Cosmos is. Some nodes' samplings do not say."""
    scaled = getattr(sampling, "calculate_input", None)
    if scaled is None:
        return False
    return math.isclose(float(scaled(torch.tensor([sigma]), torch.ones(1))), 1 / (1 + sigma), rel_tol=1e-5)
