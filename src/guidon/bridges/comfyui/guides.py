"""The pre-CFG functions of the nodes: what replaces the predictions of a call before the sampler's own guidance.

A pre-CFG function is given ``conds_out``, the prediction of every conditioning: cond, uncond, and more in guiders such
as PerpNegGuider. It returns a new list; what it was given stays as it is.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from ...core.errors import InputError
from ...guidance import ChannelChoice, ChannelScale, Guidance, Interval, Unset
from .level import ModelSampling, level_at, progress_at
from .packing import Packing, packing_of
from .runs import Run, Runs

PreCfg = Callable[[Mapping[str, Any]], Sequence[Tensor | None]]

_NEAR_ONE = 0.01  # cfg this close to 1 is not divided by: float32 would lose two digits and more
_OUTER_SAMPLE = "outer_sample"  # comfy.patcher_extension.WrappersMP.OUTER_SAMPLE: around one run of a sampler


class Patcher(Protocol):
    """What is used of ComfyUI's MODEL, a ``comfy.model_patcher.ModelPatcher``."""

    model_options: dict[str, Any]

    def clone(self) -> Self: ...

    def get_model_object(self, name: str) -> Any: ...

    def set_model_sampler_pre_cfg_function(
        self, pre_cfg_function: PreCfg, disable_cfg1_optimization: bool = False
    ) -> None: ...


@dataclass(frozen=True, eq=False)
class Call:
    """One call of the model, as a guide sees it."""

    x: Tensor
    """ComfyUI's noisy latent, (B, C, ...)."""
    cond: Tensor
    """The first conditioning's x_0, (B, C, ...)."""
    others: tuple[Tensor, ...]
    """The other conditionings' x_0 that were run: uncond first."""
    combined: int
    """How many conditionings the guider combines; 2 is plain guidance."""
    cfg: float
    """The sampler's guidance scale."""
    sigma: float
    """ComfyUI's noise level."""
    sampling: ModelSampling
    run: Run
    """The sampling run to which the call belongs."""


class Guide(ABC):
    """A pre-CFG function with the memory of its run.

    A clone of a patched model shares it: ComfyUI deep-copies a model's options, and a copy would split a run's memory
    and trace from the node that reads them.
    """

    name: str
    """The node's name, with which errors begin."""
    needs_uncond: bool
    """Whether the unconditional prediction must be run at cfg 1 too."""

    def __init__(self, settings: str, sampling: ModelSampling) -> None:
        self.runs = Runs(settings)
        self.sampling = sampling
        """The model's noise levels when the node ran; a call's own model comes before it."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __call__(self, args: Mapping[str, Any]) -> Sequence[Tensor | None]:
        """Guide one call: ComfyUI's arguments of a pre-CFG function to the predictions that replace ``conds_out``.

        Raises:
            InputError: the guider, the latent or its channels do not fit.
        """
        try:
            return self._guided(args)
        except InputError as error:
            raise named(self.name, error) from None

    def around_run(self, execute: Callable[..., Tensor], *args: Any, **keywords: Any) -> Tensor:
        """ComfyUI's wrapper around one run of a sampler: marks where the run begins and ends.

        Raises:
            InputError: the guider never called the guide, so that it had no effect.
        """
        with self.runs.one() as run:
            latent = execute(*args, **keywords)
        if run.calls:
            self.runs.finish(run, latent)
        elif _visits(args, keywords):
            guider = type(getattr(execute, "class_obj", None)).__name__
            raise InputError(
                f"{self.name}: the guider ({guider}) combines its predictions without asking other nodes (as "
                "DualCFGGuider does), so that this one had no effect: use KSampler or CFGGuider, or remove the node"
            )
        return latent

    @abstractmethod
    def replaced(self, call: Call) -> tuple[Tensor, tuple[Tensor, ...]]:
        """cond and the others, as the sampler's guidance is to be given them; and note the call in its run."""

    @abstractmethod
    def without_uncond(self, call: Call) -> None:
        """Refuse a call that ran no other conditioning, if guidance is to act there."""

    def _guided(self, args: Mapping[str, Any]) -> Sequence[Tensor | None]:
        given = list(args["conds_out"])
        conds = args.get("conds") or [True] * len(given)
        # a conditioning that was not run has a prediction of zeros, or none
        ran = [k for k in range(1, len(given)) if given[k] is not None and not (k < len(conds) and conds[k] is None)]
        ran = [k for k in ran if k < max(2, len(conds))]  # predictions that another node added are not combined
        packing = packing_of(args)
        x = packing.channels(args["input"])
        sigma = _sigma(args["sigma"])
        call = Call(
            x, packing.channels(given[0]), tuple(packing.channels(given[k]) for k in ran), len(conds),
            float(args["cond_scale"]), sigma, getattr(args.get("model"), "model_sampling", self.sampling),
            self.runs.at(sigma, x),
        )  # fmt: skip
        if not ran:
            self.without_uncond(call)
            return args["conds_out"]
        cond, others = self.replaced(call)
        return _put(packing, given, {0: cond, **dict(zip(ran, others, strict=True))})


class ChannelGuide(Guide):
    """Guide chosen channels and leave the sampler's guidance in charge.

    An unguided channel of uncond becomes cond's, so that any formula c + s (c - u) gives cond there, bit for bit. A
    scale s_c of a channel's own is reached by u' = c + r (u - c), where r = (s_c - 1) / (s - 1) and s is the sampler's
    cfg: c + (s - 1) (c - u') = c + (s_c - 1) (c - u).
    """

    name = "Channel guidance"

    def __init__(
        self,
        channels: ChannelChoice | Unset,
        scales: float | tuple[float, ...] | None,
        interval: Interval | None,
        sampling: ModelSampling,
    ) -> None:
        """
        Args:
            channels: which channels are guided; unset only with a scale for every channel.
            scales: one for every guided channel, or one per channel; None leaves the sampler's cfg.
            interval: the share of sampling in which guidance acts; None for all of it.
            sampling: the model's noise levels.
        """
        super().__init__(repr((self.name, channels, scales, interval)), sampling)
        self.channels, self.scales, self.interval = channels, scales, interval
        self.needs_uncond = any(scale != 1 for scale in _listed(scales))

    def replaced(self, call: Call) -> tuple[Tensor, tuple[Tensor, ...]]:
        guided = self._guided_channels(call)
        scales = self._scales(call, guided)
        call.run.note(call.sigma, scales, call.cond, call.others[0])
        shares = self._shares(call, guided, scales)
        if call.combined > 2 and (shares is None or not any(shares)):
            raise InputError(
                f"this guider combines {call.combined} predictions by a formula of its own, which needs a guided "
                "channel at every step and, with scales of their own, a cfg of 2 or more: change that, or use "
                "KSampler or CFGGuider"
            )
        if shares is not None:
            return call.cond, tuple(_towards(call.cond, other, shares) for other in call.others)
        # the sampler's formula returns cond at cfg 1: cond and uncond both become the guided prediction
        change = _over_channels([scale - 1 for scale in scales], call.cond)
        result = call.cond + change * (call.cond - call.others[0])
        return result, (result.clone(),)

    def _shares(self, call: Call, guided: tuple[int, ...], scales: tuple[float, ...]) -> list[float] | None:
        """Each channel's share of uncond's distance from cond that the sampler is to see; None where its cfg is too
        near 1 for any share to give the scales.
        """
        if self.scales is None:
            return [1.0 if c in guided else 0.0 for c in range(len(scales))]
        if all(scale == 1 for scale in scales):
            return [0.0] * len(scales)
        if abs(call.cfg - 1) < _NEAR_ONE:
            return None
        return [(scale - 1) / (call.cfg - 1) for scale in scales]

    def without_uncond(self, call: Call) -> None:
        if self.scales is not None and any(scale != 1 for scale in self._scales(call, self._guided_channels(call))):
            raise InputError(
                "scales of their own need an unconditional prediction, and this guider runs none: use KSampler or "
                "CFGGuider with a negative conditioning"
            )

    def _guided_channels(self, call: Call) -> tuple[int, ...]:
        """The channels on which guidance acts at a call."""
        channels = call.cond.shape[1]
        scales = 1.0 if self.scales is None else self.scales
        guided = ChannelScale.parse(scales, self.channels, channels=channels, names=("scales", "channels")).guided
        acts = self.interval is None or self.interval(progress_at(call.sampling, call.sigma))
        return guided if acts else ()

    def _scales(self, call: Call, guided: tuple[int, ...]) -> tuple[float, ...]:
        """The scale of every channel at a call; 1 where it is not guided."""
        count = call.cond.shape[1]
        one = call.cfg if self.scales is None else self.scales
        scales = one if isinstance(one, tuple) else (one,) * count
        return tuple(scales[c] if c in guided else 1.0 for c in range(count))


class RuleGuide(Guide):
    """Guide by one of Guidon's rules: cond and uncond both become the guided prediction, so that the sampler's
    formula c + s (c - u) returns it whatever its cfg.
    """

    name = "Guidance rule"
    needs_uncond = True

    def __init__(self, guidance: Guidance, sampling: ModelSampling) -> None:
        super().__init__(repr((self.name, guidance)), sampling)
        self.guidance = guidance

    def replaced(self, call: Call) -> tuple[Tensor, tuple[Tensor, ...]]:
        if call.combined > 2:
            raise InputError(
                f"this guider combines {call.combined} predictions by a formula of its own: use KSampler or CFGGuider"
            )
        level, factor = level_at(call.sampling, call.sigma)
        scales = self.guidance.scale_at(level, call.run.memory, call.cond.shape[1]).scales
        call.run.note(call.sigma, scales, call.cond, call.others[0])
        guided, call.run.memory = self.guidance.combine(
            call.cond, call.others[0], call.x * factor, level, call.run.memory, parameterization="x0"
        )
        return guided, (guided.clone(),)

    def without_uncond(self, call: Call) -> None:
        level, _ = level_at(call.sampling, call.sigma)
        if self.guidance.acts(level, call.run.memory, call.cond.shape[1]):
            raise InputError(
                "the rule needs an unconditional prediction, and this guider runs none: use KSampler or CFGGuider with "
                "a negative conditioning"
            )


def patched(model: Patcher, guide: Guide) -> Patcher:
    """A clone of a model that samples under a guide; the model stays as it is.

    Guides and other nodes' functions add up, in the order in which they were added.
    """
    clone = model.clone()
    clone.set_model_sampler_pre_cfg_function(guide, disable_cfg1_optimization=guide.needs_uncond)
    add_wrapper = getattr(clone, "add_wrapper_with_key", None)
    if add_wrapper is not None:
        add_wrapper(_OUTER_SAMPLE, "guidon", guide.around_run)
    return clone


def named(node: str, error: InputError, **names: str) -> InputError:
    """An error under a node's name. ``names`` are the node's names of the settings that it calls otherwise."""
    names = {"cfg_channels": "channels", "cfg_scale": "scales"} | names
    return InputError(f"{node}: {error.spelled(lambda name: names.get(name, name))}")


def guide_of(model: Patcher) -> Guide:
    """The first guide of a model: it sees the predictions as the model made them.

    Raises:
        InputError: the model has none.
    """
    functions = model.model_options.get("sampler_pre_cfg_function", [])
    guide = next((function for function in functions if isinstance(function, Guide)), None)
    if guide is None:
        raise InputError(
            "Guidance trace: this model has no Guidon node: connect the MODEL output of Channel guidance or Guidance "
            "rule (channels 'all' changes nothing)"
        )
    return guide


def _visits(args: Sequence[Any], keywords: Mapping[str, Any]) -> bool:
    """Whether a run has steps: of ``outer_sample(noise, latent_image, sampler, sigmas, ...)``, two sigmas or more."""
    sigmas = args[3] if len(args) > 3 else keywords.get("sigmas")
    return sigmas is None or len(sigmas) > 1


def _listed(scales: float | tuple[float, ...] | None) -> tuple[float, ...]:
    if scales is None:
        return ()
    return scales if isinstance(scales, tuple) else (scales,)


def _over_channels(values: Sequence[float], like: Tensor) -> Tensor:
    """One value a channel, (C, 1, ...), so that it multiplies predictions (B, C, ...)."""
    return torch.tensor(values, device=like.device, dtype=like.dtype).view(-1, *[1] * (like.ndim - 2))


def _towards(cond: Tensor, other: Tensor, shares: Sequence[float]) -> Tensor:
    """other, of whose distance from cond each channel keeps its share. Share 0 is cond and share 1 other, exactly."""
    result = other.clone()
    same = [c for c, share in enumerate(shares) if share == 0]
    moved = [c for c, share in enumerate(shares) if share not in (0, 1)]
    result[:, same] = cond[:, same]
    if moved:
        kept = _over_channels([shares[c] for c in moved], cond)
        result[:, moved] = cond[:, moved] + kept * (other[:, moved] - cond[:, moved])
    return result


def _put(packing: Packing, given: Sequence[Tensor | None], replaced: Mapping[int, Tensor]) -> list[Tensor | None]:
    """``given`` with some predictions replaced, each packed as it was."""
    whole = list(given)
    for k, part in replaced.items():
        before = whole[k]
        whole[k] = part if before is None else packing.put(before, part)
    return whole


def _sigma(sigma: Tensor) -> float:
    """The one sigma of a batch.

    Raises:
        InputError: samples have different ones.
    """
    values = [float(value) for value in sigma.flatten().tolist()]
    if not all(math.isclose(value, values[0]) for value in values):
        raise InputError(
            f"the samples of this batch are at different noise levels ({min(values):g} to {max(values):g})"
        )
    return values[0]
