"""A run's log as a picture: one panel a quantity, over steps."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from ..core.atomic import atomic_path

BESIDE = ("step", "seconds")


def draw_curve(log: Path, picture: Path) -> Path:
    """Draw every column of a run's ``log.csv`` against its steps, as PNG."""
    from matplotlib.figure import Figure

    with log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = [name for name in rows[0] if name not in BESIDE] if rows else []
    across = min(4, max(1, len(columns)))
    down = max(1, math.ceil(len(columns) / across))
    figure = Figure(figsize=(3.2 * across, 2.2 * down), layout="constrained")
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
