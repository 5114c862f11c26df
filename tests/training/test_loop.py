"""The loop, on the tiny denoiser: stopped, killed, exported early, watched."""

import json
import multiprocessing
import shutil
import signal

import pytest
import torch

import guidon
from guidon.checkpoints import load_component
from guidon.core.errors import InputError
from guidon.training import loop, run_recipe
from guidon.training.tasks.vae import VAETask
from recipes import SHAPE, assert_equal_weights, at_step, denoiser_recipe, rows_of, vae_recipe, weights_of


def test_the_trained_folder_is_a_model(trained):
    pipe = guidon.load(trained, device="cpu")
    assert pipe("a red circle moves left on a white background", steps=2).frames.shape == (16, 64, 64, 3)
    record = load_component(trained / "denoiser.safetensors", "denoiser").record
    assert (record["steps"], record["batch_size"]) == (6, 4)
    told = json.loads((trained.parent / "training.json").read_text())
    assert (told["device"], told["hours"] >= 0) == ("cpu", True)


def test_stopped_by_ctrl_c_it_saves_and_resumes_to_the_same_weights(tmp_path, tiny_model, trained, monkeypatch):
    config = denoiser_recipe(tmp_path, tiny_model / "vae.safetensors")
    with monkeypatch.context() as patch:
        at_step(patch, 2, lambda: signal.raise_signal(signal.SIGINT))
        assert run_recipe(config) is None
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 3
    assert_equal_weights(weights_of(run_recipe(config)), weights_of(trained))


def test_killed_it_resumes_from_its_last_checkpoint_to_the_same_weights(tmp_path, tiny_model, trained, monkeypatch):
    config = denoiser_recipe(tmp_path, tiny_model / "vae.safetensors", checkpoint_every=2)

    class Killed(BaseException):
        pass

    def die():
        raise Killed

    with monkeypatch.context() as patch:
        at_step(patch, 5, die)
        with pytest.raises(Killed):
            run_recipe(config)
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 4
    assert not (tmp_path / "run" / "model").exists()
    assert_equal_weights(weights_of(run_recipe(config)), weights_of(trained))
    assert [row["step"] for row in rows_of(tmp_path / "run")] == ["2", "4", "6"]


def test_drawn_by_processes_stopped_and_resumed_it_trains_the_same_weights(tmp_path, tiny_model, trained, monkeypatch):
    config = denoiser_recipe(tmp_path, tiny_model / "vae.safetensors", workers=2)
    with monkeypatch.context() as patch:
        at_step(patch, 2, lambda: signal.raise_signal(signal.SIGINT))
        assert run_recipe(config) is None
    assert not multiprocessing.active_children()
    denoiser_recipe(tmp_path, tiny_model / "vae.safetensors", workers=1)  # it may change when a run is resumed
    assert_equal_weights(weights_of(run_recipe(config)), weights_of(trained))


def test_a_run_can_be_exported_before_it_ends(tmp_path, tiny_model, monkeypatch):
    config = denoiser_recipe(tmp_path, tiny_model / "vae.safetensors")
    with pytest.raises(InputError, match="train first"):
        run_recipe(config, export_only=True)
    with monkeypatch.context() as patch:
        at_step(patch, 2, lambda: signal.raise_signal(signal.SIGTERM))
        run_recipe(config)
    folder = run_recipe(config, export_only=True)
    assert load_component(folder / "denoiser.safetensors", "denoiser").record["steps"] == 3


@pytest.mark.usefixtures("pictures")
def test_training_is_looked_at_and_drawn(tmp_path, tiny_model, monkeypatch, draw_curves):
    monkeypatch.setattr(loop, "draw_curves", draw_curves)
    looked = []

    def look(folder, step):
        guidon.load(folder, device="cpu")
        looked.append(step)
        return {"joint": 0.5}

    run_recipe(denoiser_recipe(tmp_path, tiny_model / "vae.safetensors", evaluate_every=3), look=look)
    assert looked == [3, 6]
    rows = rows_of(tmp_path / "run")
    assert [row["joint"] for row in rows] == ["", "0.5", "0.5"]
    assert all(float(rows[1][name]) > 0 for name in ("val_low", "val_mid", "val_high"))
    assert (tmp_path / "run" / "curve.png").stat().st_size > 1000


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate")],
)
def test_an_allocation_that_fails_is_one_line_and_the_checkpoint_is_kept(tmp_path, monkeypatch, error):
    def predict(self, batch):
        raise error

    run_recipe(vae_recipe(tmp_path))
    before = (tmp_path / "vae" / "checkpoint.pt").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(VAETask, "predict", predict)
        with pytest.raises(InputError, match="training ran out of the memory of cpu: lower batch_size") as told:
            run_recipe(vae_recipe(tmp_path, steps=6))
    assert "\n" not in str(told.value)
    assert (tmp_path / "vae" / "checkpoint.pt").read_bytes() == before
    assert run_recipe(vae_recipe(tmp_path, steps=6)) is not None


def test_what_draws_a_batch_wrongly_stops_the_run(tmp_path, monkeypatch):
    """An error in the thread that draws is not lost."""
    original = VAETask.draw

    def draw(self, step, generator, rows):
        if step == 3:
            raise InputError("no such frame")
        return original(self, step, generator, rows)

    monkeypatch.setattr(VAETask, "draw", draw)
    with pytest.raises(InputError, match="no such frame"):
        run_recipe(vae_recipe(tmp_path))


def test_five_steps_without_a_gradient_in_a_row_stop_a_run_also_across_a_kill(tmp_path, monkeypatch):
    original, broken, taken = VAETask.predict, {0, 1, 2, 3, 5, 6, 7, 8}, []

    class Killed(BaseException):
        pass

    def predict(self, batch):
        found, step = original(self, batch), len(taken)
        if step == 16:
            taken.append(step)
            raise Killed
        if step in broken:
            found.error[-1] *= float("nan")
        taken.append(step)
        return found

    monkeypatch.setattr(VAETask, "predict", predict)
    config = vae_recipe(tmp_path, steps=10, checkpoint_every=1)
    assert run_recipe(config) is not None  # four in a row, twice
    broken |= set(range(13, 30))
    longer = vae_recipe(tmp_path, steps=30, checkpoint_every=1)
    with pytest.raises(Killed):
        run_recipe(longer)
    with pytest.raises(InputError, match="NaN or infinite in 5 steps in a row, up to step 18: "):
        run_recipe(longer)


def test_ctrl_c_in_the_last_step_ends_the_run_and_does_what_it_did_before_afterwards(tmp_path, monkeypatch):
    signals = signal.SIGINT, signal.SIGTERM
    before = [signal.getsignal(sig) for sig in signals]
    at_step(monkeypatch, 3, lambda: signal.raise_signal(signal.SIGINT))
    path = run_recipe(vae_recipe(tmp_path))
    assert path is not None
    assert path.is_file()
    assert [signal.getsignal(sig) for sig in signals] == before


def test_runs_of_other_seeds_share_no_random_numbers(tmp_path, monkeypatch):
    original, drawn = VAETask.draw, {0: [], 1: []}

    def draw(self, step, generator, rows):
        drawn[self.recipe.seed].append(generator.initial_seed())
        return original(self, step, generator, rows)

    monkeypatch.setattr(VAETask, "draw", draw)
    for seed in drawn:
        (tmp_path / str(seed)).mkdir()
        run_recipe(vae_recipe(tmp_path / str(seed), seed=seed))
    assert [len(seeds) for seeds in drawn.values()] == [4, 4]
    assert len({*drawn[0], *drawn[1]}) == 8


def test_the_first_step_has_the_first_learning_rate_and_the_last_one_still_learns(tmp_path):
    run_recipe(vae_recipe(tmp_path, log_every=1, optimiser={"warmup_steps": 2, "decay": 0.5}))
    assert [float(row["lr_factor"]) for row in rows_of(tmp_path / "vae")] == [0.5, 1, 1, 0.5]


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.long)])
def test_compiled_blocks_train_to_the_same_file(tmp_path, tiny_model, monkeypatch, backend):
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    compile_, compiled_blocks = torch.nn.Module.compile, []

    def compile_with(module):
        compiled_blocks.append(module)
        compile_(module, backend=backend)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_with)
    own = {"steps": 2, "model": SHAPE | {"refiner_channels": 4, "refiner_depth": 2}}
    vae = tiny_model / "vae.safetensors"
    compiled = weights_of(run_recipe(denoiser_recipe(tmp_path, vae, compile=True, **own)))
    eager = weights_of(run_recipe(denoiser_recipe(tmp_path, vae, out=str(tmp_path / "plain"), **own)))
    assert [type(part).__name__ for part in compiled_blocks] == ["Block"] * SHAPE["depth"] + ["Refiner"]
    assert compiled.keys() == eager.keys()
    assert all(torch.allclose(compiled[name], eager[name], atol=2e-3) for name in eager)
