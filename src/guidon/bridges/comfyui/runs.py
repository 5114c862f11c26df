"""What a node remembers of sampling runs: the rule's memory while one lasts, and the trace of those that are over.

ComfyUI caches the outputs of nodes between prompts, and drops models before latents. A trace is therefore found by the
latent that the run made, not by the model object or by the time at which it is asked for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...core.errors import InputError
from ...guidance import START, Memory

_KEPT = 64  # finished runs; a run is some kilobytes
_SAMPLED = 512  # values of a latent by which it is known again
_SAME = 0.02  # of their standard deviation: above what storing a latent in bfloat16 changes, far below another seed


@dataclass(eq=False)
class Run:
    """One run of a sampler, call by call. A call is one evaluation of the model; some samplers make several a step."""

    settings: str
    """The settings of the node that saw it, as text."""
    calls: int = 0
    """Calls so far."""
    memory: Memory = START
    """What the rule carries to the next call."""
    sigmas: list[float] = field(default_factory=list[float])
    """ComfyUI's sigma of every traced call."""
    differences: list[Tensor] = field(default_factory=list[Tensor])
    """||cond - uncond|| of every traced call, (B, C), of the predicted x_0."""
    scales: list[tuple[float, ...]] = field(default_factory=list[tuple[float, ...]])
    """The scale of every channel in effect at every traced call; 1 where it is not guided."""
    latent: Tensor | None = None
    """Values of the latent that the run made, by which it is known again; None while it lasts."""
    shape: tuple[int, ...] = ()
    """The shape of x at the last call."""
    sigma: float = 0.0
    """The sigma of the last call."""

    def note(self, sigma: float, scales: Sequence[float], cond: Tensor, uncond: Tensor) -> None:
        """Trace one call, whose predictions are (B, C, ...)."""
        self.sigmas.append(sigma)
        self.differences.append((cond - uncond).float().flatten(2).square().sum(2).sqrt())
        self.scales.append(tuple(scales))

    def table(self) -> Tensor:
        """||cond - uncond||, (calls, B, C), on the CPU."""
        return torch.stack([difference.cpu() for difference in self.differences])


class Runs:
    """The runs that one node's function sees."""

    def __init__(self, settings: str) -> None:
        self.settings = settings
        self.current: Run | None = None
        """The run that lasts; outside ComfyUI's own sampling call, the last one seen."""
        self._bounded = False  # whether ComfyUI said when the current run began

    def at(self, sigma: float, x: Tensor) -> Run:
        """The run to which a call at a sigma belongs.

        ComfyUI says when a run begins and ends (``one``). Where a sampler is called in another way, a run begins when
        sigma rises or the latent has another shape.
        """
        run = self.current
        new = run is None or (not self._bounded and (sigma > run.sigma or x.shape != run.shape))
        if run is None or new:
            run = self.current = Run(self.settings)
        run.calls, run.sigma, run.shape = run.calls + 1, sigma, tuple(x.shape)
        return run

    @contextmanager
    def one(self) -> Iterator[Run]:
        """A run that ComfyUI begins and ends. Another one inside it does not disturb it."""
        before = self.current, self._bounded
        run = Run(self.settings)
        self.current, self._bounded = run, True
        try:
            yield run
        finally:
            self.current, self._bounded = before
            run.memory = START

    def finish(self, run: Run, latent: Tensor) -> None:
        """Keep a run that made a latent, so that its trace is found."""
        run.latent = _sampled(latent)
        run.differences = [difference.cpu() for difference in run.differences]
        _FINISHED.append(run)


_FINISHED: deque[Run] = deque(maxlen=_KEPT)


def run_of(runs: Runs, latent: Any) -> Run:
    """The run of a node that made a latent.

    Args:
        runs: what the node's function saw.
        latent: the ``samples`` of ComfyUI's LATENT, a tensor or its nested tensor.

    Raises:
        InputError: no run that is still known made it, or the run saw no unconditional prediction.
    """
    wanted = _sampled(latent)
    known = [run for run in _FINISHED if run.settings == runs.settings and run.latent is not None]
    distances = [_distance(wanted, run.latent) for run in known if run.latent is not None]
    run = runs.current
    if distances and min(distances) <= _SAME:
        # identical runs tie: the newest, and of several nodes of one model the first
        run = known[max(k for k, distance in enumerate(distances) if distance == min(distances))]
    if run is None:
        raise InputError(
            "Guidance trace: no sampling run of this model that is still known made this latent: connect the sampler's "
            "LATENT output directly, and run the sampler again (with another seed)"
        )
    if not run.differences:
        raise InputError(
            "Guidance trace: the sampler ran no unconditional prediction (cfg is 1, or the guider has no negative "
            "conditioning), so that there is nothing to trace"
        )
    return run


def _sampled(latent: Any) -> Tensor:
    """Evenly spaced values of a latent, fp32, on the CPU; a nested one is flattened as the sampler packs it."""
    if not isinstance(latent, Tensor):
        latent = torch.cat([part.reshape(part.shape[0], -1) for part in latent.unbind()], 1)
    values = latent.flatten()
    where = torch.linspace(0, values.numel() - 1, _SAMPLED, dtype=torch.float64).long()
    return values[where.to(values.device)].float().cpu()


def _distance(a: Tensor, b: Tensor) -> float:
    """The largest difference of two sets of values, in standard deviations; 0 where both are equal, NaN included."""
    if torch.equal(a.nan_to_num(), b.nan_to_num()):
        return 0.0
    return float((a - b).abs().max() / b.std().clamp_min(1e-12))
