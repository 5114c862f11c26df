"""How a pipeline is called: every keyword with its type, and the call that was meant."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, cast, get_args

from ..core.errors import InputError, nearest, quoted, setting
from ..core.fields import documented
from ..media.conditioning import frames_in
from ..request import Choices, Request, is_list
from ..samplers import CLIPS_TOGETHER
from .diffusers_names import own_names
from .steering import check_inputs

if TYPE_CHECKING:
    import torch

    from ..core.progress import OnStep
    from ..core.ranks import Ranks
    from ..guidance import GuidanceTrace
    from ..media import Video
    from ..media.layouts import DiffusersOutput
    from .steering import OnX0, StepCallback

OutputType = Literal["np", "pt", "pil", "latent"]
documented(Choices)  # here, because a command line that is refused should not wait for it

Prompted: TypeAlias = "str | Sequence[str] | None"


@documented
class RunOptions(TypedDict, total=False):
    """How clips are made. Pixels change by at most 1/255, but for ``latents``, the callback, and ``exact``."""

    batch_size: int | None
    """How many clips are denoised together, 8 if it is left out. It changes memory; with ``exact``, the samples."""
    sequential: bool | None
    """Run guidance's branches one after the other, in the memory of one branch."""
    on_step: OnStep | None
    """Called as ``on_step(done, total)`` after every denoising step."""
    trace: GuidanceTrace | None
    """Collects what guidance did. All the clips must then fit one batch."""
    latents: torch.Tensor | None
    """The noise to start from, (clips, C, T, H, W), or (clips, C, H, W) of images. Noise at later steps is the seed's.

    The manifest holds its hash alone, so that only the same tensor reproduces the clip.
    """
    callback_on_step_end: StepCallback | None
    """Called as ``callback(pipe, step, timestep, {"latents": x})`` after every denoising step, as in diffusers.

    Sampling goes on with the ``latents`` of the dict that it returns, and ends where it has set ``pipe._interrupt``.
    All the clips must fit one batch. If it changed latents, only the same callback reproduces the clip.
    """
    on_x0: OnX0 | None
    """Called as ``on_x0(x0)`` after every prediction, with the clean latents (B, C, ...) it stands for: a preview."""
    ranks: Ranks | None
    """The processes of ``guidon.Ranks.join()`` that share the work. All of them make this call, and get its result.

    Batches are divided among them, and the branches of a clip where there are fewer clips than ranks. Clips are those
    of one process. A trace is filled on the first rank.
    """
    reference_frames: Sequence[Any] | None
    """Frames that a request names by their hash alone, because they were given in Python. A call has them itself."""


@documented
class ClipOptions(Choices, RunOptions, total=False):
    """The keywords of a call that gives one ``Video``, with those of diffusers."""

    force: bool
    """Sample a prompt that the model cannot follow, too, with a warning."""
    guidance_scale: float | None
    """cfg_scale."""
    num_inference_steps: int | None
    """steps."""
    num_frames: int | None
    """frames."""
    image: Any
    """first_frame."""
    last_image: Any
    """last_frame."""
    video: Any
    """edit."""
    strength: float | None
    """edit_strength."""
    height: int | None
    """size, together with width."""
    width: int | None
    """size, together with height."""
    generator: torch.Generator | Sequence[torch.Generator] | None
    """A seed is drawn from it for each prompt; from several, one from each."""
    callback_on_step_end_tensor_inputs: Sequence[str] | None
    """["latents"] at the most."""


@documented
class CallOptions(ClipOptions, total=False):
    """The keywords of any call."""

    num_samples: int | None
    """Samples of each prompt."""
    num_videos_per_prompt: int | None
    """num_samples."""
    num_images_per_prompt: int | None
    """num_samples."""
    prompt: str | Sequence[str] | None
    """prompts."""
    return_dict: bool | None
    """False for a tuple of one element."""


@dataclass(frozen=True)
class Call:
    """A call, in guidon's names."""

    prompts: tuple[str, ...]
    num_samples: int
    choices: Choices
    run: RunOptions
    single: bool
    """Whether one prompt was given as a text, and one sample."""
    return_dict: bool
    force: bool

    @property
    def given_frames(self) -> list[Any]:
        """The pictures and videos that were given as frames, not as paths."""
        return frames_in(self.choices)

    @property
    def batch_size(self) -> int:
        """How many clips are denoised together."""
        size = self.run.get("batch_size")
        return CLIPS_TOGETHER if size is None else size

    def form(self, made: list[Video] | DiffusersOutput) -> Any:
        """What was made, in the form that the call asks for."""
        if not self.return_dict:
            return (made if isinstance(made, list) else made[0],)
        return made[0] if isinstance(made, list) and self.single else made


def read_call(prompts: Any, output_type: Any, options: CallOptions) -> Call:
    """The call, in guidon's names.

    Raises:
        InputError: a name does not exist, a setting is given twice, or a value is of another type.
    """
    given: dict[str, Any] = {name: value for name, value in {"prompts": prompts}.items() if value is not None}
    given |= options
    if output_type is not None and output_type not in get_args(OutputType):
        raise InputError(
            f"output_type {quoted(output_type)} does not exist{nearest(str(output_type), get_args(OutputType))}"
        )
    return_dict = given.pop("return_dict", None)
    check_inputs(given.pop("callback_on_step_end_tensor_inputs", None))
    run_names = tuple(RunOptions.__annotations__)
    texts = given.get("prompts", given.get("prompt"))
    own = own_names(given, ("prompts", "num_samples", "force", *run_names), texts)
    samples, force = own.pop("num_samples", None), own.pop("force", False)
    num_samples = 1 if samples is None else read_count("num_samples", samples)
    return Call(
        prompts=read_prompts(own.pop("prompts", None)),
        num_samples=num_samples,
        choices=cast("Choices", {name: value for name, value in own.items() if name not in run_names}),
        run=cast("RunOptions", {name: value for name, value in own.items() if name in run_names}),
        single=isinstance(texts, str) and num_samples == 1,
        return_dict=return_dict is None or bool(return_dict),
        force=bool(force),
    )


def read_plan(prompts: Any, samples: Any, batch_size: Any, choices: Choices) -> dict[str, Any]:
    """What a plan is made of, in guidon's names.

    Raises:
        InputError: as ``read_call``.
    """
    texts, own = read_prompts(prompts), own_names(choices, prompts=prompts)
    return {
        "prompts": texts, "samples": read_samples(samples), "batch_size": read_count("batch_size", batch_size), **own
    }  # fmt: skip


def check_run(request: Any, options: RunOptions) -> None:
    """Refuse a run whose request or options are of another type.

    Raises:
        InputError: the message says what was given.
    """
    from ..core.ranks import Ranks
    from ..guidance import GuidanceTrace

    if not isinstance(request, Request):
        if isinstance(request, str | Path | Mapping):
            raise InputError(
                "generate takes a Request: give a manifest to pipe.reproduce; from prompts, make one with pipe.plan"
            )
        raise InputError(f"the request is {quoted(request)}: make one with pipe.plan(prompts)")
    for name, value in options.items():
        if name not in RunOptions.__annotations__:
            raise InputError(f"{name!r} does not exist{nearest(name, RunOptions.__annotations__)}")
        if value is None:
            continue
        if name == "batch_size":
            read_count(name, value)
        elif name == "sequential" and not isinstance(value, bool):
            raise InputError(f"{setting(name)} is {quoted(value)}: give True or False")
        elif name == "on_step" and not callable(value):
            raise InputError(f"{setting(name)} is {quoted(value)}: give a function of the steps done and their number")
        elif name == "on_x0" and not callable(value):
            raise InputError(f"{setting(name)} is {quoted(value)}: give a function of the clean latents of a step")
        elif name == "ranks" and not isinstance(value, Ranks):
            raise InputError(f"{name} is {quoted(value)}: give guidon.Ranks.join()")
        elif name == "trace" and not isinstance(value, GuidanceTrace):
            raise InputError(f"{setting(name)} is {quoted(value)}: give a GuidanceTrace")
    if request.loops > 1:
        for name in ("trace", "latents", "callback_on_step_end"):
            if options.get(name) is not None:
                raise InputError(
                    f"{name} is for one clip, {setting('loop')} {request.loops} makes several: leave it out"
                )
    if request.callback and options.get("callback_on_step_end") is None:
        raise InputError(
            "a callback changed the latents of this clip, which no manifest holds: give the same callback as "
            "callback_on_step_end"
        )


def read_prompts(prompts: Any) -> tuple[str, ...]:
    """One prompt or several, as a tuple.

    Raises:
        InputError: there is none, or one is no text.
    """
    texts = tuple(prompts) if is_list(prompts) else (prompts,)
    if prompts is None or not texts:
        raise InputError("no prompt was given: say what to show, as in pipe('a red circle moves left')")
    for text in texts:
        if not isinstance(text, str):
            raise InputError(f"a prompt is {quoted(text)}: give a text (a class number is a text too, such as '207')")
    return texts


def read_samples(samples: Any) -> Sequence[int]:
    """Sample indices.

    Raises:
        InputError: they are no list of numbers.
    """
    if not is_list(samples):
        raise InputError(f"samples are {quoted(samples)}: give sample indices, such as range(3)")
    return samples


def read_count(name: str, value: Any) -> int:
    """A whole number of at least 1.

    Raises:
        InputError: it is another number, or none.
    """
    try:
        count = operator.index(value)
    except TypeError:
        raise InputError(f"{setting(name)} is {quoted(value)}: give a whole number of at least 1") from None
    if count < 1 or isinstance(value, bool):
        raise InputError(f"{setting(name)} is {quoted(value)}: give at least 1")
    return count
