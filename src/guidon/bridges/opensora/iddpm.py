"""IDDPM, the scheduler of Open-Sora, as a thin front over diffusion, guidance and samplers.

It has the constructor and methods of ``opensora.schedulers.IDDPM`` (and, under it, of improved-diffusion's
SpacedDiffusion), and ``cfg_channels``: guidance acts on the first three latent channels unless told otherwise. Left out
are classifier guidance (``cond_fn``), ``denoised_fn``, and the frame mask everywhere but in ``sample``. Arguments after
``clip_denoised`` are keyword-only. Random numbers come from the global generator, in the originals' order, so that
their seeds reproduce.

Models are foreign objects called as ``model(x, t, **model_kwargs)`` with original timesteps; their output is a tensor
(B, C or 2C, ...) or a dict that holds it under ``"x"``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ...core.errors import InputError
from ...diffusion import (
    DiscreteLevel,
    LossKind,
    NoiseLevel,
    NoiseSchedule,
    Process,
    bits_per_dimension,
    p_mean_variance,
    q_mean_variance,
    q_posterior,
    q_sample,
    training_losses,
)
from ...guidance import UNSET, CfgChannels, Guidance, GuidedDenoiser, Unset
from ...samplers import FrameMask, LegacyNoise, ddim_reverse_step, ddim_step, ddpm_step, sample_ddpm
from .foreign import Keywords, Model, bar, call, device_of


class IDDPM:
    """Improved DDPM (Nichol & Dhariwal 2021) with classifier-free guidance by channel.

    Args:
        num_sampling_steps: how many of the steps sampling visits; None visits all.
        timestep_respacing: the same in OpenAI's notation; it wins over ``num_sampling_steps``.
        noise_schedule: "linear" or "squaredcos_cap_v2".
        use_kl: train on the variational bound (rescaled) instead of the simple loss.
        sigma_small: without a learned variance, the smaller fixed one.
        predict_xstart: the model predicts x_0 instead of eps.
        learn_sigma: the model predicts 2C channels, the last C an interpolation of log variances.
        rescale_learned_sigmas: weigh the bound in the simple loss by T / 1000.
        diffusion_steps: T.
        cfg_scale: guidance scale of ``sample``; one number, or one per channel.
        generator: source of all noise, in place of the global one.
        cfg_channels: guided channels, 3 unless given; any form that ``ChannelScale.parse`` takes. Open-Sora's
            ``cfg_channel`` is the same setting.
    """

    def __init__(
        self,
        num_sampling_steps: int | None = None,
        timestep_respacing: str | Sequence[int] | None = None,
        noise_schedule: str = "linear",
        use_kl: bool = False,
        sigma_small: bool = False,
        predict_xstart: bool = False,
        learn_sigma: bool = True,
        rescale_learned_sigmas: bool = False,
        diffusion_steps: int = 1000,
        cfg_scale: float | Sequence[float] = 4.0,
        cfg_channels: CfgChannels | Unset = UNSET,
        *,
        cfg_channel: CfgChannels | Unset = UNSET,
        generator: torch.Generator | None = None,
    ) -> None:
        if timestep_respacing is None or timestep_respacing == "":
            timestep_respacing = str(num_sampling_steps) if num_sampling_steps is not None else ""
        self.schedule = NoiseSchedule.named(noise_schedule, diffusion_steps).respaced(timestep_respacing)
        fixed = "fixed_small" if sigma_small else "fixed_large"
        self.process = Process("x0" if predict_xstart else "eps", "learned_range" if learn_sigma else fixed)
        self.loss_kind: LossKind = "rescaled_kl" if use_kl else "rescaled_mse" if rescale_learned_sigmas else "mse"
        given = {"cfg_channels": cfg_channels, "cfg_channel": cfg_channel}
        channels = {name: value for name, value in given.items() if value is not UNSET}
        self.guidance = Guidance.from_settings({"cfg_scale": cfg_scale, **channels})
        self.generator = generator

    def __getattr__(self, name: str) -> Any:
        """The schedule's tables under their usual names: betas, alphas_cumprod, ..., timestep_map."""
        if name.startswith("_") or name == "schedule" or not hasattr(self.schedule, name):
            raise AttributeError(f"IDDPM has no attribute {name!r}")
        return getattr(self.schedule, name)

    @property
    def cfg_scale(self) -> float | tuple[float, ...]:
        """The guidance scale of ``sample``."""
        return self.guidance.scale

    @property
    def original_num_steps(self) -> int:
        return self.schedule.num_original_timesteps

    # sampling

    @torch.no_grad()
    def sample(
        self,
        model: Model,
        text_encoder: Any,
        z_size: Sequence[int] | Tensor | None = None,
        prompts: Sequence[str] = (),
        device: torch.device | str | None = None,
        additional_args: dict[str, Any] | None = None,
        mask: Tensor | None = None,
        *,
        z: Tensor | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Guided samples (len(prompts), C, ...), as Open-Sora's scripts call for them.

        Args:
            model: called as ``model(x, t, **additional_args, y=..., mask=...)``.
            text_encoder: ``encode(prompts)`` gives a dict with ``y`` and perhaps ``mask``, ``null(n)`` the null
                captions, which are read under the prompts' mask.
            prompts: what to show, one sample each.
            device: where the noise is drawn; the model's unless given.
            additional_args: further keyword arguments of the model; a tensor of one row a sample is repeated for
                the second branch.
            progress: a bar on stderr.
            z_size: shape of one latent, whose noise is drawn here (Open-Sora 1.0).
            z: the initial noise, or known latents where ``mask`` is below 1; it may stand in ``z_size``'s place, as in
                Open-Sora 1.1. The tables are then computed in float32, as there.
            mask: (B, T), how much of each frame is to be made: 1 all of it, 0 nothing, between them an edit that
                starts at that share of the steps. The model is told as ``x_mask``, (B, T), which frames are moving.

        Raises:
            InputError: neither z_size nor z was given, the mask or the channels do not fit the latents, or a prediction
                is not finite.
        """
        noise = LegacyNoise(2, self.generator)
        if isinstance(z_size, Tensor):
            z, z_size = z_size, None
        schedule = self.schedule if z is None else self.schedule.single_precision()
        if z is None:
            if z_size is None:
                raise InputError("sample needs z_size, the shape of one latent, or z, the initial noise itself")
            z = noise.initial((len(prompts), *z_size), device_of(model) if device is None else device)
        rows = len(prompts)
        if mask is not None and mask.shape != (rows, z.shape[2]):
            raise InputError(f"mask is {tuple(mask.shape)}, expected one value a frame: {(rows, z.shape[2])}")
        encoded = dict(text_encoder.encode(list(prompts)))
        shared = encoded | (additional_args or {})
        cond, uncond = Keywords(rows, shared), Keywords(rows, shared | {"y": text_encoder.null(rows)})
        self.guidance.scales_for(z.shape[1])  # channels that the latents do not have are refused before the first step
        frames = None if mask is None else FrameMask(mask)
        denoiser = GuidedDenoiser(_Adapted(model), self.guidance, cond, uncond)
        with bar(progress) as on_step:
            return sample_ddpm(denoiser, schedule, z, noise, process=self.process, frames=frames, on_step=on_step)

    def p_sample_loop_progressive(
        self,
        model: Model,
        shape: Sequence[int],
        noise: Tensor | None = None,
        clip_denoised: bool = True,
        *,
        model_kwargs: dict[str, Any] | None = None,
        device: torch.device | str | None = None,
        progress: bool = False,
    ) -> Iterator[dict[str, Tensor]]:
        """Ancestral sampling step by step: dicts with ``sample`` and ``pred_xstart``."""

        def step(x: Tensor, t: Tensor) -> dict[str, Tensor]:
            return self.p_sample(model, x, t, clip_denoised, model_kwargs=model_kwargs)

        return self._progressive(step, shape, noise, device_of(model) if device is None else device, progress)

    def p_sample_loop(self, model: Model, shape: Sequence[int], noise: Tensor | None = None, **options: Any) -> Tensor:
        """The last sample of ``p_sample_loop_progressive``, which takes the same options."""
        return _last(self.p_sample_loop_progressive(model, shape, noise, **options))

    def ddim_sample_loop_progressive(
        self,
        model: Model,
        shape: Sequence[int],
        noise: Tensor | None = None,
        clip_denoised: bool = True,
        *,
        model_kwargs: dict[str, Any] | None = None,
        device: torch.device | str | None = None,
        progress: bool = False,
        eta: float = 0.0,
    ) -> Iterator[dict[str, Tensor]]:
        """DDIM step by step: dicts with ``sample`` and ``pred_xstart``."""

        def step(x: Tensor, t: Tensor) -> dict[str, Tensor]:
            return self.ddim_sample(model, x, t, clip_denoised, model_kwargs=model_kwargs, eta=eta)

        return self._progressive(step, shape, noise, device_of(model) if device is None else device, progress)

    def ddim_sample_loop(
        self, model: Model, shape: Sequence[int], noise: Tensor | None = None, **options: Any
    ) -> Tensor:
        """The last sample of ``ddim_sample_loop_progressive``, which takes the same options."""
        return _last(self.ddim_sample_loop_progressive(model, shape, noise, **options))

    def _progressive(
        self,
        one_step: Callable[[Tensor, Tensor], dict[str, Tensor]],
        shape: Sequence[int],
        noise: Tensor | None,
        device: torch.device | str,
        progress: bool,
    ) -> Iterator[dict[str, Tensor]]:
        x = self._start(shape, noise, device)
        steps = len(self.schedule)
        with bar(progress) as on_step:
            for done in range(steps):
                t = torch.full((len(x),), steps - 1 - done, device=x.device)
                with torch.no_grad():
                    out = one_step(x, t)
                if on_step:
                    on_step(done + 1, steps)
                yield out
                x = out["sample"]

    # single steps; t is a long tensor (B,) of indices into this schedule, x and samples are (B, C, ...)

    def p_mean_variance(
        self,
        model: Model,
        x: Tensor,
        t: Tensor,
        clip_denoised: bool = True,
        *,
        model_kwargs: dict[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        """``mean``, ``variance``, ``log_variance`` of p(x_{t-1} | x_t) and ``pred_xstart``, each shaped like x."""
        level = self.schedule.at(t, x)
        p = p_mean_variance(self._predict(model, x, level, model_kwargs), x, level, self._clipped(clip_denoised))
        return {
            "mean": p.mean,
            "variance": p.variance.expand_as(x),
            "log_variance": p.log_variance.expand_as(x),
            "pred_xstart": p.x_0,
        }

    def p_sample(
        self,
        model: Model,
        x: Tensor,
        t: Tensor,
        clip_denoised: bool = True,
        *,
        model_kwargs: dict[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        """``sample`` x_{t-1} and ``pred_xstart``."""
        level = self.schedule.at(t, x)
        prediction = self._predict(model, x, level, model_kwargs)
        sample, x_0 = ddpm_step(prediction, x, level, self._noise(x), self._clipped(clip_denoised))
        return {"sample": sample, "pred_xstart": x_0}

    def ddim_sample(
        self,
        model: Model,
        x: Tensor,
        t: Tensor,
        clip_denoised: bool = True,
        *,
        model_kwargs: dict[str, Any] | None = None,
        eta: float = 0.0,
    ) -> dict[str, Tensor]:
        """``sample`` x_{t-1} by DDIM and ``pred_xstart``. Noise is drawn whatever eta is, as the original does."""
        level = self.schedule.at(t, x)
        prediction = self._predict(model, x, level, model_kwargs)
        sample, x_0 = ddim_step(prediction, x, level, self._noise(x), self._clipped(clip_denoised), eta)
        return {"sample": sample, "pred_xstart": x_0}

    def ddim_reverse_sample(
        self,
        model: Model,
        x: Tensor,
        t: Tensor,
        clip_denoised: bool = True,
        *,
        model_kwargs: dict[str, Any] | None = None,
        eta: float = 0.0,
    ) -> dict[str, Tensor]:
        """``sample`` x_{t+1} by the DDIM path backwards, and ``pred_xstart``; only eta 0 has one."""
        if eta != 0:
            raise InputError(
                f"ddim_reverse_sample was given eta {eta:g}: only the deterministic path, eta 0, can be run backwards"
            )
        level = self.schedule.at(t, x)
        prediction = self._predict(model, x, level, model_kwargs)
        sample, x_0 = ddim_reverse_step(prediction, x, level, self._clipped(clip_denoised))
        return {"sample": sample, "pred_xstart": x_0}

    # forwards, training, evaluation; t is a long tensor (B,) of indices into this schedule

    def q_mean_variance(self, x_start: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and log variance of q(x_t | x_0), x_start (B, C, ...)."""
        return q_mean_variance(x_start, self.schedule.at(t, x_start))

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """x_t of x_0."""
        return q_sample(x_start, self.schedule.at(t, x_start), self._noise(x_start) if noise is None else noise)

    def q_posterior_mean_variance(self, x_start: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and clipped log variance of q(x_{t-1} | x_t, x_0)."""
        return q_posterior(x_start, x_t, self.schedule.at(t, x_start))

    def training_losses(
        self,
        model: Model,
        x_start: Tensor,
        t: Tensor,
        model_kwargs: dict[str, Any] | None = None,
        noise: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """``loss`` and its terms, each (B,), of x_start (B, C, ...) noised to steps t (B,)."""
        noise = self._noise(x_start) if noise is None else noise
        x_t = self.q_sample(x_start, t, noise)
        level = self.schedule.at(t, x_start)
        prediction = self._predict(model, x_t, level, model_kwargs)
        return training_losses(prediction, x_start, x_t, level, noise, self.process, kind=self.loss_kind)

    def calc_bpd_loop(
        self, model: Model, x_start: Tensor, clip_denoised: bool = True, *, model_kwargs: dict[str, Any] | None = None
    ) -> dict[str, Tensor]:
        """Bits per dimension: ``total_bpd``, ``prior_bpd``, (B,); ``vb``, ``xstart_mse``, ``mse``, (B, T)."""

        def denoiser(x: Tensor, level: DiscreteLevel) -> Tensor:
            return self._predict(model, x, level, model_kwargs)

        process = self._clipped(clip_denoised)
        return vars(bits_per_dimension(denoiser, x_start, self._noise, self.schedule, process)).copy()

    def _predict(self, model: Model, x: Tensor, level: NoiseLevel, model_kwargs: dict[str, Any] | None) -> Tensor:
        return call(model, x, level.timesteps(x).long(), model_kwargs or {})

    def _noise(self, x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=self.generator, device=x.device, dtype=x.dtype)

    def _start(self, shape: Sequence[int], noise: Tensor | None, device: torch.device | str) -> Tensor:
        return torch.randn(*shape, generator=self.generator, device=device) if noise is None else noise

    def _clipped(self, clip_denoised: bool) -> Process:
        return Process(self.process.parameterization, self.process.variance, clip_denoised)


class _Adapted:
    """A foreign model as guidance calls networks. It is told whole timesteps, with which it was trained."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def __call__(self, x: Tensor, level: NoiseLevel, cond: Keywords, /) -> Tensor:
        return call(self.model, x, level.timesteps(x).long(), cond.values, level.noisy)


def _last(steps: Iterator[dict[str, Tensor]]) -> Tensor:
    *_, last = steps
    return last["sample"]
