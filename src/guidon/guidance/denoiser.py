"""GuidedDenoiser: the only place that pairs conditional and unconditional predictions.

It knows no model and no sampler. A network is ``network(x, t, cond) -> (B, C or 2C, ...)``; what the sampler sees is
``denoiser(x, step)`` with one row per sample, whether that took one doubled batch, two calls, or one call alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from ..errors import InputError
from .channels import ChannelScale
from .rules import Rule, cfg
from .timing import Timing, constant
from .trace import GuidanceTrace


class Condition(Protocol):
    """What a model made of its prompts, one row each, its token mask included."""

    def cat(self, other: Self) -> Self:
        """Rows of both, these first."""
        ...


class Timesteps(Protocol):
    """The part of a noise schedule that guidance needs."""

    @property
    def timestep_map(self) -> Any: ...

    @property
    def num_original_timesteps(self) -> int: ...


Network = Callable[[Tensor, Tensor, Any], Tensor]


class GuidedDenoiser:
    """A network under classifier-free guidance.

    Args:
        network: (x, original timesteps (B,), condition) -> prediction, a fresh tensor with C or 2C channels.
        cond, uncond: conditions of the two branches; ``uncond`` may be None where every scale is 1.
        scale: guidance scale per latent channel.
        schedule: says which original timestep a step stands for.
        rule: how the two predictions are joined.
        timing: weight of guidance over the course of sampling.
        batched: both branches in one doubled batch; False runs them one after the other, in half the memory.
        trace: notes what guidance did.

    Unguided channels and all variance channels of the result are the conditional prediction's, bit for bit; where every
    scale is 1 the unconditional branch is not run.

    Raises:
        InputError: a condition is missing, or x or the prediction has other channels than the scale.
    """

    def __init__(
        self,
        network: Network,
        cond: Any,
        uncond: Any,
        scale: ChannelScale,
        schedule: Timesteps,
        *,
        rule: Rule = cfg,
        timing: Timing = constant,
        batched: bool = True,
        trace: GuidanceTrace | None = None,
    ) -> None:
        if uncond is None and not scale.is_identity:
            raise InputError(f"guidance on channels {scale.text} needs an unconditional condition, and none was given")
        self.network, self.cond, self.uncond, self.scale = network, cond, uncond, scale
        self.rule, self.timing, self.trace = rule, timing, trace
        self.timesteps = [float(t) for t in schedule.timestep_map]
        self.last = max(1, schedule.num_original_timesteps - 1)
        self.both = cond.cat(uncond) if batched and not scale.is_identity else None
        self._tensors: dict[tuple[float, ...], Tensor] = {}

    def __call__(self, x: Tensor, step: int) -> Tensor:
        """The guided prediction (B, C or 2C, ...) of x (B, C, ...) at a step of the schedule."""
        return self.at(x, self.timesteps[step])

    def at(self, x: Tensor, timestep: float) -> Tensor:
        """The same at an original timestep, which may lie between whole ones."""
        if x.shape[1] != len(self.scale.scales):
            raise InputError(f"x has {x.shape[1]} channels, the guidance scale {len(self.scale.scales)}")
        scale = self.scale.weighted(self.timing(min(1.0, max(0.0, 1 - timestep / self.last))))
        if scale.is_identity:
            return self._run(x, timestep, self.cond)
        cond, uncond = self._branches(x, timestep)
        channels = x.shape[1]
        if self.trace is not None:
            self.trace.record(timestep, scale.scales, cond[:, :channels], uncond[:, :channels])
        span = scale.span()
        where = span if span is not None else list(scale.active())
        factor = self._factor(scale, x)
        cond[:, where] = self.rule(cond[:, where], uncond[:, where], factor)
        return cond

    def _run(self, x: Tensor, timestep: float, condition: Any) -> Tensor:
        t = torch.full((len(x),), timestep, device=x.device, dtype=torch.float32)
        prediction = self.network(x, t, condition).float()
        if prediction.shape[1] not in (x.shape[1], 2 * x.shape[1]):
            raise InputError(
                f"the network gave {prediction.shape[1]} channels for {x.shape[1]} latent channels: "
                f"expected {x.shape[1]} or {2 * x.shape[1]}"
            )
        return prediction

    def _branches(self, x: Tensor, timestep: float) -> tuple[Tensor, Tensor]:
        if self.both is None:
            return self._run(x, timestep, self.cond), self._run(x, timestep, self.uncond)
        cond, uncond = self._run(torch.cat([x, x]), timestep, self.both).chunk(2)
        return cond, uncond

    def _factor(self, scale: ChannelScale, x: Tensor) -> float | Tensor:
        """A float where the guided channels share a scale, else one factor per channel, sent to the device once."""
        values = tuple(scale.scales[c] for c in scale.active())
        if len(set(values)) == 1:
            return values[0]
        if values not in self._tensors:
            self._tensors[values] = torch.tensor(values, device=x.device).view(-1, *[1] * (x.ndim - 2))
        return self._tensors[values]
