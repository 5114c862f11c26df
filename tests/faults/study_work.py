"""A study of a fraction of a second, and the commands that write its folder: work for faults, kills and races."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch

import guidon
from faults.harness import tree
from guidon import cli
from guidon.metrics.bench import BENCHES
from guidon.pipeline import Pipeline
from studies.small import MATCHED, toy_bench, write
from tiny_model import write_tiny_model

torch.set_num_threads(1)
warnings.simplefilter("ignore")
SMALL = MATCHED | {
    "primary": {"metric": "error", "baseline": "three", "against": "all"}, "prompts": 3, "seeds": 1, "block": 1,
    "steps": 1, "split": "all", "tuning_prompts": 1,
}  # fmt: skip


@cache
def _place() -> tempfile.TemporaryDirectory[str]:
    """The temporary folder of this process, with the weights and the study files."""
    temporary = tempfile.TemporaryDirectory(prefix="guidon-faults-")
    folder = Path(temporary.name)
    (folder / "model").mkdir()
    write_tiny_model(folder / "model")
    write(folder / "study.yaml", model=str(folder / "model"), **SMALL)
    write(folder / "other.yaml", model=str(folder / "model"), **(SMALL | {"title": "another"}))
    return temporary


def place() -> Path:
    """A folder with ``model``, ``study.yaml``, and ``other.yaml``, which is a study with another plan."""
    return Path(_place().name)


@cache
def pipe() -> Pipeline:
    """The model, which makes clips of the toy bench. Load it once, before anything is forked."""
    loaded = guidon.load(place() / "model", device="cpu")
    return type(loaded)(
        loaded.preset,
        dataclasses.replace(loaded.model, facts=dataclasses.replace(loaded.model.facts, bench="toy")),
        loaded.device,
    )


@contextmanager
def toy_world() -> Iterator[pytest.MonkeyPatch]:
    """Let the toy bench exist during the block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BENCHES, "toy", toy_bench())
        yield patch


def run(out: Path, file: str = "study.yaml") -> None:
    """``guidon study run``."""
    _command("study", "run", str(place() / file), "--out", str(out), "--device", "cpu")


def report(out: Path) -> None:
    """``guidon study report``."""
    _command("study", "report", str(out))


def _command(*words: str) -> None:
    """Run a command in this process, which is a child of its own or that of the shim."""
    toy = pipe()
    with toy_world() as patch:
        patch.setattr("guidon.pipeline.load", lambda *_, **__: toy)
        patch.setattr("guidon.cli.study.find_any_planner", lambda *_: toy.planner)
        patch.setattr("os.cpu_count", lambda: 1)
        try:
            cli.main(list(words))
        except SystemExit as stop:
            if stop.code:
                raise


@cache
def finished() -> Path:
    """The folder of an undisturbed run and its report. They are made in this process, so that no child imports anything."""
    out = place() / "finished"
    run(out)
    report(out)
    return out


def copied(out: Path) -> None:
    """Copy the folder of the undisturbed run."""
    shutil.copytree(finished(), out, dirs_exist_ok=True)


def parts(folder: Path) -> dict[str, str]:
    """The digest of each cell, and of each other file. Hidden ones are left out."""
    found: dict[str, list[bytes]] = {}
    for name, content in tree(folder).items():
        if not any(part.startswith(".") for part in Path(name).parts):
            cell = "cells" in Path(name).parts
            found.setdefault(str(Path(name).parent) if cell else name, []).append(name.encode() + content)
    return {name: hashlib.sha256(b"".join(contents)).hexdigest() for name, contents in found.items()}
