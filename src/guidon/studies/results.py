"""The results of a study: all values as arrays and as CSV."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from ..core.atomic import atomic_path
from ..core.errors import InputError
from .cells import Cell, cells_of, held_blocks, read_plan
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
    shape = (len(plan.captions), plan.seeds)
    found = {setting: {name: np.full(shape, np.nan) for name in plan.metrics} for setting in plan.settings}
    faults: list[str] = []
    sizes: dict[tuple[int, ...], Cell] = {}  # of clips, with the first cell of that size
    for cell in cells:
        content = cell.read()
        if isinstance(content, str):
            faults.append(content)
            continue
        sizes.setdefault(content.manifest.frames, cell)
        for name, value in content.metrics.items():
            found[cell.setting][name][cell.prompt, cell.sample] = value
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
    if len(sizes) > 1:
        (size, first_cell), (own, cell), *_ = sizes.items()
        raise InputError(
            f"{cell.folder} holds a clip of {own}, {first_cell.folder} one of {size}: delete the one that is wrong, "
            "and run `guidon study run` again"
        )
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
