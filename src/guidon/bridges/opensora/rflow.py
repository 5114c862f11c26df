"""RFLOW, the scheduler of Open-Sora 1.2, as a thin front over rectified flow, guidance and frame masks.

``RFlow`` has the constructor and methods of ``opensora.schedulers.RFLOW``, and ``cfg_channels``. All channels are
guided unless told otherwise, as there. Random numbers come from the global generator, in the original's order, so that
its seeds reproduce.

Open-Sora's models predict v = x_0 - eps. Guidon's flow is eps - x_0, so the sign is turned where a model is called. The
last C of 2C channels are not used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from ...core.broadcasting import at_least_single, per_frame, per_sample
from ...core.errors import InputError, nearest
from ...diffusion import CLEAN, FlowLevel, FlowPath, NoiseLevel, q_sample, split_prediction, velocity_loss
from ...diffusion.flow import CHUNK, CHUNK_LATENTS, REFERENCE_AREA
from ...guidance import UNSET, CfgChannels, Guidance, GuidedDenoiser, Timing, Unset, WithoutFrames
from ...samplers import FrameMask
from .foreign import Keywords, Model, bar, call

SIZES = ("height", "width", "num_frames")
SAMPLE_METHODS = ("uniform", "logit-normal")


def timestep_transform(
    t: Tensor,
    sizes: Mapping[str, Any],
    scale: float = 1.0,
    num_timesteps: float = 1,
    *,
    base_resolution: float = REFERENCE_AREA,
    base_num_frames: float = 1,
) -> Tensor:
    """Timesteps (B,) moved towards noise for clips of more pixels and frames, in the original's arithmetic.

    u = t / T becomes r u / (1 + (r - 1) u) with r = sqrt(pixels / 512^2) sqrt(latent frames) scale. Sizes in bf16 round
    r, as in Open-Sora's scripts. Sizes in fp16, which does not hold so many pixels, are taken as fp32. Clips of 2 to 16
    frames have no latent frame by the original's count, so that their timesteps are 0, and NaN at pure noise.

    Args:
        t: in [0, num_timesteps].
        sizes: "height" and "width" in pixels, and "num_frames": one number for each clip, (B,), or one for all.
            Whether these are images is read of the first clip.
        scale: multiplies r.
        num_timesteps: T.
        base_resolution: the pixels whose timesteps stay as they are.
        base_num_frames: the latent frames for which they do.

    Raises:
        InputError: a size is missing, or the rows do not fit.
    """
    missing = [name for name in SIZES if not isinstance(sizes.get(name), Tensor | int | float)]
    if missing:
        raise InputError(f"the timestep transform needs {', '.join(missing)} of the clips: give one number a clip")
    numbers = [torch.as_tensor(sizes[name], device=t.device).reshape(-1) for name in SIZES]
    height, width, frames = (size.float() if size.dtype == torch.float16 else size for size in numbers)
    if any(len(size) not in (1, len(t)) for size in (height, width, frames)):
        given = ", ".join(f"{name} of {len(size)}" for name, size in zip(SIZES, (height, width, frames), strict=True))
        raise InputError(f"the timestep transform of {len(t)} clips was given {given}: give one number a clip")
    latents = torch.ones_like(frames) if frames[0] == 1 else frames // CHUNK * CHUNK_LATENTS
    ratio = (height * width / base_resolution).sqrt() * (latents / base_num_frames).sqrt() * scale
    u = t / num_timesteps
    return ratio * u / (1 + (ratio - 1) * u) * num_timesteps


class RFlow:
    """Rectified flow (Liu et al. 2209.03003) with classifier-free guidance by channel.

    Args:
        num_sampling_steps: steps of ``sample``.
        num_timesteps: T, the timestep of pure noise.
        cfg_scale: guidance scale of ``sample``; one number, or one per channel.
        use_discrete_timesteps: whole timesteps, in sampling and in training.
        use_timestep_transform: move timesteps by the size and length of the clips; see ``timestep_transform``.
        sample_method: how training draws timesteps, "uniform" or "logit-normal".
        loc, scale: mean and standard deviation of the normal distribution under "logit-normal".
        transform_scale: multiplies the transform's ratio, in training only.
        cfg_channels: guided channels, all unless given; any form that ``ChannelScale.parse`` takes. ``cfg_channel`` is
            the same setting.
        guidance: the rule, such as "apg"; see docs/rules.md.
        timing: when guidance acts, such as "interval:0,0.5".
        generator: source of all random numbers, in place of the global one.

    Raises:
        InputError: a setting is not valid, or two of them do not go together.
    """

    def __init__(
        self,
        num_sampling_steps: int = 10,
        num_timesteps: int = 1000,
        cfg_scale: float | Sequence[float] = 4.0,
        use_discrete_timesteps: bool = False,
        use_timestep_transform: bool = False,
        *,
        sample_method: Literal["uniform", "logit-normal"] = "uniform",
        loc: float = 0.0,
        scale: float = 1.0,
        transform_scale: float = 1.0,
        cfg_channels: CfgChannels | Unset = UNSET,
        cfg_channel: CfgChannels | Unset = UNSET,
        guidance: str = "cfg",
        timing: str | Timing = "constant",
        generator: torch.Generator | None = None,
    ) -> None:
        if sample_method not in SAMPLE_METHODS:
            raise InputError(
                f"sample_method {sample_method!r} does not exist{nearest(str(sample_method), SAMPLE_METHODS)}"
            )
        if sample_method != "uniform" and use_discrete_timesteps:
            raise InputError("use_discrete_timesteps draws whole timesteps uniformly: leave out sample_method")
        if not scale > 0 or not math.isfinite(loc):
            raise InputError(
                f"a logit-normal distribution of loc {loc:g} and scale {scale:g} does not exist: give scale > 0"
            )
        FlowPath(num_timesteps, num_sampling_steps)  # refuses numbers that are none
        self.num_sampling_steps, self.num_timesteps = num_sampling_steps, num_timesteps
        self.use_discrete_timesteps, self.use_timestep_transform = use_discrete_timesteps, use_timestep_transform
        self.sample_method, self.loc, self.scale, self.transform_scale = sample_method, loc, scale, transform_scale
        self.settings = {"guidance": guidance, "timing": timing}
        given = {"cfg_channels": cfg_channels, "cfg_channel": cfg_channel}
        self.settings |= {name: value for name, value in given.items() if value is not UNSET}
        self.guidance = self._guidance(cfg_scale)
        self.generator = generator

    @property
    def cfg_scale(self) -> float | tuple[float, ...]:
        """The guidance scale of ``sample``."""
        return self.guidance.scale

    @property
    def scheduler(self) -> RFlow:
        """This object: the original's inner scheduler has ``add_noise`` and ``training_losses`` too."""
        return self

    def _guidance(self, scale: float | Sequence[float]) -> Guidance:
        channels = {} if {"cfg_channels", "cfg_channel"} & self.settings.keys() else {"cfg_channels": None}
        return Guidance.from_settings({"cfg_scale": scale, **channels, **self.settings})

    # sampling

    @torch.no_grad()
    def sample(
        self,
        model: Model,
        text_encoder: Any,
        z: Tensor,
        prompts: Sequence[str],
        device: torch.device | str | None = None,
        additional_args: dict[str, Any] | None = None,
        mask: Tensor | None = None,
        guidance_scale: float | Sequence[float] | None = None,
        progress: bool = True,
    ) -> Tensor:
        """Guided samples (len(prompts), C, T, H, W), as Open-Sora's scripts call for them.

        Args:
            model: called as ``model(x, t, **additional_args, y=..., mask=...)``.
            text_encoder: ``encode(prompts)`` gives a dict with ``y`` and perhaps ``mask``, ``null(n)`` the null
                captions, which are read under the prompts' mask.
            z: the initial noise, or known latents where ``mask`` is below 1.
            prompts: what to show, one sample each.
            device: not used: it is z's.
            additional_args: further keyword arguments of the model; a tensor of one row a sample is repeated for
                the second branch. The timestep transform reads ``height``, ``width`` and ``num_frames`` of it.
            mask: (B, T), how much of each frame is to be made: 1 all of it, 0 nothing, between them an edit that starts
                at that share of the timesteps. The model is told as ``x_mask``, (B, T), which frames are moving. Frames
                of 0 come back as they were.
            guidance_scale: in place of ``cfg_scale``.
            progress: a bar on stderr.

        Raises:
            InputError: the mask, the sizes or the channels do not fit the latents, clips have 2 to 16 frames under the
                timestep transform, or a prediction is not finite.
        """
        rows = len(prompts)
        if len(z) != rows:
            raise InputError(f"z holds {len(z)} samples for {rows} prompts: give one for each")
        guidance = self.guidance if guidance_scale is None else self._guidance(guidance_scale)
        guidance.scales_for(z.shape[1])  # channels that the latents do not have are refused before the first step
        levels = self._levels(z, additional_args or {})
        encoded = dict(text_encoder.encode(list(prompts)))
        shared = encoded | (additional_args or {})
        cond, uncond = Keywords(rows, shared), Keywords(rows, shared | {"y": text_encoder.null(rows)})
        network = _Flow(model)
        denoiser = GuidedDenoiser(
            network, guidance, cond, uncond, imageless=None if mask is None else WithoutFrames(network, uncond),
            parameterization="flow", steps=self.num_sampling_steps,
        )  # fmt: skip
        frames, x, last = None if mask is None else FrameMask(mask), z, None
        with bar(progress) as on_step:
            for done, level in enumerate(levels, 1):
                before = x
                if frames is not None:
                    x, level = frames.begin(x, level, self._noise, last)
                    last = level
                flow = denoiser(x, level)
                x = at_least_single(x) - flow * per_sample(self._step(level), x)
                if frames is not None:  # the original's noise lies in memory in the usual order from the second step on
                    x = frames.end(before, x, level).contiguous()
                if on_step:
                    on_step(done, len(levels))
        denoiser.finish()
        return x

    def _levels(self, z: Tensor, sizes: Mapping[str, Any]) -> list[FlowLevel]:
        """The levels of a run, each with timesteps of every sample, (B,)."""
        total, steps = self.num_timesteps, self.num_sampling_steps
        times = [(1.0 - step / steps) * total for step in range(steps)]
        times = [round(t) for t in times] if self.use_discrete_timesteps else times
        timesteps = [torch.tensor([t] * len(z), device=z.device) for t in times]
        if self.use_timestep_transform:
            timesteps = [timestep_transform(t, sizes, num_timesteps=total) for t in timesteps]
            if not bool(torch.stack(timesteps).isfinite().all()):
                longest = int(torch.as_tensor(sizes["num_frames"]).max())
                raise InputError(
                    f"num_frames is {longest}: the timestep transform is for 1 frame, or at "
                    f"least {CHUNK}: turn use_timestep_transform off"
                )
        found: list[FlowLevel] = []
        for t in reversed(timesteps):
            level = self._level(t, z, found[-1] if found else CLEAN)
            found.append(level)
        return found[::-1]

    def _level(self, t: Tensor, like: Tensor, after: NoiseLevel | None = None) -> FlowLevel:
        level = FlowPath(self.num_timesteps).at(t, like)
        # one progress for all samples, whose sizes may differ
        return replace(level, progress=float(torch.as_tensor(level.progress).mean()), next=after)

    def _step(self, level: NoiseLevel) -> Tensor:
        """How far sigma falls in a step, (B,), in the original's arithmetic."""
        assert isinstance(level.timestep, Tensor)
        after = None if level.next is None else level.next.timestep
        span = level.timestep - after if isinstance(after, Tensor) else level.timestep
        return span / self.num_timesteps

    # forwards and training

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t (B, C, T, H, W) of clean latents at timesteps (B,) in [0, num_timesteps]."""
        return q_sample(original_samples, self._level(timesteps, original_samples), noise)

    def training_losses(
        self,
        model: Model,
        x_start: Tensor,
        model_kwargs: dict[str, Any] | None = None,
        noise: Tensor | None = None,
        mask: Tensor | None = None,
        weights: Tensor | None = None,
        t: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """``loss``, (B,): the mean squared error of the velocity, of x_start (B, C, T, H, W).

        Args:
            model: called as ``model(x_t, t, **model_kwargs)``.
            x_start: clean latents.
            model_kwargs: its keyword arguments; with ``height``, ``width`` and ``num_frames`` for the transform.
            noise: drawn after the timesteps unless given.
            mask: bool (B, T), the frames that are noised and counted; the others are shown clean. The model is told of
                it only by ``model_kwargs``.
            weights: of the squared errors, one for each whole timestep.
            t: timesteps (B,), drawn unless given.

        Raises:
            InputError: the shapes do not fit, a size is missing, or there are weights and timesteps are not whole.
        """
        keywords = model_kwargs or {}
        t = self._drawn(x_start, keywords) if t is None else t
        noise = self._noise(x_start) if noise is None else noise
        if noise.shape != x_start.shape:
            raise InputError(f"noise is {tuple(noise.shape)}, the latents are {tuple(x_start.shape)}: give the same")
        importance = None if weights is None else per_sample(self._weights(weights, t), x_start)
        x_t = self.add_noise(x_start, noise, t)
        if mask is not None:
            if mask.shape != (len(x_start), x_start.shape[2]):
                expected = (len(x_start), x_start.shape[2])
                raise InputError(f"mask is {tuple(mask.shape)}, expected one value a frame: {expected}")
            mask = mask.bool()
            x_t = torch.where(per_frame(mask), x_t, self.add_noise(x_start, noise, torch.zeros_like(t)))
        flow = _flow(call(model, x_t, t, keywords), x_start.shape[1])
        return {"loss": velocity_loss(flow, x_start, noise, frames=mask, importance=importance)}

    def _drawn(self, x_start: Tensor, sizes: Mapping[str, Any]) -> Tensor:
        """Timesteps for every sample of a batch, (B,)."""
        rows, device, total = len(x_start), x_start.device, self.num_timesteps
        if self.use_discrete_timesteps:
            t = torch.randint(0, total, (rows,), generator=self.generator, device=device)
        elif self.sample_method == "uniform":
            t = torch.rand((rows,), generator=self.generator, device=device) * total
        else:  # drawn on the CPU, one draw a sample, and kept off 0 and 1 as torch's LogisticNormal does
            mean, deviation = (torch.full((rows,), float(value)) for value in (self.loc, self.scale))
            drawn = torch.normal(mean, deviation, generator=self.generator)
            limits = torch.finfo(drawn.dtype)
            t = drawn.sigmoid().clamp(limits.tiny, 1 - limits.eps).to(device) * total
        if self.use_timestep_transform:
            t = timestep_transform(t, sizes, self.transform_scale, total)
        return t

    def _noise(self, x: Tensor) -> Tensor:
        """Noise shaped like x, drawn in the order of its strides."""
        return torch.empty_like(x).normal_(generator=self.generator)

    def _weights(self, table: Tensor, t: Tensor) -> Tensor:
        """The weight of every sample, (B,)."""
        if t.is_floating_point() or not bool(((t >= 0) & (t < len(table))).all()):
            raise InputError(
                f"weights hold a value for each whole timestep from 0 to {len(table) - 1}: give whole timesteps t in "
                "that range, or use_discrete_timesteps"
            )
        return table.to(t.device)[t].float()


class _Flow:
    """A model of Open-Sora as guidance calls networks: its velocity, turned around."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def __call__(self, x: Tensor, level: NoiseLevel, cond: Keywords, /) -> Tensor:
        t = level.timesteps(x)
        return _flow(call(self.model, x, t.repeat(len(x) // len(t)), cond.values, level.noisy), x.shape[1])


def _flow(output: Tensor, channels: int) -> Tensor:
    """eps - x_0 of a model's output (B, C or 2C, ...), whose first C channels are x_0 - eps."""
    return -split_prediction(output, channels)[0]


RFLOW = RFlow
"""The original's name."""
