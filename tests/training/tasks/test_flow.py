"""A rectified flow from its recipe to its clips."""

import json

import numpy as np
import pytest
import torch

import guidon
from guidon.checkpoints import load_component
from guidon.core.errors import InputError
from guidon.diffusion import FlowPath
from guidon.training import load_recipe, run_recipe
from guidon.training.data.draws import draw_timesteps
from recipes import LOW, assert_equal_weights, denoiser_recipe, denoiser_task, rows_of, step_of, weights_of
from training.conftest import tiny_runs

FLOW = {
    "prediction": "flow", "optimiser": {"warmup_steps": 2, "lr": 0.01}, "batch_size": 8, "clips": 8,
    "model": {"patch_size": [2, 2, 2], "hidden_size": 32, "depth": 1, "num_heads": 2},
}  # fmt: skip
PROMPT = "a red circle moves left on a white background"


@pytest.fixture
def vae(tiny_model):
    return tiny_model / "vae.safetensors"


@pytest.fixture(scope="module")
def flow(tmp_path_factory, tiny_model):
    """The model folder of a run of a few seconds."""
    folder = tmp_path_factory.mktemp("flow")
    with tiny_runs():
        settings = FLOW | {"steps": 24, "log_every": 4, "evaluate_every": 0, "ema_decay": 0.9}
        return run_recipe(denoiser_recipe(folder, tiny_model / "vae.safetensors", **settings))


def test_training_lowers_the_error_of_the_velocity(flow):
    rows = rows_of(flow.parent)
    assert float(rows[-1]["mse"]) < 0.75 * float(rows[0]["mse"])
    assert "vb" not in rows[0]


def test_its_folder_says_that_it_flows_and_loads(flow):
    denoiser = load_component(flow / "denoiser.safetensors", "denoiser").config
    assert (denoiser["noise_schedule"], denoiser["prediction"], denoiser["learn_sigma"]) == ("flow", "flow", False)
    pipe = guidon.load(flow, device="cpu")
    assert pipe.model.schedule == FlowPath()
    assert (pipe.preset.sampler, pipe.preset.steps, pipe.model.facts.path) == ("euler", 30, "flow")


def test_it_draws_with_both_samplers_and_a_clip_is_made_again_from_its_manifest(flow):
    pipe = guidon.load(flow, device="cpu")
    options = {"seed": 3, "cfg_scale": 3, "cfg_channels": "all", "timing": "constant"}
    clips = {sampler: pipe(PROMPT, sampler=sampler, steps=4, **options) for sampler in ("euler", "heun")}
    assert not np.array_equal(clips["euler"].frames, clips["heun"].frames)
    for sampler, clip in clips.items():
        assert clip.manifest["generation"]["sampler"] == sampler
        assert np.array_equal(pipe.reproduce(json.loads(json.dumps(clip.manifest)))[0].frames, clip.frames)
    assert pipe(PROMPT, steps=2).manifest["generation"]["sampler"] == "euler"
    with pytest.raises(InputError, match=r"sampler ddim does not go with .* a rectified flow: give euler or heun"):
        pipe(PROMPT, sampler="ddim")


def test_a_run_goes_on_from_it_and_repeats(tmp_path, vae, flow):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    again = [run_recipe(denoiser_recipe(tmp_path / n, vae, **FLOW, start=str(flow), steps=2)) for n in ("a", "b")]
    assert_equal_weights(*map(weights_of, again))
    with pytest.raises(InputError, match="has the noise_schedule flow, the recipe says linear"):
        denoiser_task(tmp_path, vae, start=str(flow))


def test_two_experts_divide_a_flow(tmp_path, vae, flow):
    low = run_recipe(denoiser_recipe(tmp_path, vae, **FLOW, start=str(flow), steps=2, expert=LOW))
    pipe = guidon.load(low, device="cpu")
    assert pipe(PROMPT, steps=3).frames.shape == (16, 64, 64, 3)


def test_a_step_has_the_straight_path_and_timesteps_between_whole_numbers(tmp_path, vae):
    task = denoiser_task(tmp_path, vae, **FLOW, terms={"mse": {"weighting": "min-snr", "foreground": 2}})
    step = step_of(task)
    u = (step.t / 1000).view(-1, 1, 1, 1, 1)
    assert torch.allclose(step.x_t, (1 - u) * step.x_0 + u * step.noise, atol=1e-5)
    assert step.prediction.shape == step.x_0.shape
    assert (step.t % 1).any()
    weights = task.module.terms["mse"].weights(step, torch.ones(len(step.t)))
    snr = ((1 - u) / u.clamp_min(0.01)).flatten() ** 2
    assert torch.allclose(weights, snr.clamp(max=5) * u.flatten().clamp_min(0.01) ** 2, rtol=1e-4)
    assert set(task.module.terms) == {"mse"}
    loss, logs = task.loss(step)
    assert loss.isfinite()
    assert logs["mse"] > 0


def test_what_counts_samples_equally_finds_every_timestep_a_band(tmp_path, vae):
    families = {
        "batch_size": 8,
        "clips": 8,
        "terms": {"mse": {"weighting": "balanced"}, "shape_contrast": {"weight": 4}},
    }
    task = denoiser_task(tmp_path, vae, **FLOW | families)
    for number in range(3):
        loss, _ = task.loss(step_of(task, number))
        assert loss.isfinite()
    assert task.validate(task.module.state_dict()).keys() == {"val_low", "val_mid", "val_high"}


@pytest.mark.parametrize("normal", [None, (0.5, 1.2)])
def test_timesteps_follow_their_distribution(normal):
    t = draw_timesteps(torch.Generator().manual_seed(0), 4000, 0, 1000, normal, whole=False)
    assert t.is_floating_point()
    assert ((t >= 0) & (t <= 1000)).all()
    if normal is None:
        assert t.mean().item() == pytest.approx(500, abs=1)
    else:
        assert torch.special.logit(t.double() / 1000).mean().item() == pytest.approx(0.5, abs=0.02)
        assert torch.special.logit(t.double() / 1000).std().item() == pytest.approx(1.2, abs=0.03)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise_schedule": "linear"}, "noise_schedule is not for one, since it has none: leave it out"),
        ({"terms": {"bound": {"weight": 2}}}, "terms: bound is not for one, since it learns no variance"),
        ({"terms": {"shape_contrast": {"weight": 2}}, "shape_swap": 0.5}, "shape_swap is not for one"),
        ({"prediction": "velocity"}, "prediction"),
    ],
)
def test_settings_of_a_diffusion_are_refused(tmp_path, vae, settings, message):
    with pytest.raises(InputError) as error:
        load_recipe(denoiser_recipe(tmp_path, vae, **FLOW | settings))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
