"""Several arms against the first of them: times, ratios, counts and exactness, as a table and as plain values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor

from ...core.atomic import write_json
from ...core.errors import InputError
from ...core.progress import OnStep
from ...metrics.statistics import Interval
from .counters import Counts, count
from .exactness import Exactness, compare_results
from .machine import describe_machine
from .memory import peak_memory
from .ratios import noise_of, paired_ratio
from .rounds import SECONDS, TWIN, Arm, Times, take_rounds

Clock = Literal["cpu", "wall"]


@dataclass(frozen=True)
class Row:
    """One arm."""

    name: str
    times: Times
    ratio: Interval
    """How many times faster than the base it is."""
    counts: Counts | None
    """None where nothing was counted."""
    exactness: Exactness | None
    """None for the base, and where results are not compared."""
    note: str
    memory: int | None = None
    """The most bytes that it takes; see ``peak_memory``. None where nothing tells."""

    def median(self, clock: Clock) -> float:
        """Seconds, the median over rounds."""
        return median(self.times.cpu if clock == "cpu" else self.times.wall)


@dataclass(frozen=True)
class Comparison:
    """What was measured of several arms."""

    title: str
    rows: tuple[Row, ...]
    """The base first."""
    clock: Clock
    """Which time the ratios are of."""
    twin: Interval
    """The ratio of the base to itself (A/A)."""
    rounds: int
    """Rounds that were measured."""
    stopped: bool = False
    """Whether Ctrl-C ended it early."""
    memory_of: Literal["process", "GPU"] = "process"
    """What the rows' ``memory`` is counted of: the growth of the process, or all that is on the GPU."""

    @property
    def noise(self) -> str:
        """Why the run is noisy; empty if it is not."""
        return noise_of(self.twin, self.rounds)

    def row(self, name: str) -> Row:
        """The arm of that name."""
        return next(row for row in self.rows if row.name == name)

    def ratio(self, base: str, arm: str) -> Interval:
        """How many times faster one arm is than another, in the rounds of this run."""
        times = (self.row(name).times for name in (base, arm))
        return paired_ratio(*(each.cpu if self.clock == "cpu" else each.wall for each in times))

    def table(self) -> str:
        """The rows as a Markdown table, and below it the noise of the run."""
        of = "CPU" if self.clock == "cpu" else "wall"
        head = ["arm", "CPU ms", "wall ms", f"times faster [95%], {of}", "GFLOP", "operators", "MB made", "MB peak"]
        head.append(f"MB {self.memory_of}")
        cells = [[*head, "result"]]
        for number, row in enumerate(self.rows):
            counts = ["-"] * 4
            if row.counts is not None:
                counts = [f"{row.counts.flops / 1e9:.4g}", str(row.counts.operators)]
                counts += [f"{size / 1e6:.4g}" for size in (row.counts.allocated, row.counts.peak)]
            counts.append("-" if row.memory is None else f"{row.memory / 1e6:.4g}")
            result = "the base" if not number else str(row.exactness or "not compared")
            ratio = "1" if not number else _interval(row.ratio)
            times = [_milliseconds(row.median(clock)) for clock in ("cpu", "wall")]
            cells.append([row.name, *times, ratio, *counts, f"{result}; {row.note}" if row.note else result])
        shown = [column for column in range(len(cells[0])) if any(line[column] != "-" for line in cells[1:])]
        noise = f"; noisy: {self.noise}" if self.noise else ""
        stopped = ", stopped early" if self.stopped else ""
        return (
            f"{self.title}\n\n{_markdown([[line[column] for column in shown] for line in cells])}\n\n"
            f"{_rounds(self.rounds)}{stopped}; A/A {_interval(self.twin)}{noise}"
        )

    def savings(self) -> list[str]:
        """What each arm saves of the base's time, in a sentence each."""
        base, of = self.rows[0].name, "CPU time" if self.clock == "cpu" else "time"
        found: list[str] = []
        for row in self.rows[1:]:
            least, middle, most = (1 - 1 / value for value in (row.ratio.low, row.ratio.value, row.ratio.high))
            span = "" if math.isnan(least) else f" [{100 * least:.0f}, {100 * most:.0f}]"
            if row.ratio.low <= 1 <= row.ratio.high:
                found.append(f"{row.name}: no difference from {base} can be told in {_rounds(self.rounds)}")
            elif middle > 0:
                found.append(f"{row.name}: saves {100 * middle:.0f}%{span} of the {of} of {base}")
            else:
                more = (
                    ""
                    if math.isnan(least)
                    else f" [{100 * (1 / row.ratio.high - 1):.0f}, {100 * (1 / row.ratio.low - 1):.0f}]"
                )
                found.append(f"{row.name}: costs {100 * (1 / row.ratio.value - 1):.0f}%{more} more {of} than {base}")
        return found

    def as_json(self) -> dict[str, Any]:
        """All of it as plain values. Times are in seconds, and NaN is None."""
        rows = [
            {
                "name": row.name,
                "cpu": row.times.cpu,
                "wall": row.times.wall,
                "ratio": _plain(row.ratio),
                "counts": None if row.counts is None else dataclasses.asdict(row.counts),
                "exact": None if row.exactness is None else row.exactness.exact,
                "error": None if row.exactness is None else _plain(row.exactness),
                "note": row.note,
                "memory": row.memory,
            }
            for row in self.rows
        ]
        own = {"title": self.title, "clock": self.clock, "rounds": self.rounds, "stopped": self.stopped}
        own["memory_of"] = self.memory_of
        return own | {"a_a": _plain(self.twin), "noise": self.noise, "rows": rows}


def compare_speed(
    title: str,
    arms: Sequence[Arm],
    *,
    rounds: int | None = None,
    device: torch.device | str = "cpu",
    clock: Clock | None = None,
    seed: int = 0,
    seconds: float = SECONDS,
    on_step: OnStep | None = None,
) -> Comparison:
    """Count, compare and time arms. The first is the base.

    Args:
        title: what is compared.
        arms: ways to do the same work.
        rounds, device, seed, seconds, on_step: as of ``take_rounds``.
        clock: the time that ratios are of. Left out, it is that of the CPU where one thread of it does the work, since
            other work on the machine changes it least, and else the time by the clock.

    Raises:
        InputError: results differ in shape, or arms share a name.
    """
    place = torch.device(device)
    if not arms:
        raise InputError("there is no arm to measure")
    clock = clock or ("cpu" if place.type == "cpu" and torch.get_num_threads() == 1 else "wall")
    results = {arm.name: _result(arm) for arm in arms if arm.compared}
    base = results.get(arms[0].name)
    found = {
        name: compare_results(result, base)
        for name, result in results.items()
        if base is not None and result is not None and name != arms[0].name
    }
    del results, base
    counts = {arm.name: count(arm.run) for arm in arms if arm.counted}
    taken = take_rounds(arms, rounds=rounds, device=place, seed=seed, seconds=seconds, on_step=on_step)
    # after the rounds, so that nothing is counted that is made once
    memory = {arm.name: None if taken.stopped else peak_memory(arm.run, place) for arm in arms}

    def ratio(name: str) -> Interval:
        times = (taken.times[each] for each in (arms[0].name, name))
        return paired_ratio(*(each.cpu if clock == "cpu" else each.wall for each in times))

    rows = tuple(
        Row(
            arm.name, taken.times[arm.name], ratio(arm.name), counts.get(arm.name), found.get(arm.name), arm.note,
            memory[arm.name],
        )
        for arm in arms
    )  # fmt: skip
    of = "GPU" if place.type == "cuda" else "process"
    return Comparison(title, rows, clock, ratio(TWIN), taken.done, taken.stopped, of)


def write_measurements(path: Path, found: Sequence[Comparison], device: torch.device | str = "cpu") -> None:
    """Write comparisons, and where they were measured, as JSON."""
    write_json(path, {"machine": describe_machine(device), "tables": [each.as_json() for each in found]})


def _result(arm: Arm) -> Tensor | None:
    result = arm.run() if arm.result is None else arm.result()
    return result.clone() if isinstance(result, Tensor) else None


def _rounds(count: int) -> str:
    return "1 round" if count == 1 else f"{count} rounds"


def _interval(interval: Interval) -> str:
    if not math.isfinite(interval.low):
        return f"{interval.value:.2f}"
    return f"{interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"


def _markdown(cells: Sequence[Sequence[str]]) -> str:
    """A table whose columns are also straight in a terminal."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _plain(value: Any) -> dict[str, Any]:
    """The fields of a dataclass for JSON, which has no NaN."""
    fields = dataclasses.asdict(value)
    return {key: None if isinstance(each, float) and not math.isfinite(each) else each for key, each in fields.items()}
