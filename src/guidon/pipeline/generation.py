"""The clips of a complete request, in the memory that there is: denoised batch by batch, then decoded one by one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Generator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..core.devices import DecodeDtype, autocast, torch_dtype
from ..core.errors import InputError, setting
from ..core.limits import attempt
from ..core.progress import OnStep, part_of
from ..core.ranks import Ranks
from ..core.warn import warn
from ..diffusion import FlowPath, NoiseLevel, NoiseSchedule, parse_spacing
from ..guidance import (
    BlockSkip,
    Condition,
    Guidance,
    GuidanceTrace,
    GuidedDenoiser,
    RotatedGuidance,
    WeakModel,
    WithoutFrames,
    random_rotation,
)
from ..guidance.combine import START
from ..guidance.rules import SkipGuidance
from ..models.family import Preset
from ..models.model import Model
from ..models.network import IMAGE_FPS, ClipFacts, Network, ToldOfGuidance
from ..models.registry import find_replay
from ..models.stages import Stage
from ..models.text.prompts import Prompts
from ..models.vae import Autoencoder
from ..request import Computation, Request
from ..samplers import (
    WHOLE,
    AfterStep,
    CheckedDenoiser,
    LegacyNoise,
    SampleNoise,
    replayed_noise,
    sample_consistency,
    sample_ddim,
    sample_ddpm,
    sample_dpm_solver,
    sample_dpm_solver_sde,
    sample_euler,
    sample_heun,
    sample_unipc,
)
from .compilation import Compilation, shapes_of
from .kept import Kept, hold, put_back
from .sizes import clip_size, latent_shape
from .steering import Interrupted, OnX0, Watched

T = TypeVar("T")


@dataclass(frozen=True)
class Denoised:
    """The latents of one clip, and how they were computed."""

    prompt: int
    """The number of its prompt."""
    sample: int
    """Its sample index."""
    latent: Tensor
    """(1, C, ...)."""
    batch: int
    """Rows of its batch."""
    sequential: bool
    """Whether the branches ran one after the other."""


@dataclass(frozen=True)
class Generation:
    """What stays the same from batch to batch."""

    preset: Preset[Any]
    model: Model
    device: torch.device
    request: Request
    prompts: Prompts
    """Those of the request, encoded."""
    trace: GuidanceTrace | None = None
    """Collects what guidance did. All the clips are then one batch."""
    latents: Tensor | None = None
    """The noise to start from, (clips, C, ...); None to draw it."""
    after_step: AfterStep | None = None
    """Called after every step. All the clips are then one batch."""
    weak_prompts: Prompts | None = None
    """The prompts as the weak model reads them; None where guidance needs none."""
    kept: Sequence[Kept] | None = None
    """The frames of each clip that are not made from noise; None where all are."""
    loop: int = 0
    """Which part of a long clip this is. Each part has noise of its own."""
    compilation: Compilation | None = None
    """Compiles the networks; None to run them as they are."""
    team: Ranks | None = None
    """The ranks that share the branches of these clips; None where this process has all of them."""
    on_x0: OnX0 | None = None
    """Called with the clean latents that every prediction stands for."""

    @property
    def in_one_batch(self) -> bool:
        """Whether what is asked for needs the clips in the batch that was asked for."""
        return self.request.exact is not None or self.trace is not None or self.after_step is not None

    def denoise(
        self, clips: Sequence[tuple[int, int]], like: Computation, on_step: OnStep | None
    ) -> tuple[list[Denoised], int]:
        """The latents of clips (prompt, sample), batch by batch, and the size of the last batches.

        Where memory runs out, it goes on in a way that needs less.
        """
        request, trace = self.request, self.trace
        # A clip that was made beside others is made beside copies of itself: the number of rows alone decides the bits.
        copies = like.batch if len(clips) == 1 and request.exact is None else 1
        size = request.batch_size or like.batch
        sequential, empty_trace = like.sequential, trace is not None and not len(trace)
        waiting, done, guided = list(clips), list[Denoised](), False
        replay = self._replay()
        dtype = torch_dtype(request.dtype)
        graphs = nullcontext() if self.compilation is None else self.compilation.on()
        with self._networks(dtype) as (network, weak), graphs:
            while waiting:
                batch = waiting[:size] * copies
                numbers = [prompt for prompt, _ in batch]
                noise = replay or SampleNoise(
                    *zip(*(request.noise_of(*clip) for clip in batch), strict=True), loop=self.loop
                )
                before, after = -(-len(done) // size), -(-len(waiting) // size)  # batches that are done, and to do
                report = part_of(on_step, before, before + after)
                rows = len(batch) // copies
                own = slice(len(done), len(done) + rows)
                start = None if self.latents is None else torch.cat([self.latents[own]] * copies)
                kept = None if self.kept is None else [*self.kept[own]] * copies
                found = attempt(
                    partial(self._sample, network, weak, numbers, rows, noise, start, kept, sequential, report)
                )
                if found is not None:
                    latents, acted = found
                    if trace is not None and copies > 1:
                        trace.keep_samples(rows)
                    made = zip(waiting[:size], latents[:rows], strict=True)
                    done += [Denoised(*clip, each[None], len(batch), sequential) for clip, each in made]
                    guided, waiting = guided or acted, waiting[size:]
                    continue
                # Memory ran out: do it again with fewer rows, then with one branch at a time.
                if trace is not None and empty_trace:
                    trace.forget()
                if len(batch) > 1 and (copies > 1 or not self.in_one_batch):
                    size, copies = max(1, rows // 2), 1
                elif not sequential and not request.guidance.is_conditional:
                    sequential = True
                    if replay is not None:  # its noise goes on from batch to batch: begin again
                        waiting, done, replay = list(clips), [], self._replay()
                else:
                    what = "one clip" if len(batch) == 1 else f"{len(batch)} clips, which must be one batch,"
                    rather = "free memory" if self.device.type == "cpu" else f"give {setting('offload')} blocks"
                    raise InputError(
                        f"the memory of {self.device} is full where {what} and one branch is denoised at a time: lower "
                        f"{setting('size')} or {setting('frames')}, or {rather}"
                    )
            del network, weak  # so that their stages can free them
        leads = self.team is None or self.team.first  # the others do not know of a callback that stopped the run
        if leads and not guided and not request.guidance.is_conditional and not request.distilled:
            warn(
                f"no step was guided: none of the {request.steps} steps falls inside the timing "
                f"{request.guidance.timing.text}: widen it or take more steps"
            )
        if not all(bool(clip.latent.isfinite().all()) for clip in done):
            raise InputError(
                f"sampling gave numbers that are not finite ({request.sampler}, {request.steps} steps, "
                f"{request.dtype}): try more steps, a lower scale, or fp32"
            )
        return done, size

    def _network(self) -> Stage[[torch.dtype], Network[Any]]:
        """The stage of the network that the request asks for."""
        if not self.request.distilled:
            return self.model.network
        assert self.model.distilled is not None  # the planner refuses it otherwise
        return self.model.distilled

    def _replay(self) -> LegacyNoise | None:
        """The noise of an exact replay, from its beginning."""
        request = self.request
        if request.exact is None:
            return None
        return replayed_noise(request.noise_of(0, request.samples[0])[0], request.exact_noise, self.device)

    @contextmanager
    def _networks(self, dtype: torch.dtype) -> Generator[tuple[Network[Any], Network[Any] | None]]:
        """The network and the weak one, if there is one. If one rank of a team cannot load them, none goes on."""
        with ExitStack() as held:

            def load() -> tuple[Network[Any], Network[Any] | None]:
                return held.enter_context(self._network().in_use(dtype)), held.enter_context(self._weak_network(dtype))

            yield self._agreed(load)

    def _agreed(self, work: Callable[[], T]) -> T:
        """What the work gives on this rank, once it is done on all ranks of the team; its error if it fails on one."""
        return work() if self.team is None else self.team.agreed(work)

    @contextmanager
    def _weak_network(self, dtype: torch.dtype) -> Generator[Network[Any] | None]:
        """The weak model's network; None where guidance asks none."""
        if self.weak_prompts is None or self.model.weak is None:
            yield None
        else:
            with self.model.weak.network.in_use(dtype) as network:
                yield network

    def _weak(
        self, network: Network[Any], weak: Network[Any] | None, numbers: Sequence[int]
    ) -> WeakModel[Any] | BlockSkip | None:
        """Where the weak prediction comes from, if the rule needs one."""
        rule = self.request.guidance.rule
        if not rule.needs_weak:
            return None
        if isinstance(rule, SkipGuidance):
            parts: Sequence[Any] = getattr(network, "networks", (network,))
            stacks: list[Sequence[nn.Module]] = [blocks for part in parts if (blocks := getattr(part, "blocks", None))]
            if not stacks:
                raise InputError(f"{setting('guidance')} stg skips transformer blocks, and this network has none")
            return BlockSkip([stack[number] for stack in stacks for number in rule.numbers(len(stack))])
        if weak is None or self.weak_prompts is None:
            raise InputError(f"{setting('guidance')} {rule.name} needs a weaker model: give {setting('weak')}")
        condition = weak.prepare(*self.weak_prompts.rows(numbers, self.device))
        return WeakModel(self._called(weak), condition)

    def _called(self, network: Network[Any]) -> Callable[[Tensor, NoiseLevel, Any], Tensor]:
        """A network that was told of the clip, if it needs to be, and that is called as in the original of a replay."""
        frames, height, width = clip_size(self.model.facts, self.request, network.latent_shape)
        told = getattr(network, "told", None)
        called: Callable[[Tensor, NoiseLevel, Any], Tensor] = network
        if told is not None:
            called = told(ClipFacts(height, width, frames, IMAGE_FPS if frames == 1 else self.preset.source_fps))
        if self.compilation is not None:
            called = self.compilation.called(called)
        return _with_rounded_timesteps(called, network.dtype) if self.request.exact else called

    def _imageless(
        self, network: Network[Any], called: Callable[..., Tensor], uncond: Any
    ) -> WithoutFrames[Any] | Condition | None:
        """The branch without the image, if the rule needs one."""
        if not self.request.guidance.needs_imageless:
            return None
        if hasattr(uncond, "without_image"):
            return uncond.without_image()
        if not getattr(network, "reads_frame_mask", False):
            raise InputError(
                f"{setting('guidance')} {self.request.guidance.rule.name} needs a network that is told which frames "
                f"are given, and that of {self.preset.name} is not: choose another rule"
            )
        return WithoutFrames(called, uncond)

    def _sample(
        self,
        network: Network[Any],
        weak: Network[Any] | None,
        numbers: Sequence[int],
        rows: int,
        noise: LegacyNoise | SampleNoise,
        start: Tensor | None,
        kept: Sequence[Kept] | None,
        sequential: bool,
        on_step: OnStep | None,
    ) -> tuple[Tensor, bool]:
        """Sample one batch: latents (B, C, ...), and whether guidance acted, or a callback stopped the run before.

        The first ``rows`` are the clips, which a caller's functions see; the others are copies of them.
        """
        request = self.request
        # the noise levels and the noise to start from; an exact replay has its own precisions
        shape = latent_shape(self.preset, self.model.facts, request, network.latent_shape)
        schedule = self.schedule(network)
        exact = find_replay(request.exact) if request.exact else None
        # noise is also drawn where it is given: later draws stay the same
        if exact and exact.noise_in_dtype and isinstance(noise, LegacyNoise):
            x = noise.initial(shape, self.device, len(numbers), network.dtype)
        else:
            x = noise.initial(shape, self.device, len(numbers))
        if start is not None:
            x = start.to(self.device, x.dtype if exact else start.dtype)
        if exact and exact.single_precision and isinstance(schedule, NoiseSchedule):
            schedule = schedule.single_precision()

        # from noise to latents, for which the other ranks of a team give predictions alone
        make = self.denoiser if self.compilation is None else partial(self._compiled, self.compilation, x)
        denoiser = self._agreed(partial(make, network, weak, numbers, sequential))
        if self.team is not None and not self.team.first:
            return x, denoiser.serve(self.device) > 0
        with denoiser.leading():
            placed: dict[str, Any] = {"steps": request.steps, "spacing": parse_spacing(request.spacing or "uniform")}
            samplers: dict[str | None, Callable[..., Tensor]] = {
                "ddpm": sample_ddpm,
                "ddim": partial(sample_ddim, eta=request.eta),
                "dpm-solver": partial(sample_dpm_solver, **placed),
                "dpm-solver-sde": partial(sample_dpm_solver_sde, **placed),
                "dpm-solver-3m-sde": partial(sample_dpm_solver_sde, order=3, **placed),
                "consistency": sample_consistency,
                "unipc": partial(sample_unipc, **placed),
                "euler": sample_euler,
                "heun": sample_heun,
            }
            after_step = self.after_step
            if after_step is not None and rows < len(x):
                after_step = _without_copies(after_step, rows)
            options = {"process": self.model.process, "on_step": on_step, "after_step": after_step}
            held: CheckedDenoiser = denoiser
            if kept is not None:
                asked = [each for each in (network, weak) if each is not None]
                knows = all(getattr(each, "reads_frame_mask", False) for each in asked)
                held, options["frames"] = hold(
                    denoiser, kept, knows, self.model.process.parameterization, self.device, denoiser.conditional
                )
            if self.on_x0 is not None:
                held = Watched(held, self.on_x0, self.model.process.parameterization, rows)
            stopped = False
            try:
                latents = samplers[request.sampler](held, schedule, x, noise, **options)
            except Interrupted as stop:
                latents, stopped = stop.latents, True
        if kept is not None:
            latents = put_back(latents, kept[: len(latents)])
        return latents, stopped or denoiser.memory.guided > 0

    def _compiled(
        self,
        compilation: Compilation,
        x: Tensor,
        network: Network[Any],
        weak: Network[Any] | None,
        numbers: Sequence[int],
        sequential: bool,
    ) -> GuidedDenoiser[Any]:
        """``denoiser``, of networks that are compiled if that is possible. The ranks of a team check nothing."""
        networks = [each for each in (network, weak) if each is not None]
        compilation.compile(networks)
        denoiser = self.denoiser(network, weak, numbers, sequential)
        if self.team is not None or not compilation.works:
            return denoiser
        conditions = shapes_of([*denoiser.branches.values(), denoiser.weak, denoiser.imageless])
        forms = self._forms(network, x.shape[1])
        key = network.dtype, x.shape, sequential, self.request.guidance, conditions, frozenset(forms)
        steps = partial(self._steps, network, weak, numbers, sequential, x, forms.values())
        compilation.check(networks, key, steps)
        return denoiser if compilation.works else self.denoiser(network, weak, numbers, sequential)

    def _forms(self, network: Network[Any], channels: int) -> dict[tuple[bool, object], NoiseLevel]:
        """A level of every form of a step that the run has: guidance acts or not, and of several networks which one."""
        schedule, found = self.schedule(network), dict[tuple[bool, object], NoiseLevel]()
        if self.request.sampler not in WHOLE:  # which levels its steps are at is its own choice
            schedule = schedule.respaced(min(self.request.steps, self.model.facts.timesteps))
        network_at = getattr(network, "network_at", lambda _: network)
        for level in schedule.levels:
            found.setdefault((self.request.guidance.acts(level, START, channels), network_at(level)), level)
        return found

    def _steps(
        self,
        network: Network[Any],
        weak: Network[Any] | None,
        numbers: Sequence[int],
        sequential: bool,
        x: Tensor,
        levels: Collection[NoiseLevel],
    ) -> list[Tensor]:
        """Predictions at some levels."""
        denoiser = replace(self, trace=None).denoiser(network, weak, numbers, sequential)
        return [denoiser(x, level) for level in levels]

    def denoiser(
        self, network: Network[Any], weak: Network[Any] | None, numbers: Sequence[int], sequential: bool
    ) -> GuidedDenoiser[Any]:
        """The network under the request's guidance, for a batch of clips with prompts of these numbers."""
        request, prompts, trace = self.request, self.prompts, self.trace
        # the conditions of the branches; the null caption is read under the prompts' mask, as in the originals
        features, mask = prompts.rows(numbers, self.device)
        cond, negative = network.prepare(features, mask), None
        if isinstance(network, ToldOfGuidance):  # so guidance does not act on branches
            scales = torch.tensor(request.guidance.scales_for(self.model.facts.channels).scales)
            return GuidedDenoiser(
                network.under(scales), Guidance(1.0), cond,
                parameterization=self.model.process.parameterization, steps=request.steps,
            )  # fmt: skip
        if prompts.negative is not None:
            of_all = not isinstance(request.negative_prompt, tuple)
            negative = network.prepare(*prompts.negative.rows([0 if of_all else n for n in numbers], self.device))
        if request.guidance.is_conditional or not request.guidance.needs_uncond:
            uncond = None
        elif negative is None or request.guidance.needs_negative:
            uncond = network.null(len(numbers), mask)
        else:
            uncond, negative = negative, None

        # guidance, in a study's rotated channels if asked
        guidance, observe = request.guidance, trace
        if request.rotation is not None:
            guidance = RotatedGuidance(
                guidance, random_rotation(self.model.facts.channels, request.rotation).to(self.device)
            )
            observe = guidance.observer(trace) if trace is not None else None
        called = self._called(network)
        return GuidedDenoiser(
            called, guidance, cond, uncond, negative=negative, weak=self._weak(network, weak, numbers),
            imageless=self._imageless(network, called, uncond), batched=not sequential, ranks=self.team,
            sparing=request.sparing, observe=observe, parameterization=self.model.process.parameterization,
            steps=request.steps,
        )  # fmt: skip

    def schedule(self, network: Network[Any]) -> NoiseSchedule | FlowPath:
        """The noise levels of the run."""
        request, schedule = self.request, self.model.schedule
        if isinstance(schedule, FlowPath):  # its levels may depend on the size and length of the clip
            frames, height, width = clip_size(self.model.facts, request, network.latent_shape)
            schedule = schedule.for_clip(height, width, frames, network.dtype if request.exact else None)
        if isinstance(schedule, NoiseSchedule) and request.sampler not in WHOLE:  # it chooses levels between its steps
            return schedule
        if request.spacing is not None:
            return schedule.spaced_by(request.steps, parse_spacing(request.spacing))
        return schedule.respaced(request.steps)


def _without_copies(after_step: AfterStep, rows: int) -> AfterStep:
    """``after_step`` of the first ``rows``. The other rows, which are copies, become copies of its result."""

    def call(step: int, level: NoiseLevel, x: Tensor) -> Tensor:
        return torch.cat([after_step(step, level, x[:rows])] * (len(x) // rows))

    return call


def _with_rounded_timesteps(
    network: Callable[[Tensor, NoiseLevel, Any], Tensor], dtype: torch.dtype
) -> Callable[[Tensor, NoiseLevel, Any], Tensor]:
    """The network as the originals call it: timesteps rounded to its precision, which matters above 256 in bf16."""

    def call(x: Tensor, level: NoiseLevel, condition: Any) -> Tensor:
        timestep = float(torch.as_tensor(level.timestep).to(dtype))
        return network(x, dataclasses.replace(level, timestep=timestep), condition)

    return call


def decode(
    stage: Stage[[], Autoencoder],
    latents: Sequence[Tensor],
    frames: int | None,
    micro_batch: int,
    device: torch.device,
    dtype: DecodeDtype = "fp32",
) -> tuple[list[np.ndarray], int]:
    """The frames of clips, each decoded alone, and how many frames were decoded together at the least.

    Args:
        stage: the autoencoder.
        latents: those of each clip, (1, C, T', h, w), or (1, C, h, w) of images.
        frames: the length of a clip; None for images, and where the latents tell it.
        micro_batch: frames that are decoded together, while memory is enough.
        device: where the autoencoder is.
        dtype: what it computes in.
    """
    clips: list[np.ndarray] = []
    if not latents:
        return clips, micro_batch
    with stage.in_use() as vae:
        while len(clips) < len(latents):
            latent = latents[len(clips)].float()
            with autocast(dtype, device):
                decoded = attempt(partial(_decode_clip, vae, latent, frames, micro_batch))
            if decoded is not None:
                clips.append(decoded)
            elif micro_batch > 1:
                length = frames or (latent.shape[2] if latent.ndim == 5 else 1)
                micro_batch = max(1, min(micro_batch, length) // 2)
            else:
                raise InputError(
                    f"the memory of {device} is full even where one frame is decoded at a time: lower "
                    f"{setting('size')} or {setting('frames')}, or free memory"
                )
        del vae  # so that its stage can free it
    return clips, micro_batch


def _decode_clip(vae: Autoencoder, latent: Tensor, frames: int | None, micro_batch: int) -> np.ndarray:
    """The latents of one clip (1, C, T', h, w), or image (1, C, h, w), to uint8 frames (T, H, W, 3)."""
    decoded = vae.decode(latent, micro_batch, frames)[0].float()
    if not bool(decoded.isfinite().all()):
        raise InputError("the autoencoder gave numbers that are not finite: look at its weights, or lower the scale")
    if decoded.ndim == 3:
        decoded = decoded[:, None]
    parts = [((part + 1) * 127.5).round().to(torch.uint8).cpu() for part in decoded.split(micro_batch, dim=1)]
    return torch.cat(parts, dim=1).permute(1, 2, 3, 0).numpy()


def warn_of_fallback(asked: Computation, size: int, found: Sequence[Computation], closeness: str) -> None:
    """Say in one line how the clips were computed, if memory was too small for what was asked."""
    changes: list[str] = []
    if size < asked.batch:
        changes.append(f"{size} denoised together in place of {asked.batch}")
    if any(clip.sequential for clip in found) and not asked.sequential:
        changes.append("one branch after the other")
    if found[0].micro_batch < asked.micro_batch:
        changes.append(f"{found[0].micro_batch} frames decoded at a time")
    if changes:
        warn(
            f"memory ran out, so the clips were made in smaller parts: {', '.join(changes)}; they are the same up to "
            f"{closeness}"
        )
