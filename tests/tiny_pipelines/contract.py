"""What a tiny pipeline states about itself, and how a test runs and records one.

A tiny pipeline is a real diffusers pipeline with one or two random layers. Everything that a test needs to judge a
bridge is stated here a second time, from diffusers' source and not from ours: the order of the branches, the layout of
the channels, the formula of guidance.

diffusers is imported only inside functions, so that collecting tests costs nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

Formula = Literal["u + s (c - u)", "c + s (c - u)", "c + (s - 1) (c - u)"]
"""c and u are the conditional and the unconditional prediction, s is the pipeline's own scale argument."""


Lend: TypeAlias = "Callable[[TinyPipeline], Any]"
"""The fixture ``lend`` of the tests of the bridge."""


@dataclass(frozen=True, eq=False)
class Step:
    """What was seen of one sampling step. All tensors are copies."""

    networks: tuple[str, ...]
    """The component of every network call, in order: ("transformer", "transformer")."""
    outputs: tuple[Any, ...]
    """What every network call returned, before any forward hook changed it. A diffusers output object is a tuple."""
    model_output: Tensor
    """What the scheduler was given to make its step."""
    sample: Tensor
    """The latents that the scheduler was given."""
    timestep: Any
    """The timestep that the scheduler was given."""
    sigma: float | None
    """``scheduler.sigmas`` at this step; None where the scheduler has none."""
    steps: int
    """The number of sampling steps that were asked for."""
    batch: int
    """The number of prompts."""


def _model_output(step: Step) -> Tensor:
    return step.model_output


def _sample(step: Step) -> Tensor:
    return step.sample


def _first(pipe: Any, output: Any) -> Tensor:
    return output[0]


def _same_scale(step: Step, scale: float) -> float:
    return scale


@dataclass(frozen=True, eq=False)
class TinyPipeline:
    """One family: how its pipeline is made and called, and what it does in a step."""

    name: str
    """The family, such as "pixart-sigma"."""
    make: Callable[[], Any]
    """Makes a new pipeline: seeded, fp32, on the CPU, without text encoder. All its weights are shaken."""
    arguments: Callable[..., dict[str, Any]]
    """``arguments(steps=3, batch=1, seed=0, dtype=torch.float32)``: the keyword arguments of ``pipe(...)`` without the
    scale. The prompts are embeddings, and differ from each other and from the negative prompt."""
    branches: Callable[[Step], tuple[Tensor, Tensor]]
    """The conditional and the unconditional prediction of a guided step, from its ``outputs``. They have the layout,
    sign and dtype in which the pipeline joins them; the variance channels are dropped where the pipeline drops them."""
    to_channels: Callable[[Tensor], Tensor]
    """From that layout to (B, channels, ...), for the branches, for ``received`` and for ``noisy``."""
    channels: int
    """The number of latent channels as a user counts them: before any packing."""
    networks: tuple[str, ...] = ("transformer",)
    """The components that predict."""
    scale_argument: str | None = "guidance_scale"
    """The argument of ``pipe(...)`` that is s; None where s is ``pipe.guider.guidance_scale``."""
    scale: float = 4.0
    """A scale that guides."""
    scale_at: Callable[[Step, float], float] = _same_scale
    """The scale that the pipeline computes with in a step, from the one it was given."""
    unguided_scale: float = 1.0
    """The scale at which the pipeline runs the conditional branch alone."""
    formula: Formula = "u + s (c - u)"
    """How the pipeline joins the branches."""
    normalise: Callable[[Tensor, Tensor], Tensor] | None = None
    """``normalise(guided, cond)``: what the pipeline does by default to the guided prediction after the formula."""
    received: Callable[[Step], Tensor] = _model_output
    """The guided prediction that the pipeline went on with, in the layout of ``branches``. Most pipelines give it to
    the scheduler as it is."""
    noisy: Callable[[Step], Tensor] = _sample
    """The latents of the step, in the layout of ``branches``, one row a prompt."""
    tolerance: float = 0.0
    """How far ``received`` may be from the formula, relative to its norm. 0: they are equal bit by bit."""
    scheduler_calls: int = 1
    """How many times the pipeline calls ``scheduler.step`` in one sampling step. The last call counts."""
    latents: Callable[[Any, Any], Tensor] = _first
    """``latents(pipe, output)``: the final latents, from what ``pipe(..., return_dict=False)`` returned."""
    most: int = 2
    """How many prompts a call can take, as far as the tests go."""
    bf16: bool = True
    """Whether the pipeline runs in bfloat16 on a CPU."""
    more: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Facts about this family that only its own tests ask for."""

    def __str__(self) -> str:
        return self.name

    def guide(self, cond: Tensor, uncond: Tensor, scale: float | None = None) -> Tensor:
        """Full guidance as the pipeline computes it: its formula, then its own normalisation."""
        guided = join(self.formula, cond, uncond, self.scale if scale is None else scale)
        return guided if self.normalise is None else self.normalise(guided, cond)

    def guided(self, step: Step, scale: float | None = None) -> Tensor:
        """Full guidance of a recorded step; ``scale`` is the scale that the pipeline was given."""
        return self.guide(*self.branches(step), self.scale_at(step, self.scale if scale is None else scale))


def join(formula: Formula, cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """The guided prediction by a formula, rounded as the pipelines round it."""
    if formula == "u + s (c - u)":
        return uncond + scale * (cond - uncond)
    if formula == "c + s (c - u)":
        return cond + scale * (cond - uncond)
    return cond + (scale - 1) * (cond - uncond)


def run(
    tiny: TinyPipeline,
    pipe: Any,
    scale: float | None = None,
    *,
    steps: int = 3,
    batch: int = 1,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    **more: Any,
) -> Tensor:
    """The final latents, in the pipeline's own layout.

    Args:
        tiny: what the pipeline is.
        pipe: the pipeline.
        scale: the pipeline's own scale; None for the family's default.
        steps, batch, seed: the number of sampling steps, of prompts, and the seed of the noise.
        dtype: the dtype of the prompts' embeddings; None for that of the first network.
        more: further arguments of ``pipe(...)``.
    """
    dtype = dtype or getattr(pipe, tiny.networks[0]).dtype
    arguments = tiny.arguments(steps=steps, batch=batch, seed=seed, dtype=dtype)
    scale = tiny.scale if scale is None else scale
    if tiny.scale_argument is None:
        pipe.guider.guidance_scale = scale
    else:
        arguments[tiny.scale_argument] = scale
    return tiny.latents(pipe, pipe(**{**arguments, "return_dict": False, **more}))


@functools.cache
def own(tiny: TinyPipeline, *, steps: int = 3, batch: int = 1) -> Tensor:
    """``run`` of a pipeline that nothing was ever applied to, once a process."""
    return run(tiny, _untouched(tiny), steps=steps, batch=batch)


@functools.cache
def _untouched(tiny: TinyPipeline) -> Any:
    return tiny.make()


@functools.cache
def shared(tiny: TinyPipeline) -> Any:
    """The one pipeline of a family in this process, for tests that take from it what they put on it."""
    return tiny.make()


def record(
    tiny: TinyPipeline, pipe: Any, scale: float | None = None, *, steps: int = 3, batch: int = 1, **more: Any
) -> tuple[Tensor, list[Step]]:
    """``run``, with what was seen of every step.

    The networks' ``forward`` is wrapped on the instance, so that the recorded outputs are those before any forward
    hook. ``step`` is wrapped on the scheduler's class, because LTX-2 copies its scheduler; copies are not recorded.

    Returns:
        The final latents and the steps, in order.
    """
    calls: list[tuple[str, Any]] = []
    given: list[dict[str, Any]] = []
    seen: list[Step] = []
    scheduler = pipe.scheduler

    def saw_output(name: str, output: Any) -> None:
        calls.append((name, _copied(output)))

    def saw_step(arguments: dict[str, Any]) -> None:
        given.append(arguments)
        if len(given) % tiny.scheduler_calls:
            return
        sigmas = getattr(scheduler, "sigmas", None)
        seen.append(
            Step(
                networks=tuple(name for name, _ in calls),
                outputs=tuple(output for _, output in calls),
                sigma=None if sigmas is None else float(sigmas[len(seen)]),
                steps=steps,
                batch=batch,
                **arguments,
            )
        )
        calls.clear()

    with _watched_networks(tiny, pipe, saw_output), _watched_scheduler(scheduler, saw_step):
        latents = run(tiny, pipe, scale, steps=steps, batch=batch, **more)
    return latents, seen


@contextmanager
def _watched_networks(tiny: TinyPipeline, pipe: Any, saw: Callable[[str, Any], None]) -> Iterator[None]:
    def watched(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def call(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            saw(name, output)
            return output

        return call

    modules = {name: getattr(pipe, name) for name in tiny.networks}
    own = {name: module.__dict__.get("forward") for name, module in modules.items()}
    for name, module in modules.items():
        module.forward = watched(name, module.forward)
    try:
        yield
    finally:
        for name, module in modules.items():
            if own[name] is None:
                del module.forward
            else:
                module.forward = own[name]


@contextmanager
def _watched_scheduler(scheduler: Any, saw: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    kind = type(scheduler)
    own, inherited = kind.step, "step" not in kind.__dict__

    @functools.wraps(own)
    def step(self: Any, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self is scheduler:
            saw({"model_output": model_output.clone(), "timestep": _copied(timestep), "sample": sample.clone()})
        return own(self, model_output, timestep, sample, *args, **kwargs)

    kind.step = step
    try:
        yield
    finally:
        if inherited:
            del kind.step
        else:
            kind.step = own


def _copied(value: Any) -> Any:
    """The same with every tensor cloned; a mapping, such as a diffusers output object, as a tuple of its values."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, Mapping):
        return tuple(map(_copied, value.values()))
    if isinstance(value, tuple | list):
        return type(value)(map(_copied, value))
    return value


# what the families build their pipelines from

M = TypeVar("M", bound=nn.Module)


def shaken(build: Callable[[], M], std: float = 0.1, seed: int = 0) -> M:
    """A module with seeded weights, each of them shaken by normal noise, so that no zero-initialised layer is zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build().eval().requires_grad_(False)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if name.endswith("pad_token"):  # Lumina's and Z-Image's are uninitialised memory
                    parameter.zero_()
                parameter.add_(torch.randn_like(parameter), alpha=std)
    return module


def noise(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Seeded normal numbers, for embeddings."""
    return torch.randn(shape, generator=generator(seed)).to(dtype)


def generator(seed: int) -> torch.Generator:
    """A seeded generator on the CPU."""
    return torch.Generator().manual_seed(seed)


def in_dtype(pipe: Any, dtype: torch.dtype) -> Any:
    """The pipeline in a dtype as ``from_pretrained(torch_dtype=...)`` casts it: a network's
    ``_keep_in_fp32_modules`` stay in fp32. ``pipe.to`` would cast them too, and Kandinsky 5 would not run."""
    for module in pipe.components.values():
        kept = set(getattr(module, "_keep_in_fp32_modules", None) or ())
        if isinstance(module, nn.Module) and not kept:
            module.to(dtype)
        elif isinstance(module, nn.Module):
            for name, parameter in module.named_parameters():
                parameter.data = parameter.data.to(torch.float32 if kept.intersection(name.split(".")) else dtype)
    return pipe


def quiet(pipe: Any) -> Any:
    """The pipeline without its progress bar."""
    pipe.set_progress_bar_config(disable=True)
    return pipe
