"""GuidedDenoiser: the only place that pairs conditional and unconditional predictions.

It knows no model and no sampler. A network is ``network(x, t, cond) -> (B, C or 2C, ...)``; what the sampler sees is
``denoiser(x, step)`` with one row per sample, whether that took one doubled batch, two calls, or one call alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ..core.errors import InputError
from ..diffusion import converted
from ..diffusion.posterior import Parameterization
from .channels import ChannelScale
from .rules import Branches, Rule, cfg
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

    @property
    def alphas_cumprod(self) -> Any: ...


Network = Callable[[Tensor, Tensor, Any], Tensor]


@runtime_checkable
class ByTimestep(Protocol):
    """Several networks that share the timesteps, and their conditions."""

    def at(self, timestep: float) -> Network:
        """The one for an original timestep."""
        ...


class GuidedDenoiser:
    """A network under classifier-free guidance, for one run of a sampler: some rules and timings remember its steps.

    Args:
        network: (x, original timesteps (B,), condition) -> prediction, a fresh tensor of C or 2C channels; or several,
            of which ``at(timestep)`` is one.
        cond, uncond: conditions of the two branches; ``uncond`` may be None where every scale is 1.
        scale: guidance scale per latent channel.
        schedule: says which original timestep a step stands for, and how noisy it is.
        rule: how the predictions are joined.
        timing: weight of guidance over the course of sampling.
        batched: all branches in one batch; False runs them one after the other, in half the memory.
        trace: notes what guidance did.
        negative: condition of the negative prompt, for a rule that needs it beside ``uncond``.
        parameterization: what the network predicts, for rules that work in another space.
        rotation: an orthogonal matrix (C, C); what is guided are then the channels of rotation @ latents, the control
            for studies of whether a choice of channels is special. None guides the latents' own.

    Unguided channels (without a rotation) and all variance channels of the result are the conditional prediction's, bit
    for bit; where every scale is 1 the unconditional branch is not run.

    Raises:
        InputError: a condition is missing, the rule does not take the scale, or x or the prediction has other channels.
    """

    def __init__(
        self,
        network: Network | ByTimestep,
        cond: Any,
        uncond: Any,
        scale: ChannelScale,
        schedule: Timesteps,
        *,
        rule: Rule = cfg,
        timing: Timing = constant,
        batched: bool = True,
        trace: GuidanceTrace | None = None,
        negative: Any = None,
        parameterization: Parameterization = "eps",
        rotation: Tensor | None = None,
    ) -> None:
        self.network, self.scale = network, scale
        self.parameterization: Parameterization = parameterization
        self.rule, self.timing, self.trace = rule, timing, trace
        if uncond is None and self._guides(scale):
            raise InputError(f"guidance on channels {scale.text} needs an unconditional condition, and none was given")
        if negative is None and rule.needs_negative and self._guides(scale):
            raise InputError(f"guidance {rule.name} needs a negative prompt")
        rule.check([scale.scales[c] for c in scale.guided])
        self.cond, self.rotation = cond, rotation
        self.others = [uncond, negative] if rule.needs_negative else [uncond]
        self.timesteps = [float(t) for t in schedule.timestep_map]
        self.signals = [float(a) for a in schedule.alphas_cumprod]
        self.last = max(1, schedule.num_original_timesteps - 1)
        self.all: Any = None
        if batched and self._guides(scale):
            self.all = cond
            for other in self.others:
                self.all = self.all.cat(other)
        self.number, self.guided = 0, 0  # calls, and those of them that were guided
        self.memory: dict[str, Tensor] = {}
        self._tensors: dict[tuple[float, ...], Tensor] = {}

    def __call__(self, x: Tensor, step: int) -> Tensor:
        """The guided prediction (B, C or 2C, ...) of x (B, C, ...) at a step of the schedule."""
        before = self.signals[step - 1] if step else 1.0
        return self._at(x, self.timesteps[step], self.signals[step], before)

    def at(self, x: Tensor, timestep: float) -> Tensor:
        """The same at an original timestep, which may lie between whole ones."""
        signal = np.exp(np.interp(timestep, self.timesteps, np.log(self.signals)))
        return self._at(x, timestep, float(signal), None)

    def _at(self, x: Tensor, timestep: float, signal: float, before: float | None) -> Tensor:
        channels = x.shape[1]
        if channels != len(self.scale.scales):
            raise InputError(f"x has {channels} channels, the guidance scale {len(self.scale.scales)}")
        progress = min(1.0, max(0.0, 1 - timestep / self.last))
        weight = self.timing(progress, self.number)
        self.number += 1
        scale = self.scale.weighted(weight)
        if weight == 0 or not self._guides(scale):
            return self._run(x, timestep, self.cond)
        self.guided += 1
        cond, uncond, *negative = self._branches(x, timestep)
        if self.trace is not None:

            def to_x0(turned: Tensor) -> Tensor:
                return converted(self._turned_back(turned), x, signal, self.parameterization, "x0")

            turned = (self._turned(cond[:, :channels]), self._turned(uncond[:, :channels]))
            self.trace.record(timestep, scale.scales, *turned, to_x0)
        where = self._where(scale)
        space: Parameterization = self.parameterization if self.rule.space == "own" else self.rule.space
        seen_x = self._turned(x)[:, where]

        def seen(prediction: Tensor) -> Tensor:
            """The guided channels of a prediction in the rule's space."""
            own = self._turned(prediction[:, :channels])[:, where]
            return converted(own, seen_x, signal, self.parameterization, space)

        branches = Branches(
            seen(cond), seen(uncond), seen(negative[0]) if negative else None, progress, signal, before, self.memory
        )
        guided = converted(self.rule(branches, self._factor(scale, x)), seen_x, signal, space, self.parameterization)
        if self.rotation is None:
            cond[:, where] = guided
        else:
            turned = self._turned(cond[:, :channels])
            turned[:, where] = guided
            cond[:, :channels] = self._turned_back(turned)
        return cond

    @property
    def idle(self) -> bool:
        """Whether guidance was asked for and its timing let none of the calls have any."""
        return self.number > 0 and not self.guided and self._guides(self.scale)

    def _turned(self, latents: Tensor) -> Tensor:
        """Latents (B, C, ...) as the channels that are chosen from."""
        return latents if self.rotation is None else torch.einsum("oc,bc...->bo...", self.rotation, latents)

    def _turned_back(self, turned: Tensor) -> Tensor:
        return turned if self.rotation is None else torch.einsum("oc,bo...->bc...", self.rotation, turned)

    def _guides(self, scale: ChannelScale) -> bool:
        """Whether the result differs from the conditional prediction."""
        return bool(scale.guided) if not self.rule.by_scale_one else not scale.is_identity

    def _channels(self, scale: ChannelScale) -> tuple[int, ...]:
        return scale.active() if self.rule.by_scale_one else scale.guided

    def _where(self, scale: ChannelScale) -> slice | list[int]:
        """The channels that a rule is told of: a view where they are neighbours."""
        chosen = self._channels(scale)
        return slice(chosen[0], chosen[-1] + 1) if chosen[-1] - chosen[0] + 1 == len(chosen) else list(chosen)

    def _run(self, x: Tensor, timestep: float, condition: Any) -> Tensor:
        t = torch.full((len(x),), timestep, device=x.device, dtype=torch.float32)
        network = self.network.at(timestep) if isinstance(self.network, ByTimestep) else self.network
        prediction = network(x, t, condition).float()
        if prediction.shape[1] not in (x.shape[1], 2 * x.shape[1]):
            raise InputError(
                f"the network gave {prediction.shape[1]} channels for {x.shape[1]} latent channels: "
                f"expected {x.shape[1]} or {2 * x.shape[1]}"
            )
        return prediction

    def _branches(self, x: Tensor, timestep: float) -> list[Tensor]:
        """The predictions of cond and all others."""
        count = 1 + len(self.others)
        if self.all is None:
            return [self._run(x, timestep, condition) for condition in (self.cond, *self.others)]
        return list(self._run(torch.cat([x] * count), timestep, self.all).chunk(count))

    def _factor(self, scale: ChannelScale, x: Tensor) -> float | Tensor:
        """A float where the guided channels share a scale, else one factor per channel, sent to the device once."""
        values = tuple(scale.scales[c] for c in self._channels(scale))
        if len(set(values)) == 1:
            return values[0]
        if values not in self._tensors:
            self._tensors[values] = torch.tensor(values, device=x.device).view(-1, *[1] * (x.ndim - 2))
        return self._tensors[values]
