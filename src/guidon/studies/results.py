"""The results of a study: all values as arrays and as CSV."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from ..core.atomic import atomic_path
from ..core.errors import InputError
from .cells import cells_of, held_blocks, read_plan
from .plan import Plan

Results = dict[str, dict[str, np.ndarray]]
"""setting -> metric -> values (prompts, seeds)."""


def results(plan: Plan, out: Path) -> Results:
    """Every metric of every setting, (prompts, seeds).

    Raises:
        InputError: cells are missing or damaged, or clips differ in size.
    """
    if plan.unsolved:
        plan = read_plan(out)  # with the scales that the run has solved
    cells = cells_of(plan, out)
    faults = [fault for cell in cells if (fault := cell.damage()) is not None]
    if faults:
        if held_blocks(out):
            raise InputError(
                f"{len(faults)} of {len(cells)} cells of {out} are not done yet, and `guidon study run` works on them: "
                "wait until it ends"
            )
        damaged = [fault for fault in faults if fault != "absent"]
        first = f" (the first damage: {damaged[0]})" if damaged else ""
        raise InputError(
            f"{len(faults)} of {len(cells)} cells of {out} are missing or damaged{first}: run `guidon study run` again"
        )
    shape = (len(plan.captions), plan.seeds)
    found = {setting: {name: np.full(shape, np.nan) for name in plan.metrics} for setting in plan.settings}
    size = cells[0].manifest().frames
    for cell in cells:
        if (own := cell.manifest().frames) != size:
            raise InputError(
                f"{cell.folder} holds a clip of {own}, {cells[0].folder} one of {size}: delete the one that is wrong, "
                "and run `guidon study run` again"
            )
        for name, value in cell.metrics().items():
            found[cell.setting][name][cell.prompt, cell.sample] = value
    return found


def write_csv(plan: Plan, found: Results, path: Path) -> None:
    """Write all values as CSV: one row for each cell, one column for each metric."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["setting", "prompt", "sample", "caption", *plan.metrics])
        for setting, values in found.items():
            for prompt, caption in enumerate(plan.captions):
                for sample in range(plan.seeds):
                    numbers = [f"{values[name][prompt, sample]:.6g}" for name in plan.metrics]
                    writer.writerow([setting, prompt, sample, caption, *numbers])
