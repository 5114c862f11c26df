"""The stage that distils: what it trains, what it leaves, that it resumes, and that its result is told of guidance."""

import shutil
import signal

import numpy as np
import pytest
import torch

import guidon
from guidon import world
from guidon.checkpoints import load_component
from guidon.core.errors import InputError
from guidon.diffusion import q_sample
from guidon.models.small import DISTILLED
from guidon.models.small.distilled_config import DISTILLED_KIND
from guidon.samplers import SampleNoise
from guidon.samplers.ddim import ddim_towards
from guidon.training import load_recipe, run_recipe
from guidon.training.data import pairs
from guidon.training.tasks import distill
from guidon.training.tasks.distill import DistillTask, Steps
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
    "task": "distill", "steps": 4, "batch_size": 4, "device": "cpu", "rollouts": 24, "log_every": 1, "rank": 2,
    "timesteps": list(STEPS), "end": 400, "refiner_end": 0, "imitation": 2, "sampling": {"block": 8, "varied": 0.3},
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
    task = task_of(tmp_path, model_x0, forced=0.0, batch_size=16)
    early, late = (task.draw(step, torch.Generator().manual_seed(1)) for step in (1, 2))
    assert early.imitating.all()
    assert late.imitating.any() > late.imitating.all()
    assert torch.equal(late.imitating, (late.strengths != torch.tensor([3.0, 3.0, 3.0, 1.0])).any(1))
    assert torch.equal(late.forced, late.imitating)
    found = task.predict(late)
    for k, target in enumerate(found.targets):
        assert torch.equal(target[late.imitating], late.guided[late.imitating, k])
        assert torch.equal(target[~late.imitating], late.clips[~late.imitating])


def test_the_first_steps_begin_with_the_noise_of_the_sample(tmp_path, model_x0):
    task = task_of(tmp_path, model_x0)
    for number in (0, DISTILL["sampling"]["block"]):  # the first of each block
        row = task.pairs.captions.index(world.clip("train", 0, number).caption)
        expected = SampleNoise(0, [number]).initial(task.pairs.clips.shape[1:])[0]
        torch.testing.assert_close(task.pairs.before[row, 0].float(), expected, atol=2e-3, rtol=0)


def test_each_step_begins_where_the_batch_says(tmp_path, model_x0, monkeypatch):
    """With what was drawn, with where the model's own began, or with that and new noise, once it hides no clip."""
    task = task_of(tmp_path, model_x0, timesteps=[999, 600, 500, 300], rollouts=8, sampling={"block": 8, "varied": 0.0})
    noise = torch.randn(3, *task.pairs.before.shape[1:], generator=torch.Generator().manual_seed(0))
    neither, forced, renewed = torch.zeros(3, dtype=torch.bool), torch.arange(3) > 0, torch.arange(3) > 1
    batch, begun, levels = task._read([0, 1, 2], neither, forced, renewed, noise), [], task.levels
    forward = task.module.denoiser.forward
    monkeypatch.setattr(task.module.denoiser, "forward", lambda x, *more: begun.append(x) or forward(x, *more))
    predictions = task.predict(batch).predictions
    assert torch.equal(begun[0], batch.before[:, 0])
    for k in (1, 2):
        torch.testing.assert_close(
            begun[k][0], ddim_towards(predictions[k - 1], begun[k - 1], levels[k - 1], None, 0.0)[0]
        )
        assert torch.equal(begun[k][1], batch.before[1, k])
    assert torch.equal(begun[1][2], batch.before[2, 1])  # from pure noise
    torch.testing.assert_close(begun[2][2], q_sample(batch.guided[:, 1], levels[2], noise[:, 2])[2])
    assert not any(x.requires_grad for x in begun)  # gradients stay within a step


def test_the_loss_counts_the_object_and_later_steps_more_and_outliers_less(tmp_path, model_x0):
    task = task_of(tmp_path, model_x0)
    clips = torch.zeros(2, 4, 16, 4, 4)
    clips[..., 0, :] = clips[:, :, :8, 1] = 1  # three eighths are the object, and the median is 0
    objects = clips.clone()
    predictions, imitating = [clips + 0.5, clips + objects], torch.tensor([False, True])
    loss, logs = task.loss(Steps(predictions, [clips, clips], clips, imitating))
    errors = 0.25, 3 * 4 / (3 * 4 + 5)  # the foreground weighs 4, and weights have mean 1
    expected = sum((1 + 0.5 * k) * 0.3 * error / (0.3 + error) for k, error in enumerate(errors))
    assert loss.item() == pytest.approx(expected)
    for kind in ("mse", "imitation"):
        assert [logs[f"{kind}_{t}"].item() for t in (999, 600)] == pytest.approx(errors)


def test_what_is_held_out_is_never_drawn_and_measuring_changes_no_weight(tmp_path, model_x0):
    task = task_of(tmp_path, model_x0)
    trained = [row.float() for row in task.pairs.clips[: task.trained]]
    assert 0 < task.trained < len(task.pairs)
    for step in range(8):
        batch = task.draw(step, torch.Generator().manual_seed(step))
        for row, strengths in zip(batch.clips, batch.strengths, strict=True):
            (index,) = (k for k, one in enumerate(trained) if torch.equal(one, row))
            assert torch.equal(strengths, task.pairs.strengths[index])
    before = {name: value.clone() for name, value in task.module.state_dict().items()}
    measured = [task.validate({name: value * scale for name, value in before.items()}) for scale in (1, 0.5)]
    assert measured[0] != measured[1]
    assert_equal_weights(task.module.state_dict(), before)


def test_what_imitates_begins_where_the_model_did_and_other_samples_as_often_as_asked(tmp_path, model_x0):
    for share in (0.0, 1.0):
        task = task_of(tmp_path, model_x0, forced=share, renewed=share, batch_size=16)
        batch = task.draw(2, torch.Generator().manual_seed(1))
        assert batch.imitating.any() > batch.imitating.all()
        assert torch.equal(batch.forced, batch.imitating | bool(share))
        assert torch.equal(batch.renewed, ~batch.imitating & bool(share))


def test_the_step_at_the_end_is_trained(tmp_path, model_x0):
    for end, steps in ((599, [999, 600]), (600, [999, 600]), (601, [999])):
        assert [int(level.timestep) for level in task_of(tmp_path, model_x0, end=end).levels] == steps


def test_pairs_of_other_settings_are_stored_apart(tmp_path, model_x0, monkeypatch):
    monkeypatch.setattr(pairs, "correct", lambda frames, wanted: [world.clip("train", 0, 0).scene] * len(wanted))
    few = {"rollouts": 2, "cache": str(tmp_path / "cache")}
    for own in ({}, {"seed": 1}, {"timesteps": [999, 500, 300]}, {"sampling": {"block": 8, "varied": 0.25}}):
        task_of(tmp_path, model_x0, **few | own)
    assert len(list((tmp_path / "cache").glob("pairs-*"))) == 4


def test_other_strengths_are_sampled_by_two_branches_at_the_times_of_guidance(tmp_path, model_x0, distilled):
    def sampled(model, timing):
        own = {"rollouts": 4, "cache": str(tmp_path), "sampling": {"block": 4, "varied": 1.0, "timing": timing}}
        return task_of(tmp_path, model, **own).pairs

    found, expected, other = (
        sampled(distilled, "constant"),
        sampled(model_x0, "constant"),
        sampled(model_x0, "interval:0.5,1"),
    )
    assert (expected.strengths != 1).any()
    assert torch.equal(found.strengths, expected.strengths)
    assert torch.equal(found.clips, expected.clips)
    assert not torch.allclose(other.clips.float(), expected.clips.float(), atol=0.02)


def test_strengths_are_one_scale_on_all_channels_the_first_three_or_some():
    drawn = np.array([pairs.draw_strengths(np.random.default_rng(k), 4, (1.5, 7.0)) for k in range(2000)])
    guided, scale = drawn != 1, drawn.max(1)
    assert ((drawn == scale[:, None]) | ~guided).all()
    assert 1.5 <= scale[guided.any(1)].min() < 1.6 < 6.9 < scale.max() <= 7.0
    kinds = {tuple(map(bool, row)): 0 for row in guided}
    for row in guided:
        kinds[tuple(map(bool, row))] += 1
    shares = {kind: count / len(drawn) for kind, count in kinds.items()}
    assert len(shares) == 16
    assert shares[True, True, True, True] == pytest.approx(0.2 + 0.4 / 16, abs=0.04)
    assert shares[True, True, True, False] == pytest.approx(0.4 + 0.4 / 16, abs=0.04)
    assert shares[False, False, False, True] == pytest.approx(0.4 / 16, abs=0.015)


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
