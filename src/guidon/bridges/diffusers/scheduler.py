"""IDDPM's sampler as a diffusers scheduler: the learned variance, and OpenAI's choice of steps.

    pipe.scheduler = IDDPMScheduler.from_config(pipe.scheduler.config)
    with pipe.scheduler.variance_from(pipe.transformer):     # DiT and PixArt pipelines drop the variance
        images = pipe(..., num_inference_steps=250)

Saved pipelines name this module: it must stay where it is, and it must offer ``SchedulerMixin``, by which diffusers
recognises the classes that it can load.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np
import torch
from torch import Tensor, nn

from ...core.errors import InputError, nearest
from ...core.extras import require
from ...diffusion import DiscreteLevel, NoiseSchedule, Parameterization, Process, convert, q_sample
from ...diffusion.schedule import cosine_betas
from ...samplers.ddpm import ddpm_step
from .calls import in_weak_call

require("diffusers", "this bridge", "diffusers")

from diffusers.configuration_utils import ConfigMixin, register_to_config  # noqa: E402
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput  # noqa: E402
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin  # noqa: E402
from diffusers.utils.torch_utils import randn_tensor  # noqa: E402

__all__ = ["IDDPMScheduler", "SchedulerMixin"]

BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
Prediction = Literal["epsilon", "sample", "v_prediction"]
VarianceType = Literal[
    "learned_range", "clamped_range", "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"
]
PREDICTIONS: dict[Prediction, Parameterization] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}


def betas_of(name: BetaSchedule, steps: int, start: float, end: float) -> NoiseSchedule:
    """The noise schedule of a diffusers configuration, in float64.

    Raises:
        InputError: the name does not exist, or the numbers give no schedule.
    """
    if name not in get_args(BetaSchedule):
        raise InputError(f"beta_schedule {name!r} is not supported{nearest(name, get_args(BetaSchedule))}")
    if name == "squaredcos_cap_v2":
        return NoiseSchedule.from_betas(cosine_betas(steps))
    if name == "linear":
        return NoiseSchedule.from_betas(np.linspace(start, end, steps))
    return NoiseSchedule.from_betas(np.linspace(start**0.5, end**0.5, steps) ** 2)


class IDDPMScheduler(SchedulerMixin, ConfigMixin):
    """Ancestral sampling with a learned variance (Nichol & Dhariwal 2021), exactly as Guidon's sampler ``ddpm``.

    Coefficients are computed in float64 and steps in fp32. Timesteps are OpenAI's: evenly spaced with both ends, or
    those of ``respacing``. ``timestep_spacing`` and ``steps_offset`` of other schedulers' configurations are ignored.

    A network with a learned variance predicts 2C channels, and ``step`` takes them. Latte's pipeline passes them on.
    DiT's and PixArt's pipelines drop the last C before the step: ``variance_from`` puts them back. Without it, a
    prediction of C channels is stepped with the fixed variance that IDDPM uses for networks without a learned one:
    "fixed_large", the variance beta.

    Args:
        num_train_timesteps: how many timesteps the network was trained on.
        beta_start, beta_end: first and last beta of the linear schedules.
        beta_schedule: "linear", "scaled_linear" or "squaredcos_cap_v2".
        trained_betas: the betas themselves, in the place of a named schedule.
        variance_type: "learned_range", or "clamped_range" to keep the interpolation inside its range; or a fixed one.
        prediction_type: "epsilon", "sample" or "v_prediction".
        clip_sample: clamp the predicted clean sample to [-1, 1]: right for pixels, wrong for latents.
        respacing: which timesteps are kept, in OpenAI's notation: "ddim50", "10,10"; empty for evenly spaced ones. It
            must keep as many as the pipeline is asked for.
        thresholding, rescale_betas_zero_snr, clip_sample_range: settings of other schedulers, which are refused if they
            are not their defaults.

    Raises:
        InputError: a value is not supported.
    """

    _compatibles: ClassVar[list[str]] = [scheduler.name for scheduler in KarrasDiffusionSchedulers]
    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: BetaSchedule = "linear",
        trained_betas: Sequence[float] | None = None,
        variance_type: VarianceType = "learned_range",
        prediction_type: Prediction = "epsilon",
        clip_sample: bool = False,
        respacing: str = "",
        thresholding: bool = False,
        rescale_betas_zero_snr: bool = False,
        clip_sample_range: float = 1.0,
    ) -> None:
        for name, value, valid in (
            ("variance_type", variance_type, get_args(VarianceType)),
            ("prediction_type", prediction_type, tuple(PREDICTIONS)),
            ("thresholding", thresholding, (False,)),
            ("rescale_betas_zero_snr", rescale_betas_zero_snr, (False,)),
            ("clip_sample_range", clip_sample_range, (1.0,)),
        ):
            if value not in valid:
                raise InputError(f"{name} {value!r} is not supported by IDDPM{nearest(str(value), map(str, valid))}")
        if trained_betas is not None:
            self.schedule = NoiseSchedule.from_betas(trained_betas)
        else:
            self.schedule = betas_of(beta_schedule, num_train_timesteps, beta_start, beta_end)
        variance: Any = variance_type.removesuffix("_log")
        self.process = Process(PREDICTIONS[prediction_type], variance, clip_sample)
        self.betas = torch.tensor(self.schedule.betas, dtype=torch.float32)
        self.alphas_cumprod = torch.tensor(self.schedule.alphas_cumprod, dtype=torch.float32)
        self.init_noise_sigma = 1.0
        self.num_inference_steps: int | None = None
        self.visited = self.schedule
        self._variance: Tensor | None = None
        self._visit(self.schedule, None)

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """A scheduler from another one's configuration, such as ``pipe.scheduler.config``; see ``ConfigMixin``.

        Raises:
            InputError: it has no schedule of betas, as those of flow matching, or a value is not supported.
        """
        given = dict(config) if isinstance(config, Mapping) else {}
        if given and (given.get("use_flow_sigmas") or "beta_schedule" not in given):
            raise InputError("this configuration has no schedule of betas, as those of flow matching: IDDPM needs one")
        if given.get("snr_shift_scale", 1) != 1:
            raise InputError(f"snr_shift_scale {given['snr_shift_scale']} (CogVideoX) is not supported by IDDPM")
        # another class's defaults are part of its noise schedule, but not of how IDDPM steps
        defaults = given.pop("_use_default_values", ())
        for setting in ("variance_type", "clip_sample"):
            if setting in defaults or given.get(setting) is None:
                given.pop(setting, None)
        return super().from_config(given, return_unused_kwargs, **kwargs)

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Choose the timesteps of a run.

        Raises:
            InputError: there are not so many, or ``respacing`` keeps another number.
        """
        spec = self.config["respacing"] or str(num_inference_steps)
        respaced = self.schedule.respaced(spec)
        if len(respaced) != num_inference_steps:
            raise InputError(
                f"respacing {spec!r} keeps {len(respaced)} steps, and {num_inference_steps} were asked for: give "
                f"num_inference_steps={len(respaced)}"
            )
        self.num_inference_steps = num_inference_steps
        self._visit(respaced, device)

    def _visit(self, schedule: NoiseSchedule, device: str | torch.device | None) -> None:
        self.visited = schedule
        self.timesteps = torch.tensor(schedule.timestep_map[::-1].copy(), dtype=torch.long, device=device)

    def scale_model_input(self, sample: Tensor, timestep: int | Tensor | None = None) -> Tensor:
        """The network's input: the sample itself."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> DDPMSchedulerOutput | tuple[Tensor, Tensor]:
        """One step back (Ho et al. 2020, algorithm 2). Step 0 adds no noise.

        Args:
            model_output: the prediction (B, C, ...), or (B, 2C, ...) with a learned variance.
            timestep: one of ``timesteps``.
            sample: the latents (B, C, ...).
            generator: for the noise; None for torch's global generator, as in diffusers' schedulers.
            return_dict: return an object; else the tuple (prev_sample, pred_original_sample).

        Raises:
            InputError: the timestep is not one of this run's, or the channels do not fit.
        """
        level = self._level(timestep)
        x, prediction, process = sample.float(), model_output.float(), self.process
        kept, self._variance = self._variance, None
        if prediction.shape[1] == sample.shape[1] and process.variance in ("learned_range", "clamped_range"):
            if kept is None:
                process = Process(process.parameterization, "fixed_large", process.clip_denoised)
            else:
                prediction = torch.cat([prediction, _conditional(kept, sample)], dim=1)
        noise = torch.zeros_like(x)
        if level.step != 0:
            noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=torch.float32)
        previous, clean = ddpm_step(prediction, x, level, noise, process)
        previous, clean = previous.to(sample.dtype), clean.to(sample.dtype)
        return DDPMSchedulerOutput(previous, clean) if return_dict else (previous, clean)

    @contextmanager
    def variance_from(self, network: nn.Module) -> Iterator[Self]:
        """Read the variance off a network's own output, for pipelines that drop it before the step.

        Each step takes the last C of the 2C channels of the network's latest output. Of a doubled batch it takes the
        second half, which is the conditional one in PixArt; DiT's pipeline steps both halves, and each has its own.

        Args:
            network: the pipeline's network, whose output has the channels on dimension 1.
        """

        def read(module: nn.Module, args: Any, output: Any) -> None:
            if in_weak_call():  # of the rule stg, in which blocks are skipped
                return
            prediction = output if isinstance(output, Tensor) else output[0]
            self._variance = prediction[:, prediction.shape[1] // 2 :].float()

        untraced: Any = torch.compiler.disable(read)
        handle = network.register_forward_hook(untraced)
        try:
            yield self
        finally:
            handle.remove()
            self._variance = None

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The noisy latents at the original timesteps (B,) (Ho et al. 2020, eq. 4)."""
        noisy = q_sample(original_samples.float(), self._at(timesteps, original_samples), noise.float())
        return noisy.to(original_samples.dtype)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What a network with v_prediction is trained to predict, at the original timesteps (B,)."""
        level = self._at(timesteps, sample)
        noisy = q_sample(sample.float(), level, noise.float())
        return convert(sample.float(), noisy, level, "x0", "v").to(sample.dtype)

    def _at(self, timesteps: Tensor, like: Tensor) -> DiscreteLevel:
        return self.schedule.at(timesteps.to(like.device).long().expand(len(like)), like)

    def _level(self, timestep: int | Tensor) -> DiscreteLevel:
        wanted = int(timestep.flatten()[0]) if isinstance(timestep, Tensor) else int(timestep)
        visited = self.visited
        step = int(np.searchsorted(visited.timestep_map, wanted))
        if step == len(visited) or visited.timestep_map[step] != wanted:
            raise InputError(
                f"timestep {wanted} is not one of the {len(visited)} of this run: give one of scheduler.timesteps"
            )
        return visited.levels[len(visited) - 1 - step]

    def __len__(self) -> int:
        return len(self.schedule)


def _conditional(variance: Tensor, sample: Tensor) -> Tensor:
    """The variance of the conditional branch: of a doubled batch, the second half."""
    if variance.shape == sample.shape:
        return variance
    if variance.shape[0] == 2 * sample.shape[0] and variance.shape[1:] == sample.shape[1:]:
        return variance[len(sample) :]
    raise InputError(
        f"the network's variance is {tuple(variance.shape)} and the latents are {tuple(sample.shape)}: its output does "
        "not hold a learned variance, or its channels are not on dimension 1"
    )
