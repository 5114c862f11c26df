"""What happens to the branches of a step between someone else's network and someone else's formula.

The hook sees the predictions of both branches before the pipeline combines them. It changes them in one of two ways:

    mask  The unguided channels of uncond become those of cond. There the pipeline's formula gives cond to the bit,
          whatever the formula is; the other channels are the pipeline's own.
    rule  Both branches become the guided prediction g. Every formula maps (g, g) to g, so any rule, scale per channel
          and timing holds exactly. Where the pipeline needs cond for something else, uncond alone is changed: it is
          solved for, so that the formula gives g up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ...core.errors import InputError, first_line, setting
from ...core.limits import is_out_of_memory
from ...diffusion import NoiseLevel, Parameterization, split_prediction
from ...guidance import START, BlockSkip, ChannelChoice, ChannelScale, Guidance, GuidedStep, Memory, Observe
from ...guidance.rules import SkipGuidance
from ...guidance.timing import CONSTANT
from .calls import PipelineCall, in_weak_call, position, weak_call
from .families import Family, family_of
from .layouts import Layout
from .levels import DETERMINISTIC, RunLevels

Output = TypeVar("Output")
STACKS = ("blocks", "transformer_blocks", "visual_transformer_blocks", "layers")
"""Under which names networks of diffusers keep their transformer blocks."""


def is_plain(guidance: Guidance) -> bool:
    """Whether a guidance is uncond + s (cond - uncond) with one s throughout, on some of the channels."""
    return guidance.rule.is_plain and guidance.timing == CONSTANT and isinstance(guidance.scale, float)


def blocks_of(network: Any) -> nn.ModuleList:
    """The transformer blocks of a network of diffusers.

    Raises:
        InputError: it has none that are known.
    """
    for name in STACKS:
        found = getattr(network, name, None)
        if isinstance(found, nn.ModuleList) and len(found):
            return found
    raise InputError(
        f"{setting('guidance')} stg skips transformer blocks, and {type(network).__name__} has no "
        f"{' or '.join(STACKS)}: choose another rule"
    )


@dataclass(eq=False)
class _Seen:
    """The first call of a network on some latents. It is kept until the network sees others."""

    network: Any
    noisy: Tensor
    version: int | None
    """Of ``noisy``: how often it was changed in place. None for a copy."""
    timestep: Any
    """What the network was given."""
    cond: Tensor | None
    """The conditional prediction, until the unconditional one has come."""
    weak: Tensor | None
    """The weak prediction for the prompt, where the rule needs one."""

    def is_of(self, network: Any, noisy: Tensor, timestep: Any) -> bool:
        """Whether a call is of the same network on the same latents at the same time."""
        if isinstance(timestep, Tensor) and isinstance(self.timestep, Tensor):
            if timestep is not self.timestep and not torch.equal(timestep, self.timestep):
                return False
        elif timestep is not self.timestep and timestep != self.timestep:
            return False
        if network is not self.network or noisy.shape != self.noisy.shape or noisy.dtype != self.noisy.dtype:
            return False
        if self.version is not None and self.noisy._version != self.version:
            return False
        return noisy is self.noisy or torch.equal(noisy, self.noisy)


@dataclass(frozen=True, eq=False)
class _Run:
    """One call of a network inside a running pipeline."""

    call: PipelineCall
    family: Family
    network: Any
    number: int
    """Which of ``Family.networks`` it is."""
    noisy: Tensor
    """The latents that the network is given, (B or 2B, ...)."""
    prediction: Tensor
    timestep: Any
    """What the network is given."""
    arguments: tuple[Any, ...]
    """The network's positional arguments."""
    given: Mapping[str, Any]
    """The network's keyword arguments."""
    index: int
    """Number of the sampling step."""
    course: RunLevels

    @property
    def name(self) -> str:
        """The pipeline's class."""
        return type(self.call.pipeline).__name__


@dataclass(frozen=True, eq=False)
class _Masked:
    """What is wanted of a step: the pipeline's own formula, on another uncond."""

    uncond: Tensor


@dataclass(frozen=True, eq=False)
class _Guided:
    """What is wanted of a step: that the pipeline's formula gives this prediction."""

    prediction: Tensor


class GuidanceHook:
    """One application of guidance to a pipeline. It carries the rule's memory through a run.

    Args:
        pipe: gives the pipeline, or None once it is gone.
        guidances: one for each denoiser, in the order of ``Family.networks``; the last one holds for those that
            follow. None keeps the pipeline's own guidance, on ``channels``.
        channels: see ``guidances``.
        observe: called with every guided step.
        family: how the pipeline guides; None to look it up.
        weak: the network that gives the weak prediction of "autoguidance".
    """

    def __init__(
        self,
        pipe: Callable[[], Any],
        guidances: Sequence[Guidance] | None,
        channels: ChannelChoice,
        observe: Observe | None,
        family: Family | None,
        weak: nn.Module | None = None,
    ) -> None:
        self.pipe, self.guidances, self.channels, self.observe, self.family = pipe, guidances, channels, observe, family
        self.weak = weak
        self.timesteps: Tensor | None = None
        self.course: RunLevels | None = None
        self.index = 0
        self.calls = 0
        self.memories: dict[int, Memory] = {}
        self.paired = False
        self.size = 0
        self.seen: _Seen | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> GuidanceHook:
        """The same guidance without what is of a run: a copy of a pipeline may run beside it."""
        weak = deepcopy(self.weak, memo)
        return GuidanceHook(self.pipe, self.guidances, self.channels, self.observe, self.family, weak)

    def __reduce__(self) -> Any:
        return _without_pipeline, (self.guidances, self.channels, self.family, self.weak)

    def _begin(self) -> None:
        """Forget the run before."""
        self.index = self.calls = self.size = 0
        self.memories = {}  # one a guidance: what a rule keeps is of the channels that it guides
        self.paired, self.seen = False, None

    def after_network(self, network: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """The forward hook: what takes the place of the network's output, or None to leave it."""
        if in_weak_call():  # a third call, of our own
            return None
        call = PipelineCall.running(network, self.pipe())
        if call.pipeline is None:  # the pipeline is gone, and with it what was asked of it
            return None
        family = self.family or family_of(type(call.pipeline))
        timestep = args[1] if len(args) > 1 else kwargs.get("timestep")
        time = call.variable("t")  # of the loop: some networks are given it in another unit
        index, course = self._count(
            call.pipeline.scheduler, time if isinstance(time, Tensor | float | int) else timestep
        )
        number = position([getattr(call.pipeline, name, None) for name in family.networks], network)
        noisy, prediction = _stacked(_noisy(args, kwargs)), _stacked(_prediction(output))
        run = _Run(call, family, network, number, noisy, prediction, timestep, args, kwargs, index, course)
        changed = self._second_call(run) if family.order == "two calls" else self._doubled_batch(run)
        return None if changed is None else _with_prediction(output, changed)

    def _count(self, scheduler: Any, timestep: Tensor | float | None) -> tuple[int, RunLevels]:
        """The number of the present step, and the run's levels."""
        if self.course is None or scheduler.timesteps is not self.timesteps:  # a scheduler makes new ones for each run
            self.timesteps, self.course = scheduler.timesteps, RunLevels.of(scheduler)
            self._begin()
        index = self.course.step(scheduler, timestep)
        if index < self.index:  # a loop of the user's own that begins again on the same timesteps
            self._begin()
        self.index = index
        return index, self.course

    # the two branches of a step

    def _doubled_batch(self, run: _Run) -> Tensor | None:
        """Both branches in one batch: the halves of its latents are equal. Other calls are a branch alone."""
        other = self.paired and len(run.noisy) != self.size
        alone = run.family.guides(run.call) is False or len(run.noisy) % 2 == 1 or other
        if alone or not torch.equal(*run.noisy.chunk(2)):
            self._expect_pair(run)
            return None
        self.paired, self.size = True, len(run.noisy)
        cond, uncond = run.prediction.chunk(2)
        swapped = run.family.order == "uncond, cond"
        if swapped:
            cond, uncond = uncond, cond
        noisy = run.noisy.chunk(2)[0]
        both = self._weak(run, cond, noisy)
        weak = None if both is None else both.chunk(2)[1 if swapped else 0]
        wanted = self._wanted(run, cond, uncond, noisy, weak)
        if wanted is None:
            return None
        branches = self._branches(run, cond, wanted)
        return torch.cat(branches[::-1] if swapped else branches)

    def _second_call(self, run: _Run) -> Tensor | None:
        """The branches in two calls on the same latents, cond first. A third call belongs to another guidance."""
        seen = self.seen
        if seen is None or not seen.is_of(run.network, run.noisy, run.timestep):
            # a new step; the one before had no second call, or this pipeline makes none
            if seen is not None or run.family.guides(run.call) is False:
                self._expect_pair(run)
            version = None if run.noisy.is_inference() else run.noisy._version
            noisy = run.noisy.clone() if version is None else run.noisy
            # a copy: it is changed later, while a cache or a CUDA graph may own the network's output
            cond = run.prediction.clone()
            weak = None if run.family.guides(run.call) is False else self._weak(run, cond, run.noisy)
            self.seen = _Seen(run.network, noisy, version, run.timestep, cond, weak)
            return cond
        if seen.cond is None:
            return None
        self.paired = True
        cond, seen.cond = seen.cond, None
        weak, seen.weak = seen.weak, None
        wanted = self._wanted(run, cond, run.prediction, run.noisy, weak)
        if wanted is None:
            return None
        changed, uncond = self._branches(run, cond, wanted)
        if changed is not cond:
            cond.copy_(changed)  # the pipeline holds this tensor
        return uncond

    def _weak(self, run: _Run, cond: Tensor, noisy: Tensor) -> Tensor | None:
        """The weak prediction of a call, of all its rows; None where this step needs none.

        The network that runs, or the weak one, is called once more with what it was given. The hooks of others on it,
        such as those that move it to a device, act in this call too.
        """
        guidance = self._guidance(run)
        if guidance is None or not guidance.needs_weak:
            return None
        channels = run.family.layout.channels(_latents(run, cond, noisy))
        memory = self._memory(run)
        if not guidance.acts(run.course.levels[run.index], memory, channels):
            return None
        if getattr(run.network, "is_cache_enabled", False):
            raise InputError(
                f"{setting('guidance')} {guidance.rule.name} runs the network once more in every step, which its cache "
                "would take for a step: call disable_cache() on the network"
            )
        rule = guidance.rule
        with weak_call():
            if isinstance(rule, SkipGuidance):
                stack = blocks_of(run.network)
                with BlockSkip([stack[number] for number in rule.numbers(len(stack))]).rows(slice(None)):
                    output = run.network(*run.arguments, **run.given)
            else:
                output = self._of_weak_network(run)
        weak = _stacked(_prediction(output))
        if weak.shape != run.prediction.shape:
            raise InputError(
                f"the weak network predicts {tuple(weak.shape)}, the pipeline's {tuple(run.prediction.shape)}: give "
                "one of the same latents"
            )
        # a copy: a cache or a CUDA graph may own the output
        return weak.clone()

    def _of_weak_network(self, run: _Run) -> Any:
        """What the weak network gives where the pipeline's own has run."""
        assert self.weak is not None  # apply has asked for it
        try:
            return self.weak(*run.arguments, **run.given)
        except (TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, InputError) or is_out_of_memory(error):
                raise
            raise InputError(
                f"the weak network cannot be called as that of {run.name} is ({first_line(error)}): give one of the "
                "same class, dtype and device"
            ) from error

    def _branches(self, run: _Run, cond: Tensor, wanted: _Masked | _Guided) -> tuple[Tensor, Tensor]:
        """cond and uncond with which the pipeline's formula gives what is wanted; cond itself where it stays."""
        if isinstance(wanted, _Masked):
            return cond, wanted.uncond
        if not run.family.solved(run.call):
            return wanted.prediction, wanted.prediction
        scale = run.family.scale(run.call)
        if scale is None or scale == 1:  # cond + (s - 1) (cond - uncond) is solved for uncond
            raise InputError(
                f"{run.name} guides by {run.family.argument}={1 - run.family.offset:g}, or does not say by what: give "
                "it a higher one"
            )
        return cond, (cond.float() - (wanted.prediction.float() - cond.float()) / (scale - 1)).to(cond.dtype)

    def _expect_pair(self, run: _Run) -> None:
        """Refuse a run that has no unconditional branch, unless none is needed."""
        guidance = self._guidance(run)
        needed = self.channels.indices != () if guidance is None else not guidance.is_conditional
        if not self.paired and not run.family.known and run.call.guides:  # also where no channel is to be guided
            raise InputError(
                f"the guidance of {run.name} is not known, and it does not give both branches the same latents: give "
                "family=Family(...) of guidon.bridges.diffusers.families"
            )
        if needed and not self.paired:
            raise InputError(
                f"{run.name} runs no unconditional branch, so that there is nothing to guide: {_unconditional(run)}"
            )

    def _guidance(self, run: _Run) -> Guidance | None:
        """The guidance of a network; None for the pipeline's own."""
        return None if self.guidances is None else self.guidances[self._which(run)]

    def _which(self, run: _Run) -> int:
        """The number of the guidance of a network."""
        return min(run.number, len(self.guidances or ()) - 1)

    def _memory(self, run: _Run) -> Memory:
        """What the guidance of a network carries into this step; calls are counted over all networks."""
        return replace(self.memories.get(self._which(run), START), calls=self.calls)

    # what the branches become

    def _wanted(
        self, run: _Run, cond: Tensor, uncond: Tensor, noisy: Tensor, weak: Tensor | None = None
    ) -> _Masked | _Guided | None:
        """What the pipeline's formula is to give; None for what it gives by itself."""
        family, layout, guidance = run.family, run.family.layout, self._guidance(run)
        latents = _latents(run, cond, noisy)
        channels = layout.channels(latents)
        choice = self.channels if guidance is None else guidance.scales_for(channels).choice
        chosen, theirs = choice.indices_for(channels, "channels"), family.guided.indices_for(channels)
        rescale = _rescale(run.call)
        mixes = family.mixes(run.call) or (f"guidance_rescale={rescale:g}" if rescale else None)

        # mask: the pipeline's own guidance, on some of the channels that it guides. One guidance for both denoisers is
        # theirs if it has the first one's number
        both = self.guidances is None or len(self.guidances) == 1
        number = family.argument_value(run.call, 0 if both else run.number)
        own = guidance is None or (is_plain(guidance) and guidance.scale == number)
        if own and (chosen == theirs or not chosen or (mixes is None and set(chosen) <= set(theirs))):
            self._show_own(run, choice, cond, uncond, latents)
            return None if chosen == theirs else _Masked(_masked(layout, chosen, cond, uncond))
        why = f"{mixes} mixes channels" if mixes else f"it guides channels={family.guided.text!r} alone"
        if guidance is None:
            raise InputError(
                f"{run.name} cannot guide channels={choice.text!r} by itself, as {why}: give guidon.Guidance(scale, "
                f"channels={choice.text!r}) instead"
            )
        if not family.known:
            fix = f"as {why}: guide all channels" if own else f"if its {family.argument} is another: give it the same"
            raise InputError(
                f"the guidance of {run.name} is not known, so that it cannot take scale {guidance.scale} on "
                f"channels={choice.text!r}, {fix}"
            )

        # rule: any other guidance
        if rescale and (guidance.rule.name != "rescale" or family.solved(run.call)):
            raise InputError(
                f"guidance_rescale={rescale:g} of {run.name} cannot rescale the guided channels alone: give 0, and "
                f'Guidance(..., rule="rescale:phi={rescale:g}"), which does'
            )
        if reason := family.refuses(run.call):
            raise InputError(reason)
        level, parameterization = self._level(run, guidance)
        memory = self._memory(run)
        grid = layout.grid(run.given) if layout.grid else None
        x, seen_cond, seen_uncond, *others = _as_latents(
            run, grid, latents, cond, uncond, *(() if weak is None else (weak,))
        )
        seen_weak = others[0] if others else None
        if guidance.acts(level, memory, channels):
            scales = guidance.scale_at(level, memory, channels)
            self._show(level, scales, x, seen_cond, seen_uncond, parameterization)
        wanted, memory = guidance.combine(
            seen_cond, seen_uncond, x, level, memory, weak=seen_weak, parameterization=parameterization
        )
        self.memories[self._which(run)], self.calls = memory, memory.calls
        # back to the pipeline's layout, beside what is not denoised
        guided = cond.clone()
        part = _cut(guided, latents, layout)
        whole = layout.unpack(part, grid).clone()
        whole[:, :, family.denoised(run.call)] = (_sign(run) * wanted).to(whole.dtype)
        part.copy_(layout.pack(whole, part, grid))
        return _Guided(guided)

    def _level(self, run: _Run, guidance: Guidance) -> tuple[NoiseLevel, Parameterization]:
        """The level of a step, and what the predictions stand for.

        Raises:
            InputError: the rule needs to know more of them than the scheduler tells.
        """
        level, parameterization = run.course.levels[run.index], run.course.parameterization
        scheduler = type(run.call.pipeline.scheduler).__name__
        if guidance.rule.name == "cfg++" and (level.next is None or run.call.variable("eta")):
            raise InputError(
                f"{setting('guidance')} cfg++ needs a scheduler that adds no noise, with eta 0, and {scheduler} is "
                f"in use: give one of {', '.join(DETERMINISTIC)}"
            )
        if parameterization is None and guidance.rule.space != "own":
            raise InputError(
                f"{setting('guidance')} {guidance.rule.name} works on {guidance.rule.space}, and the noise levels of "
                f"{scheduler} are not known: give a rule that works on predictions, such as cfg or rescale"
            )
        return level, parameterization or "eps"

    # the observer

    def _show_own(self, run: _Run, choice: ChannelChoice, cond: Tensor, uncond: Tensor, latents: Tensor) -> None:
        """Show a step of the pipeline's own guidance."""
        if self.observe is None:
            return
        scale = run.family.scale(run.call)
        if scale is None:
            raise InputError(
                f"{run.name} does not say the scale of every step, so it cannot be traced: give a guidance"
            )
        layout = run.family.layout
        scales = ChannelScale.parse(scale, choice, channels=layout.channels(latents), names=("scale", "channels"))
        level, parameterization = run.course.levels[run.index], run.course.parameterization or "eps"
        grid = layout.grid(run.given) if layout.grid else None
        x, cond, uncond = _as_latents(run, grid, latents, cond, uncond)
        self._show(level, scales, x, cond, uncond, parameterization)

    def _show(
        self,
        level: NoiseLevel,
        scale: ChannelScale,
        x: Tensor,
        cond: Tensor,
        uncond: Tensor,
        parameterization: Parameterization,
    ) -> None:
        if self.observe is not None:
            cond, uncond = (split_prediction(branch, x.shape[1])[0] for branch in (cond, uncond))
            self.observe(GuidedStep(level, scale, cond, uncond, x, parameterization))


def _unconditional(run: _Run) -> str:
    """What to do for an unconditional branch in a run that has none."""
    distilled = run.call.attribute("config.is_distilled")  # Flux 2 Klein
    if distilled or getattr(run.network, "config", {}).get("time_cond_proj_dim") is not None:  # U-Nets of LCM
        return "its network is distilled to need none, so load one that is not"
    if start := run.call.attribute("guider.config.start"):
        return f"its guider begins at {start:g} of the steps, so give it start=0, and the guidance a timing"
    return (
        f"give its own {run.family.argument} a number above {run.family.above:g}, and a negative prompt if it wants one"
    )


# a pipeline's tensors


def _without_pipeline(
    guidances: Sequence[Guidance] | None, channels: ChannelChoice, family: Family | None, weak: nn.Module | None
) -> GuidanceHook:
    """A hook from its pickle. It acts in the calls of a pipeline; a loop of the user's own needs ``apply`` again."""
    return GuidanceHook(lambda: None, guidances, channels, None, family, weak)


def _latents(run: _Run, cond: Tensor, noisy: Tensor) -> Tensor:
    """The part of the network's input that is noisy latents: neither condition channels nor reference tokens."""
    layout, running = run.family.layout, run.call.variable("latents")
    if not run.family.known:
        _refuse_unless_channels_first(run, noisy)
    if layout.grid is not None and isinstance(running, Tensor) and running.ndim == 3:
        noisy = noisy.narrow(1, 0, min(noisy.shape[1], running.shape[1]))
    channels, predicted = layout.channels(noisy), layout.channels(cond)
    config = getattr(getattr(run.call.pipeline, "vae", None), "config", None)
    coded = getattr(config, "latent_channels", getattr(config, "z_dim", None))
    if not run.family.known and coded is not None and predicted not in (coded, 2 * coded):  # such as patches
        raise InputError(
            f"{run.name} is not among the pipelines whose guidance is known, and its network predicts {predicted} "
            f"features for {coded} latent channels: give family=Family(..., layout=...)"
        )
    if predicted < channels:
        return layout.first(noisy, predicted)
    if predicted not in (channels, 2 * channels):
        raise InputError(
            f"the network of {run.name} predicts {predicted} channels for {channels}: expected {channels} or "
            f"{2 * channels}; give family=Family(..., layout=...) if its channels lie elsewhere"
        )
    return noisy


def _refuse_unless_channels_first(run: _Run, noisy: Tensor) -> None:
    """Refuse an unknown pipeline whose channels may lie elsewhere."""
    config = getattr(run.network, "config", {})
    known = {config.get("in_channels"), config.get("out_channels")} - {None}
    ambiguous = noisy.ndim == 5 and noisy.shape[2] in known  # (B, T, C, H, W)
    if noisy.ndim not in (4, 5) or noisy.shape[1] not in known or ambiguous:
        raise InputError(
            f"{run.name} is not among the pipelines whose guidance is known, and which axis of its latents "
            f"{tuple(noisy.shape)} holds the channels cannot be told: give family=Family(..., layout=...)"
        )


def _as_latents(run: _Run, grid: tuple[int, ...] | None, latents: Tensor, *branches: Tensor) -> list[Tensor]:
    """What is denoised of latents and branches, channels second; the branches in the scheduler's sign."""
    layout, sign, denoised = run.family.layout, _sign(run), run.family.denoised(run.call)
    x, *seen = (layout.unpack(_cut(part, latents, layout), grid)[:, :, denoised] for part in (latents, *branches))
    return [x, *(sign * branch for branch in seen)]


def _sign(run: _Run) -> int:
    return run.family.sign * run.course.sign


def _cut(prediction: Tensor, latents: Tensor, layout: Layout) -> Tensor:
    """A view of a prediction, as long as the latents where tokens are packed."""
    return prediction if layout.grid is None else prediction.narrow(1, 0, latents.shape[1])


def _masked(layout: Layout, chosen: Sequence[int], cond: Tensor, uncond: Tensor) -> Tensor:
    """uncond, whose unguided channels are those of cond. A learned variance is not guided."""
    axis = layout.axis % uncond.ndim
    guided = torch.zeros(uncond.shape[axis], dtype=torch.bool, device=uncond.device)
    guided.view(-1, layout.patch**2)[list(chosen)] = True
    return torch.where(guided.view(-1, *[1] * (uncond.ndim - 1 - axis)), uncond, cond)


def _noisy(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The latents that a network is given."""
    if args:
        return args[0]
    return kwargs["hidden_states"] if "hidden_states" in kwargs else kwargs["sample"]


def _prediction(output: Any) -> Any:
    """What a network predicts: the first of a tuple, the ``sample`` of a model output."""
    return output[0] if isinstance(output, tuple) else getattr(output, "sample", output)


def _with_prediction(output: Output, prediction: Tensor) -> Output:
    """The same output with another prediction."""
    found = _prediction(output)
    new: Any = list(prediction.unbind()) if isinstance(found, list) else prediction
    if isinstance(output, tuple):
        return (new, *output[1:])  # type: ignore[return-value]
    if isinstance(output, Tensor):
        return new
    return replace(output, sample=new)  # type: ignore[type-var]


def _stacked(given: Tensor | list[Tensor]) -> Tensor:
    """A batch; some networks take and give a list with one entry a sample."""
    return torch.stack(given) if isinstance(given, list) else given


def _rescale(call: PipelineCall) -> float:
    """By how much a call rescales its guided prediction over all channels."""
    return float(call.variable("guidance_rescale") or call.attribute("_guidance_rescale") or 0)
