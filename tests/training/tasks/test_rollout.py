"""The stage that learns from its own rollouts: what it trains, what it leaves, and that the result samples."""

import shutil
import signal

import numpy as np
import pytest
import torch

import guidon
from guidon.checkpoints import load_component, save_component
from guidon.core.errors import InputError
from guidon.training import load_recipe, run_recipe
from guidon.training.data import rollouts
from guidon.training.tasks.rollout import RolloutTask
from recipes import (
    CPU,
    ROLLOUT,
    assert_both_ranks_sample,
    assert_equal_weights,
    assert_rows_are_those_of_the_batch,
    assert_two_ranks_are_one_process,
    at_step,
    redraw_truth,
    rows_of,
    step_of,
    weights_of,
    write_recipe,
)

PROMPT = "a red circle moves left on a white background"


@pytest.fixture(autouse=True)
def readable(monkeypatch):
    monkeypatch.setattr(rollouts, "redraw", redraw_truth)


def recipe(folder, model, **values):
    """Runs that start from one model share their rollouts beside it."""
    folder.mkdir(exist_ok=True)
    places = {"out": str(folder / "run"), "start": str(model), "cache": str(model.parent)}
    return write_recipe(folder / "roll.yaml", ROLLOUT | places | values)


def task_of(folder, model, **values):
    return RolloutTask.prepare(load_recipe(recipe(folder, model, **values)), CPU)


def test_a_rank_draws_its_rows_of_the_batch(tmp_path, model_x0):
    assert_rows_are_those_of_the_batch(task_of(tmp_path, model_x0), 4)


@pytest.mark.long
def test_two_ranks_train_as_one_process(tmp_path, model_x0):
    assert_two_ranks_are_one_process(lambda name: recipe(tmp_path / name, model_x0))


def test_both_ranks_sample(tmp_path, model_x0, monkeypatch):
    small = {"cache": None, "rollouts": 8, "sampling": {"steps": 2, "block": 4}, "steps": 1}
    assert_both_ranks_sample(tmp_path, rollouts, recipe(tmp_path, model_x0, **small), monkeypatch)


def test_only_the_finisher_is_trained(tmp_path, model_x0):
    folder = run_recipe(recipe(tmp_path, model_x0, cache=None, rollouts=8))
    assert list((tmp_path / "run").glob("rollouts-*/*.safetensors"))
    before, after = weights_of(model_x0), weights_of(folder)
    assert {name.removeprefix("denoiser.").split(".")[0] for name in after.keys() - before.keys()} == {"finisher"}
    assert_equal_weights({name: after[name] for name in before}, before)
    assert after["denoiser.finisher.refiner.exit.weight"].abs().max() > 0
    made = load_component(folder / "denoiser.safetensors", "denoiser")
    shape = {name: made.config[f"finisher_{name}"] for name in ("channels", "depth", "end")}
    assert shape == ROLLOUT["finisher"]
    assert made.record["finishes"].keys() == {"denoiser", "text", "vae"}
    for name in ("text", "vae"):
        assert (folder / f"{name}.safetensors").read_bytes() == (model_x0 / f"{name}.safetensors").read_bytes()


def test_blocks_and_the_finisher_are_compiled(tmp_path, model_x0, monkeypatch):
    compile_, compiled = torch.nn.Module.compile, []

    def eagerly(module):
        compiled.append(type(module).__name__)
        compile_(module, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", eagerly)
    plain = weights_of(run_recipe(recipe(tmp_path / "plain", model_x0)))
    assert not compiled
    again = weights_of(run_recipe(recipe(tmp_path / "compiled", model_x0, compile=True)))
    depth = load_component(model_x0 / "denoiser.safetensors", "denoiser").config["depth"]
    assert compiled == ["Block"] * depth + ["Finisher"]
    assert plain.keys() == again.keys()
    assert all(torch.allclose(plain[name], again[name], atol=1e-6) for name in plain)


def test_guidance_acts_through_it(tmp_path, model_x0):
    """What it draws depends on the scale; a conditional clip is not that of the model without it."""
    folder = run_recipe(recipe(tmp_path, model_x0, optimiser={"lr": 0.1, "warmup_steps": 1}))
    pipe, before = (guidon.load(place, device="cpu") for place in (folder, model_x0))
    common = {"steps": 4, "timing": "constant", "cfg_channels": "all", "sampler": "ddim"}
    plain, weak, strong = (pipe(PROMPT, cfg_scale=scale, **common).frames for scale in (1, 2, 4))
    assert not np.array_equal(plain, before(PROMPT, cfg_scale=1, **common).frames)
    assert not np.array_equal(plain, weak)
    assert not np.array_equal(weak, strong)


def test_the_target_is_the_clean_clip_whatever_is_shown(tmp_path, model_x0):
    for blend in (0, 1):
        task = task_of(tmp_path / str(blend), model_x0, blend=blend, batch_size=16)
        batch = task.draw(0, torch.Generator().manual_seed(0))
        known = [pair.float() for pair in task.rollouts.clean[: task.trained]]
        assert all(any(torch.equal(row, one) or torch.equal(row, one.flip(1)) for one in known) for row in batch.clean)
        drawn = [pair.float() for pair in task.rollouts.drawn[: task.trained]]
        plain = sum(any(torch.equal(row, one) or torch.equal(row, one.flip(1)) for one in drawn) for row in batch.shown)
        assert plain == (16 if blend == 0 else 0)
        assert (batch.t < task.recipe.finisher.end).all()
        step = task.predict(batch)
        assert torch.equal(step.x_0, batch.clean)
        error = step.level.alpha * step.x_0 + step.level.sigma * step.noise - step.x_t
        assert error.abs().max() < 1e-4  # the noise is the one from the clean clip to x_t


def test_a_rollout_is_turned_with_its_clean_clip_its_object_and_its_caption(tmp_path, model_x0):
    task = task_of(tmp_path, model_x0, blend=0, batch_size=64)
    batch, known, turned = task.draw(0, torch.Generator().manual_seed(0)), task.rollouts, 0
    for shown, clean, objects, caption in zip(batch.shown, batch.clean, batch.objects, batch.captions, strict=True):
        ways = [
            (index, turn)
            for index in range(task.trained)
            for turn in (False, True)
            if torch.equal(shown, known.drawn[index].float().flip([1] * turn))
        ]
        ((index, turn),) = ways
        turned += turn
        assert torch.equal(clean, known.clean[index].float().flip([1] * turn))
        assert torch.equal(objects[0], known.objects[index].flip([0] * turn))
        assert caption == (known.backwards if turn else known.captions)[index]
    assert 10 < turned < 54


def test_what_is_not_trained_on_alone_is_measured(tmp_path, model_x0):
    task = task_of(tmp_path, model_x0)
    weights = task.module.state_dict()
    before = task.validate(weights)
    for part in (task.rollouts.drawn, task.rollouts.clean):
        part[: task.trained] = 0
    assert task.validate(weights) == before
    task.rollouts.drawn[task.trained :] = 0
    assert task.validate(weights) != before


def test_a_caption_that_is_dropped_is_the_null_one(tmp_path, model_x0, monkeypatch):
    task = task_of(tmp_path, model_x0, caption_dropout=0.5, batch_size=16)
    batch, seen = task.draw(0, torch.Generator().manual_seed(0)), []
    monkeypatch.setattr(task.module.denoiser, "forward", lambda x, t, y, mask: seen.append(y) or torch.cat([x, x], 1))
    task.predict(batch)
    null = (seen[0] == task.module.denoiser.y_embedder.y_embedding).flatten(1).all(1)
    assert torch.equal(null, batch.dropped)
    assert 0 < batch.dropped.sum() < 16


def test_the_network_for_low_noise_gets_the_finisher(tmp_path, model_x0):
    folder = shutil.copytree(model_x0, tmp_path / "both")
    found = load_component(folder / "denoiser.safetensors", "denoiser")
    save_component(folder / "denoiser-low.safetensors", "denoiser", found.config | {"boundary": 350}, found.weights, {})
    own = {"cache": str(tmp_path), "rollouts": 2}
    assert task_of(tmp_path / "one", folder, **own).own.path.name == "denoiser-low.safetensors"
    with pytest.raises(InputError, match=r"finisher.end is 400, denoiser-low.safetensors ends at timestep 350"):
        task_of(tmp_path / "two", folder, **own, finisher=ROLLOUT["finisher"] | {"end": 400})


def test_it_lowers_the_error_on_its_rollouts(tmp_path, model_x0):
    values = {"steps": 20, "optimiser": {"lr": 0.02, "warmup_steps": 1}, "log_every": 1, "evaluate_every": 10}
    run_recipe(recipe(tmp_path, model_x0, **values))
    rows = rows_of(tmp_path / "run")
    losses = [float(row["mse"]) for row in rows]
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    assert all(float(rows[-1][name]) > 0 for name in ("val_low", "val_mid", "val_high"))


def test_a_run_that_was_cut_off_ends_with_the_same_weights(tmp_path, model_x0, monkeypatch):
    whole = weights_of(run_recipe(recipe(tmp_path / "whole", model_x0)))
    path = recipe(tmp_path / "cut", model_x0)
    with monkeypatch.context() as patch:
        at_step(patch, 1, lambda: signal.raise_signal(signal.SIGINT))
        assert run_recipe(path) is None
    assert_equal_weights(weights_of(run_recipe(path)), whole)


def test_a_finisher_is_trained_further_and_only_in_its_own_shape(tmp_path, model_x0):
    first = run_recipe(recipe(tmp_path / "first", model_x0))
    task = task_of(tmp_path / "second", first)
    kept = load_component(first / "denoiser.safetensors", "denoiser").weights
    assert all(torch.equal(task.module.denoiser.state_dict()[name], value.float()) for name, value in kept.items())
    with pytest.raises(InputError, match="has a finisher of another shape"):
        task_of(tmp_path / "third", first, finisher=ROLLOUT["finisher"] | {"channels": 8})


def test_a_step_has_no_bound_and_counts_badly_drawn_samples_less(tmp_path, model_x0):
    task = task_of(tmp_path, model_x0)
    step = step_of(task)
    assert step.swapped.all()
    batch = task.draw(0, torch.Generator().manual_seed(0))
    missed = (batch.shown - batch.clean).square().mean((1, 2, 3, 4))
    assert torch.allclose(step.counts, 0.03 / (0.03 + missed))
    loss, logs = task.loss(step)
    assert loss.requires_grad
    assert float(logs["mse"]) > 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"start": "nowhere"}, "is no model folder"),
        ({"terms": {"area": {"weight": 1}}}, "the term area needs areas, which rollouts do not have"),
        ({"terms": {"shape_contrast": {"weight": 4}}}, "the term shape_contrast needs families"),
        ({"sampling": {"timing": "intervl:0,1"}}, "did you mean 'interval:A,B'"),
        ({"sampling": {"cfg_channels": "x"}}, "x"),
        ({"finisher": {"end": 1200}}, "finisher.end"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, model_x0, values, message):
    with pytest.raises(InputError, match=message):
        run_recipe(recipe(tmp_path, model_x0, **values))


def test_a_network_that_predicts_noise_is_refused(tmp_path, tiny_model):
    with pytest.raises(InputError, match="predicts eps, a finisher corrects x0"):
        run_recipe(recipe(tmp_path, tiny_model))
