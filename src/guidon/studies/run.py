"""Running a study: every cell once, atomically, in any number of sittings and processes, always the same bytes.

A cell is one clip of one setting. Cells of a setting are sampled in blocks that the plan fixes: a block that was cut
short is sampled again as a whole, and what it lacks is written.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .. import world
from ..core.atomic import atomic_folder, atomic_path, write_json
from ..core.errors import InputError
from ..core.settings import read_mapping, validated
from ..guidance import GuidanceTrace
from ..metrics.statistics import compare
from ..metrics.video import measure_video
from ..metrics.world import measure
from ..pipeline import Pipeline, Video
from .plan import Plan

CONTENT = ("clip.png", "manifest.json", "metrics.json", "trace.npz")
Said = Callable[[str], None]
OnCell = Callable[[int, int], None]


@dataclass(frozen=True)
class Cell:
    """One clip of a study: its setting, prompt number and sample, and its folder."""

    setting: str
    prompt: int
    sample: int
    folder: Path

    def damage(self) -> str | None:
        """What is wrong with the cell's files; None where they are whole, "absent" where there are none."""
        if not self.folder.exists():
            return "absent"
        try:
            hashes = json.loads((self.folder / "hashes.json").read_text())
            for name in CONTENT:
                if hashlib.sha256((self.folder / name).read_bytes()).hexdigest() != hashes[name]:
                    return f"{name} is not what was written"
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"{type(error).__name__}: {error}"
        return None

    def frames(self) -> np.ndarray:
        """The clip, uint8 (T, H, W, 3)."""
        sheet = np.asarray(Image.open(self.folder / "clip.png"))
        count = json.loads((self.folder / "manifest.json").read_text())["frames"][0]
        return np.stack(np.split(sheet, count, axis=1))

    def metrics(self) -> dict[str, float]:
        """Values by metric; NaN where undefined."""
        stored = json.loads((self.folder / "metrics.json").read_text())
        return {name: float("nan") if value is None else value for name, value in stored.items()}


def open_plan(plan: Plan, out: Path) -> None:
    """Put the plan into a new results folder, or make sure that the folder's is the same.

    Raises:
        InputError: the folder holds results of another plan, or something else.
    """
    path = out / "plan.json"
    if path.exists():
        found = read_plan(out)
        if found.hash != plan.hash:
            other = [name for name, value in plan if value != getattr(found, name)]
            raise InputError(
                f"{out} holds results of another plan ({found.hash[:12]}, this one is {plan.hash[:12]}; they differ in "
                f"{', '.join(other)}): choose another --out, or what it was made with"
            )
        return
    if out.exists() and not (out.is_dir() and all(p.match(".plan.*.tmp.json") for p in out.iterdir())):
        raise InputError(f"{out} is there and holds no study: choose another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(path, plan.model_dump(mode="json") | {"hash": plan.hash})
    except OSError as error:
        raise InputError(
            f"the results folder {out} cannot be written ({error.strerror}): choose another --out"
        ) from None


def threads_of(out: Path) -> int | None:
    """How many threads an interrupted study had, which it goes on with; None where there is none."""
    return read_plan(out).threads if (out / "plan.json").is_file() else None


def read_plan(out: Path) -> Plan:
    """The plan of a results folder.

    Raises:
        InputError: there is none, or it was changed.
    """
    path = out / "plan.json"
    if not path.is_file():
        raise InputError(f"{out} holds no plan.json: give a folder that `guidon study run --out` wrote")
    stored = read_mapping(path)
    hashed = stored.pop("hash", None) if isinstance(stored, dict) else None
    plan = validated(Plan, stored, str(path))
    if plan.hash != hashed:
        raise InputError(f"{path} was changed after it was frozen: run the study again into another folder")
    return plan


def cells_of(plan: Plan, out: Path) -> list[Cell]:
    """All cells, settings outermost, then prompts."""
    found = []
    for number, setting in enumerate(plan.settings):
        slug = re.sub(r"[^a-z0-9]+", "-", setting.lower()).strip("-")[:40]
        for prompt in range(len(plan.captions)):
            for sample in range(plan.seeds):
                found.append(
                    Cell(setting, prompt, sample, out / "cells" / f"{number:02}-{slug}" / f"{prompt:04}-{sample}")
                )
    return found


def blocks_of(plan: Plan, out: Path) -> list[list[Cell]]:
    """The cells that are sampled together: whole prompts of one setting."""
    cells = cells_of(plan, out)
    per_setting = len(plan.captions) * plan.seeds
    size = max(1, plan.block // plan.seeds) * plan.seeds
    return [
        cells[start : min(start + size, first + per_setting)]
        for first in range(0, len(cells), per_setting)
        for start in range(first, first + per_setting, size)
    ]


def run_study(plan: Plan, pipe: Pipeline, out: Path, *, on_cell: OnCell | None = None, say: Said = print) -> int:
    """Do the cells that are missing or damaged; returns how many were written.

    Under ``torchrun`` each rank does its share of the blocks.

    Raises:
        InputError: the model's weights are not the plan's, or the disk is full.
    """
    if pipe.hashes != plan.weights:
        names = plan.weights.keys() | pipe.hashes.keys()
        changed = sorted(name for name in names if pipe.hashes.get(name) != plan.weights.get(name))
        raise InputError(
            f"the weights of {plan.model} ({', '.join(changed)}) are not those of the plan: use another --out"
        )
    open_plan(plan, out)
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    torch.set_num_threads(plan.threads)
    blocks = blocks_of(plan, out)[rank::ranks]
    total, done, written = sum(map(len, blocks)), 0, 0
    for block in blocks:
        missing = []
        for cell in block:
            fault = cell.damage()
            if fault not in (None, "absent"):
                say(f"{cell.folder} is damaged ({fault}): it is done again")
            if fault is not None:
                missing.append(cell)
        if missing:
            try:
                written += _do(plan, pipe, block, missing)
            except OSError as error:
                raise InputError(
                    f"{missing[0].folder} cannot be written ({error.strerror}): what is done is kept, "
                    "make room and run the same command again"
                ) from None
        done += len(block)
        if on_cell:
            on_cell(done, total)
    return written


def _do(plan: Plan, pipe: Pipeline, block: list[Cell], missing: list[Cell]) -> int:
    """Sample a block and write the cells of it that are missing."""
    generation = plan.generation(block[0].setting, slice(block[0].prompt, block[-1].prompt + 1))
    trace = GuidanceTrace()
    videos = pipe.generate(generation, batch_size=len(block), trace=trace)
    frames = np.stack([video.frames for video in videos])
    if plan.of_the_world:
        columns = measure(frames, [world.read_caption(plan.captions[cell.prompt]) for cell in block])
        values = [{name: float(column[k]) for name, column in columns.items()} for k in range(len(block))]
    else:
        values = [measure_video(clip) for clip in frames]
    arrays = trace.as_arrays()
    for number, cell in enumerate(block):
        if cell in missing:
            own = {name: arrays[name][number] for name in ("difference", "cond", "cosine") if len(trace)}
            _write(cell, videos[number], values[number], own | {name: arrays[name] for name in ("timestep", "scale")})
    return len(missing)


def _write(cell: Cell, video: Video, values: dict[str, float], trace: dict[str, Any]) -> None:
    cell.folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(cell.folder) as folder:
        Image.fromarray(np.concatenate(list(video.frames), axis=1)).save(folder / "clip.png")
        (folder / "manifest.json").write_text(json.dumps(video.manifest, indent=1) + "\n", encoding="utf-8")
        stored = {name: value if np.isfinite(value) else None for name, value in sorted(values.items())}
        (folder / "metrics.json").write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
        np.savez(folder / "trace.npz", **trace)
        hashes = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in CONTENT}
        (folder / "hashes.json").write_text(json.dumps(hashes, indent=1) + "\n", encoding="utf-8")


def seconds_per_cell(plan: Plan, pipe: Pipeline) -> float:
    """An estimate from a block of each setting: a few of its steps are run, guided at each, and timed."""
    settings = list(plan.settings)
    size = min(plan.block, len(plan.captions) * plan.seeds)
    total = 0.0
    for setting in settings:
        generation = plan.generation(setting, slice(max(1, size // plan.seeds)))
        took = []
        for steps in (2, 4):
            began = time.monotonic()
            short = generation.model_copy(update={"steps": steps, "timing": "constant"})
            pipe.generate(short, batch_size=size)
            took.append(time.monotonic() - began)
        each = max(0.0, took[1] - took[0]) / 2
        total += (took[0] + each * (generation.steps - 2)) / (len(generation.prompts) * plan.seeds)
    return total / len(settings)


def results(plan: Plan, out: Path) -> dict[str, dict[str, np.ndarray]]:
    """Every metric of every setting, (prompts, seeds).

    Raises:
        InputError: cells are missing or damaged.
    """
    cells = cells_of(plan, out)
    unfinished = [cell for cell in cells if cell.damage() is not None]
    if unfinished:
        raise InputError(
            f"{len(unfinished)} of {len(cells)} cells of {out} are missing or damaged: run `guidon study run` again"
        )
    shape = (len(plan.captions), plan.seeds)
    found = {setting: {name: np.full(shape, np.nan) for name in plan.metrics} for setting in plan.settings}
    for cell in cells:
        for name, value in cell.metrics().items():
            found[cell.setting][name][cell.prompt, cell.sample] = value
    return found


def write_csv(plan: Plan, found: dict[str, dict[str, np.ndarray]], path: Path) -> None:
    """Every value of every cell, a row each."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["setting", "prompt", "sample", "caption", *plan.metrics])
        for setting, values in found.items():
            for prompt, caption in enumerate(plan.captions):
                for sample in range(plan.seeds):
                    numbers = [f"{values[name][prompt, sample]:.6g}" for name in plan.metrics]
                    writer.writerow([setting, prompt, sample, caption, *numbers])


def answer(plan: Plan, found: dict[str, dict[str, np.ndarray]]) -> str:
    """The primary contrast in words, with what the study could have seen."""
    name, metric = plan.primary.metric, plan.metrics[plan.primary.metric]
    a, b = plan.primary.baseline, plan.primary.against
    result = compare(found[a][name], found[b][name], better=metric.better)
    undefined = f", {result.undefined} prompts undefined" if result.undefined else ""
    if not math.isfinite(result.p):
        return f"{name}: {b!r} cannot be compared with {a!r}: fewer than two prompts have both values{undefined}"
    verdict = "differs from" if result.p < 0.05 else "is not told apart from"
    effect = f"d_z = {result.d_z:.2f}" if math.isfinite(result.d_z) else "no prompt differs"
    seen = (
        f"see d_z = {result.visible:.2f} with 80% power" if math.isfinite(result.visible) else "cannot reach p = 0.05"
    )
    return (
        f"{name}: {b!r} {verdict} {a!r}: difference {result.difference} {metric.unit}, p = {result.p:.3g}, "
        f"{effect}, {result.pairs} prompts{undefined}; "
        f"so many {seen}"
    )
