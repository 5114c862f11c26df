"""Guidance on the channels of a rotated latent: a control for studies of whether a choice of channels is special."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..diffusion import NoiseLevel, Parameterization
from .channels import ChannelScale
from .combine import START, Guidance, Memory, Observe


def random_rotation(channels: int, seed: int) -> Tensor:
    """A uniformly random orthogonal matrix (C, C), fp32."""
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.init.orthogonal_(torch.empty(channels, channels), generator=generator)


def rotate(latents: Tensor, rotation: Tensor) -> Tensor:
    """rotation @ latents over the channels: (B, C, ...) -> (B, C, ...)."""
    return torch.einsum("oc,bc...->bo...", rotation, latents)


def rotate_back(rotated: Tensor, rotation: Tensor) -> Tensor:
    """The inverse of ``rotate``."""
    return torch.einsum("oc,bo...->bc...", rotation, rotated)


@dataclass(frozen=True, eq=False)
class RotatedGuidance:
    """Guidance that acts on the channels of ``rotation @ latents``; it combines as ``Guidance`` does."""

    guidance: Guidance
    rotation: Tensor
    """An orthogonal matrix (C, C), on the latents' device."""

    @property
    def needs_negative(self) -> bool:
        return self.guidance.needs_negative

    @property
    def needs_weak(self) -> bool:
        return self.guidance.needs_weak

    @property
    def needs_imageless(self) -> bool:
        return self.guidance.needs_imageless

    @property
    def needs_uncond(self) -> bool:
        return self.guidance.needs_uncond

    @property
    def is_conditional(self) -> bool:
        return self.guidance.is_conditional

    def acts(self, level: NoiseLevel, memory: Memory, channels: int) -> bool:
        """See ``Guidance.acts``."""
        return self.guidance.acts(level, memory, channels)

    def scale_at(self, level: NoiseLevel, memory: Memory, channels: int) -> ChannelScale:
        """See ``Guidance.scale_at``."""
        return self.guidance.scale_at(level, memory, channels)

    def looks_at(self, level: NoiseLevel, memory: Memory, channels: int) -> Sequence[int]:
        """See ``Guidance.looks_at``. A rotated channel is a sum of all channels."""
        return range(channels) if self.acts(level, memory, channels) else ()

    def compared(self, prediction: Tensor, level: NoiseLevel, memory: Memory, channels: int) -> Tensor:
        """See ``Guidance.compared``: the rotated channels that are guided."""
        return self.guidance.compared(rotate(prediction[:, :channels].float(), self.rotation), level, memory, channels)

    def combine(
        self,
        cond: Tensor,
        uncond: Tensor | None,
        x: Tensor,
        level: NoiseLevel,
        memory: Memory = START,
        *,
        negative: Tensor | None = None,
        weak: Tensor | None = None,
        imageless: Tensor | None = None,
        parameterization: Parameterization = "eps",
    ) -> tuple[Tensor, Memory]:
        """See ``Guidance.combine``. Here an unguided channel is the conditional prediction up to rounding."""
        channels = x.shape[1]
        if not self.acts(level, memory, channels):
            return self.guidance.combine(cond, None, x, level, memory)

        def turned(prediction: Tensor | None) -> Tensor | None:
            return None if prediction is None else rotate(prediction[:, :channels].float(), self.rotation)

        own = rotate(cond[:, :channels].float(), self.rotation)
        guided, memory = self.guidance.combine(
            own, turned(uncond), rotate(x.float(), self.rotation), level, memory,
            negative=turned(negative), weak=turned(weak), imageless=turned(imageless),
            parameterization=parameterization,
        )  # fmt: skip
        result = cond.clone()
        result[:, :channels] = rotate_back(guided, self.rotation)
        return result, memory

    def observer(self, observe: Observe) -> Observe:
        """Wraps an observer so that each step it is shown carries this rotation."""
        return lambda step: observe(replace(step, rotation=self.rotation))
