"""A network whose blocks torch compiles: what it costs and saves is measured at the start of a run, and said.

Blocks of one kind share their graph, so that few graphs are compiled, one for each number of rows: with and without the
unconditional branch. Torch keeps them in its own cache on the disk. Before a run, the compiled network is compared with
the network as it is. Where it cannot be compiled here, or gives something else, the run goes on without.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import first_line
from ..core.warn import note, warn
from ..guidance.denoiser import shares_rows
from ..models.parts.compiling import compiled_parts, keep_rearranging_whole

GRAPHS = 64
"""Graphs of a kind of block before torch goes on without compiling: two for each number of rows that a run has."""
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.05}
"""The largest error of a step, by precision: root mean square of the difference, over that of the step as it is."""
LAUNCHES = 0.8
"""The share of a step's time that is spent in launching work, from which CUDA graphs are taken."""


class Compilation:
    """Compiles the networks of a pipeline, and remembers for which runs it has been measured.

    Args:
        device: where they run.
        backend: what compiles.
    """

    def __init__(self, device: torch.device, backend: str = "inductor") -> None:
        self.device, self.backend = device, backend
        self.works = True
        """Whether runs are compiled: they are, until compiling has failed or given something else."""
        self.graphs = False
        """Whether CUDA graphs launch the work of a block."""
        self._checked = set[object]()

    @contextmanager
    def on(self) -> Iterator[None]:
        """A block in which compiled networks may have as many graphs as a run needs."""
        from torch._dynamo import config

        name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
        with config.patch({name: GRAPHS}):
            yield

    def compile(self, networks: Sequence[Any]) -> None:
        """Compile networks in place. Torch does it when they are first called."""
        for part in _parts_of(networks) if self.works else ():
            self._compile(part)

    def check(self, networks: Sequence[Any], key: object, steps: Callable[[], list[Tensor]]) -> None:
        """Compare networks that are compiled with what they are without it, and say what that costs and saves.

        Args:
            networks: the networks.
            key: what the graphs depend on: the shapes of latents and of conditions. For each key this is done once.
            steps: calls the networks as a run does, once in every form that the run has, and gives what they predict.
        """
        if not self.works or key in self._checked:
            return
        first_key = not self._checked
        parts = _parts_of(networks)
        with _as_they_are(parts):
            steps()
            exact, _, plain = self._timed(steps)
            if first_key and self.device.type == "cuda":
                self.graphs = self._launches_dominate(steps)
        if first_key and self.graphs:
            self._give_back(parts)
        note("compiling the network, which may take a minute; what torch has in its cache is quick")
        try:
            self.compile(networks)
            _, _, first = self._timed(steps)
            found, _, compiled = self._timed(steps)
        except Exception as error:
            if type(error).__module__.partition(".")[0] != "torch" and not isinstance(error, RuntimeError):
                raise
            self._give_up(parts, f"this machine cannot compile: {first_line(error)}")
            return
        for one, other in zip(found, exact, strict=True):
            error = _relative_error(one, other)
            if not error <= TOLERANCE[networks[0].dtype]:  # it may be NaN
                self._give_up(parts, f"the compiled network is another one, with an error of {error:.1%}")
                return
        self._checked.add(key)  # a check that was interrupted is made again
        note(said(first - compiled, plain / len(exact), compiled / len(exact)))

    def called(self, network: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The network as a run calls it: each call may write over what CUDA graphs gave in the call before."""

        def call(*arguments: Any) -> Tensor:
            if self.graphs:
                torch.compiler.cudagraph_mark_step_begin()
            return network(*arguments)

        call.branches_share_rows = shares_rows(network)  # type: ignore[attr-defined]
        return call

    def _compile(self, part: nn.Module) -> None:
        """Compile a part in place. Hooks on it stay outside of its graph."""
        if "forward" not in part.__dict__:
            keep_rearranging_whole()
            mode = "reduce-overhead" if self.graphs else None
            part.forward = torch.compile(part.forward, dynamic=False, backend=self.backend, mode=mode)

    def _give_up(self, parts: list[nn.Module], why: str) -> None:
        """Go on without compiling."""
        self.works = False
        self._give_back(parts)
        warn(f"{why}; the run goes on without")

    def _give_back(self, parts: list[nn.Module]) -> None:
        """Take the compiled code off the parts."""
        for part in parts:
            part.__dict__.pop("forward", None)

    def _timed(self, work: Callable[[], list[Tensor]]) -> tuple[list[Tensor], float, float]:
        """What the work gives, the seconds until it was launched, and those until it was done."""
        begun = time.perf_counter()
        given = work()
        launched = time.perf_counter() - begun
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return given, launched, time.perf_counter() - begun

    def _launches_dominate(self, steps: Callable[[], list[Tensor]]) -> bool:
        """Whether a device waits for the CPU to launch its work."""
        _, launched, done = self._timed(steps)
        return launched > LAUNCHES * done


def _parts_of(networks: Sequence[Any]) -> list[nn.Module]:
    both = [each for network in networks for each in getattr(network, "networks", (network,))]
    return [part for each in both for part in compiled_parts(each)]


@contextmanager
def _as_they_are(parts: Sequence[nn.Module]) -> Iterator[None]:
    """A block in which parts run without their compiled code."""
    held = [(part, part.__dict__.pop("forward")) for part in parts if "forward" in part.__dict__]
    try:
        yield
    finally:
        for part, forward in held:
            part.forward = forward


def shapes_of(condition: Any) -> tuple[Any, ...]:
    """The shapes of all tensors of a condition, of several, or of what holds one."""
    if isinstance(condition, Tensor):
        return (*condition.shape,)
    if is_dataclass(condition):
        condition = [getattr(condition, each.name) for each in fields(condition) if each.compare]
    return tuple(shapes_of(each) for each in condition) if isinstance(condition, list | tuple) else ()


def said(cost: float, plain: float, compiled: float) -> str:
    """What compiling cost and saves, in a line.

    Args:
        cost: its seconds.
        plain: seconds of a step before.
        compiled: seconds of a step now.
    """
    times = f"compiling took {cost:.1f} s; a step takes {1000 * compiled:.3g} ms in place of {1000 * plain:.3g} ms"
    if compiled >= plain:
        return f"{times}, which does not pay here"
    return f"{times}, which pays from {-int(-cost // (plain - compiled)):,} steps"


def _relative_error(found: Tensor, exact: Tensor) -> float:
    difference = (found.double() - exact.double()).square().mean().sqrt()
    return float(difference / exact.double().square().mean().sqrt())
