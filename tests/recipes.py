"""Tiny recipes that train in seconds, for tests."""

import contextlib
import csv
import io
import os

import numpy as np
import pytest
import torch
import yaml

from guidon import world
from guidon.checkpoints import load_component
from guidon.core.errors import InputError
from guidon.core.ranks import Ranks
from guidon.training import load_recipe, run_recipe
from guidon.training.data.redraw import Redrawn
from guidon.training.ema import EMA
from guidon.training.rows import tensors_of
from guidon.training.tasks.denoiser import DenoiserTask
from guidon.training.tasks.vae import VAETask
from ranks import on_ranks

CPU = torch.device("cpu")
LOW, HIGH = ({"noise": noise, "boundary": 350} for noise in ("low", "high"))
VAE_SHAPE = {"block_out_channels": [8, 8], "norm_num_groups": 4, "pixel_unshuffle": 4}
SHAPE = {"patch_size": [4, 4, 4], "hidden_size": 16, "depth": 1, "num_heads": 2}
TEXT = {"features": 8, "layers": 1, "heads": 2}
VAE = {"task": "vae", "steps": 4, "batch_size": 4, "device": "cpu", "log_every": 2, "model": VAE_SHAPE}
DENOISER = {
    "task": "denoiser", "steps": 6, "batch_size": 4, "device": "cpu", "clips": 6, "log_every": 2,
    "terms": {"mse": {"weighting": "balanced"}}, "optimiser": {"name": "muon", "warmup_steps": 2}, "model": SHAPE, "text": TEXT,
}  # fmt: skip
ROLLOUT = {
    "task": "rollout", "steps": 3, "batch_size": 4, "device": "cpu", "rollouts": 24, "log_every": 1,
    "finisher": {"channels": 4, "depth": 1, "end": 100}, "sampling": {"steps": 2}, "optimiser": {"warmup_steps": 2},
}  # fmt: skip


def write_recipe(path, values):
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def vae_recipe(folder, **values):
    return write_recipe(folder / "vae.yaml", VAE | {"out": str(folder / "vae")} | values)


def denoiser_recipe(folder, vae, **values):
    return write_recipe(folder / "run.yaml", DENOISER | {"out": str(folder / "run"), "vae": str(vae)} | values)


def vae_task(folder, **values):
    return VAETask.prepare(load_recipe(vae_recipe(folder, **values)), CPU)


def denoiser_task(folder, vae, **values):
    return DenoiserTask.prepare(load_recipe(denoiser_recipe(folder, vae, **values)), CPU)


def step_of(task, step=0):
    """What a task predicts in a step."""
    return task.predict(task.draw(step, torch.Generator().manual_seed(step)))


def assert_rows_are_those_of_the_batch(task, size, step=3):
    """Rows that are drawn alone are those of the whole batch, tensors and captions, and the batch is not changed."""
    whole = task.draw(step, torch.Generator().manual_seed(step))
    for rows in (slice(0, size // 2), slice(size // 2, size), slice(1, 2)):
        part = task.draw(step, torch.Generator().manual_seed(step), rows)
        wanted, found = tensors_of(whole), tensors_of(part)
        assert len(wanted) == len(found) > 0
        assert all(torch.equal(value[rows], own) for value, own in zip(wanted, found, strict=True))
        captions, told = (getattr(getattr(batch, "clips", batch), "captions", []) for batch in (whole, part))
        assert list(captions)[rows] == list(told)


def at_step(monkeypatch, step, action):
    """Do something in the middle of a step of training."""
    original = EMA.update

    def update(self, module, at):
        if at == step:
            action()
        original(self, module, at)

    monkeypatch.setattr(EMA, "update", update)


def rows_of(folder):
    """The rows of a run's log."""
    with (folder / "log.csv").open() as file:
        return list(csv.DictReader(file))


def weights_of(folder):
    """All tensors of a model folder, by file and name."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        kind = "denoiser" if path.stem == "denoiser-low" else path.stem
        found |= {f"{path.stem}.{name}": value for name, value in load_component(path, kind).weights.items()}
    return found


def assert_equal_weights(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def run_on_ranks(config, count=2, **environment):
    """Run a recipe on ranks. Returns what each says: its error, or where its result is."""

    def work():
        with contextlib.redirect_stderr(io.StringIO()), Ranks.join() as ranks:
            try:
                return str(run_recipe(config, ranks=ranks))
            except InputError as error:
                return f"{type(error).__name__}: {error}"

    return on_ranks(work, count, **environment)


def assert_same_run(one, other, close=1e-4):
    """Two runs logged the same losses, but for rounding."""
    ours, theirs = rows_of(one), rows_of(other)
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"seconds"}:
            same = a[name] == b[name] or float(a[name]) == pytest.approx(float(b[name]), rel=close, abs=1e-6)
            assert same, (name, a["step"], a[name], b[name])


def assert_two_ranks_are_one_process(recipe):
    """``recipe(folder)`` writes a recipe whose run is in ``folder / "run"``; ``folder`` is "one" or "two"."""
    one, two = recipe("one"), recipe("two")
    run_recipe(one)
    first, second = run_on_ranks(two)
    assert first == second == str(two.parent / "run" / "model")
    assert_same_run(one.parent / "run", two.parent / "run")


def assert_both_ranks_sample(folder, module, recipe, monkeypatch):
    """Under torchrun, ``module._sample`` is called on both ranks."""
    sample, seen = module._sample, folder / "seen"
    seen.mkdir()

    def told(*arguments):
        (seen / os.environ["RANK"]).touch()
        return sample(*arguments)

    monkeypatch.setattr(module, "_sample", told)
    first, second = run_on_ranks(recipe)
    assert first == second == str(folder / "run" / "model")
    assert {path.name for path in seen.iterdir()} == {"0", "1"}


def redraw_truth(frames, wanted):
    """In place of ``redraw``: as if every second clip, from the first, had been drawn as its caption's clip is.

    Tiny models draw nothing that can be read. Captions are those of ``world.clip("train", 0, k)``.
    """
    known = {world.clip("train", 0, k).caption: world.clip("train", 0, k).scene for k in range(64)}
    scenes = {world.read_caption(text): scene for text, scene in known.items()}
    usable = np.arange(len(frames)) % 2 == 0
    clean, coverage = np.zeros(frames.shape, np.float32), np.zeros(frames.shape[:-1], np.float32)
    for n in np.flatnonzero(usable):
        clean[n], coverage[n] = world.render(scenes[wanted[n]]), world.foreground(scenes[wanted[n]])
    return Redrawn(clean, coverage, usable)


def scenes_of_captions(wanted):
    """In place of ``correct``: the scene of every second caption, from the first; the others cannot be read."""
    known = {world.clip("train", 0, k).caption: world.clip("train", 0, k).scene for k in range(64)}
    scenes = {world.read_caption(text): scene for text, scene in known.items()}
    return [scenes[want] if n % 2 == 0 else None for n, want in enumerate(wanted)]
