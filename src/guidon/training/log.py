"""The log of a training run: a CSV file, a line on stderr for each row of it, and a plot of its columns."""

from __future__ import annotations

import csv
import math
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from ..core.atomic import atomic_path
from ..core.errors import InputError
from ..core.extras import require

NOT_DRAWN = ("step", "seconds")


class Log:
    """Collects the values of every step and writes their means as one row of a CSV file.

    Args:
        path: the CSV file. If it exists, its rows after step ``start`` are dropped.
        start: the step from which the run resumes.
        spent: seconds of training before this call.
    """

    def __init__(self, path: Path, start: int, spent: float) -> None:
        self.path = path
        self.began = time.monotonic() - spent
        self.rows = [row for row in read_rows(path) if int(row["step"]) <= start]
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}
        self.noted: dict[str, str] = {}

    @property
    def seconds(self) -> float:
        """Seconds spent on the run, with the time before it was resumed."""
        return time.monotonic() - self.began

    def add(self, values: dict[str, Tensor]) -> None:
        """Add the values of one step, without waiting for the device. NaN is ignored, except in ``loss``."""
        for name, value in values.items():
            said = torch.ones_like(value) if name == "loss" else (~value.isnan()).to(value)
            value = value if name == "loss" else value.nan_to_num(0)
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts[name] + said if name in self.counts else said

    def note(self, values: dict[str, float]) -> None:
        """Add values to the next row as they are. They are measured in a few steps only, so no mean is taken."""
        self.noted |= {name: f"{value:.6g}" for name, value in values.items()}

    def write(self, step: int, steps: int, rate: float) -> None:
        """Write a row with the means since the last row.

        Raises:
            InputError: the loss is NaN or infinite. The run then stops before its last good checkpoint is replaced.
        """
        means = {name: float(value / self.counts[name]) for name, value in self.sums.items() if self.counts[name]}
        if not math.isfinite(means["loss"]):
            raise InputError(f"the loss became {means['loss']} by step {step}: lower optimiser.lr and resume")
        row = {"step": str(step), "seconds": f"{self.seconds:.0f}", "lr_factor": f"{rate:.4g}"}
        self.rows.append(row | {name: f"{value:.6g}" for name, value in means.items()} | self.noted)
        fields = list(dict.fromkeys(name for kept in self.rows for name in kept))
        with atomic_path(self.path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=fields, restval="")
            writer.writeheader()
            writer.writerows(self.rows)
        report = " ".join(f"{name} {value:.4g}" for name, value in means.items())
        print(f"step {step}/{steps} {self.seconds:.0f} s {report}", file=sys.stderr, flush=True)
        self.sums, self.counts, self.noted = {}, {}, {}


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a log file, without rows whose step is not a number. Empty where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if (row.get("step") or "").isdigit()]


def draw_curves(log: Path, picture: Path) -> Path:
    """Plot every column of a log over the steps, into a PNG file.

    Raises:
        InputError: matplotlib is not installed.
    """
    figure = require("matplotlib.figure", "the picture of a run's curves", "train").Figure
    rows = read_rows(log)
    columns = [name for name in rows[0] if name not in NOT_DRAWN] if rows else []
    across = min(4, max(1, len(columns)))
    down = max(1, math.ceil(len(columns) / across))
    figure = figure(figsize=(3.2 * across, 2.2 * down), layout="constrained")
    for k, name in enumerate(columns):
        points = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
        axes = figure.add_subplot(down, across, k + 1)
        axes.plot(
            [step for step, _ in points],
            [value for _, value in points],
            linewidth=1,
            marker="." if len(points) < 30 else "",
        )
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
        if points and name.startswith(("loss", "mse", "vb", "val_mse")) and min(value for _, value in points) > 0:
            axes.set_yscale("log")
    with atomic_path(picture) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    return picture
