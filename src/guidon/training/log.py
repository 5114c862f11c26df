"""The log of a training run: a CSV file, a line on stderr for each row of it, and a plot of its columns."""

from __future__ import annotations

import csv
import io
import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..core.atomic import atomic_path, write_bytes
from ..core.errors import InputError
from ..core.extras import require
from ..core.reading import read_text, reading
from .trackers import Tracker

NOT_DRAWN = ("step", "seconds", "skipped")
MOST_DIGITS = 18  # of a step


class Log:
    """Collects the values of every step and writes their means as one row of a CSV file.

    Args:
        path: the CSV file. An existing one is replaced.
        spent: seconds of training before this call.
        rows: the rows of the steps before this call.
        silent: write and print nothing, as on all ranks but the first.
        trackers: are told every row.
    """

    def __init__(
        self,
        path: Path,
        spent: float = 0.0,
        rows: Iterable[Mapping[str, str]] = (),
        *,
        silent: bool = False,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        self.path, self.silent, self.trackers = path, silent, trackers
        self.began = time.monotonic() - spent
        self.rows = [dict(row) for row in rows]
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}
        self.noted: dict[str, str] = {}
        self.skipped = 0

    @property
    def seconds(self) -> float:
        """Seconds spent on the run, with the time before it was resumed."""
        return time.monotonic() - self.began

    def add(self, values: dict[str, Tensor]) -> None:
        """Add the values of one step, without waiting for the device. NaN is ignored, except in ``loss``."""
        for name, value in values.items():
            counts = torch.ones_like(value, dtype=torch.bool) if name == "loss" else ~value.isnan()
            said, value = counts.to(value), value.where(counts, 0)
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts[name] + said if name in self.counts else said

    def note(self, values: dict[str, float]) -> None:
        """Add values to the next row as they are. They are measured in a few steps only, so no mean is taken."""
        self.noted |= {name: f"{value:.6g}" for name, value in values.items()}

    def skip(self, step: int, steps: int) -> None:
        """Count a step that was skipped, and say so on stderr."""
        self.skipped += 1
        if not self.silent:
            print(f"step {step}/{steps} skipped: its loss or gradient is NaN or infinite", file=sys.stderr, flush=True)

    def write(self, step: int, steps: int, rate: float) -> None:
        """Write a row with the means since the last row, and the number of steps that were skipped since.

        Raises:
            InputError: the mean loss is NaN or infinite. The run then stops before its last checkpoint is replaced.
        """
        means = {name: float(value / self.counts[name]) for name, value in self.sums.items() if self.counts[name]}
        if not math.isfinite(means.get("loss", 0.0)):
            raise InputError(f"the loss became {means['loss']} by step {step}: lower optimiser.lr and resume")
        row = {"step": str(step), "seconds": f"{self.seconds:.0f}", "lr_factor": f"{rate:.4g}"}
        row |= {name: f"{value:.6g}" for name, value in means.items()}
        self.rows.append(row | {"skipped": str(self.skipped)} | self.noted)
        if not self.silent:
            self._write_file()
            report = " ".join(f"{name} {value:.4g}" for name, value in means.items())
            print(f"step {step}/{steps} {self.seconds:.0f} s {report}", file=sys.stderr, flush=True)
            for tracker in self.trackers:
                tracker.row(step, {name: float(value) for name, value in self.rows[-1].items() if name != "step"})
        self.sums, self.counts, self.noted, self.skipped = {}, {}, {}, 0

    def _write_file(self) -> None:
        fields = list(dict.fromkeys(name for kept in self.rows for name in kept))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=fields, restval="")
        writer.writeheader()
        writer.writerows(self.rows)
        write_bytes(self.path, text.getvalue().encode())


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a log file. Empty where there is no file.

    Raises:
        InputError: the file is damaged: a value is not a number, or a row is longer than the header.
    """
    if not path.exists():
        return []
    text = read_text(path, "the log of a run")
    with reading(path, "the log of a run", "delete it; training goes on without the rows before its checkpoint"):
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        check_rows(rows)
    return [{name: value or "" for name, value in row.items()} for row in rows]


def check_rows(rows: Iterable[Mapping[str, str | None]]) -> None:
    """Check that rows can be compared and drawn.

    Raises:
        ValueError: a row has no step or more values than there are names, or a value is not a number.
    """
    for number, row in enumerate(rows, start=2):  # line 1 of the file holds the names
        step = row.get("step") or ""
        if None in row or not step.isdecimal() or len(step) > MOST_DIGITS:
            raise ValueError(f"row {number} has no step, or more values than the header has names")
        for value in row.values():
            float(value or 0)


def draw_curves(rows: Sequence[Mapping[str, str]], picture: Path) -> Path:
    """Plot every column of a log over the steps, into a PNG file.

    Raises:
        InputError: matplotlib is not installed.
    """
    figure = require("matplotlib.figure", "the picture of a run's curves", "train").Figure
    names = dict.fromkeys(name for row in rows for name in row)
    columns = [name for name in names if name not in NOT_DRAWN]
    across = min(4, max(1, len(columns)))
    down = max(1, math.ceil(len(columns) / across))
    figure = figure(figsize=(3.2 * across, 2.2 * down), layout="constrained")
    for k, name in enumerate(columns):
        points = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
        axes = figure.add_subplot(down, across, k + 1)
        axes.plot(
            [step for step, _ in points],
            [value for _, value in points],
            linewidth=1,
            marker="." if len(points) < 30 else "",
        )
        axes.set_title(name, fontsize=9, parse_math=False)  # a name is no formula
        axes.tick_params(labelsize=7)
        if points and name.startswith(("loss", "mse", "vb", "val_mse")) and min(value for _, value in points) > 0:
            axes.set_yscale("log")
    with atomic_path(picture) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    return picture
