"""DPMS, the wrapper of DPM-Solver in the scripts of PixArt and Open-Sora 1.0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.errors import InputError
from ...diffusion import NoiseSchedule
from ...guidance import CfgChannels, Guidance, GuidedDenoiser
from ...samplers import SampleNoise, sample_dpm_solver
from .foreign import ForeignNetwork, Keywords, Model, bar

LEAST_HALF_LOG_SNR = -5.1  # the originals begin here where a schedule, such as the cosine, is noisier


class DPMS:
    """DPM-Solver++ 2M over a model that predicts noise, under classifier-free guidance.

    Args:
        model: called as ``model(x, t, condition, **model_kwargs)`` with timesteps in fp32, in [0, 1000) whatever T is,
            both branches in one batch. Where it predicts 2C channels, the first C are used.
        condition: what the prompts give, one row a sample.
        uncondition: the same of the null caption; None guides nothing.
        cfg_scale: guidance scale; one number, or one per channel.
        model_type: "noise"; other parameterisations are refused.
        noise_schedule: "linear" or "squaredcos_cap_v2".
        guidance_type: "classifier-free", or "uncond", which gives the model no condition.
        model_kwargs: further keyword arguments of the model; a tensor of one row a sample is repeated for the second
            branch.
        diffusion_steps: T.
        cfg_channels: guided channels, all unless given, as in the originals; any form that ``ChannelScale.parse``
            takes.

    Raises:
        InputError: a setting that Guidon's solver does not have.
    """

    def __init__(
        self,
        model: Model,
        condition: Tensor,
        uncondition: Tensor | None,
        cfg_scale: float | Sequence[float],
        model_type: str = "noise",
        noise_schedule: str = "linear",
        guidance_type: str = "classifier-free",
        model_kwargs: dict[str, Any] | None = None,
        diffusion_steps: int = 1000,
        *,
        cfg_channels: CfgChannels = None,
    ) -> None:
        _only("model_type", model_type, "noise")
        _only("guidance_type", guidance_type, "classifier-free", "uncond")
        self.model, self.model_kwargs = model, model_kwargs or {}
        self.guided = guidance_type == "classifier-free"
        self.condition, self.uncondition = condition, uncondition
        self.guidance = Guidance.from_settings({"cfg_scale": cfg_scale, "cfg_channels": cfg_channels})
        self.noise_schedule = _below_pure_noise(NoiseSchedule.named(noise_schedule, diffusion_steps))

    @torch.no_grad()
    def sample(
        self,
        x: Tensor,
        steps: int = 20,
        t_start: float | None = None,
        t_end: float | None = None,
        order: int = 2,
        skip_type: str = "time_uniform",
        method: str = "multistep",
        lower_order_final: bool = True,
        denoise_to_zero: bool = False,
        solver_type: str = "dpmsolver",
        *,
        progress: bool = False,
    ) -> Tensor:
        """A sample from noise x (B, C, ...), in ``steps`` calls of the model; fp32.

        Args:
            x: the noise.
            steps: how many steps, at least 2.
            t_start, t_end, order, skip_type, method, lower_order_final, denoise_to_zero, solver_type: those of the
                originals, which Guidon's solver has at these defaults only.
            progress: show the steps on stderr.

        Raises:
            InputError: a setting that Guidon's solver does not have, or a prediction that is not finite.
        """
        _only("t_start", t_start, None)
        _only("t_end", t_end, None)
        _only("order", order, 2)
        _only("skip_type", skip_type, "time_uniform")
        _only("method", method, "multistep")
        _only("lower_order_final", lower_order_final, True)
        _only("denoise_to_zero", denoise_to_zero, False)
        _only("solver_type", solver_type, "dpmsolver")
        if steps < order:
            raise InputError(f"{steps} steps were asked for: the second order needs at least 2")
        rows = len(x)
        cond = Keywords(rows, self.model_kwargs | {"y": self.condition})
        uncond = Keywords(rows, self.model_kwargs | {"y": self.uncondition})
        guidance = self.guidance if self.guided and self.uncondition is not None else Guidance(1)
        first = cond if self.guided else Keywords(rows, self.model_kwargs)

        def by_position(x: Tensor, t: Tensor, **keywords: Any) -> Any:
            # the originals' models name their condition as they like
            condition = [keywords.pop("y")] if "y" in keywords else []
            return self.model(x, t * (1000 / len(self.noise_schedule)), *condition, **keywords)

        denoiser = GuidedDenoiser(ForeignNetwork(by_position, whole=False), guidance, first, uncond)
        noise = SampleNoise(0, range(rows))  # none is drawn
        with bar(progress) as on_step:
            return sample_dpm_solver(denoiser, self.noise_schedule, x, noise, steps=steps, on_step=on_step)


def _below_pure_noise(schedule: NoiseSchedule) -> NoiseSchedule:
    """The schedule without its noisiest steps, at which the solver's arithmetic would lose all digits."""
    signal = schedule.alphas_cumprod
    kept = 0.5 * np.log(signal / (1 - signal)) >= LEAST_HALF_LOG_SNR
    return NoiseSchedule.from_betas(schedule.betas[kept])


def _only(name: str, given: object, *valid: object) -> None:
    """Refuse a setting of DPM-Solver that Guidon's solver does not have."""
    if not any(given is value or given == value for value in valid):
        known = " or ".join(repr(value) for value in valid)
        raise InputError(f"DPMS was given {name} {given!r}: Guidon's solver has {name} {known} only")
