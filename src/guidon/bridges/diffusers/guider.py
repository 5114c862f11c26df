"""Guidance by channel as a diffusers guider: for modular pipelines, and for classic ones with a ``guider`` component.

    pipe.guider = ChannelGuidance(scale=6.0, channels=3)                      # HunyuanVideo 1.5
    pipe.update_components(guider=ChannelGuidance(scale=5.0, channels=3))     # a modular pipeline

It is saved with the pipeline and read back. Saved pipelines name this module: it must stay where it is, and it must
offer ``BaseGuidance``, by which diffusers recognises the classes that it can load.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import sqrt
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from ...core.errors import InputError, setting
from ...core.extras import require
from ...diffusion import NoiseLevel, Parameterization, find_parameterization
from ...guidance import CONSTANT, START, UNSET, CfgChannels, ChannelChoice, ChannelScale, Guidance, Unset, rule_text
from ...guidance.rules import CFGPlusPlus
from .layouts import Layout
from .scale import factor_tensor, multiply
from .scheduler import BetaSchedule, betas_of

require("diffusers", "this bridge", "diffusers")

from diffusers.guiders.guider_utils import BaseGuidance, GuiderOutput  # noqa: E402

__all__ = ["BaseGuidance", "ChannelGuidance"]

INPUTS = ("hidden_states", "sample", "x")
"""Names under which networks take the latents, where they are not the first argument."""

PREDICTIONS: dict[str, tuple[Parameterization, ...]] = {
    "UNet2DConditionModel": ("eps", "v"),
    "LTX2VideoTransformer3DModel": ("x0",),
}
"""What guiders are given of the networks that are not of rectified flow; LTX-2's pipeline converts before."""


class ChannelGuidance(BaseGuidance):
    """A guider with the choices of ``guidon.Guidance``: which channels, how strongly, by which rule, when.

    Unguided channels are the conditional prediction, bit for bit. With all channels, one scale and the rule "cfg" it is
    diffusers' ``ClassifierFreeGuidance``, bit for bit in every dtype. ``guidance_rescale`` of other guiders is the rule
    "rescale" here, over the guided channels alone. Qwen-Image's normalisation of tokens after guidance, which would mix
    the channels, has no effect, except with all channels, one scale and "cfg".

    Some rules look at the noisy latents: they are read off the network's input, with the noise level of the timestep
    that the network is told. A rule that is not "cfg" works in fp32.

    Args:
        scale: one number of at least 0, or one per latent channel. 1 is no guidance.
        channels: which channels are guided: 3, "all", "none", "0,2", "0-2", [0, 2], "only:3". Left out, the first
            three, or all where there is a scale per channel.
        rule: how the branches are combined, such as "apg" or "rescale:phi=0.7". "perp-neg",
            "autoguidance", "stg" and "cfg++" are refused.
        timing: when guidance acts, such as "interval:0,0.5" or "linear": by the noise level.
        axis: the axis of the channels in the network's output: 1, or -1 for packed latents (LTX, Flux, Qwen-Image).
        patch: side of the patch of latent pixels in a token: 2 for Flux and Qwen-Image, where feature k belongs to
            channel k // 4.
        parameterization: what the network predicts: "flow" for all modular pipelines but Stable Diffusion XL, which has
            "eps", and LTX-2, which has "x0".
        num_train_timesteps: the timestep of pure noise.
        beta_schedule, beta_start, beta_end: the noise schedule, as in the scheduler's configuration; None for
            rectified flow. Stable Diffusion XL has "scaled_linear", 0.00085 and 0.012.
        start, stop: the part of the steps in which guidance acts, as in other guiders.
        enabled: False gives the conditional prediction.

    Raises:
        InputError: a value is not valid, or two of them do not go together.
    """

    _input_predictions = ["pred_cond", "pred_uncond"]  # noqa: RUF012 - its name and type are diffusers'
    # A modular pipeline saves a guider with its settings only if it has an identifier: path, subfolder, variant,
    # revision. Here none is set yet.
    _diffusers_load_id = "null|null|null|null"
    # LTX-2's modular pipeline asks its guider for the blocks to skip in a third pass. There is no such pass.
    spatio_temporal_guidance_blocks = None

    def __init__(
        self,
        scale: float | Sequence[float] = 7.5,
        channels: CfgChannels | ChannelChoice | Unset = UNSET,
        rule: str = "cfg",
        timing: str = "constant",
        axis: int = 1,
        patch: int = 1,
        parameterization: Parameterization = "flow",
        num_train_timesteps: int = 1000,
        beta_schedule: BetaSchedule | None = None,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
    ) -> None:
        super().__init__(start, stop, enabled)
        self.guidance = guidance = Guidance(scale, channels, rule, timing)
        another = guidance.needs_negative or guidance.needs_weak or guidance.needs_imageless
        if another or isinstance(guidance.rule, CFGPlusPlus):
            needs = "another branch" if another else "the level of the next step"
            raise InputError(
                f"{setting('guidance')} {guidance.rule.name} needs {needs}, which no guider has: use Guidon's own "
                "pipeline"
            )
        parameterization = find_parameterization(parameterization)
        if parameterization in ("eps", "v") and beta_schedule is None:
            raise InputError(
                f"a network that predicts {parameterization} has a noise schedule of betas: give beta_schedule, "
                "beta_start and beta_end of pipe.scheduler.config"
            )
        self.parameterization: Parameterization = parameterization
        self.axis, self.patch = axis, patch
        products = None if beta_schedule is None else betas_of(
            beta_schedule, num_train_timesteps, beta_start, beta_end
        ).alphas_cumprod  # fmt: skip
        self._ratios = None if products is None else np.sqrt(1 / products - 1)  # sigma / alpha of every timestep
        self._memory = START
        self._noisy: Tensor | None = None
        self._hook: Any = None
        settings: dict[str, Any] = {
            "scale": list(guidance.scale) if isinstance(guidance.scale, tuple) else guidance.scale,
            "rule": rule_text(guidance.rule), "timing": guidance.timing.text, "axis": axis, "patch": patch,
            "parameterization": parameterization, "num_train_timesteps": num_train_timesteps,
            "beta_schedule": beta_schedule, "beta_start": beta_start, "beta_end": beta_end,
            "start": start, "stop": stop, "enabled": enabled,
        }  # fmt: skip
        if isinstance(guidance.channels, ChannelChoice):
            settings["channels"] = guidance.channels.text
        self.register_to_config(**settings)

    @classmethod
    def of(cls, guidance: Guidance, **settings: Any) -> Self:
        """The guider of a ``guidon.Guidance``; ``settings`` are the other arguments of the class."""
        return cls(guidance.scale, guidance.channels, rule_text(guidance.rule), guidance.timing.text, **settings)

    # what pipelines ask of a guider

    def set_state(self, step: int, num_inference_steps: int, timestep: Any) -> None:
        """Begin a step. A new run begins with a step number that does not grow, a timestep that does, or another number
        of steps.
        """
        new_run = (
            self._step is None
            or step <= self._step
            or num_inference_steps != self._num_inference_steps
            or _number(timestep) > _number(self._timestep)  # some schedulers stay at one
        )
        self._memory = replace(START if new_run else self._memory, calls=step)
        super().set_state(step, num_inference_steps, timestep)
        self._noisy = None

    @property
    def num_conditions(self) -> int:
        """The most branches that a step of a run has, so that the pipeline encodes the negative prompt: 2, or 1 where
        nothing is guided. ``active_predictions`` has those of this step.
        """
        return 2 if self._enabled and not self.guidance.is_conditional else 1

    @property
    def is_conditional(self) -> bool:
        """Whether the branch that is prepared is the conditional one."""
        return self._count_prepared == 1

    @property
    def guidance_scale(self) -> float:
        """Refused: pipelines ask for it to give it to a distilled network, which has no unconditional branch."""
        raise InputError(
            "this network takes the guidance scale as an input and has no unconditional branch: channels cannot be "
            "chosen, use diffusers' ClassifierFreeGuidance"
        )

    def active_predictions(self) -> tuple[str, ...]:
        """The branches of this step, by name; LTX-2 asks for them."""
        return tuple(self._input_predictions[: 2 if self._acts() else 1])

    def prepare_inputs(self, data: Any) -> list[Any]:
        """One batch of inputs for every branch, from pairs (conditional, unconditional)."""
        return [self._prepare_batch(dict(data), k, name) for k, name in enumerate(self.active_predictions())]

    def prepare_inputs_from_block_state(self, data: Any, input_fields: Mapping[str, Any]) -> list[Any]:
        """One batch of inputs for every branch, from the state of a modular pipeline."""
        return [
            self._prepare_batch_from_block_state(dict(input_fields), data, k, name)
            for k, name in enumerate(self.active_predictions())
        ]

    def prepare_models(self, denoiser: nn.Module) -> None:
        """Called before every branch. A rule that needs the noisy latents reads them off the network's input."""
        super().prepare_models(denoiser)
        self.cleanup_models(denoiser)  # of a run that ended in an error
        name = type(getattr(denoiser, "_orig_mod", denoiser)).__name__
        predicts = PREDICTIONS.get(name, (self.parameterization,))
        if self.guidance.rule.space != "own" and self.parameterization not in predicts:
            raise InputError(
                f"{setting('guidance')} {self.guidance.rule.name} was told that the network predicts "
                f"{self.parameterization!r}, and {name} predicts {' or '.join(predicts)}: give the guider its "
                "parameterization"
            )
        if self._needs_latents and self._noisy is None and self._acts():
            untraced: Any = torch.compiler.disable(self._read)
            self._hook = denoiser.register_forward_pre_hook(untraced, with_kwargs=True)

    def cleanup_models(self, denoiser: nn.Module) -> None:
        """Called after every branch."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _read(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found = next((kwargs[name] for name in INPUTS if name in kwargs), args[0] if args else None)
        if isinstance(found, list):  # Z-Image: (C, 1, H, W) each
            found = torch.stack(found).squeeze(2)
        self._noisy = found if isinstance(found, Tensor) else None

    def __call__(self, data: list[Any]) -> GuiderOutput:
        """``forward`` on the batches of ``prepare_inputs`` and their predictions."""
        return self.forward(**{getattr(batch, self._identifier_key): batch.noise_pred for batch in data})

    def forward(self, pred_cond: Tensor, pred_uncond: Tensor | None = None) -> GuiderOutput:
        """The guided prediction of a step, in the layout and dtype of the branches.

        Raises:
            InputError: the channels do not fit, or a rule needs latents that the pipeline does not show.
        """
        if pred_uncond is None or not self._acts():
            return GuiderOutput(pred=pred_cond, pred_cond=pred_cond, pred_uncond=pred_uncond)
        if not self.guidance.rule.is_plain:
            pred = self._by_rule(pred_cond, pred_uncond)
            return GuiderOutput(pred=pred, pred_cond=pred, pred_uncond=pred_uncond)
        scale = self._scales(pred_cond)
        pred = self._plain(pred_cond, pred_uncond, scale)
        # Qwen-Image's pipeline brings the norm of ``pred`` to that of ``pred_cond``. Equal ones switch that off
        everywhere = len(set(scale.scales)) == 1 and len(scale.guided) == len(scale.scales)
        return GuiderOutput(pred=pred, pred_cond=pred_cond if everywhere else pred, pred_uncond=pred_uncond)

    # how it is combined

    def _plain(self, cond: Tensor, uncond: Tensor, scale: ChannelScale) -> Tensor:
        """uncond + s (cond - uncond) in the branches' own dtype, as ``ClassifierFreeGuidance`` computes it."""
        axis, patch = self.axis, self.patch
        guided = uncond + multiply(cond - uncond, scale.scales, axis, patch)
        if all(value != 1 for value in scale.scales):
            return guided
        chosen = tuple(float(value != 1) for value in scale.scales)
        return torch.where(factor_tensor(chosen, axis, patch, cond.ndim, torch.float32, cond.device) != 0, guided, cond)

    def _by_rule(self, cond: Tensor, uncond: Tensor) -> Tensor:
        """By ``Guidance.combine``, on channels that are dimension 1."""
        noisy = self._noisy_like(cond) if self._needs_latents else cond
        self._check(cond)
        layout = Layout(self.axis, self.patch, _no_grid if cond.ndim == 3 else None)
        c, u, x = (layout.unpack(tensor, None) for tensor in (cond, uncond, noisy))
        guided, self._memory = self.guidance.combine(
            c, u, x, self._level(), self._memory, parameterization=self.parameterization
        )
        return layout.pack(guided, cond, None)

    def _noisy_like(self, cond: Tensor) -> Tensor:
        """The noisy latents in the shape of the prediction: the network's input without what is appended to it."""
        noisy = self._noisy
        if noisy is None or noisy.ndim != cond.ndim or any(
            found < wanted for found, wanted in zip(noisy.shape, cond.shape, strict=True)
        ):  # fmt: skip
            shape = None if noisy is None else tuple(noisy.shape)
            raise InputError(
                f"{setting('guidance')} {self.guidance.rule.name} needs the noisy latents, and this pipeline's network "
                f"was given {shape} for a prediction of {tuple(cond.shape)}: use guidon.apply(pipe, guidance)"
            )
        return noisy[tuple(slice(size) for size in cond.shape)]

    @property
    def _needs_latents(self) -> bool:
        """Whether the rule works in another parameterisation than the network's, which takes the latents to reach."""
        space = "own" if self.guidance.rule.is_plain else self.guidance.rule.space
        if space in ("velocity", "noise"):
            of_path = "flow" if self._ratios is None else "v" if space == "velocity" else "eps"
            return self.parameterization != of_path
        return space not in ("own", self.parameterization)

    def _scales(self, prediction: Tensor) -> ChannelScale:
        """The scales in effect."""
        self._check(prediction)
        channels = prediction.shape[self.axis] // self.patch**2
        return self.guidance.scale_at(self._level(), self._memory, channels)

    def _check(self, prediction: Tensor) -> None:
        """Refuse predictions whose channels are not where they are said to be."""
        shape = tuple(prediction.shape)
        if prediction.ndim == 3 and self.axis == 1:
            raise InputError(
                f"predictions {shape} are packed: give the guider axis=-1, and patch=2 where four features are one "
                "channel (Flux, Qwen-Image)"
            )
        if (self.patch > 1 and prediction.ndim != 3) or shape[self.axis] % self.patch**2:
            raise InputError(
                f"predictions {shape} hold no patches of {self.patch}x{self.patch} on axis {self.axis}: give the "
                "guider the patch and axis of this pipeline"
            )

    def _acts(self) -> bool:
        """Whether this step needs the unconditional branch."""
        if not self._enabled or self.guidance.is_conditional:
            return False
        if self._num_inference_steps is not None:
            first, last = (int(part * self._num_inference_steps) for part in (self._start, self._stop))
            if not first <= self._step < last:
                return False
        return self.guidance.timing(float(self._level().progress), self._memory.calls) != 0

    def _level(self) -> NoiseLevel:
        """The level of this step, from the timestep that the network is told."""
        if self._timestep is None:
            if self.guidance.rule.space != "own" or self.guidance.timing != CONSTANT:
                raise InputError("the guider does not know the step: call its set_state before the network runs")
            return NoiseLevel(0.0, 1.0, 0.0, 0.0)  # nothing looks at it
        last = self.config["num_train_timesteps"]
        timestep = _number(self._timestep)
        if self._ratios is None:
            sigma = timestep / last
            if not 0 <= sigma <= 1:
                raise InputError(f"timestep {timestep:g} is beyond num_train_timesteps {last}: give the scheduler's")
            return NoiseLevel(timestep, 1 - sigma, sigma, 1 - sigma)
        ratio = float(np.interp(timestep, np.arange(len(self._ratios)), self._ratios))
        alpha = 1 / sqrt(1 + ratio**2)
        return NoiseLevel(timestep, alpha, ratio * alpha, min(1.0, max(0.0, 1 - timestep / max(1, last - 1))))


def _number(timestep: Any) -> float:
    return float(timestep.flatten()[0]) if isinstance(timestep, Tensor) else float(timestep)


def _no_grid(given: Mapping[str, Any], /) -> None:
    """Packed tokens whose grid no one tells."""
    return
