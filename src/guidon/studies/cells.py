"""A study's results folder: its frozen plan, its solved scales, and one folder for each cell.

::

    plan.json      the frozen plan and its hash
    scales.json    the solved scales, if a setting gives energy_of
    cells/00-SETTING/PROMPT-SAMPLE/
        clip.png       the frames side by side, lossless
        manifest.json  what reproduces the clip
        metrics.json   its metrics; null where undefined
        trace.npz      the guidance trace
        hashes.json    SHA-256 of the four files

A cell is one clip of one setting. It is written atomically: its folder is complete or absent.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt

from ..core.atomic import atomic_folder, write_json
from ..core.errors import InputError, setting
from ..core.extras import require
from ..core.hashing import hash_files, hash_settings
from ..core.settings import Settings, read_mapping, validated
from ..media import Video
from .plan import Plan

Image = require("PIL.Image", "the clips of a study", "study", package="pillow")

CONTENT = ("clip.png", "manifest.json", "metrics.json", "trace.npz")
TEMPORARY = (".plan.*.tmp.json", ".scales.*.tmp.json")  # files that a killed process may leave behind


@dataclass(frozen=True)
class Cell:
    """One clip of a study."""

    setting: str
    prompt: int
    """The number of its prompt."""
    sample: int
    folder: Path

    def damage(self) -> str | None:
        """What is wrong with the cell's files: None if they are intact, "absent" if there is no folder."""
        if not self.folder.exists():
            return "absent"
        try:
            hashes = json.loads((self.folder / "hashes.json").read_text())
            for name in CONTENT:
                if hash_files(self.folder / name) != hashes[name]:
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

    def write(self, video: Video, values: dict[str, float], trace: dict[str, NDArray[np.float64]]) -> None:
        """Write the cell's folder with all its files, atomically."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(self.folder) as folder:
            Image.fromarray(np.concatenate(list(video.frames), axis=1)).save(folder / "clip.png")
            (folder / "manifest.json").write_text(json.dumps(video.manifest, indent=1) + "\n", encoding="utf-8")
            stored = {name: value if np.isfinite(value) else None for name, value in sorted(values.items())}
            (folder / "metrics.json").write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
            np.savez(folder / "trace.npz", **trace)  # type: ignore[arg-type]  # numpy types keywords as its options
            hashes = {name: hash_files(folder / name) for name in CONTENT}
            (folder / "hashes.json").write_text(json.dumps(hashes, indent=1) + "\n", encoding="utf-8")


def cells_of(plan: Plan, out: Path) -> list[Cell]:
    """All cells, settings outermost, then prompts."""
    found = []
    for number, name in enumerate(plan.settings):
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40]
        for prompt in range(len(plan.captions)):
            for sample in range(plan.seeds):
                folder = out / "cells" / f"{number:02}-{slug}" / f"{prompt:04}-{sample}"
                found.append(Cell(name, prompt, sample, folder))
    return found


def blocks_of(plan: Plan, out: Path) -> list[list[Cell]]:
    """Groups of cells that are sampled together. Each group holds all samples of some prompts of one setting."""
    cells = cells_of(plan, out)
    per_setting = len(plan.captions) * plan.seeds
    size = max(1, plan.block // plan.seeds) * plan.seeds
    return [
        cells[start : min(start + size, first + per_setting)]
        for first in range(0, len(cells), per_setting)
        for start in range(first, first + per_setting, size)
    ]


def open_plan(plan: Plan, out: Path) -> Plan:
    """The plan of a results folder with its solved scales. If there is no folder yet, it is made with ``plan``.

    Raises:
        InputError: the folder holds results of another plan, or something else, or cannot be written.
    """
    path = out / "plan.json"
    if path.exists():
        found = read_plan(out)
        if other := plan.differences(found):
            raise InputError(
                f"{out} holds results of another plan ({found.hash[:12]}, this one is {plan.hash[:12]}; they differ in "
                f"{', '.join(other)}): choose another {setting('out')}, or what it was made with"
            )
        return found
    if out.exists() and not (out.is_dir() and all(any(map(p.match, TEMPORARY)) for p in out.iterdir())):
        raise InputError(f"{out} exists and holds no study: choose another {setting('out')}")
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_json(path, plan.content | {"hash": plan.hash})
    except OSError as error:
        raise InputError(
            f"the results folder {out} cannot be written ({error.strerror}): choose another {setting('out')}"
        ) from None
    return plan


def read_plan(out: Path) -> Plan:
    """The plan of a results folder with its solved scales.

    Raises:
        InputError: there is none, or it was changed.
    """
    path = out / "plan.json"
    if not path.is_file():
        raise InputError(f"{out} holds no plan.json: give a folder that `guidon study run` wrote")
    stored = read_mapping(path)
    hashed = stored.pop("hash", None) if isinstance(stored, dict) else None
    plan = validated(Plan, stored, str(path))
    if plan.hash != hashed:
        raise InputError(f"{path} was changed after it was frozen: run the study again into another folder")
    return plan.with_scales(_read_scales(plan, out / "scales.json"))


def threads_of(out: Path) -> int | None:
    """The number of threads with which the study in a folder must be resumed; None if there is no study."""
    return read_plan(out).threads if (out / "plan.json").is_file() else None


class Scales(Settings):
    """The content of scales.json."""

    format: Literal["guidon scales 1"] = "guidon scales 1"
    plan: str
    """The hash of the plan. The scales depend only on the plan and on ``steps``."""
    steps: PositiveInt
    """Denoising steps of the runs on which they were solved."""
    scales: dict[str, float]

    @property
    def hash(self) -> str:
        """SHA-256 of the content."""
        return hash_settings(self.model_dump(mode="json"))


def write_scales(scales: Scales, out: Path) -> None:
    """Write solved scales into a results folder, atomically.

    Raises:
        InputError: the folder cannot be written.
    """
    try:
        write_json(out / "scales.json", scales.model_dump(mode="json") | {"hash": scales.hash})
    except OSError as error:
        raise InputError(
            f"{out / 'scales.json'} cannot be written ({error.strerror}): make room and run the same command again"
        ) from None


def _read_scales(plan: Plan, path: Path) -> dict[str, float]:
    """The solved scales of a plan; empty if there is no file.

    Raises:
        InputError: the file was changed, or belongs to another plan.
    """
    if not path.is_file():
        return {}
    stored = read_mapping(path)
    hashed = stored.pop("hash", None) if isinstance(stored, dict) else None
    found = validated(Scales, stored, str(path))
    if (found.hash, found.plan) != (hashed, plan.hash):
        raise InputError(f"{path} was changed or belongs to another plan: run the study again into another folder")
    return found.scales
