"""The stage that distils: what it trains, what it leaves, that it resumes, and that its result is told of guidance."""

import shutil
import signal

import numpy as np
import pytest
import torch

import guidon
from guidon.checkpoints import load_component
from guidon.core.errors import InputError
from guidon.models.small import DISTILLED
from guidon.models.small.distilled_config import DISTILLED_KIND
from guidon.training import load_recipe, run_recipe
from guidon.training.data import pairs
from guidon.training.tasks import distill
from guidon.training.tasks.distill import DistillTask
from recipes import (
    CPU,
    assert_both_ranks_sample,
    assert_equal_weights,
    assert_rows_are_those_of_the_batch,
    assert_two_ranks_are_one_process,
    at_step,
    rows_of,
    scenes_of_captions,
    step_of,
    write_recipe,
)

PROMPT = "a red circle moves left on a white background"
STEPS = (999, 600, 300)
DISTILL = {
    "task": "distill", "steps": 4, "batch_size": 4, "device": "cpu", "rollouts": 16, "log_every": 1, "rank": 2,
    "timesteps": list(STEPS), "end": 400, "refiner_end": 0, "imitation": 2, "sampling": {"block": 8, "varied": 0.5},
    "optimiser": {"warmup_steps": 2},
}  # fmt: skip


@pytest.fixture(autouse=True)
def readable(monkeypatch):
    """As if a model drew what it was asked for: tiny ones draw nothing that can be read."""
    monkeypatch.setattr(pairs, "correct", lambda frames, wanted: scenes_of_captions(wanted))


def recipe(folder, model, **values):
    """Runs that start from one model share their rollouts beside it."""
    folder.mkdir(exist_ok=True)
    places = {"out": str(folder / "run"), "start": str(model), "cache": str(model.parent)}
    return write_recipe(folder / "distill.yaml", DISTILL | places | values)


def task_of(folder, model, **values):
    return DistillTask.prepare(load_recipe(recipe(folder, model, **values)), CPU)


@pytest.fixture(scope="module")
def distilled(tmp_path_factory, model_x0):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "correct", lambda frames, wanted: scenes_of_captions(wanted))
        fast = {"lr": 0.05, "warmup_steps": 1, "decay": 0.0}
        return run_recipe(recipe(tmp_path_factory.mktemp("distilled"), model_x0, optimiser=fast, ema_decay=0.0))


def test_both_ranks_sample(tmp_path, model_x0, monkeypatch):
    assert_both_ranks_sample(tmp_path, pairs, recipe(tmp_path, model_x0, cache=None, steps=1), monkeypatch)


def test_a_file_is_added_and_all_others_stay(distilled, model_x0):
    names = {path.name for path in model_x0.glob("*.safetensors")}
    assert {path.name for path in distilled.iterdir()} == names | {DISTILLED}
    assert all((distilled / name).read_bytes() == (model_x0 / name).read_bytes() for name in names)
    made = load_component(distilled / DISTILLED, DISTILLED_KIND)
    assert tuple(made.config["timesteps"]) == STEPS
    assert made.record["distils"].keys() == {"denoiser", "text", "vae"}
    assert not any(name.endswith("original") for name in made.weights)
    assert max(float(value.float().abs().max()) for name, value in made.weights.items() if name.endswith("up")) > 0


def test_a_rank_draws_its_rows_of_the_batch(tmp_path, model_x0):
    assert_rows_are_those_of_the_batch(task_of(tmp_path, model_x0), 4)


@pytest.mark.long
def test_two_ranks_train_as_one_process(tmp_path, model_x0):
    assert_two_ranks_are_one_process(lambda name: recipe(tmp_path / name, model_x0))


def test_a_new_network_predicts_what_the_conditional_branch_does(tmp_path, model_x0):
    task = task_of(tmp_path, model_x0)
    batch = task.draw(5, torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = task.predict(batch).predictions[0]
        features, mask = task.text(task.text.tokenize(batch.captions))
        level = task.levels[0]
        whole = task.module.merge()
        expected = whole(batch.before[:, 0], torch.full((4,), int(level.timestep)), features, mask)[:, :4]
    torch.testing.assert_close(found, expected)


def test_the_default_ignores_the_file(distilled, model_x0):
    ours, theirs = (guidon.load(folder, device="cpu")(PROMPT, steps=3) for folder in (distilled, model_x0))
    assert np.array_equal(ours.frames, theirs.frames)
    assert ours.manifest["weights"] == theirs.manifest["weights"]
    assert "distilled" not in ours.manifest["generation"]


SAMPLER = {"steps": 3, "sampler": "consistency", "spacing": "at:999,600,300", "timing": "constant"}


def sampled(pipe, **choices):
    request = pipe.planner.plan([PROMPT], **SAMPLER, **choices)
    return pipe.generate(request.model_copy(update={"distilled": True}))[0]


def test_strengths_reach_the_network_in_one_branch(distilled, monkeypatch):
    pipe = guidon.load(distilled, device="cpu")
    rows = []
    with pipe.model.distilled.in_use(torch.float32) as network:
        original = type(network).__call__
        monkeypatch.setattr(
            type(network), "__call__", lambda self, x, *rest: rows.append(len(x)) or original(self, x, *rest)
        )
    clips = [sampled(pipe, cfg_scale=scale, cfg_channels=channels) for scale, channels in ((1, 3), (3, 3), (3, "all"))]
    assert rows == [1] * 9  # one row in each of three steps
    assert all(not np.array_equal(clips[k].frames, clips[k - 1].frames) for k in range(3))
    assert clips[0].manifest["weights"].keys() == {"denoiser", "denoiser-fast", "text", "vae"}
    assert np.array_equal(guidon.reproduce(clips[1].manifest, device="cpu").frames, clips[1].frames)


@pytest.mark.parametrize(
    ("choices", "named"),
    [
        ({"guidance": "apg"}, "guidance"),
        ({"negative_prompt": "a blue square"}, "negative_prompt"),
        ({"timing": "interval:0,0.5"}, "timing"),
        ({"spacing": "at:999,600,200"}, "spacing"),
        ({"sampler": "ddpm"}, "sampler"),
    ],
)
def test_what_needs_two_branches_or_other_steps_is_refused(distilled, choices, named):
    planner = guidon.load(distilled, device="cpu").planner
    request = planner.complete([PROMPT], **SAMPLER | choices).model_copy(update={"distilled": True})
    with pytest.raises(InputError, match=named):
        planner.check(request)


def test_a_model_without_one_is_refused(model_x0):
    planner = guidon.load(model_x0, device="cpu").planner
    request = planner.complete([PROMPT], steps=3).model_copy(update={"distilled": True})
    with pytest.raises(InputError, match="no distilled network"):
        planner.check(request)


def test_a_file_of_other_weights_is_refused(tmp_path, distilled, tiny_model):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    shutil.copyfile(distilled / DISTILLED, folder / DISTILLED)
    pipe = guidon.load(folder, device="cpu")
    with pytest.raises(InputError, match="other weights"), pipe.model.distilled.in_use(torch.float32):
        pass


def test_it_imitates_at_first_and_draws_clips_later(tmp_path, model_x0):
    task = task_of(tmp_path, model_x0, forced=0.0)
    early, late = (task.draw(step, torch.Generator().manual_seed(1)) for step in (1, 2))
    assert early.imitating.all()
    assert torch.equal(late.imitating, (late.strengths != torch.tensor([3.0, 3.0, 3.0, 1.0])).any(1))
    assert torch.equal(late.forced, late.imitating)
    found = task.predict(late)
    for k, target in enumerate(found.targets):
        assert torch.equal(target[late.imitating], late.guided[late.imitating, k])
        assert torch.equal(target[~late.imitating], late.clips[~late.imitating])


def test_the_first_steps_begin_with_the_noise_of_the_sample(tmp_path, model_x0):
    from guidon.samplers import SampleNoise

    task = task_of(tmp_path, model_x0)
    expected = SampleNoise(0, [0]).initial(task.pairs.clips.shape[1:])[0]
    torch.testing.assert_close(task.pairs.before[0, 0].float(), expected, atol=2e-3, rtol=0)


def test_it_goes_on_from_a_distilled_model_and_learns_from_what_that_draws(tmp_path, distilled):
    folder = run_recipe(recipe(tmp_path, distilled, cache=str(tmp_path), optimiser={"lr": 1e-9, "warmup_steps": 1}))
    before, after = (load_component(place / DISTILLED, DISTILLED_KIND) for place in (distilled, folder))
    for name, value in before.weights.items():
        torch.testing.assert_close(after.weights[name], value, atol=1e-3, rtol=1e-3)
    assert after.record["distils"].keys() == {"denoiser", "denoiser-fast", "text", "vae"}
    task = task_of(tmp_path, distilled, cache=str(tmp_path), sampling={"block": 8, "varied": 0.0})
    usual = int((~task.pairs.varied).nonzero()[0])
    rows = [usual] * 2
    neither = torch.zeros(2, dtype=torch.bool)
    with torch.no_grad():
        found = task.predict(task._read(rows, neither, neither, neither, task.pairs.before[rows])).predictions
    for k, prediction in enumerate(found):  # it draws what was stored, up to the rounding of the files
        torch.testing.assert_close(prediction[0], task.pairs.guided[usual, k].float(), atol=0.02, rtol=0.02)


def test_another_shape_than_that_of_a_distilled_model_is_refused(tmp_path, distilled):
    with pytest.raises(InputError, match="rank"):
        task_of(tmp_path, distilled, cache=str(tmp_path), rank=3)


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path, model_x0, monkeypatch):
    whole = run_recipe(recipe(tmp_path / "whole", model_x0))
    stopped = recipe(tmp_path / "stopped", model_x0)
    with monkeypatch.context() as patch:
        at_step(patch, 1, lambda: signal.raise_signal(signal.SIGINT))
        assert run_recipe(stopped) is None
    ours, theirs = (load_component(folder / DISTILLED, DISTILLED_KIND) for folder in (run_recipe(stopped), whole))
    assert_equal_weights(ours.weights, theirs.weights)
    assert len(rows_of(tmp_path / "stopped" / "run")) == DISTILL["steps"]


def test_training_lowers_the_loss(tmp_path, model_x0, monkeypatch):
    monkeypatch.setattr(distill, "OUTLIER", 1e6)  # what a tiny model draws is far off, and would hardly count
    task = task_of(tmp_path, model_x0, imitation=0, forced=1.0)
    optimiser = torch.optim.Adam([p for p in task.module.parameters() if p.requires_grad], 3e-4)
    losses = []
    for _ in range(12):
        loss, _ = task.loss(step_of(task, 3))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.98 * losses[0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"timesteps": [600, 999]}, "do not fall"),
        ({"timesteps": [999, 999]}, "do not fall"),
        ({"timesteps": []}, "do not fall"),
        ({"sampling": {"scales": [3, 1]}}, "smaller one first"),
        ({"sampling": {"cfg_channels": "no"}}, "cfg_channels"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, model_x0, values, message):
    with pytest.raises(InputError, match=message):
        load_recipe(recipe(tmp_path, model_x0, **values))


def test_a_model_that_predicts_noise_is_refused(tmp_path, tiny_model):
    with pytest.raises(InputError, match="predicts eps"):
        task_of(tmp_path, tiny_model, cache=str(tmp_path))
