"""What changes how a step is computed, and not what is trained: parts of a batch, kept activations, compiled blocks."""

import sys
import types
from pathlib import Path

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from guidon.core.errors import InputError
from guidon.training import load_recipe, run_recipe
from guidon.training.tasks.videos import VideosTask
from own_clips import NETWORKS, videos_recipe, write_clips
from recipes import CPU, rows_of, step_of, weights_of


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_clips(tmp_path_factory.mktemp("parts") / "clips")


@pytest.fixture(scope="module")
def recipe(clips, tiny_model):
    def write(folder, **values):
        folder.mkdir(exist_ok=True)
        return videos_recipe(folder, clips, tiny_model / "vae.safetensors", cache=str(clips.parent / "cache"), **values)

    return write


def gradients(task):
    """The gradient of the first step, by parameter."""
    task.loss(step_of(task))[0].backward()
    return {name: value.grad for name, value in task.module.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("weighting", ["min-snr", pytest.param("uniform", marks=pytest.mark.long)])
def test_parts_of_a_batch_train_as_the_batch(recipe, tmp_path, weighting):
    own = {"terms": {"mse": {"weighting": weighting}}, "ema_decay": 0, "batch_size": 4}
    whole, parts = (run_recipe(recipe(tmp_path / f"{n}", **own, accumulate=n)) for n in (1, 4))
    logs = [rows_of(tmp_path / f"{n}" / "run") for n in (1, 4)]
    for one, several in zip(*logs, strict=True):
        assert float(one["loss"]) == pytest.approx(float(several["loss"]), rel=1e-4)
        assert float(one["grad_norm"]) == pytest.approx(float(several["grad_norm"]), rel=1e-3)
        assert one.keys() == several.keys()
    ours, theirs = weights_of(whole), weights_of(parts)
    assert all(torch.allclose(ours[name].float(), theirs[name].float(), atol=2e-3) for name in ours)


def test_parts_hold_less_for_the_backward_pass(recipe, tmp_path):
    """A part of a batch keeps a part of the activations."""
    kept = {}
    for count in (1, 4):
        task = VideosTask.prepare(load_recipe(recipe(tmp_path / f"{count}", batch_size=8)), CPU)
        rows = slice(0, 8 // count)
        batch = task.draw(0, torch.Generator().manual_seed(0), rows)
        kept[count] = kept_bytes(task, lambda task=task, batch=batch: task.loss(task.predict(batch)))
    assert kept[4] < 0.5 * kept[1]


def kept_bytes(task, work):
    """The bytes of different tensors that a forward pass keeps for the backward pass, without weights."""
    weights = {parameter.data_ptr() for parameter in task.module.parameters()}
    found = {}

    def keep(tensor):
        if tensor.data_ptr() not in weights:
            found[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        result = work()
    assert result is not None
    return sum(found.values())


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=pytest.mark.long) if name == "stdit2" else name for name in NETWORKS]
)
def test_checkpointed_blocks_keep_less_and_have_the_same_gradients(recipe, tmp_path, family, clips):
    shape = {"family": family, **NETWORKS[family], "depth": 6}
    values = {"network": shape, "batch_size": 4}
    if family in ("dit", "pixart"):
        values |= {"data": {"folder": str(clips.parent / "pictures")}}
        if not (clips.parent / "pictures").exists():
            write_clips(clips.parent / "pictures", frames=1)
    tasks = [
        VideosTask.prepare(
            load_recipe(recipe(tmp_path / f"{on}", family=family, **values, gradient_checkpointing=on)), CPU
        )
        for on in (False, True)
    ]
    kept = [kept_bytes(task, lambda task=task: task.loss(step_of(task))) for task in tasks]
    assert kept[1] < 0.6 * kept[0]
    ours, theirs = map(gradients, tasks)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_recipe_asks_for_compiled_blocks(recipe, tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda block: found.append(block))
    for compiling in (False, True):
        task = VideosTask.prepare(load_recipe(recipe(tmp_path / f"{compiling}", compile=compiling)), CPU)
        assert found == list(task.network.denoiser.blocks) * compiling


@pytest.mark.long
def test_blocks_are_compiled(recipe, tmp_path, monkeypatch):
    compile_, found = torch.nn.Module.compile, []

    def eagerly(module):
        found.append(module)
        compile_(module, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", eagerly)
    plain = run_recipe(recipe(tmp_path / "plain", steps=1, evaluate_every=0))
    compiled = run_recipe(recipe(tmp_path / "compiled", steps=1, evaluate_every=0, compile=True))
    assert len(found) == 1
    ours, theirs = weights_of(plain), weights_of(compiled)
    assert all(torch.allclose(ours[name].float(), theirs[name].float(), atol=1e-3) for name in ours)


def test_a_run_in_bf16_is_near_one_in_fp32(recipe, tmp_path):
    losses = {}
    for precision in ("fp32", "bf16"):
        run_recipe(recipe(tmp_path / precision, steps=2, precision=precision, evaluate_every=0))
        losses[precision] = [float(row["loss"]) for row in rows_of(tmp_path / precision / "run")]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)
    assert losses["bf16"] != losses["fp32"]


def test_a_tracker_is_told_every_row_and_shown_the_sheets(recipe, tmp_path, monkeypatch):
    from guidon.analysis.evaluate import look_during_training

    told = []
    stand_in = types.ModuleType("trackio")
    stand_in.init = lambda **values: told.append(("init", values["project"], values["config"]["batch_size"]))
    stand_in.log = lambda values, step: told.append(("log", step, values))
    stand_in.Image = lambda path: f"image {path}"
    stand_in.finish = lambda: told.append(("finish",))
    monkeypatch.setitem(sys.modules, "trackio", stand_in)
    run_recipe(
        recipe(tmp_path / "told", trackers=["trackio"], steps=2, evaluate_every=2, samples=1), look=look_during_training
    )
    rows = [step for kind, step, *_ in told[1:-1] if kind == "log" and "loss" in _[0]]
    assert (told[0], rows, told[-1]) == (("init", "run", 4), [1, 2], ("finish",))
    sheets = [entry[2]["samples"] for entry in told[1:-1] if "samples" in entry[2]]
    assert sheets == [f"image {tmp_path / 'told' / 'run' / 'sheets' / '0000002.png'}"]
    last = next(entry[2] for entry in told if entry[:2] == ("log", 2) and "loss" in entry[2])
    assert last["val_mse"] == pytest.approx(float(rows_of(tmp_path / "told" / "run")[-1]["val_mse"]))


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb"])
def test_a_tracker_that_is_missing_is_named_in_one_line(recipe, tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        InputError,
        match=rf"the tracker {name} needs {name}, which is not installed: pip install 'guidon-diffusion\[{name}\]'",
    ) as error:
        run_recipe(recipe(tmp_path / "x", trackers=[name]))
    assert "\n" not in str(error.value)


def test_tensorboard_is_given_the_rows(recipe, tmp_path, monkeypatch):
    told = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            told.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            told.append((name, step))

        def close(self):
            told.append("closed")

    monkeypatch.setitem(sys.modules, "tensorboard", types.ModuleType("tensorboard"))
    board = types.ModuleType("torch.utils.tensorboard")
    board.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    for steps in (1, 2):
        run_recipe(recipe(tmp_path / "board", trackers=["tensorboard"], steps=steps, evaluate_every=0))
    runs = [entry for entry in told if "tensorboard" in entry[0]]
    assert [Path(folder).parts[-2:] for folder, _ in runs] == [("run", "tensorboard")] * 2
    assert [step for _, step in runs] == [1, 2]  # rows of a killed run after its checkpoint are written again
    assert ("loss", 1) in told
    assert told[-1] == "closed"
