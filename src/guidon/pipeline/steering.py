"""What a caller in Python does to latents: gives the noise to start from, and changes them after a step.

No JSON can hold either. A request says that there was one, so that nothing that it reads back runs without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.errors import InputError, quoted, setting
from ..core.hashing import hash_tensors
from ..diffusion import NoiseLevel, Parameterization, convert, split_prediction
from ..request import Request
from ..samplers import CheckedDenoiser

StepCallback = Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor] | None]
"""``callback(pipe, step, timestep, {"latents": x})``, as in diffusers. What it returns may hold other ``latents``."""


OnX0 = Callable[[Tensor], None]
"""``on_x0(x0)`` with the clean latents (B, C, ...), fp32, that a prediction stands for."""


class Interrupted(Exception):
    """The callback stopped the run. ``latents`` are those of the last step."""

    def __init__(self, latents: Tensor) -> None:
        super().__init__("the callback stopped the run")
        self.latents = latents


class Steering:
    """A callback as the samplers' ``after_step``.

    Args:
        pipe: what the callback gets as its first argument. The run stops after a step at which its ``_interrupt`` is
            true, as in diffusers.
        callback: see ``StepCallback``.
    """

    def __init__(self, pipe: Any, callback: StepCallback) -> None:
        if not callable(callback):
            raise InputError(
                f"callback_on_step_end is {quoted(callback)}: give a function of the pipeline, the step, "
                "the timestep and a dict of the latents"
            )
        check_inputs(getattr(callback, "tensor_inputs", ["latents"]))
        self.pipe, self.callback = pipe, callback
        self.changed = False
        """Whether the callback changed the latents or stopped the run."""

    def __call__(self, step: int, level: NoiseLevel, x: Tensor) -> Tensor:
        """The latents that the callback makes of x (B, C, ...).

        Raises:
            InputError: it returned what cannot be latents.
            Interrupted: it stopped the run.
        """
        kept = x.clone()  # it may also change x in place
        returned = self.callback(self.pipe, step, torch.as_tensor(level.timestep), {"latents": x})
        latents = x if returned is None else self._latents(returned, x)
        self.changed |= not torch.equal(latents, kept)
        if self.pipe._interrupt:
            self.changed = True
            raise Interrupted(latents)
        return latents

    def _latents(self, returned: Any, x: Tensor) -> Tensor:
        """The latents of the dict that the callback returned; x where it holds none."""
        name = "callback_on_step_end"
        if not isinstance(returned, dict):
            raise InputError(f"{name} returned {quoted(returned)}: return a dict of latents, or nothing")
        check_inputs(returned)
        latents = returned.get("latents", x)
        if not isinstance(latents, Tensor) or latents.shape != x.shape:
            found = tuple(latents.shape) if isinstance(latents, Tensor) else f"{quoted(latents)}"
            raise InputError(f"{name} returned the latents {found}: return a tensor of the shape {tuple(x.shape)}")
        return latents.to(x)


class Watched:
    """A denoiser that shows what each of its predictions says of the finished clip. It predicts the same.

    Args:
        denoiser: what predicts.
        on_x0: called after every prediction.
        parameterization: what ``denoiser`` predicts.
        rows: how many rows of a batch are shown, the first ones.
    """

    def __init__(self, denoiser: CheckedDenoiser, on_x0: OnX0, parameterization: Parameterization, rows: int) -> None:
        self.denoiser, self.on_x0, self.rows = denoiser, on_x0, rows
        self.parameterization: Parameterization = parameterization

    def __call__(self, x: Tensor, level: NoiseLevel, /) -> Tensor:
        """The prediction of the denoiser."""
        prediction = self.denoiser(x, level)
        own, _ = split_prediction(prediction, x.shape[1])
        self.on_x0(convert(own, x, level, self.parameterization, "x0")[: self.rows])
        return prediction

    def finish(self) -> None:
        """See ``CheckedDenoiser``."""
        self.denoiser.finish()


def check_inputs(names: Any) -> None:
    """Refuse names of tensors that a callback cannot have here."""
    for name in names or ():
        if name != "latents":
            raise InputError(f"a callback may see and change 'latents' only, not {name!r}: guidance is set by a timing")


def start_from(request: Request, latents: Any, shape: Sequence[int]) -> tuple[Request, Tensor | None]:
    """The noise that a caller gives to start from, as fp32 (clips, C, ...), and the request that says so.

    Args:
        request: what to make.
        latents: what was given; None to draw the noise.
        shape: that of one clip's latents.

    Raises:
        InputError: it is no tensor, has another shape, is not finite, or is not what the request was made with.
    """
    if latents is None:
        if request.latents is not None:
            raise InputError(
                "the first noise of this clip was given in Python, and its manifest holds a hash alone: give the same "
                "tensor as latents"
            )
        return request, None
    if request.exact is not None:
        raise InputError(f"{setting('exact')} {request.exact!r} draws the original's noise: leave out latents")
    wanted = (len(request.prompts) * len(request.samples), *shape)
    if not isinstance(latents, Tensor):
        raise InputError(f"latents is of type {type(latents).__name__}: give a tensor {wanted}, one row for each clip")
    if latents.shape != wanted or not latents.is_floating_point():
        kind = str(latents.dtype).removeprefix("torch.")
        given = f"latents is {kind} {tuple(latents.shape)}"
        raise InputError(f"{given}: give noise of the shape {wanted}, one row for each clip")
    if not bool(latents.isfinite().all()):
        raise InputError("latents holds values that are not finite: give standard normal noise")
    latents = latents.detach().float()
    hashes = tuple(hash_tensors({"latents": clip.cpu().contiguous()}) for clip in latents)
    if request.latents not in (None, hashes):
        raise InputError("latents are not those that the request was made with: give the same tensor")
    return request.model_copy(update={"latents": hashes}), latents
