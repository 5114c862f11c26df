"""Trainings of a fraction of a second, as work for faults, kills and races; and what they leave, compared exactly."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from faults.harness import tree
from guidon.checkpoints import load_component, save_component
from guidon.core.atomic import write_bytes
from guidon.core.hashing import hash_text
from guidon.training import loop, run_recipe
from guidon.training.data import rollouts
from guidon.training.ema import EMA
from guidon.training.log import read_rows
from guidon.training.loop import TRAINING
from guidon.training.state import State, _digest, read_state
from guidon.training.tasks import denoiser, vae
from guidon.training.tasks.denoiser import DenoiserTask
from guidon.training.tasks.rollout import RolloutTask
from guidon.training.tasks.vae import VAETask
from recipes import DENOISER, LOW, ROLLOUT, VAE, redraw_truth, write_recipe
from tiny_model import write_tiny_model

torch.set_num_threads(1)
SMALL_VAE = VAE | {
    "steps": 9, "batch_size": 1, "log_every": 1, "checkpoint_every": 3,
    "model": {"block_out_channels": [4, 4], "norm_num_groups": 2, "latent_channels": 2},
}  # fmt: skip
SMALL_DENOISER = DENOISER | {"steps": 8, "log_every": 1, "checkpoint_every": 2, "clips": 4, "evaluate_every": 4}
SMALL_ROLLOUT = ROLLOUT | {
    "steps": 6, "checkpoint_every": 2, "rollouts": 8, "sampling": {"steps": 1, "block": 2},
}  # fmt: skip
UNEQUAL = (TRAINING, "curve.png")  # the time that a run took; and a picture, which takes longer than all the rest


@cache
def _place() -> tempfile.TemporaryDirectory[str]:
    temporary = tempfile.TemporaryDirectory(prefix="guidon-faults-")
    model = Path(temporary.name, "model")
    model.mkdir()
    write_tiny_model(model)
    found = load_component(model / "denoiser.safetensors", "denoiser")
    save_component(found.path, "denoiser", found.config | {"prediction": "x0"}, found.weights, found.record)
    return temporary


def recipe_of(task: str, folder: Path, **changes: Any) -> Path:
    """The recipe of a task in ``folder``, which trains into ``folder / "out"``: "vae", "denoiser", "rollout" or
    "stages", an autoencoder and two networks on it."""
    model, own = Path(_place().name, "model"), {"out": str(folder / "out")}
    folder.mkdir(exist_ok=True, parents=True)
    if task == "vae":
        values = SMALL_VAE | own
    elif task == "denoiser":
        values = SMALL_DENOISER | own | {"vae": str(model / "vae.safetensors")}
    elif task == "rollout":
        values = SMALL_ROLLOUT | own | {"start": str(model)}
    else:
        few = {"steps": 2, "checkpoint_every": 1, "evaluate_every": 0}
        network = {name: value for name, value in (SMALL_DENOISER | few | {"vae": "eye"}).items() if name != "task"}
        stages = {
            "eye": SMALL_VAE | few,
            "base": {"task": "denoiser"},
            "low": {"task": "denoiser", "start": "base", "expert": LOW},
        }
        values = own | {"common": {"denoiser": network}, "stages": stages, "export": {"stage": "low"}}
    return write_recipe(folder / "recipe.yaml", values | changes)


def _no_picture(rows: Any, picture: Path) -> Path:
    write_bytes(picture, b"no picture")
    return picture


def train(task: str, folder: Path, poison: tuple[str, frozenset[int]] | None = None, **changes: Any) -> None:
    """Train a recipe, without the picture of its curves, and with rollouts that can be read.

    Args:
        task: see ``recipe_of``.
        folder: holds the recipe and the folder of the run.
        poison: where NaN is put, and in which steps, counted from 1; see ``_poisoned``.
        changes: settings of the recipe.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "draw_curves", _no_picture)
        patch.setattr(rollouts, "redraw", redraw_truth)
        patch.setattr(vae, "HELD_OUT", 1)
        patch.setattr(denoiser, "HELD_OUT", 2)
        if poison is not None:
            _poisoned(patch, *poison)
        run_recipe(recipe_of(task, folder, **changes))


def train_until_call(task: str, folder: Path, number: int) -> None:
    """``train``, killed before its file operation of that number: opening, making, renaming or deleting in the folder.

    For a forked process, which it ends.
    """
    calls, prefix = 0, str(folder / "out")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal calls
        if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir") and str(arguments[0]).startswith(prefix):
            calls += 1
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    train(task, folder)


def _poisoned(patch: pytest.MonkeyPatch, where: str, steps: frozenset[int]) -> None:
    """Put NaN into some steps of every run, always into the same.

    Args:
        patch: undoes it.
        where: "loss"; "gradient", under a finite loss; "infinite gradient"; or "weights", after the step's update.
        steps: their numbers, from 1.
    """
    now, factor = [0], float("inf") if where == "infinite gradient" else float("nan")
    for cls in (VAETask, DenoiserTask, RolloutTask):

        def draw(self: Any, step: int, generator: Any, rows: slice, draw: Any = cls.draw) -> Any:
            return step + 1, draw(self, step, generator, rows)

        def predict(self: Any, numbered: Any, predict: Any = cls.predict) -> Any:
            now[0], batch = numbered
            return predict(self, batch)

        def loss(self: Any, predicted: Any, loss: Any = cls.loss) -> Any:
            value, logs = loss(self, predicted)
            if now[0] in steps and where == "loss":
                value = value * factor
            elif now[0] in steps and where.endswith("gradient"):
                value.register_hook(lambda gradient: gradient * factor)
            return value, logs

        for name, made in (("draw", draw), ("predict", predict), ("loss", loss)):
            patch.setattr(cls, name, made)
    update = EMA.update

    def updated(self: EMA, module: torch.nn.Module, step: int) -> None:
        update(self, module, step)
        if where == "weights" and step + 1 in steps:
            parameter = next(parameter for parameter in module.parameters() if parameter.requires_grad)
            parameter.data.view(-1)[0] = factor

    patch.setattr(EMA, "update", updated)


def ends(folder: Path) -> dict[str, str]:
    """What a training in ``folder`` left, as digests that are equal exactly where two runs of a recipe are equal.

    A damaged checkpoint or log raises.
    """
    out = folder / "out"
    return {name: _end(out / name, data) for name, data in tree(out).items()}


def _end(path: Path, data: bytes) -> str:
    """What counts of a file that a training writes, as a digest."""
    if path.name == "checkpoint.pt":
        return content(read_state(path))
    if path.name == "log.csv":
        return _rows(read_rows(path))
    return "written" if path.name in UNEQUAL else hashlib.sha256(data).hexdigest()


def content(state: State, but: str = "") -> str:
    """A digest of a checkpoint, without what differs from run to run and without the fields in ``but``."""
    names = {"step", "skipped", "module", "ema", "optimisers"} - set(but.split())
    return _digest({name: getattr(state, name) for name in sorted(names)}) + ("" if but else _rows(state.log))


def _rows(rows: Any) -> str:
    kept = [{name: value for name, value in row.items() if name != "seconds" and value} for row in rows]
    return hash_text(json.dumps(kept))


def parts(folder: Path) -> dict[str, str]:
    """``ends`` for a run that may not have ended: a checkpoint, a log and the clips of a run are whole or raise.

    Hidden files are left out: a writer may have ended within one.
    """
    found: dict[str, str] = {}
    for name, data in tree(folder / "out").items():
        if not any(part.startswith(".") for part in Path(name).parts):
            path = folder / "out" / name
            digest = _end(path, data)
            found[name] = "whole" if path.name in ("checkpoint.pt", "log.csv") else digest
    return found
