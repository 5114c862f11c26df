"""Times of several arms, taken in rounds: in each round every arm runs once, in random order."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ...core.errors import InputError
from ...core.progress import OnStep

TWIN = "A/A"
"""The name of the base when it runs a second time in each round, which shows the noise of the run."""
SHORTEST = 0.01  # seconds of one sample: shorter work is repeated, so that the clock's resolution does not matter
FEWEST, MOST = 3, 15  # rounds where their number follows from the time that there is
SECONDS = 15.0


@dataclass(frozen=True, eq=False)
class Arm:
    """One way to do the work that is compared."""

    name: str
    run: Callable[[], object]
    """Does the work once. It must do the same work each time that it is called."""
    result: Callable[[], Tensor] | None = None
    """The result that is compared with the base's. None: what ``run`` returns."""
    compared: bool = True
    """Whether the result is compared. Draws of noise, for example, cannot be."""
    counted: bool = True
    """Whether operators are counted. They cannot be where the work is compiled."""
    note: str = ""
    """What a reader of the table must know."""


@dataclass
class Times:
    """Seconds of an arm in each round."""

    cpu: list[float] = field(default_factory=list[float])
    """Of all threads of the process."""
    wall: list[float] = field(default_factory=list[float])

    def add(self, cpu: float, wall: float) -> None:
        self.cpu.append(cpu)
        self.wall.append(wall)


@dataclass(frozen=True)
class Rounds:
    """The times of all arms."""

    times: dict[str, Times]
    """By name; the base is there a second time as ``TWIN``."""
    asked: int
    """How many rounds there were to be."""
    stopped: bool
    """Whether Ctrl-C ended them early."""

    @property
    def done(self) -> int:
        """Rounds that are whole."""
        return len(self.times[TWIN].wall)


def take_rounds(
    arms: Sequence[Arm],
    *,
    rounds: int | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
    seconds: float = SECONDS,
    on_step: OnStep | None = None,
) -> Rounds:
    """Warm every arm up, then time all of them in each round. The first arm is the base, which is timed twice.

    Ctrl-C ends the rounds; the whole ones are kept.

    Args:
        arms: what to time.
        rounds: how many; None for as many as fit in ``seconds``, between 3 and 15.
        device: whose work must end before the clock is read.
        seed: of the order in each round.
        seconds: see ``rounds``.
        on_step: called as ``on_step(done, total)`` after every round.

    Raises:
        InputError: two arms share a name, or there is none.
    """
    names = [arm.name for arm in arms]
    if not arms or len({*names, TWIN}) <= len(names):
        raise InputError(f"arms are named {', '.join(names) or 'none'}: give different names, none of them {TWIN}")
    place = torch.device(device)
    repeats = {arm.name: _warmed(arm, place) for arm in arms}
    if rounds is None:
        once = sum(_timed(arm, place, repeats[arm.name])[1] * repeats[arm.name] for arm in (arms[0], *arms))
        rounds = min(MOST, max(FEWEST, math.floor(seconds / max(once, 1e-9))))
    timed = [*arms, Arm(TWIN, arms[0].run)]
    repeats[TWIN] = repeats[arms[0].name]
    times = {arm.name: Times() for arm in timed}
    order, stopped, collects = np.random.default_rng(seed), False, gc.isenabled()
    gc.disable()  # a collection would fall on one arm by chance
    try:
        for done in range(1, rounds + 1):
            found = {
                timed[k].name: _timed(timed[k], place, repeats[timed[k].name]) for k in order.permutation(len(timed))
            }
            for name, sample in found.items():  # a round is kept whole or not at all
                times[name].add(*sample)
            gc.collect(0)  # what the round left; all that was there before would take long to look at
            if on_step is not None:
                on_step(done, rounds)
    except KeyboardInterrupt:
        if not times[TWIN].wall:
            raise
        stopped = True
    finally:
        if collects:
            gc.enable()
    return Rounds(times, rounds, stopped)


def _warmed(arm: Arm, device: torch.device) -> int:
    """Run an arm twice, and say how often it must run for a sample that is long enough."""
    arm.run()
    _, wall = _timed(arm, device, 1)
    return max(1, math.ceil(SHORTEST / max(wall, 1e-6)))


def _timed(arm: Arm, device: torch.device, repeats: int) -> tuple[float, float]:
    """Seconds of one run of an arm: of the CPU, and by the clock."""
    _finish(device)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        arm.run()
    _finish(device)
    return (time.process_time() - cpu) / repeats, (time.perf_counter() - wall) / repeats


def _finish(device: torch.device) -> None:
    """Wait for the work of a device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
