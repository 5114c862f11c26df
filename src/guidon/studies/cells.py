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

import io
import json
import math
import os
import re
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, FiniteFloat, PositiveInt, Strict

from ..core.atomic import atomic_folder, sweep, write_json
from ..core.errors import InputError, setting
from ..core.extras import require
from ..core.hashing import hash_files, hash_settings
from ..core.locks import try_held
from ..core.reading import DECODED_BYTES, PIXELS, TEXT_BYTES, read_object, reading, regular_file
from ..core.settings import Settings, read_mapping, validated
from ..media import Video
from ..models.sources import weights_for
from ..request import Request
from .plan import Plan, check_plan, make_request
from .study import Study, arms

Image = require("PIL.Image", "the clips of a study", "study", package="pillow")
PngImagePlugin = require("PIL.PngImagePlugin", "the clips of a study", "study", package="pillow")

CONTENT = ("clip.png", "manifest.json", "metrics.json", "trace.npz")
PLAN_LOCK = ".plan.lock"  # held while plan.json is made
BLOCK_LOCK = ".block-{}.lock"  # held while the block of that number is sampled
BY_SAMPLE = ("difference", "cond", "cosine")
"""Arrays of a trace that a sample has of its own, (steps, channels)."""
OF_RUN = ("timestep", "scale")
"""Arrays of a trace that all samples of a run share: (steps,), and (steps, channels)."""
HEADER = 10  # bytes of an .npy file before its header; the last two say how long that is
AGAIN = "delete the folder of the cell, and run `guidon study run` again"
Finite = Annotated[FiniteFloat, Strict()]
Count = Annotated[int, Strict(), Field(ge=1)]


class Manifest(Settings):
    """The content of a cell's manifest.json, as far as it is read again."""

    model_config = ConfigDict(extra="ignore")

    generation: Request
    """What was generated."""
    fps: Annotated[float, Strict(), Field(gt=0, le=10_000)]
    """Frames per second."""
    frames: tuple[Count, Count, Count, Literal[3]]
    """The shape of the frames, (T, H, W, 3)."""
    weights: dict[str, str] | None = None
    """The hash of each part of the model."""
    guidon: str = ""
    """The version that made the clip; empty if it does not say."""


class Measured(Settings):
    """The content of a cell's metrics.json."""

    values: dict[str, Finite | None]
    """By metric; null where undefined."""


@dataclass(frozen=True)
class Content:
    """What a cell says of its clip."""

    manifest: Manifest
    metrics: dict[str, float]
    """As ``Cell.metrics`` gives them."""
    trace: dict[str, NDArray[np.float64]]
    """As ``Cell.trace`` gives it."""


@dataclass(frozen=True)
class Cell:
    """One clip of a study."""

    setting: str
    prompt: int
    """The number of its prompt."""
    sample: int
    folder: Path
    plan: Plan = field(repr=False, compare=False)
    """The study's plan. A cell whose content is not what the plan asks for is damaged."""

    def damage(self) -> str | None:
        """What is wrong with the cell's files: None if they are intact, "absent" if there is no folder.

        Raises:
            InputError: the scale of its setting is not solved yet.
        """
        found = self.read()
        return found if isinstance(found, str) else None

    def read(self) -> Content | str:
        """What the cell says of its clip, after all its files were checked; else what is wrong with them, as ``damage``
        says it.

        Raises:
            InputError: the scale of its setting is not solved yet.
        """
        if not os.path.lexists(self.folder):
            return "absent"
        expected = self._expected()
        try:
            self._check_digests()
            return self._checked_content(expected)
        except InputError as error:
            return str(error)

    def _expected(self) -> Request:
        """The request of its clip alone."""
        choices, prompt = self.plan.choices(self.setting), self.prompt
        prompts = self.plan.captions[prompt : prompt + 1]
        return make_request(choices, prompts, (self.sample,), prompt, self.setting).alone(0, self.sample)

    def _check_digests(self) -> None:
        hashes = read_object(self.folder / "hashes.json", "the hashes of a cell")
        for name in CONTENT:
            path = regular_file(self.folder / name, "a part of a cell", 4 * PIXELS.value)
            with reading(path, "a part of a cell"):
                digest = hash_files(path)
            if digest != hashes.get(name):
                raise InputError(f"{path} is not what was written")

    def _checked_content(self, expected: Request) -> Content:
        """Refuse files that are whole but are not those of this cell. The frames are not decoded."""
        manifest, metrics = self.manifest(), self.metrics()
        weights = weights_for(self.plan.weights, expected.guidance, expected.distilled)
        if manifest.generation != expected or manifest.weights not in (None, weights):
            raise InputError(f"{self.folder / 'manifest.json'} is of another clip than the plan's")
        if metrics.keys() != self.plan.metrics.keys():
            raise InputError(f"{self.folder / 'metrics.json'} does not hold the metrics of the bench {self.plan.bench}")
        with self._picture(manifest.frames) as picture:
            picture.verify()
        return Content(manifest, metrics, self.trace())

    def manifest(self) -> Manifest:
        """What made the clip.

        Raises:
            InputError: the file is damaged.
        """
        path = self.folder / "manifest.json"
        found = validated(Manifest, read_object(path, "the manifest of a cell"), str(path))
        frames, height, width, _ = found.frames
        PIXELS.check(frames * height * width, path)
        return found

    def frames(self, shape: tuple[int, int, int, int] | None = None) -> np.ndarray:
        """The clip, uint8 (T, H, W, 3). ``shape``: its shape, if it is known; else the manifest is read.

        Raises:
            InputError: the files are damaged.
        """
        shape = shape or self.manifest().frames
        with self._picture(shape) as picture:
            return np.stack(np.split(np.asarray(picture), shape[0], axis=1))

    @contextmanager
    def _picture(self, shape: tuple[int, int, int, int]) -> Iterator[Any]:
        """The open picture, of the size that the manifest says. What fails in the block is damage of the file."""
        path = self.folder / "clip.png"
        count, height, width, _ = shape
        # Image.open would refuse, by a limit of its own, a picture that is smaller than PIXELS.
        with reading(path, "the clip of a cell", AGAIN), PngImagePlugin.PngImageFile(path) as picture:
            found = (picture.mode, *picture.size)
            if found != ("RGB", count * width, height):
                raise ValueError(f"it is {found[0]} {found[1]}x{found[2]}, expected RGB {count * width}x{height}")
            yield picture

    def metrics(self) -> dict[str, float]:
        """Values by metric; NaN where undefined.

        Raises:
            InputError: the file is damaged.
        """
        path = self.folder / "metrics.json"
        stored = validated(Measured, {"values": read_object(path, "the metrics of a cell")}, str(path)).values
        return {name: float("nan") if value is None else value for name, value in stored.items()}

    def trace(self) -> dict[str, NDArray[np.float64]]:
        """The arrays of the guidance trace, by name; see ``BY_SAMPLE`` and ``OF_RUN``. A clip whose setting guides no
        step has no arrays of its own.

        Raises:
            InputError: the file is damaged.
        """
        path = regular_file(self.folder / "trace.npz", "the trace of a cell", DECODED_BYTES)
        with reading(path, "the trace of a cell"):
            arrays = _read_arrays(path)
            steps = (len(arrays["timestep"]),)
            shape = arrays["scale"].shape
            if arrays["timestep"].shape != steps or shape[:1] != steps or len(shape) != (2 if steps[0] else 1):
                raise ValueError(f"timestep is {arrays['timestep'].shape} and scale is {shape}")
            for name in arrays.keys() & set(BY_SAMPLE):
                if arrays[name].shape != shape:
                    raise ValueError(f"{name} is {arrays[name].shape}, expected {shape}")
            return arrays

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Says in one line that the block could not write the cell.

        Raises:
            InputError: the block raised an OSError.
        """
        try:
            yield
        except OSError as error:
            raise InputError(
                f"{self.folder} cannot be written ({error.strerror}): what is done is kept, make room and run the same "
                "command again"
            ) from None

    def write(self, video: Video, values: dict[str, float], trace: dict[str, NDArray[np.float64]]) -> None:
        """Write the cell's folder with all its files, atomically.

        Raises:
            InputError: the clip is larger than what is read again.
            OSError: it cannot be written.
        """
        frames, height, width, _ = video.frames.shape
        if (pixels := frames * height * width) > PIXELS.value:
            raise InputError(
                f"a clip of {frames} frames of {height}x{width} has {pixels:,} pixels, and a study reads at most "
                f"{PIXELS.value:,} again: ask for a smaller clip, or set the environment variable {PIXELS.variable} to "
                "a higher number"
            )
        with atomic_folder(self.folder) as folder:
            Image.fromarray(np.concatenate(list(video.frames), axis=1)).save(folder / "clip.png")
            (folder / "manifest.json").write_text(json.dumps(video.manifest, indent=1) + "\n", encoding="utf-8")
            stored = {name: value if np.isfinite(value) else None for name, value in sorted(values.items())}
            (folder / "metrics.json").write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
            np.savez(folder / "trace.npz", **trace)  # type: ignore[arg-type]  # numpy types keywords as its options
            hashes = {name: hash_files(folder / name) for name in CONTENT}
            (folder / "hashes.json").write_text(json.dumps(hashes, indent=1) + "\n", encoding="utf-8")


def _read_arrays(path: Path) -> dict[str, NDArray[np.float64]]:
    """The arrays of a trace.npz. Each header is checked against the bytes that are there before anything is allocated.

    Raises:
        ValueError: an array is unknown, compressed, not of finite numbers, or its header does not fit its bytes.
    """
    found: dict[str, NDArray[np.float64]] = {}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            name = entry.filename.removesuffix(".npy")
            if name not in BY_SAMPLE + OF_RUN or name in found or entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"it holds {entry.filename[:80]!r}")
            with archive.open(entry) as file:
                data = file.read()  # at most the size of the file, because nothing is compressed
            found[name] = _array(name, data)
    return found


def _array(name: str, data: bytes) -> NDArray[np.float64]:
    """An array of finite numbers from the content of an .npy file."""
    version = np.lib.format.read_magic(io.BytesIO(data))
    if version != (1, 0):
        raise ValueError(f"{name} has the format {version}")
    start = HEADER + int.from_bytes(data[HEADER - 2 : HEADER], "little")
    shape, by_column, dtype = _read_header(data[:start])
    values = data[start:]
    if dtype.kind not in "fiu" or by_column or math.prod(shape) * dtype.itemsize != len(values):
        raise ValueError(f"{name} claims {dtype} {shape} in {len(values)} bytes")
    array = np.frombuffer(values, dtype).reshape(shape)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} is not finite")
    return array


@lru_cache(maxsize=64)
def _read_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """The shape, the order and the type that an .npy file begins with. The cells of a study have the same few."""
    file = io.BytesIO(header)
    np.lib.format.read_magic(file)
    return np.lib.format.read_array_header_1_0(file)


def cells_of(plan: Plan, out: Path) -> list[Cell]:
    """All cells, settings outermost, then prompts."""
    prompts = range(len(plan.captions))
    return [cell for setting in enumerate(plan.settings) for cell in _cells(plan, out, setting, prompts)]


def _cells(plan: Plan, out: Path, setting: tuple[int, str], prompts: range) -> list[Cell]:
    """The cells of some prompts of a setting, which is given by its number and its name."""
    number, name = setting
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40]
    folder = out / "cells" / f"{number:02}-{slug}"
    return [
        Cell(name, prompt, sample, folder / f"{prompt:04}-{sample}", plan)
        for prompt in prompts
        for sample in range(plan.seeds)
    ]


def delete_leftovers(out: Path) -> None:
    """Delete what killed processes left in a results folder: temporary files, and locks that nobody holds."""
    inside = (path for name in ("cells", "videos") for path in out.glob(f"{name}/*") if path.is_dir())
    for folder in (out, out / "videos", *inside):
        sweep(folder)
    held_blocks(out)


def held_blocks(out: Path) -> list[str]:
    """The locks of blocks that a running process holds. Those that ended processes left are deleted."""
    return [path.name for path in sorted(out.glob(BLOCK_LOCK.format("*"))) if not _is_free(path)]


def _is_free(lock: Path) -> bool:
    with try_held(lock.parent, lock.name) as free:
        return free


def blocks_of(plan: Plan, out: Path) -> list[list[Cell]]:
    """Groups of cells that are sampled together. Each group holds all samples of some prompts of one setting."""
    together = _prompts_together(plan)
    return [_cells(plan, out, setting, prompts) for setting in enumerate(plan.settings) for prompts in together]


def block_of(plan: Plan, out: Path, number: int) -> list[Cell]:
    """The block of that number; see ``blocks_of``."""
    together = _prompts_together(plan)
    setting, part = divmod(number, len(together))
    return _cells(plan, out, (setting, list(plan.settings)[setting]), together[part])


def _prompts_together(plan: Plan) -> list[range]:
    """The numbers of the prompts of each block of a setting."""
    prompts, size = range(len(plan.captions)), max(1, plan.block // plan.seeds)
    return [prompts[first : first + size] for first in range(0, len(prompts), size)]


def open_plan(plan: Plan, out: Path) -> Plan:
    """The plan of a results folder with its solved scales. If there is no folder yet, it is made with ``plan``.

    Several processes may do this at the same time: one makes the folder, the others find its plan.

    Raises:
        InputError: the folder holds results of another plan, or something else, or cannot be written.
    """
    if os.path.lexists(out) and not (out.is_dir() and (_is_new(out) or (out / "plan.json").exists())):
        raise InputError(f"{out} exists and holds no study: choose another {setting('out')}")
    size = len(json.dumps(plan.content))
    if size > TEXT_BYTES.value:
        raise InputError(
            f"the plan has {size:,} bytes, the limit is {TEXT_BYTES.value:,}: give fewer or shorter prompts, or "
            f"set the environment variable {TEXT_BYTES.variable} to a higher number"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        with _turn(out, PLAN_LOCK):
            if not (out / "plan.json").exists():
                write_json(out / "plan.json", plan.content | {"hash": plan.hash})
                return plan
    except OSError as error:
        raise InputError(
            f"the results folder {out} cannot be written ({error.strerror}): choose another {setting('out')}"
        ) from None
    found = read_plan(out)
    if other := plan.differences(found):
        raise InputError(
            f"{out} holds results of another plan ({found.hash[:12]}, this one is {plan.hash[:12]}; they differ in "
            f"{', '.join(other)}): choose another {setting('out')}, or what it was made with"
        )
    return found


def _is_new(out: Path) -> bool:
    """Whether a folder holds nothing but what a process leaves that is killed before it has written the plan."""
    return all(path.name.startswith(".plan.") for path in out.iterdir())


@contextmanager
def _turn(out: Path, name: str) -> Iterator[None]:
    """Hold a lock that nobody holds for long; wait for it."""
    while True:
        with try_held(out, name) as ours:
            if ours:
                yield
                return
        time.sleep(0.02)


def read_plan(out: Path) -> Plan:
    """The plan of a results folder with its solved scales.

    Raises:
        InputError: there is none, it was changed, or it could not be run.
    """
    path = out / "plan.json"
    if not path.exists():
        raise InputError(f"{out} holds no plan.json: give a folder that `guidon study run` wrote")
    stored = read_mapping(path, "the plan of a study")
    hashed = stored.pop("hash", None)
    if "scales" in stored:  # the hash does not cover them
        raise InputError(f"{path} holds scales, which belong into scales.json: run the study again into another folder")
    plan = validated(Plan, stored, str(path))
    with reading(path, "the plan of a study"):
        digest = plan.hash
    if digest != hashed:
        raise InputError(f"{path} was changed after it was frozen: run the study again into another folder")
    check_plan(plan, str(path))
    return plan.with_scales(_read_scales(plan, out / "scales.json"))


def threads_of(out: Path) -> int | None:
    """The number of threads with which the study in a folder must be resumed; None if there is no study."""
    return read_plan(out).threads if (out / "plan.json").exists() else None


def as_begun(study: Study, out: Path) -> Study:
    """A study with the precisions that were chosen at its start, where a machine is to choose, and it is resumed."""
    open_names = [name for name in ("dtype", "decode_dtype") if getattr(study, name) == "auto"]
    if not open_names or not (out / "plan.json").exists():
        return study
    begun, chosen = read_plan(out).settings, dict[str, Any]()
    for name, arm in arms(study).items():
        for key in open_names:
            if getattr(arm, key) is None and name in begun and not (arm.fast and key == "dtype"):
                chosen[key] = begun[name].get(key, "fp32")
    return study.model_copy(update=chosen)


class Scales(Settings):
    """The content of scales.json."""

    format: Literal["guidon scales 1"] = "guidon scales 1"
    plan: str
    """The hash of the plan. The scales depend only on the plan and on ``steps``."""
    steps: PositiveInt
    """Denoising steps of the runs on which they were solved."""
    scales: dict[str, Finite]

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
    if not path.exists():
        return {}
    stored = read_mapping(path, "the scales of a study")
    hashed = stored.pop("hash", None)
    found = validated(Scales, stored, str(path))
    if (found.hash, found.plan) != (hashed, plan.hash) or found.scales.keys() != set(plan.unsolved):
        raise InputError(
            f"{path} was changed or belongs to another plan: delete it, and `guidon study run` solves the scales again"
        )
    return found.scales
