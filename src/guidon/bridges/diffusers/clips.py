"""Clips of a diffusers pipeline through its own ``__call__``, with guidance of ours, and the decoding of latents.

Nothing here knows a single pipeline. What differs between them is in ``families.py`` and ``arguments.py``.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...core.errors import InputError, first_line, setting
from ...core.extras import require
from ...core.hashing import hash_files, hash_text
from ...core.limits import is_out_of_memory
from ...core.progress import OnStep
from ...core.reading import PIXELS, reading, regular_file
from ...core.warn import warn
from ...guidance import Guidance, Observe
from ...media import load_video
from .apply import apply, remove
from .arguments import ONE_CLIP, ONE_PICTURE, PICTURES, Arguments
from .calls import PipelineCall
from .families import Family

GATE = math.nextafter(2.0, 3.0)
"""The pipeline's own scale where a guidance of ours decides: high enough in every family that both branches run. Nobody
gives this number: under a guidance of the same number, ``apply`` would keep the pipeline's own formula."""
SCHEDULE = ("timesteps", "sigmas", "denoising_start", "denoising_end")
"""Arguments that say which steps a call makes, beside ``strength``."""
TRUE_SCALE = "true_cfg_scale"
"""The argument of pipelines that run the second branch only where a negative prompt is given."""


@dataclass(frozen=True)
class Asked:
    """What is asked of one call of a pipeline."""

    prompts: tuple[str, ...]
    """One for each clip; class numbers as text, where the pipeline takes classes."""
    negatives: tuple[str, ...] | None
    """One for each clip; None for what the pipeline does where it is given none."""
    guidance: Guidance
    steps: int
    seeds: tuple[int, ...]
    """Of each clip's noise."""
    call: Mapping[str, Any]
    """Further arguments of the call."""


@dataclass(frozen=True)
class Clips:
    """Runs one pipeline."""

    pipe: Any
    family: Family
    arguments: Arguments

    def makes_one(self, call: Mapping[str, Any]) -> bool:
        """Whether a call of these further arguments makes one clip, and no more."""
        return self._is(ONE_CLIP) and any(name in PICTURES for name in call)

    def _is(self, names: Sequence[str]) -> bool:
        """Whether the pipeline is of one of these classes."""
        return any(kind.__name__ in names for kind in type(self.pipe).__mro__)

    def frames(
        self, asked: Asked, *, observe: Observe | None = None, on_step: OnStep | None = None
    ) -> list[np.ndarray]:
        """The frames of some clips in one call, each uint8 (T, H, W, 3).

        Args:
            asked: what to make.
            observe: called with every guided step.
            on_step: called as ``on_step(done, total)`` after every step of the scheduler.

        Raises:
            InputError: the pipeline refuses its arguments or the guidance, or gives no finite frames.
            MemoryError, RuntimeError: there is not enough memory.
        """
        scheduler, done = self.pipe.scheduler, 0

        def after_step(given: Any) -> Any:
            nonlocal done
            # those of its schedule that the pipeline makes, where it says so: fewer from a picture
            total = getattr(self.pipe, "num_timesteps", None) or len(scheduler.timesteps)
            done = min(done + 1, total)  # some schedulers step twice at one timestep
            if on_step is not None:
                on_step(done, total)
            return given

        guided, generators = not asked.guidance.is_conditional, _generators(asked)
        with ExitStack() as stack:
            if guided:
                apply(self.pipe, asked.guidance, observe=observe)
            else:
                remove(self.pipe)
            stack.callback(remove, self.pipe)
            stack.enter_context(_stepping(scheduler, lambda sample, result: after_step(result), generators))
            output = self._call(asked, generators, scale=GATE if guided else 1 - self.family.offset)
        return _as_frames(output, len(asked.prompts))

    @contextmanager
    def decoder(self, asked: Asked) -> Iterator[Callable[[Tensor], Tensor]]:
        """A function from latents to pixels, through the pipeline's own decoding.

        The pipeline is called with one step, whose result is replaced by the latents; it then scales, unpacks and
        decodes them as it always does. All its modules but the autoencoder compute once: later calls get the outputs
        that they gave in the first.

        Args:
            asked: a request of one clip, as it was sampled.

        Yields:
            ``decode``: latents (B, C, ...) to video (B, 3, T, H, W), or images (B, 3, H, W), in [-1, 1].
        """
        # one step, from the start of the schedule to its end
        once = {name: value for name, value in asked.call.items() if name not in SCHEDULE}
        if "strength" in self.arguments:
            once["strength"] = 1.0
        single = Asked(
            asked.prompts[:1], asked.negatives and asked.negatives[:1], Guidance(1.0), 1, asked.seeds[:1], once
        )
        grid: list[tuple[int, ...] | None] = [None]
        wanted: list[Tensor] = []
        stepped = False
        networks = [part for name in self.family.networks if (part := getattr(self.pipe, name, None)) is not None]

        def see_grid(module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
            if self.family.layout.grid is not None:
                grid[0] = self.family.layout.grid(given)

        def replaced(sample: Tensor, result: Any) -> Any:
            nonlocal stepped
            stepped = True
            call = PipelineCall.running(networks[0], self.pipe)
            return _with_sample(result, self._packed(wanted[0], sample, grid[0], call))

        def decode(latents: Tensor) -> Tensor:
            nonlocal stepped
            clips = []
            for latent in latents:
                wanted[:], stepped = [latent[None]], False
                for memory in memories:
                    memory.rewind()
                clips.append(_as_pixels(self._call(single, _generators(single), scale=1 - self.family.offset)))
                if not stepped:
                    raise InputError(
                        f"{self.arguments.pipeline} makes no step in a call of one step, so that no latents of ours "
                        f"can be decoded: leave out of {setting('call')} what shortens its schedule"
                    )
            return torch.cat(clips)

        remove(self.pipe)
        with ExitStack() as stack:
            for network in networks:
                stack.callback(network.register_forward_pre_hook(see_grid, with_kwargs=True).remove)
            memories = [
                stack.enter_context(_computing_once(part))
                for name, part in self.pipe.components.items()
                if isinstance(part, nn.Module) and name != "vae"
            ]
            stack.enter_context(_stepping(self.pipe.scheduler, replaced))
            yield decode

    def _packed(self, latents: Tensor, sample: Tensor, grid: tuple[int, ...] | None, call: PipelineCall) -> Tensor:
        """Latents (1, C, ...) as the scheduler's: packed, and beside what an image gives."""
        layout = self.family.layout
        packs = layout.grid is None or sample.ndim == 3  # some pipelines unpack before the step
        whole = layout.unpack(sample, grid).clone() if packs else sample.clone()
        found = latents.to(whole)
        if found.ndim < whole.ndim and found[0].numel() == whole[0].numel():
            found = found.reshape(1, *whole.shape[1:])
        denoised = self.family.denoised(call)
        if whole[:, :, denoised].shape[1:] == found.shape[1:]:
            whole[:, :, denoised] = found
        elif whole.shape[1:] == found.shape[1:]:
            whole[:] = found
        elif whole[0].numel() == found[0].numel():  # such as the one frame of an image
            whole = found.reshape(1, *whole.shape[1:]).expand_as(whole)
        else:
            raise InputError(
                f"the latents of {self.arguments.pipeline} are {tuple(whole.shape)}, and {tuple(found.shape)} are "
                "to be shown: the influence on pixels cannot be measured in this pipeline"
            )
        return layout.pack(whole, sample, grid) if packs else whole

    def _call(self, asked: Asked, generators: list[torch.Generator], *, scale: float) -> tuple[Any, ...]:
        """What the pipeline returns."""
        single = len(asked.prompts) == 1
        given = {name: _picture(value) for name, value in asked.call.items()}
        if not single and not self._is(ONE_PICTURE):  # those of ip_adapter_image would be one for each adapter
            pictures = {name for name in PICTURES if given.get(name) is not None and name != "ip_adapter_image"}
            given |= {name: [given[name]] * len(asked.prompts) for name in pictures}
        takes = self.arguments.defaults
        if "prompt" in takes:
            given["prompt"] = asked.prompts[0] if single else list(asked.prompts)
        else:
            given["class_labels"] = [int(prompt) for prompt in asked.prompts]
        negatives = asked.negatives
        if negatives is None and self.family.argument == TRUE_SCALE and scale > 1:
            negatives = ("",) * len(asked.prompts)
        if negatives is not None and "negative_prompt" in takes:
            given["negative_prompt"] = negatives[0] if single else list(negatives)
        given |= {
            "num_inference_steps": asked.steps,
            "generator": generators[0] if single else generators,
            "output_type": "np",
            "return_dict": False,
        }
        with ExitStack() as stack:
            if "." in self.family.argument:
                stack.enter_context(_attribute(self.pipe, self.family.argument, scale))
            else:
                given[self.family.argument] = scale
            # what a pipeline draws without its generator, by another seed: else it would be the initial noise once more
            devices = [torch.device(self.pipe._execution_device)] if torch.cuda.is_available() else []
            stack.enter_context(torch.random.fork_rng([device for device in devices if device.type == "cuda"]))
            torch.manual_seed(_other_seed(asked.seeds[0]))
            stack.enter_context(_quiet(self.pipe))
            stack.enter_context(torch.no_grad())  # as pipelines run by themselves
            try:
                output = self.pipe(**given)
            except InputError:
                raise
            except (ValueError, TypeError, IndexError, NotImplementedError, RuntimeError) as error:
                if is_out_of_memory(error):
                    raise
                raise InputError(f"{self.arguments.pipeline} cannot make this: {first_line(error)}") from error
        flagged = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if isinstance(flagged, list) and any(flag is True for flag in flagged):
            warn(
                f"the safety checker of {self.arguments.pipeline} has replaced {flagged.count(True)} images by black: "
                "leave them out, or load the pipeline with safety_checker=None"
            )
        return output if isinstance(output, tuple) else (output,)


def _generators(asked: Asked) -> list[torch.Generator]:
    """What draws the noise of each clip, in a call from its start."""
    return [torch.Generator().manual_seed(seed) for seed in asked.seeds]


def _other_seed(seed: int) -> int:
    """A seed derived from another, whose noise is not that one's."""
    return int(hash_text(f"{seed} without the generator")[:16], 16) >> 1


def _picture(value: Any) -> Any:
    """The picture of a file; any other argument as it is.

    Raises:
        InputError: it is no picture, or not the one that the request was made with.
    """
    if not isinstance(value, dict) or value.keys() != {"file", "sha256"} or not isinstance(value["file"], str):
        return value
    path = regular_file(Path(value["file"]), "a picture", 4 * PIXELS.value)
    library: Any = require("PIL.Image", "a picture in a call", "video", package="pillow")
    with reading(path, "a picture"):
        if hash_files(path) != value["sha256"]:
            raise InputError(f"{path} is not the picture that this was made with: give the same file")
    frames, _ = load_video(path)
    if len(frames) > 1:
        raise InputError(f"{path} holds {len(frames)} frames: give a picture")
    return library.fromarray(frames[0])


# around a call


@contextmanager
def _stepping(
    scheduler: Any, after: Callable[[Tensor, Any], Any], generators: Sequence[torch.Generator] = ()
) -> Iterator[None]:
    """Let ``after(sample, result)`` see and replace what the scheduler's ``step`` returns.

    Where the pipeline gives its scheduler no generator, every row is given that of its clip: noise drawn for a whole
    batch would depend on the batch. The rows are the clips, in DiT twice.

    The object gets a class of its own, so that other objects, of another thread too, step as they did. Some pipelines
    copy their scheduler; the copies have that class, and are left alone.
    """
    kind: Any = type(scheduler)
    names = list(inspect.signature(kind.step).parameters)[1:]
    place = names.index("sample") if "sample" in names else 2  # CogVideoX's DPM takes it as the fifth

    @wraps(kind.step)  # CogVideoX's and others look at the parameters of ``step`` to know what to give it
    def step(self: Any, *args: Any, **given: Any) -> Any:
        if self is not scheduler:
            return kind.step(self, *args, **given)
        sample = given["sample"] if "sample" in given else args[place]
        if generators and "generator" in names and given.get("generator") is None:
            given["generator"] = [generators[row % len(generators)] for row in range(len(sample))]
        return after(sample, kind.step(self, *args, **given))

    scheduler.__class__ = type(kind.__name__, (kind,), {"step": step, "__module__": kind.__module__})
    try:
        yield
    finally:
        scheduler.__class__ = kind


class _Memory:
    """The outputs of a module's calls in a run, in order."""

    def __init__(self, compute: Callable[..., Any]) -> None:
        self.compute = compute
        self.kept: list[Any] = []
        self.next = 0

    def rewind(self) -> None:
        """Begin with the first call."""
        self.next = 0

    def __call__(self, *args: Any, **given: Any) -> Any:
        if self.next == len(self.kept):
            self.kept.append(self.compute(*args, **given))
        self.next += 1
        return self.kept[self.next - 1]


@contextmanager
def _computing_once(module: nn.Module) -> Iterator[_Memory]:
    """Let a module give in its k-th call after ``rewind`` what it gave in its k-th call the first time.

    ``forward`` is left alone: the offloading of accelerate takes it off and puts it on in every run.
    """
    memory = _Memory(module._call_impl)
    module._call_impl = memory  # type: ignore[method-assign]
    try:
        yield memory
    finally:
        del module._call_impl


@contextmanager
def _attribute(pipe: Any, path: str, value: Any) -> Iterator[None]:
    """Set an attribute of a component, "guider.guidance_scale", for the block."""
    *names, last = path.split(".")
    owner = pipe
    for name in names:
        owner = getattr(owner, name)
    before = getattr(owner, last)
    setattr(owner, last, value)
    try:
        yield
    finally:
        setattr(owner, last, before)


class _Once(logging.Filter):
    """Shows a message once, however many clips it is about."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        new = text not in self.seen
        self.seen.add(text)
        return new


_ONCE = _Once()


@contextmanager
def _quiet(pipe: Any) -> Iterator[None]:
    """No progress bar of the pipeline's own, and each of its messages once."""
    handlers = logging.getLogger("diffusers").handlers
    for handler in handlers:
        handler.addFilter(_ONCE)
    before = getattr(pipe, "_progress_bar_config", None)
    pipe.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(_ONCE)
        if before is None:
            del pipe._progress_bar_config
        else:
            pipe._progress_bar_config = before


# what a pipeline and a scheduler return


def _with_sample(result: Any, sample: Tensor) -> Any:
    """The result of a scheduler's step with another sample."""
    if isinstance(result, tuple):
        return (sample.to(result[0]), *result[1:])
    if isinstance(result, Tensor):
        return sample.to(result)
    result["prev_sample"] = sample.to(result.prev_sample)
    return result


def _values(output: tuple[Any, ...]) -> np.ndarray:
    """The frames that a pipeline returns, (B, T, H, W, 3) or (B, H, W, 3): floats in [0, 1], or 8-bit."""
    found = output[0]
    found = found.float().cpu().numpy() if isinstance(found, Tensor) else np.asarray(found)
    if found.ndim not in (4, 5) or found.shape[-1] != 3:
        raise InputError(f"the pipeline returns {found.dtype} {found.shape}, expected frames with colours last")
    if found.dtype != np.uint8 and not np.isfinite(found).all():
        raise InputError("the pipeline gives frames that are not finite: try another precision, or a lower scale")
    return found


def _as_frames(output: tuple[Any, ...], clips: int) -> list[np.ndarray]:
    """The frames of each clip, uint8 (T, H, W, 3)."""
    found = _values(output)
    if found.ndim == 4:
        found = found[:, None] if len(found) == clips else found[None]
    if len(found) != clips:
        raise InputError(f"the pipeline returns {len(found)} clips for {clips} prompts")
    if found.dtype != np.uint8:
        found = (found.clip(0, 1) * 255).round().astype(np.uint8)
    return list(found)


def _as_pixels(output: tuple[Any, ...]) -> Tensor:
    """One clip as (1, 3, T, H, W), or (1, 3, H, W), in [-1, 1]."""
    found = _values(output)
    values = torch.from_numpy(found.astype(np.float32) / 255 if found.dtype == np.uint8 else found.astype(np.float32))
    return values.movedim(-1, 1) * 2 - 1
