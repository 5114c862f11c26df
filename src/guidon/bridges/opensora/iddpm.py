"""IDDPM, the scheduler of Open-Sora, as a thin front over diffusion, guidance and samplers.

It has the constructor and methods of ``opensora.schedulers.IDDPM`` (and, under it, of improved-diffusion's
SpacedDiffusion), with their arguments in their order, and ``cfg_channels``. Random numbers come from the global
generator, in the originals' order, so that their seeds reproduce.

Models are foreign objects called as ``model(x, t, **model_kwargs)`` with original timesteps; their output is a tensor
(B, C or 2C, ...) or a dict that holds it under ``"x"``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...core.broadcasting import per_frame, per_sample, whole_rows
from ...core.errors import InputError
from ...core.warn import warn
from ...diffusion import (
    DiscreteLevel,
    LossKind,
    NoiseSchedule,
    Process,
    bits_per_dimension,
    eps_from_x0,
    p_mean_variance,
    q_mean_variance,
    q_posterior,
    q_sample,
    training_losses,
    x0_from_eps,
)
from ...diffusion import space_timesteps as spaced
from ...guidance import UNSET, CfgChannels, ChannelChoice, Guidance, GuidedDenoiser, Unset, WithoutFrames
from ...samplers import FrameMask, LegacyNoise, ddim_away, ddim_towards, sample_ddpm
from .foreign import ForeignNetwork, Keywords, Model, bar, call, called, device_of
from .kinds import LossType, ModelMeanType, ModelVarType

Version = Literal["1.0", "1.1", "1.2", "1.3"]
Change = Callable[..., Tensor]
LOSSES: dict[LossKind, LossType] = {
    "mse": LossType.MSE, "rescaled_mse": LossType.RESCALED_MSE, "rescaled_kl": LossType.RESCALED_KL
}  # fmt: skip
VARIANCES = {
    "learned_range": ModelVarType.LEARNED_RANGE,
    "fixed_small": ModelVarType.FIXED_SMALL,
    "fixed_large": ModelVarType.FIXED_LARGE,
}
SNR_STEP = 249  # PixArt: above it the loss is of the noise, up to it of the clean sample


class IDDPM:
    """Improved DDPM (Nichol & Dhariwal 2021) with classifier-free guidance by channel.

    Args:
        num_sampling_steps: how many of the steps sampling visits; None visits all. OpenAI's notation is also read.
        timestep_respacing: the same in OpenAI's notation. Only one of the two may be given.
        noise_schedule: "linear" or "squaredcos_cap_v2".
        use_kl: train on the variational bound (rescaled) instead of the simple loss.
        sigma_small: without a learned variance, the smaller fixed one.
        predict_xstart: the model predicts x_0 instead of eps.
        learn_sigma: the model predicts 2C channels, the last C an interpolation of log variances.
        rescale_learned_sigmas: weigh the bound in the simple loss by T / 1000.
        diffusion_steps: T.
        cfg_scale: guidance scale of ``sample``; one number, or one per channel.
        cfg_channels: guided channels; any form that ``ChannelScale.parse`` takes. Open-Sora's ``cfg_channel`` is the
            same setting. Left out, ``version`` decides.
        version: the Open-Sora that it stands for. "1.0" guides three channels, and its tables are float64 arrays of
            numpy. "1.1", "1.2" and "1.3" guide all channels, and their tables are float32 tensors. Left out, it is
            1.0, but float32 tables are used where only later versions can be called so: ``sample`` with the noise, and
            ``training_losses`` with a mask or weights.
        pred_sigma: PixArt's name: False is ``learn_sigma=False``.
        snr: PixArt's weights of the simple loss: up to step 249 it is the error of the clean sample, above it that of
            the noise.
        generator: source of all noise, in place of the global one.

    Raises:
        InputError: a setting is not valid, or two of them do not go together.
    """

    def __init__(
        self,
        num_sampling_steps: int | str | None = None,
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
        version: Version | float | None = None,
        pred_sigma: bool = True,
        snr: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        known = {name: name for name in get_args(Version)}
        if version is not None and str(version) not in known:
            raise InputError(f"Open-Sora {version} has no IDDPM: version is {', '.join(known)}")
        self.version: Version | None = None if version is None else known[str(version)]
        """The Open-Sora that it stands for."""
        respacing = "" if timestep_respacing is None else timestep_respacing
        if num_sampling_steps is not None:
            if len(respacing):
                raise InputError(
                    f"num_sampling_steps {num_sampling_steps!r} and timestep_respacing {timestep_respacing!r} are one "
                    "setting: give one of them"
                )
            respacing = str(num_sampling_steps)
        schedule = NoiseSchedule.named(noise_schedule, diffusion_steps).respaced(respacing)
        self.schedule = schedule.single_precision() if self._single else schedule
        fixed = "fixed_small" if sigma_small else "fixed_large"
        self.process = Process(
            "x0" if predict_xstart else "eps", "learned_range" if learn_sigma and pred_sigma else fixed
        )
        self.loss_kind: LossKind = "rescaled_kl" if use_kl else "rescaled_mse" if rescale_learned_sigmas else "mse"
        given = {"cfg_channels": cfg_channels, "cfg_channel": cfg_channel}
        channels = {name: value for name, value in given.items() if value is not UNSET}
        if not channels and self._single:
            channels = {"cfg_channels": None}
        self.guidance = Guidance.from_settings({"cfg_scale": cfg_scale, **channels})
        self.generator = generator
        self._snr_loss = snr

    @property
    def _single(self) -> bool:
        """Whether the version computes its tables in float32."""
        return self.version not in (None, "1.0")

    @cached_property
    def _later(self) -> NoiseSchedule:
        """The schedule where a call tells that a later version than 1.0 is meant."""
        return self.schedule if self.version else self.schedule.single_precision()

    # the originals' attributes

    def __getattr__(self, name: str) -> Any:
        """The schedule's tables under their usual names: betas, alphas_cumprod, ..."""
        if name.startswith("_") or name == "schedule" or not hasattr(self.schedule, name):
            raise AttributeError(f"IDDPM has no attribute {name!r}")
        value = getattr(self.schedule, name)
        return torch.tensor(value, device=self.device) if isinstance(value, np.ndarray) and self._single else value

    @property
    def cfg_scale(self) -> float | tuple[float, ...]:
        """The guidance scale of ``sample``."""
        return self.guidance.scale

    @property
    def cfg_channel(self) -> int | str | None:
        """The guided channels in Open-Sora's form: how many of the first, None for all; another choice as text."""
        choice = self.guidance.channels
        if isinstance(choice, Unset):
            choice = ChannelChoice() if isinstance(self.guidance.scale, tuple) else ChannelChoice(count=3)
        return choice.count or (None if choice.indices is None else choice.text)

    @property
    def original_num_steps(self) -> int:
        """T of the training."""
        return self.schedule.num_original_timesteps

    @property
    def timestep_map(self) -> list[int]:
        """The original timestep of each step."""
        return self.schedule.timestep_map.tolist()

    @property
    def use_timesteps(self) -> set[int]:
        """The original timesteps that are visited."""
        return set(self.timestep_map)

    @property
    def map_tensor(self) -> Tensor:
        """``timestep_map``, long (T,), on ``device``."""
        return torch.tensor(self.timestep_map, device=self.device)

    @property
    def device(self) -> torch.device:
        """Where tables that are tensors are: the current CUDA device, else the CPU."""
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")

    @property
    def model_mean_type(self) -> ModelMeanType:
        """What the model predicts."""
        return ModelMeanType.START_X if self.process.parameterization == "x0" else ModelMeanType.EPSILON

    @property
    def model_var_type(self) -> ModelVarType:
        """The variance of the reverse step."""
        return VARIANCES[self.process.variance]

    @property
    def loss_type(self) -> LossType:
        """What the model is trained on."""
        return LOSSES[self.loss_kind]

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
        progress: bool = False,
        *,
        z: Tensor | None = None,
    ) -> Tensor:
        """Guided samples (len(prompts), C, ...), as Open-Sora's scripts call for them; fp32.

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
                Open-Sora 1.1. The first step's noise is drawn in its dtype.
            mask: (B, T), how much of each frame is to be made: 1 all of it, 0 nothing, between them an edit that
                starts at that share of the steps. The model is told as ``x_mask``, (B, T), which frames are moving.

        Raises:
            InputError: neither z_size nor z was given, the mask or the channels do not fit the latents, or a prediction
                is not finite.
        """
        noise = LegacyNoise(2, self.generator)
        if isinstance(z_size, Tensor):
            z, z_size = z_size, None
        schedule = self.schedule if z is None else self._later
        if z is None:
            if z_size is None:
                raise InputError("sample needs z_size, the shape of one latent, or z, the initial noise itself")
            z = noise.initial((len(prompts), *z_size), device_of(model) if device is None else device)
        elif self.version is None and isinstance(self.guidance.channels, Unset):
            warn(
                "IDDPM guides three channels, as Open-Sora 1.0 does, but was called with the noise, as from 1.1 on, "
                "where all channels are guided: give version='1.1', or cfg_channel"
            )
        rows = len(prompts)
        if len(z) != rows:
            raise InputError(f"z has {len(z)} rows, there are {rows} prompts: give one row for each")
        encoded = dict(text_encoder.encode(list(prompts)))
        shared = encoded | (additional_args or {})
        cond, uncond = Keywords(rows, shared), Keywords(rows, shared | {"y": text_encoder.null(rows)})
        self.guidance.scales_for(z.shape[1])  # channels that the latents do not have are refused before the first step
        frames = None if mask is None else FrameMask(mask)
        network = ForeignNetwork(model)
        without = None if mask is None else WithoutFrames(network, uncond)
        denoiser = GuidedDenoiser(network, self.guidance, cond, uncond, imageless=without)
        with bar(progress) as on_step:
            return sample_ddpm(denoiser, schedule, z, noise, process=self.process, frames=frames, on_step=on_step)

    def p_sample_loop_progressive(
        self,
        model: Model,
        shape: Sequence[int],
        noise: Tensor | None = None,
        clip_denoised: bool = True,
        denoised_fn: Change | None = None,
        cond_fn: Change | None = None,
        model_kwargs: dict[str, Any] | None = None,
        device: torch.device | str | None = None,
        progress: bool = False,
        mask: Tensor | None = None,
    ) -> Iterator[dict[str, Tensor]]:
        """Ancestral sampling step by step: dicts with ``sample`` and ``pred_xstart``; see ``p_sample``."""

        def step(x: Tensor, t: Tensor) -> dict[str, Tensor]:
            return self.p_sample(model, x, t, clip_denoised, denoised_fn, cond_fn, model_kwargs, mask)

        return self._progressive(step, shape, noise, device_of(model) if device is None else device, progress)

    def p_sample_loop(self, model: Model, shape: Sequence[int], *args: Any, **options: Any) -> Tensor:
        """The last sample of ``p_sample_loop_progressive``, which takes the same arguments."""
        return _last(self.p_sample_loop_progressive(model, shape, *args, **options))

    def ddim_sample_loop_progressive(
        self,
        model: Model,
        shape: Sequence[int],
        noise: Tensor | None = None,
        clip_denoised: bool = True,
        denoised_fn: Change | None = None,
        cond_fn: Change | None = None,
        model_kwargs: dict[str, Any] | None = None,
        device: torch.device | str | None = None,
        progress: bool = False,
        eta: float = 0.0,
    ) -> Iterator[dict[str, Tensor]]:
        """DDIM step by step: dicts with ``sample`` and ``pred_xstart``; see ``ddim_sample``."""

        def step(x: Tensor, t: Tensor) -> dict[str, Tensor]:
            return self.ddim_sample(model, x, t, clip_denoised, denoised_fn, cond_fn, model_kwargs, eta)

        return self._progressive(step, shape, noise, device_of(model) if device is None else device, progress)

    def ddim_sample_loop(self, model: Model, shape: Sequence[int], *args: Any, **options: Any) -> Tensor:
        """The last sample of ``ddim_sample_loop_progressive``, which takes the same arguments."""
        return _last(self.ddim_sample_loop_progressive(model, shape, *args, **options))

    def _progressive(
        self,
        one_step: Callable[[Tensor, Tensor], dict[str, Tensor]],
        shape: Sequence[int],
        noise: Tensor | None,
        device: torch.device | str,
        progress: bool,
    ) -> Iterator[dict[str, Tensor]]:
        x = torch.randn(*shape, generator=self.generator, device=device) if noise is None else noise
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
        denoised_fn: Change | None = None,
        model_kwargs: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """``mean``, ``variance``, ``log_variance`` of p(x_{t-1} | x_t) and ``pred_xstart``, each shaped like x.

        ``extra`` is what the model gave beside its prediction, if anything. ``denoised_fn`` changes the predicted x_0
        before it is clamped and used.
        """
        level = self.schedule.at(t, x)
        prediction, extra = called(model, x, level.timesteps(x), model_kwargs or {})
        p = p_mean_variance(prediction, x, level, self._clipped(clip_denoised), denoised_fn)
        return {
            "mean": p.mean,
            "variance": p.variance.expand_as(x),
            "log_variance": p.log_variance.expand_as(x),
            # the strides of what a step returns decide the next draw
            "pred_xstart": p.x_0.contiguous() if self.process.parameterization == "eps" else p.x_0,
        } | ({} if extra is None else {"extra": extra})

    def condition_mean(
        self,
        cond_fn: Change,
        p_mean_var: Mapping[str, Tensor],
        x: Tensor,
        t: Tensor,
        model_kwargs: dict[str, Any] | None = None,
    ) -> Tensor:
        """The mean of ``p_mean_variance`` under classifier guidance (Dhariwal & Nichol 2105.05233, algorithm 1).

        ``cond_fn(x, t, **model_kwargs)`` is the gradient of log p(y | x_t), shaped like x, at original timesteps.
        """
        gradient = cond_fn(x, self.schedule.at(t, x).timesteps(x), **(model_kwargs or {}))
        return p_mean_var["mean"].float() + p_mean_var["variance"] * gradient.float()

    def condition_score(
        self,
        cond_fn: Change,
        p_mean_var: Mapping[str, Any],
        x: Tensor,
        t: Tensor,
        model_kwargs: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """What ``p_mean_variance`` gives under classifier guidance of the score (2105.05233, algorithm 2)."""
        level = self.schedule.at(t, x)
        gradient = cond_fn(x, level.timesteps(x), **(model_kwargs or {}))
        eps = eps_from_x0(x, level, p_mean_var["pred_xstart"]) - (1 - level.alphas_cumprod).sqrt() * gradient
        x_0 = x0_from_eps(x, level, eps).contiguous()
        return {**p_mean_var, "pred_xstart": x_0, "mean": q_posterior(x_0, x, level)[0]}

    def p_sample(
        self,
        model: Model,
        x: Tensor,
        t: Tensor,
        clip_denoised: bool = True,
        denoised_fn: Change | None = None,
        cond_fn: Change | None = None,
        model_kwargs: dict[str, Any] | None = None,
        mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """``sample`` x_{t-1} and ``pred_xstart``.

        Args:
            model: see the module.
            x: x_t, (B, C, ...).
            t: indices into this schedule, long (B,).
            clip_denoised: clamp the predicted x_0 to [-1, 1].
            denoised_fn: see ``p_mean_variance``.
            cond_fn: see ``condition_mean``.
            model_kwargs: keyword arguments of the model.
            mask: (n, T) as in ``sample``; fewer rows than x has are repeated whole.

        Raises:
            InputError: the mask or the prediction does not fit x.
        """
        level, before = self.schedule.at(t, x), x
        frames = None if mask is None else FrameMask(whole_rows(mask, len(x), "mask"))
        if frames is not None:
            x, level = frames.begin(x, level, self._noise)
            model_kwargs = {**(model_kwargs or {}), "x_mask": level.noisy}
        out = self.p_mean_variance(model, x, t, clip_denoised, denoised_fn, model_kwargs)
        noise = self._noise(x)
        mean = out["mean"] if cond_fn is None else self.condition_mean(cond_fn, out, x, t, model_kwargs)
        sample = mean + per_sample((t != 0).float(), x) * torch.exp(0.5 * out["log_variance"]) * noise
        sample = sample.contiguous() if frames is None else frames.end(before, sample, level)
        return {"sample": sample, "pred_xstart": out["pred_xstart"]}

    def ddim_sample(
        self,
        model: Model,
        x: Tensor,
        t: Tensor,
        clip_denoised: bool = True,
        denoised_fn: Change | None = None,
        cond_fn: Change | None = None,
        model_kwargs: dict[str, Any] | None = None,
        eta: float = 0.0,
    ) -> dict[str, Tensor]:
        """``sample`` x_{t-1} by DDIM and ``pred_xstart``. Noise is drawn whatever eta is, as the original does.

        The arguments are those of ``p_sample``, and eta.
        """
        x_0, level = self._guided_x0(model, x, t, clip_denoised, denoised_fn, cond_fn, model_kwargs)
        return {"sample": ddim_towards(x_0, x, level, self._noise(x), eta), "pred_xstart": x_0}

    def ddim_reverse_sample(
        self,
        model: Model,
        x: Tensor,
        t: Tensor,
        clip_denoised: bool = True,
        denoised_fn: Change | None = None,
        cond_fn: Change | None = None,
        model_kwargs: dict[str, Any] | None = None,
        eta: float = 0.0,
    ) -> dict[str, Tensor]:
        """``sample`` x_{t+1} by the DDIM path backwards, and ``pred_xstart``; only eta 0 has one."""
        if eta != 0:
            raise InputError(
                f"ddim_reverse_sample was given eta {eta:g}: only the deterministic path, eta 0, can be run backwards"
            )
        x_0, level = self._guided_x0(model, x, t, clip_denoised, denoised_fn, cond_fn, model_kwargs)
        return {"sample": ddim_away(x_0, x, level), "pred_xstart": x_0}

    def _guided_x0(
        self,
        model: Model,
        x: Tensor,
        t: Tensor,
        clip_denoised: bool,
        denoised_fn: Change | None,
        cond_fn: Change | None,
        model_kwargs: dict[str, Any] | None,
    ) -> tuple[Tensor, DiscreteLevel]:
        """The predicted x_0, under classifier guidance if asked for, and the level."""
        out = self.p_mean_variance(model, x, t, clip_denoised, denoised_fn, model_kwargs)
        if cond_fn is not None:
            out = self.condition_score(cond_fn, out, x, t, model_kwargs)
        return out["pred_xstart"], self.schedule.at(t, x)

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
        t: Tensor | dict[str, Any] | None = None,
        model_kwargs: dict[str, Any] | None = None,
        noise: Tensor | None = None,
        mask: Tensor | Unset | None = UNSET,
        weights: Tensor | NDArray[np.floating] | Unset | None = UNSET,
    ) -> dict[str, Tensor]:
        """``loss`` and its terms, each (B,), of x_start (B, C, ...) noised to steps t (B,).

        A call that names ``mask`` or ``weights``, be it as None, can only be of version 1.1 on: the tables are then
        float32 without ``version``, too.

        Args:
            model: see the module. It is not told of ``mask``: add ``x_mask`` to its keywords, as Open-Sora's train.py
                does.
            x_start: clean samples.
            t: the steps. Left out they are drawn, all as likely as another, before the noise. The model's keywords may
                stand in their place, as in Open-Sora 1.2.
            model_kwargs: keyword arguments of the model.
            noise: drawn unless given.
            mask: bool (B, T). Frames that are False are noised to step 0, and do not count in the loss.
            weights: a weight of the squared error for every step, (T,).

        Raises:
            InputError: the mask, the weights or the prediction do not fit, or a mask was given for the bound.
        """
        if isinstance(t, dict):
            if model_kwargs is not None:
                raise InputError("training_losses was given model_kwargs twice: give the steps t, or nothing, before")
            t, model_kwargs = None, t
        if t is None:
            t = torch.randint(0, len(self.schedule), (len(x_start),), device=x_start.device, generator=self.generator)
        noise = self._noise(x_start) if noise is None else noise
        schedule = self.schedule if mask is UNSET and weights is UNSET else self._later
        mask = None if isinstance(mask, Unset) else mask
        weights = None if isinstance(weights, Unset) else weights
        level = schedule.at(t, x_start)
        x_t = q_sample(x_start, level, noise)
        if mask is not None:
            self._check_mask(mask, x_start)
            clean = q_sample(x_start, schedule.at(torch.zeros_like(t), x_start), noise)
            x_t = torch.where(per_frame(mask), x_t, clean)
        prediction = call(model, x_t, level.timesteps(x_t), model_kwargs or {})
        return training_losses(
            prediction, x_start, x_t, level, noise, self.process,
            kind=self.loss_kind, importance=self._importance(weights, t, x_start), frames=mask,
        )  # fmt: skip

    def _importance(self, weights: Tensor | NDArray[np.floating] | None, t: Tensor, x: Tensor) -> Tensor | None:
        """The weights of the squared errors at steps t, to multiply x; None where all are 1."""
        found = None
        for table in (weights, self._snr_weights() if self._snr_loss else None):
            if table is None:
                continue
            if len(table) != len(self.schedule):
                raise InputError(
                    f"weights has {len(table)} values: give one for each of the {len(self.schedule)} steps"
                )
            weight = per_sample(torch.as_tensor(table).to(t.device)[t].float(), x)
            found = weight if found is None else found * weight
        return found

    def _check_mask(self, mask: Tensor, x: Tensor) -> None:
        if self.loss_type.is_vb():
            raise InputError("a frame mask was given with use_kl: the bound of frames that are kept is not defined")
        expected = (len(x), *x.shape[2:3])
        if mask.dtype != torch.bool or x.ndim != 5 or tuple(mask.shape) != expected:
            raise InputError(
                f"mask is {tuple(mask.shape)} of {mask.dtype}, expected one bool a frame of a video: {expected}"
            )
        if not mask.is_meta and not bool(mask.any(dim=1).all()):
            raise InputError("mask keeps all frames of a clip, so that nothing is left to learn from it")

    def _snr_weights(self) -> NDArray[np.floating]:
        """Weights that make the error of what the model predicts that of the noise above ``SNR_STEP``, else of x_0."""
        signal = self.schedule.alphas_cumprod
        above = np.arange(len(signal)) > SNR_STEP
        if self.process.parameterization == "x0":
            return np.where(above, signal / (1 - signal), 1)
        return np.where(above, 1, (1 - signal) / signal)

    def calc_bpd_loop(
        self, model: Model, x_start: Tensor, clip_denoised: bool = True, model_kwargs: dict[str, Any] | None = None
    ) -> dict[str, Tensor]:
        """Bits per dimension: ``total_bpd``, ``prior_bpd``, (B,); ``vb``, ``xstart_mse``, ``mse``, (B, T)."""

        def denoiser(x: Tensor, level: DiscreteLevel) -> Tensor:
            return call(model, x, level.timesteps(x).long(), model_kwargs or {})

        process = self._clipped(clip_denoised)
        return vars(bits_per_dimension(denoiser, x_start, self._noise, self.schedule, process)).copy()

    def _noise(self, x: Tensor) -> Tensor:
        """Noise shaped like x, drawn in the order of its strides."""
        return torch.empty_like(x).normal_(generator=self.generator)

    def _clipped(self, clip_denoised: bool) -> Process:
        return Process(self.process.parameterization, self.process.variance, clip_denoised)


def create_diffusion(
    timestep_respacing: str | Sequence[int] | None,
    noise_schedule: str = "linear",
    use_kl: bool = False,
    sigma_small: bool = False,
    predict_xstart: bool = False,
    learn_sigma: bool = True,
    rescale_learned_sigmas: bool = False,
    diffusion_steps: int = 1000,
) -> IDDPM:
    """DiT's constructor of its diffusion: an ``IDDPM`` of these settings."""
    return IDDPM(
        None, timestep_respacing, noise_schedule, use_kl, sigma_small, predict_xstart, learn_sigma,
        rescale_learned_sigmas, diffusion_steps,
    )  # fmt: skip


def get_named_beta_schedule(schedule_name: str, num_diffusion_timesteps: int) -> NDArray[np.float64]:
    """The betas of ``"linear"`` or ``"squaredcos_cap_v2"``, float64 (T,).

    Raises:
        InputError: another name, or too few or too many steps.
    """
    return np.asarray(NoiseSchedule.named(schedule_name, num_diffusion_timesteps).betas, np.float64)


def space_timesteps(num_timesteps: int, section_counts: str | int | Sequence[int]) -> set[int]:
    """Which of T timesteps to keep, in OpenAI's notation; see ``diffusion.space_timesteps``."""
    return set(spaced(num_timesteps, section_counts))


def _last(steps: Iterator[dict[str, Tensor]]) -> Tensor:
    *_, last = steps
    return last["sample"]
