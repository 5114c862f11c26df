import csv
import math
import shutil
import signal
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import yaml

import guidon
from guidon import world
from guidon.checkpoints import load_component
from guidon.core.errors import InputError
from guidon.diffusion import converted
from guidon.training import load_recipe, run_recipe
from guidon.training.data.latents import LatentClips, touched
from guidon.training.ema import EMA
from guidon.training.loop import learning_rate, make_optimisers
from guidon.training.recipe import Optimiser
from guidon.training.tasks.denoiser import DenoiserTask, LossLevel, within_family
from guidon.training.tasks.vae import VAETask

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
LOW, HIGH = ({"noise": noise, "boundary": 350} for noise in ("low", "high"))
SHAPE = {"block_out_channels": [8, 8, 8], "norm_num_groups": 4}


def recipe(path, **values):
    path.write_text(yaml.safe_dump(values))
    return path


def vae_recipe(folder, **values):
    return recipe(
        folder / "vae.yaml",
        **{
            "task": "vae",
            "out": str(folder / "vae"),
            "steps": 4,
            "batch_size": 4,
            "device": "cpu",
            "log_every": 2,
            "model": SHAPE,
        }
        | values,
    )


def denoiser_recipe(folder, vae, **values):
    defaults = {
        "task": "denoiser", "out": str(folder / "run"), "vae": str(vae), "steps": 6, "batch_size": 4, "device": "cpu", "clips": 6, "log_every": 2,
        "checkpoint_every": 2, "loss_weighting": "balanced", "optimiser": {"name": "muon", "warmup_steps": 2},
        "model": {"patch_size": [4, 4, 4], "hidden_size": 16, "depth": 1, "num_heads": 2}, "text": {"features": 8, "layers": 1, "heads": 2},
    }  # fmt: skip
    return recipe(folder / "run.yaml", **defaults | values)


def test_a_vae_is_trained_exported_and_logged(tmp_path):
    path = run_recipe(vae_recipe(tmp_path))
    component = load_component(path, "vae")
    assert component.record["steps"] == 4
    assert component.record["psnr"] > 0
    assert component.config["scaling_factor"] > 0
    rows = list(csv.DictReader((tmp_path / "vae" / "log.csv").open()))
    assert [row["step"] for row in rows] == ["2", "4"]


def test_a_vae_learns(tmp_path):
    run_recipe(vae_recipe(tmp_path, steps=60, batch_size=8, log_every=20, optimiser={"lr": 0.003, "warmup_steps": 1}))
    rows = list(csv.DictReader((tmp_path / "vae" / "log.csv").open()))
    assert float(rows[-1]["psnr"]) > float(rows[0]["psnr"]) + 0.8


def test_a_vae_starts_from_an_earlier_one_but_for_channels_drawn_anew(tmp_path, tiny_model):
    """Of the two 1x1 convolutions next to the latents, only what the redrawn channel's mean has of its own."""
    values = {"model": SHAPE, "start": str(tiny_model / "vae.safetensors")}
    old = load_component(tiny_model / "vae.safetensors", "vae").weights
    for redraw in ((), (3,)):
        task = VAETask(load_recipe(vae_recipe(tmp_path, **values, redraw=list(redraw))), torch.device("cpu"))
        changed = {name: value != old[name] for name, value in task.module.state_dict().items()}
        inward, outward, bias = (
            changed.pop(f"autoencoder.{name}")
            for name in ("quant_conv.weight", "post_quant_conv.weight", "quant_conv.bias")
        )
        assert not any(part.any() for part in changed.values())
        ours = [row for channel in redraw for row in (channel, 4 + channel)]  # mean and log variance
        assert inward.flatten(1).any(1).nonzero().flatten().tolist() == ours
        assert bias.nonzero().flatten().tolist() == ours
        assert outward.flatten(1).any(0).nonzero().flatten().tolist() == list(redraw)
    mean, log_variance = task.module.posterior(task._frames(0)[0])
    assert float(mean[:, 3].std()) == pytest.approx(float(mean[:, :3].std()), rel=1e-3)
    assert float(mean[:, 3].mean()) == pytest.approx(0, abs=1e-3)
    assert float(log_variance[:, 3].mean()) == pytest.approx(float(log_variance[:, :3].mean()), abs=1e-3)


def interrupt_at(monkeypatch, task, step, action):
    original = task.loss

    def loss(self, at, generator):
        if at == step:
            action()
        return original(self, at, generator)

    monkeypatch.setattr(task, "loss", loss)


def weights_of(folder):
    return [load_component(folder / f"{part}.safetensors", part).weights for part in ("denoiser", "text")]


def assert_equal_weights(a, b):
    for ours, theirs in zip(a, b, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, tiny_model):
    return run_recipe(denoiser_recipe(tmp_path_factory.mktemp("whole"), tiny_model / "vae.safetensors"))


def test_the_trained_folder_is_a_model(uninterrupted):
    pipe = guidon.load(uninterrupted, device="cpu")
    assert pipe("a red circle moves left on a white background", steps=2).frames.shape == (16, 64, 64, 3)


def test_stopped_by_ctrl_c_it_saves_and_resumes_to_the_same_weights(tmp_path, tiny_model, uninterrupted, monkeypatch):
    config = denoiser_recipe(tmp_path, tiny_model / "vae.safetensors")
    with monkeypatch.context() as patch:
        interrupt_at(patch, DenoiserTask, 2, lambda: signal.raise_signal(signal.SIGINT))
        assert run_recipe(config) is None
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 3
    assert_equal_weights(weights_of(run_recipe(config)), weights_of(uninterrupted))


def test_killed_it_resumes_from_its_last_checkpoint_to_the_same_weights(
    tmp_path, tiny_model, uninterrupted, monkeypatch
):
    config = denoiser_recipe(tmp_path, tiny_model / "vae.safetensors")

    class Killed(BaseException):
        pass

    def die():
        raise Killed

    with monkeypatch.context() as patch:
        interrupt_at(patch, DenoiserTask, 5, die)
        with pytest.raises(Killed):
            run_recipe(config)
    assert not (tmp_path / "run" / "model").exists()
    assert_equal_weights(weights_of(run_recipe(config)), weights_of(uninterrupted))
    assert [row["step"] for row in csv.DictReader((tmp_path / "run" / "log.csv").open())] == ["2", "4", "6"]


def test_a_run_can_be_exported_before_it_ends(tmp_path, tiny_model, monkeypatch):
    config = denoiser_recipe(tmp_path, tiny_model / "vae.safetensors")
    with pytest.raises(InputError, match="train first"):
        run_recipe(config, export_only=True)
    with monkeypatch.context() as patch:
        interrupt_at(patch, DenoiserTask, 2, lambda: signal.raise_signal(signal.SIGTERM))
        run_recipe(config)
    folder = run_recipe(config, export_only=True)
    assert load_component(folder / "denoiser.safetensors", "denoiser").record["steps"] == 3


def test_a_damaged_checkpoint_is_refused_not_trained_over(tmp_path):
    config = vae_recipe(tmp_path)
    run_recipe(config)
    checkpoint = tmp_path / "vae" / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-50])
    with pytest.raises(InputError, match="cannot go on from"):
        run_recipe(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"prediction": "v"}, "prediction changed"), ({"seed": 3}, "seed changed"), ({"noise_schedule": "squaredcos_cap_v2"}, "noise_schedule")],
)  # fmt: skip
def test_a_changed_recipe_does_not_go_on_from_another_ones_weights(tmp_path, tiny_model, change, message):
    run_recipe(denoiser_recipe(tmp_path, tiny_model / "vae.safetensors", steps=2))
    changed = denoiser_recipe(tmp_path, tiny_model / "vae.safetensors", steps=4, **change)
    for export_only in (True, False):
        with pytest.raises(InputError, match=message):
            run_recipe(changed, export_only=export_only)
    longer = denoiser_recipe(tmp_path, tiny_model / "vae.safetensors", steps=4, caption_dropout=0.2)
    assert run_recipe(longer) is not None


def test_training_is_looked_at_and_drawn(tmp_path, tiny_model):
    looked = []

    def look(folder, step):
        guidon.load(folder, device="cpu")
        looked.append(step)
        return {"joint": 0.5}

    run_recipe(
        denoiser_recipe(tmp_path, tiny_model / "vae.safetensors", evaluate_every=3, foreground_weight=3), look=look
    )
    assert looked == [3, 6]
    rows = list(csv.DictReader((tmp_path / "run" / "log.csv").open()))
    assert [row["joint"] for row in rows] == ["", "0.5", "0.5"]
    assert all(float(rows[1][name]) > 0 for name in ("val_low", "val_mid", "val_high"))
    assert (tmp_path / "run" / "curve.png").stat().st_size > 1000


def test_weights_of_the_foreground_lie_on_the_object_once_it_can_be_seen():
    clip = world.clip("train", 0, 7)
    cells = touched(clip.scene, 16)
    covered = world.foreground(clip.scene).reshape(16, 16, 4, 16, 4).max((2, 4)) > 0.5
    assert (cells.numpy() >= covered).all()
    assert cells.float().mean() < 4 * covered.mean()


def test_the_importance_of_places_keeps_the_mean_and_waits_for_the_object_to_show(tmp_path, tiny_model):
    recipe = load_recipe(denoiser_recipe(tmp_path, tiny_model / "vae.safetensors", foreground_weight=5))
    recipe.out.mkdir()
    task = DenoiserTask(recipe, torch.device("cpu"))
    objects = torch.zeros(2, 1, 16, 8, 8, dtype=torch.bool)
    objects[..., :2, :2] = True
    early, late = task._importance(objects, torch.tensor([999, 10]))
    assert early.std() < 1e-3
    assert late.mean() == pytest.approx(1)
    assert late.max() / late.min() == pytest.approx(5)


def task_of(folder, vae, **values):
    recipe = load_recipe(denoiser_recipe(folder, vae, **values))
    recipe.out.mkdir(exist_ok=True)
    return DenoiserTask(recipe, torch.device("cpu"))


def test_a_run_starts_from_the_weights_of_an_earlier_one(tmp_path, tiny_model, uninterrupted):
    vae = tiny_model / "vae.safetensors"
    task = task_of(tmp_path, vae, start=str(uninterrupted))
    kept = load_component(uninterrupted / "denoiser.safetensors", "denoiser").weights
    assert all(torch.equal(task.module.denoiser.state_dict()[name], value.float()) for name, value in kept.items())
    with pytest.raises(InputError, match="does not fit its denoiser: missing"):
        task_of(
            tmp_path,
            vae,
            start=str(uninterrupted),
            model={"patch_size": [4, 4, 4], "hidden_size": 16, "depth": 2, "num_heads": 2},
        )
    with pytest.raises(InputError, match="predicts eps, the recipe says v"):
        task_of(tmp_path, vae, start=str(uninterrupted), prediction="v")


def test_an_expert_trains_one_side_and_takes_the_rest_over(tmp_path, tiny_model, uninterrupted):
    """First the network for low noise leaves the common one, then the other goes on without it."""
    vae = tiny_model / "vae.safetensors"

    def trained(out, start, noise):
        values = {"out": str(tmp_path / out), "start": str(start), "expert": {"noise": noise, "boundary": 350}}
        return run_recipe(denoiser_recipe(tmp_path, vae, **values))

    def content(folder):
        return {path.stem: path.read_bytes() for path in folder.iterdir()}

    first = trained("low", uninterrupted, "low")
    second = trained("high", first, "high")
    before, low, high = content(uninterrupted), content(first), content(second)
    assert low.keys() == high.keys() == {"denoiser", "denoiser-low", "text", "vae"}
    assert {name for name in before if low[name] != before[name]} == set()
    assert {name for name in low if high[name] != low[name]} == {"denoiser"}
    common = load_component(uninterrupted / "denoiser.safetensors", "denoiser").weights
    ours = load_component(first / "denoiser-low.safetensors", "denoiser")
    assert not all(torch.equal(ours.weights[name], value) for name, value in common.items())
    assert ours.config["boundary"] == 350
    assert ours.record["timesteps"] == [0, 350]
    assert load_component(second / "denoiser.safetensors", "denoiser").record["timesteps"] == [350, 1000]
    pipe = guidon.load(second, device="cpu")
    assert pipe("a red circle moves left on a white background", steps=2).frames.shape == (16, 64, 64, 3)


def test_an_expert_goes_on_from_its_own_side(tmp_path, tiny_model, uninterrupted):
    values = {"start": str(uninterrupted), "expert": LOW}
    folder = run_recipe(denoiser_recipe(tmp_path, tiny_model / "vae.safetensors", **values))
    (tmp_path / "more").mkdir()
    task = task_of(tmp_path / "more", tiny_model / "vae.safetensors", **values | {"start": str(folder)})
    low = load_component(folder / "denoiser-low.safetensors", "denoiser").weights
    assert all(torch.equal(task.module.denoiser.state_dict()[name], value.float()) for name, value in low.items())
    assert not any(parameter.requires_grad for parameter in task.module.text.parameters())
    adjusted = [
        p for o in make_optimisers(task.module, Optimiser(name="muon")) for g in o.param_groups for p in g["params"]
    ]
    assert {id(p) for p in adjusted} == {id(p) for p in task.module.denoiser.parameters()}


@pytest.mark.parametrize(("expert", "file"), [(None, "denoiser"), (LOW, "denoiser-low")])
def test_a_refiner_is_trained_on_a_network_that_stays(tmp_path, tiny_model, uninterrupted, expert, file, monkeypatch):
    vae, shape = (
        tiny_model / "vae.safetensors",
        {"patch_size": [4, 4, 4], "hidden_size": 16, "depth": 1, "num_heads": 2},
    )
    values = {
        "start": str(uninterrupted),
        "train": "refiner",
        "model": shape | {"refiner_channels": 8},
        "optimiser": {},
    }
    folder = run_recipe(denoiser_recipe(tmp_path, vae, **values, expert=expert))
    before = load_component(uninterrupted / "denoiser.safetensors", "denoiser").weights
    after = load_component(folder / f"{file}.safetensors", "denoiser").weights
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert {name.split(".")[0] for name in after.keys() - before.keys()} == {"refiner"}
    assert after["refiner.exit.weight"].abs().max() > 0
    (tmp_path / "more").mkdir()
    more = task_of(tmp_path / "more", vae, **values | {"start": str(folder)}, expert=expert)
    assert torch.equal(more.module.denoiser.state_dict()["refiner.exit.weight"], after["refiner.exit.weight"].float())
    monkeypatch.setattr("guidon.training.tasks.denoiser.LatentClips", None)  # what does not fit is refused without them
    with pytest.raises(InputError, match="refiner"):
        task_of(tmp_path / "more", vae, **values | {"start": str(folder), "model": shape | {"refiner_channels": 4}})
    for lacking in ({"start": None}, {"model": shape}):
        with pytest.raises(InputError, match="train: refiner trains one on an earlier run"):
            load_recipe(denoiser_recipe(tmp_path, vae, **values | lacking))
    with pytest.raises(InputError, match="no matrices for muon"):
        load_recipe(denoiser_recipe(tmp_path, vae, **values | {"optimiser": {"name": "muon"}}))
    with pytest.raises(InputError, match="refiner_depth is of a refiner"):
        load_recipe(denoiser_recipe(tmp_path, vae, **values | {"model": shape | {"refiner_depth": 2}}))


def test_areas_and_what_is_usual_of_them_survive_a_stop(tmp_path, tiny_model, monkeypatch):
    values = {"batch_size": 4, "clips": 4, "prediction": "x0", "area_weight": 1.0}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for folder in (whole, stopped):
        folder.mkdir()
    through = run_recipe(denoiser_recipe(whole, tiny_model / "vae.safetensors", **values))
    config = denoiser_recipe(stopped, tiny_model / "vae.safetensors", **values)
    with monkeypatch.context() as patch:
        interrupt_at(patch, DenoiserTask, 2, lambda: signal.raise_signal(signal.SIGINT))
        assert run_recipe(config) is None
    assert_equal_weights(weights_of(run_recipe(config)), weights_of(through))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"expert": HIGH}, "holds no denoiser-low.safetensors: train the expert for low"),
        (
            {"expert": LOW, "noise_schedule": "squaredcos_cap_v2"},
            "has the noise_schedule",
        ),
        (
            {"expert": LOW, "text": {"features": 8, "layers": 1, "heads": 1}},
            "another encoder",
        ),
    ],
)
def test_an_expert_that_would_not_fit_the_others_is_refused(tmp_path, tiny_model, uninterrupted, values, message):
    with pytest.raises(InputError, match=message):
        task_of(tmp_path, tiny_model / "vae.safetensors", start=str(uninterrupted), **values)


def test_experts_meet_at_one_boundary_and_one_vae(tmp_path, tiny_model, uninterrupted):
    vae, expert = tiny_model / "vae.safetensors", LOW
    folder = run_recipe(denoiser_recipe(tmp_path, vae, start=str(uninterrupted), expert=expert))
    again = tmp_path / "again"
    again.mkdir()
    for values, message in (
        ({"expert": {"noise": "high", "boundary": 400}}, "meet at 350, the recipe says 400"),
        ({}, "holds two experts"),
    ):
        with pytest.raises(InputError, match=message):
            task_of(again, vae, start=str(folder), **values)
    high = run_recipe(denoiser_recipe(again, vae, start=str(folder), expert=HIGH))
    other = run_recipe(vae_recipe(tmp_path))
    for chosen, values, message in (
        (vae, expert | {"boundary": 300}, "meet at 350, the recipe says 300"),
        (other, expert, "experts share their latents"),
    ):
        with pytest.raises(InputError, match=message):
            task_of(again, chosen, start=str(high), expert=values)


def test_a_model_of_one_network_leaves_no_expert_of_an_earlier_run(tmp_path, tiny_model):
    folder = tmp_path / "run" / "model"
    folder.mkdir(parents=True)
    (folder / "denoiser-low.safetensors").write_bytes(b"")
    run_recipe(denoiser_recipe(tmp_path, tiny_model / "vae.safetensors", steps=1))
    assert {path.stem for path in folder.iterdir()} == {"denoiser", "text", "vae"}


@pytest.mark.parametrize(("noise", "first", "end"), [("low", 0, 350), ("high", 350, 1000)])
def test_an_experts_timesteps_fill_its_side(tmp_path, tiny_model, uninterrupted, monkeypatch, noise, first, end):
    seen = []
    original = LossLevel.weights
    monkeypatch.setattr(LossLevel, "weights", lambda self, loss, t: seen.append(t) or original(self, loss, t))
    vae, start = tiny_model / "vae.safetensors", uninterrupted
    if noise == "high":
        start = run_recipe(denoiser_recipe(tmp_path, vae, start=str(start), expert=LOW, steps=1))
        seen.clear()
    values = {
        "start": str(start),
        "expert": {"noise": noise, "boundary": 350},
        "batch_size": 64,
        "out": str(tmp_path / "own"),
    }
    task = task_of(tmp_path, tiny_model / "vae.safetensors", **values)
    for step in range(4):
        task.loss(step, torch.Generator().manual_seed(step))
    t = torch.cat(seen)
    assert first <= t.min() < first + 10
    assert end - 10 <= t.max() < end
    assert task.validate(task.module.state_dict()).keys() == {"val_low", "val_mid", "val_high"}


def test_timesteps_are_drawn_where_the_recipe_says(tmp_path, tiny_model, monkeypatch):
    seen = []
    original = LossLevel.weights
    monkeypatch.setattr(LossLevel, "weights", lambda self, loss, t: seen.append(t) or original(self, loss, t))
    task = task_of(tmp_path, tiny_model / "vae.safetensors", timesteps=[0.9, 1.2], batch_size=64)
    for step in range(4):
        task.loss(step, torch.Generator().manual_seed(step))
    t = torch.cat(seen).double()
    assert t.median() == pytest.approx(1000 / (1 + math.exp(-0.9)), abs=15)  # the median of sigmoid(normal)
    assert ((t >= 450) & (t < 900)).double().mean() == pytest.approx(0.69, abs=0.06)
    assert 0 <= t.min() < 250 < 950 < t.max() < 1000


def test_captions_are_wrong_as_often_as_the_recipe_says(tmp_path, tiny_model):
    """Others than without noise, at the recipe's share; which ones depends on the step alone."""
    values = {"batch_size": 64, "clips": 64}
    right = task_of(tmp_path, tiny_model / "vae.safetensors", **values)
    noisy = task_of(tmp_path, tiny_model / "vae.safetensors", **values, caption_noise=0.25)
    seen = {}
    for name, task in (("right", right), ("noisy", noisy)):
        task.module.text.tokenize = lambda captions, name=name, text=task.module.text: (
            seen.__setitem__(name, list(captions)) or type(text).tokenize(text, captions)
        )
        task.loss(3, torch.Generator().manual_seed(0))
    scenes = zip(*(map(world.read_caption, seen[name]) for name in ("right", "noisy")), strict=True)
    wrong = sum(
        (a.shape, a.colour, a.motion, a.background) != (b.shape, b.colour, b.motion, b.background) for a, b in scenes
    )
    assert abs(wrong - 16) <= 3 * math.sqrt(64 * 0.25 * 0.75)
    latents, captions, *_ = noisy.clips.batch(3, 64, caption_noise=0.25)
    assert captions == seen["noisy"]
    assert torch.equal(latents, right.clips.batch(3, 64)[0])


class _Blank(torch.nn.Linear):
    """An autoencoder of nothing, for what batches say."""

    def encode(self, video):
        return video.new_zeros(1, 4, video.shape[2], 2, 2)


@pytest.mark.parametrize("families", [False, True])
def test_no_clip_shows_and_no_caption_names_what_is_held_out(tmp_path, families):
    blank = cast("Any", _Blank(1, 1))
    clips = LatentClips(tmp_path, blank, "", 480, 0, families=families, areas=False)
    held = {(a.shape, a.colour, a.motion) for a in world.combinations("train")}
    backwards = 0
    for noise in (0.0, 1.0):
        for step in range(10):
            for caption in clips.batch(step, 48, caption_noise=noise)[1]:
                read = world.read_caption(caption)
                assert (read.shape, read.colour, read.motion) in held, caption
    for index in range(0, 480, clips.family_size):
        backwards += clips._reversible(index)
    assert 0.3 < backwards / (480 / clips.family_size) < 0.99


def test_a_family_shares_what_hides_its_shapes(tmp_path, tiny_model, monkeypatch):
    """One noise, timestep and dropout a family: only the latents and the captions' shapes differ."""
    task = task_of(
        tmp_path, tiny_model / "vae.safetensors", shape_contrast=4, batch_size=8, clips=8, caption_dropout=0.5
    )
    latents, captions, *_ = task.clips.batch(0, 8)
    assert captions != task.clips.batch(1, 8)[1]
    for k in (0, 4):
        wanted = [world.read_caption(caption) for caption in captions[k : k + 4]]
        assert len({w.shape for w in wanted}) > 1
        assert len({(w.colour, w.motion, w.background) for w in wanted}) == 1
    seen = {}
    monkeypatch.setattr(
        task.module.denoiser, "forward", lambda x, t, y, mask: seen.update(x=x, t=t, y=y) or torch.cat([x, x], 1)
    )
    _, logs = task.loss(0, torch.Generator().manual_seed(0))
    signal = task.tables.alphas_cumprod[seen["t"]].sqrt().view(-1, 1, 1, 1, 1)
    noise = (seen["x"] - signal * latents).unflatten(0, (2, 4))
    assert torch.allclose(noise, noise[:, :1].expand_as(noise), atol=1e-5)
    assert not torch.allclose(noise[0], noise[1])
    assert (seen["t"].view(2, 4) == seen["t"].view(2, 4)[:, :1]).all()
    null = (seen["y"] == task.module.denoiser.y_embedder.y_embedding).all(-1).all(-1).view(2, 4)
    assert (null == null[:, :1]).all()
    assert {"missed_low", "missed_mid", "missed_high"} <= logs.keys()


def test_errors_that_let_a_decoded_area_vary_have_a_term_of_their_own(tmp_path, tiny_model, monkeypatch):
    """None for errors across the areas' gradients, nor for areas that are wrong alike in all frames."""
    vae, values = tiny_model / "vae.safetensors", {"batch_size": 4, "clips": 4, "prediction": "x0"}
    found = {}
    for weight in (1, 3):
        task = task_of(tmp_path, vae, **values, area_weight=weight)
        monkeypatch.setattr(task.module.area_level, "weights", lambda loss, _: torch.full_like(loss, 1e4))
        latents, _, _, gradients = task.clips.batch(0, 4)
        other = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
        unit = gradients / gradients.square().sum((1, 3, 4), keepdim=True)  # changes each frame's area by 1 of itself
        across = other - (other * gradients).sum((1, 3, 4), keepdim=True) * unit
        change = {
            "across": across,
            "alike": 0.01 * unit,
            "varying": 0.01 * unit * (torch.arange(16) % 2 * 2 - 1)[:, None, None],
        }
        for name, error in change.items():
            answer = torch.cat([latents + error, error], 1)
            monkeypatch.setattr(task.module.denoiser, "forward", lambda *_, answer=answer: answer)
            loss, logs = task.loss(0, torch.Generator().manual_seed(0))
            found[weight, name] = float(loss)
        variations = torch.stack([logs[f"area_cv_{band}"] for band in ("low", "mid", "high")])
        assert variations[variations.isfinite()].tolist() == pytest.approx(
            [0.01] * int(variations.isfinite().sum()), rel=0.01
        )
    assert found[1, "across"] == pytest.approx(found[3, "across"], rel=1e-3)
    assert found[1, "alike"] == pytest.approx(found[3, "alike"], rel=1e-3)
    assert found[3, "varying"] - found[1, "varying"] > 0.3
    assert task_of(tmp_path, vae, **values).clips.batch(0, 4).area_gradients is None


def test_captions_of_a_shape_count_as_the_recipe_says(tmp_path, tiny_model):
    task = task_of(tmp_path, tiny_model / "vae.safetensors", shape_weights={"cross": 3})
    captions = ["a red cross moves left", "a red circle moves left", "a blue plus stays still", "a blue plus"]
    dropped = torch.tensor([False, False, False, True])
    assert task._counts(captions, dropped).tolist() == pytest.approx([2, 2 / 3, 2, 1])
    plain = task_of(tmp_path, tiny_model / "vae.safetensors")
    assert plain._counts(captions, dropped).tolist() == [1, 1, 1, 1]
    with pytest.raises(InputError, match="shape_weights"):
        task_of(tmp_path, tiny_model / "vae.safetensors", shape_weights={"star": 3})


def test_a_sibling_shows_through_where_noise_hides_shapes_and_a_caption_tells_them(tmp_path, tiny_model):
    values = {"shape_contrast": 1, "shape_swap": 1.0, "batch_size": 8, "clips": 8}
    task = task_of(tmp_path, tiny_model / "vae.safetensors", **values)
    latents = torch.arange(8.0).view(8, 1, 1, 1, 1).expand(8, 4, 16, 8, 8)
    t = torch.tensor([900, 900, 349, 350, 800, 800, 800, 800])
    dropped = torch.tensor([False, True, False, False, False, False, True, True])
    shown, swapped = task._misled(latents, t, dropped, torch.Generator().manual_seed(0))
    assert swapped.tolist() == [True, False, False, True, True, True, False, False]
    assert torch.equal(shown[~swapped], latents[~swapped])
    moved = (shown - latents)[swapped].flatten(1)
    assert (moved.std(1) == 0).all()
    assert (moved[:, 0] != 0).all()
    low, high = torch.tensor([0, 0, 4, 4]), torch.tensor([3, 3, 7, 7])  # of each one's family
    assert ((shown[swapped].flatten(1)[:, 0] >= low) & (shown[swapped].flatten(1)[:, 0] <= high)).all()


def test_a_swapped_sample_is_still_to_be_denoised_to_its_own_shape(tmp_path, tiny_model, monkeypatch):
    """A network that answers with the captioned clip has no loss, whatever shows through and whatever it predicts."""
    for prediction in ("eps", "x0", "v"):
        values = {
            "shape_contrast": 2,
            "shape_swap": 1.0,
            "batch_size": 8,
            "clips": 8,
            "prediction": prediction,
            "caption_dropout": 0.0,
        }
        task = task_of(tmp_path, tiny_model / "vae.safetensors", **values)
        clean = task.clips.batch(0, 8)[0]

        def answer(x, t, y, mask, clean=clean, task=task, prediction=prediction):
            rows = [
                converted(clean[k], x[k], float(task.tables.alphas_cumprod[t[k]]), "x0", prediction) for k in range(8)
            ]
            return torch.cat([torch.stack(rows), torch.zeros_like(x)], 1)

        monkeypatch.setattr(task.module.denoiser, "forward", answer)
        _, logs = task.loss(0, torch.Generator().manual_seed(0))
        assert logs["mse"] < 1e-4


def test_what_a_family_has_in_common_is_not_counted_as_contrast():
    common, apart = torch.randn(2, 1, 5).expand(2, 4, 5), torch.tensor([1.0, -1.0, 1.0, -1.0]).view(1, 4, 1)
    assert torch.allclose(within_family((common + 2 * apart).flatten(0, 1), 4), torch.full((8,), 4.0))


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_train_to_the_same_file(tmp_path, tiny_model):
    path = run_recipe(denoiser_recipe(tmp_path, tiny_model / "vae.safetensors", steps=2, compile=True))
    plain = run_recipe(denoiser_recipe(tmp_path, tiny_model / "vae.safetensors", steps=2, out=str(tmp_path / "plain")))
    for compiled, eager in zip(weights_of(path), weights_of(plain), strict=True):
        assert compiled.keys() == eager.keys()
        assert all(torch.allclose(compiled[name], eager[name], atol=2e-3) for name in eager)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(
        VAETask,
        "loss",
        lambda self, step, generator: (self.module.autoencoder.quant_conv.weight.sum() * float("nan"), {}),
    )
    with pytest.raises(InputError, match="became nan"):
        run_recipe(vae_recipe(tmp_path))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_sise": 3}, "did you mean 'batch_size'"), ({"task": "vea"}, "did you mean 'vae'"), ({"steps": 0}, "steps"),
        ({"task": ["vae"]}, "task is ['vae']"), ({"seed": -1}, "seed"), ({"optimiser": {"betas": [0.9, 1.0]}}, "betas"),
        ({"model": SHAPE | {"norm_num_groups": 7}}, "8 is no multiple of 7"), ({"model": {"pixel_unshuffle": 5}}, "64 is no multiple of 20"),
        ({"optimiser": {"l": 1}}, "optimiser.l"), ({"precision": "fp64"}, "precision"), ({"device": "quantum"}, "not a device"),
        ({"redraw": [3]}, "redraw leaves out weights of an earlier run: give its start"),
        ({"redraw": [4], "start": "vae.safetensors"}, "redraw names latent channel 4, they are 0 to 3"),
    ],
)  # fmt: skip
def test_bad_recipes_are_refused_in_one_line(tmp_path, values, message):
    with pytest.raises(InputError) as error:
        run_recipe(vae_recipe(tmp_path, **values))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"text": {"heads": 5}}, "64 is no multiple of 5"), ({"model": {"hidden_size": 64, "num_heads": 5}}, "64 is no multiple of 5"),
        ({"model": {"hidden_size": 130, "num_heads": 5}}, "130 is no multiple of 4"),
        ({"shape_swap": 0.5}, "shape_swap takes a sibling from a clip's family: give shape_contrast too"),
        ({"shape_contrast": 2, "batch_size": 6}, "families of shapes must divide batch_size: 6 is no multiple of 4"),
    ],
)  # fmt: skip
def test_shapes_that_do_not_divide_are_refused(tmp_path, values, message):
    with pytest.raises(InputError, match=message):
        load_recipe(denoiser_recipe(tmp_path, "vae.safetensors", **values))


def test_a_date_that_is_none_is_bad_yaml(tmp_path):
    (tmp_path / "r.yaml").write_text("task: vae\nsteps: 2024-13-45\n")
    with pytest.raises(InputError, match="not valid YAML"):
        load_recipe(tmp_path / "r.yaml")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_shipped_recipes_are_valid(path):
    assert load_recipe(path).steps > 1000


def test_the_learning_rate_warms_up_holds_and_falls_to_zero():
    settings = Optimiser(warmup_steps=10, decay=0.5)
    rates = [learning_rate(step, 100, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:50] == [1.0] * 41
    assert rates[75] == pytest.approx(0.5)
    assert 0 < rates[99] <= 0.02


def test_muon_takes_the_hidden_matrices_only():
    module = torch.nn.Module()
    module.blocks = torch.nn.ModuleList([torch.nn.Linear(4, 4)])
    module.head = torch.nn.Linear(4, 4)
    muon, adamw = make_optimisers(module, Optimiser(name="muon"))
    assert [p is module.blocks[0].weight for p in muon.param_groups[0]["params"]] == [True]
    assert len(adamw.param_groups[0]["params"]) == 3
    assert len(make_optimisers(module, Optimiser())) == 1


def test_the_average_follows_slowly():
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(module.weight)
    ema = EMA(module, 0.9)
    torch.nn.init.ones_(module.weight)
    for _ in range(10):
        ema.update(module, 10**6)
    assert ema.state_dict()["weight"].item() == pytest.approx(1 - 0.9**10)


def test_balanced_weights_make_every_noise_level_count_alike():
    level, t = LossLevel(floor=0.01), torch.tensor([10, 500, 990])
    for _ in range(3):  # from the first step on, or another term would have the run to itself until then
        weights = level.weights(torch.tensor([0.8, 0.1, 0.001]), t)
        assert torch.allclose(weights, torch.tensor([1.25, 10.0, 100.0]), rtol=1e-5)
    for _ in range(500):
        weights = level.weights(torch.tensor([0.4]), t[:1])
    assert weights.item() == pytest.approx(2.5, rel=0.02)


def test_a_foreground_that_counts_as_much_is_still_measured(tmp_path):
    path = run_recipe(vae_recipe(tmp_path, foreground_weight=1.0, steps=2))
    assert load_component(path, "vae").record["foreground_psnr"] > 0


def test_recipes_that_cannot_work_are_refused(tmp_path, tiny_model):
    vae = tiny_model / "vae.safetensors"
    for values, message in (
        ({"text": {"features": 9, "heads": 3}}, "sines and cosines"),
        ({"seed": 10**14}, "seed"),
        ({"expert": LOW}, "give its start"),
        ({"expert": {"noise": "low", "boundary": 1000}, "start": "x"}, "boundary"),
        (
            {
                "expert": LOW,
                "start": "x",
                "shape_contrast": 4,
                "shape_swap": 0.5,
                "clips": 8,
            },
            "ends before",
        ),
    ):
        with pytest.raises(InputError, match=message):
            load_recipe(denoiser_recipe(tmp_path, vae, **values))
    with pytest.raises(InputError, match="every latent channel"):
        load_recipe(vae_recipe(tmp_path, start=str(vae), redraw=[0, 1, 2, 3]))


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_differences_of_shapes_count_in_the_space_of_the_prediction(tmp_path, tiny_model, prediction):
    """An error of x_0 as an error of the prediction, as the process converts them."""
    task = task_of(tmp_path, tiny_model / "vae.safetensors", prediction=prediction)
    t = torch.tensor([50, 500, 950])
    for k, step in enumerate(t.tolist()):
        x_t, x_0 = torch.randn(2, 1, 4, 2, 2, 2, generator=torch.Generator().manual_seed(k))
        signal = float(task.tables.alphas_cumprod[step])
        errors = [converted(x_0 + e, x_t, signal, "x0", prediction) for e in (0.0, 1.0)]
        assert float((errors[1] - errors[0]).square().mean()) == pytest.approx(float(task._per_x0(t)[k]), rel=1e-3)
