"""Networks that are trained on a user's own clips, from the recipe to the model folder and its clips."""

import json

import numpy as np
import pytest
import torch

import guidon
from guidon.checkpoints import load_component
from guidon.core.errors import InputError
from guidon.models.catalogue import find_preset
from guidon.training import load_recipe, run_recipe
from guidon.training.tasks.videos import VideosTask
from own_clips import NETWORKS, videos_recipe, write_clips
from recipes import CPU, assert_rows_are_those_of_the_batch, rows_of, step_of
from training.conftest import tiny_runs

PROMPT = "a blue wave pans left"
FEW = {"steps": 2, "cfg_scale": 2, "cfg_channels": "all", "seed": 1}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Places of videos and of pictures, by whether they are pictures."""
    folder = tmp_path_factory.mktemp("clips")
    return {False: write_clips(folder / "videos"), True: write_clips(folder / "pictures", frames=1)}


@pytest.fixture(scope="module")
def vae(tiny_model):
    return tiny_model / "vae.safetensors"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def recipe(clips, vae, cache):
    """Writes a recipe for a network."""

    def write(folder, family="stdit", **values):
        where = clips[family in ("dit", "pixart")]
        return videos_recipe(folder, where, values.pop("vae", vae), family, **{"cache": str(cache)} | values)

    return write


@pytest.fixture(scope="module")
def trained(tmp_path_factory, recipe):
    """The model folder of a run of three steps, by network."""
    found = {}

    def folder(network):
        if network not in found:
            with tiny_runs():
                found[network] = run_recipe(recipe(tmp_path_factory.mktemp(network), network))
        return found[network]

    return folder


def task_of(path):
    return VideosTask.prepare(load_recipe(path), CPU)


@pytest.mark.parametrize("network", list(NETWORKS))
def test_a_network_trains_from_nothing_to_a_folder_that_generates(trained, network):
    folder = trained(network)
    rows = rows_of(folder.parent)
    assert [row["step"] for row in rows] == ["1", "2", "3"]
    assert float(rows[-1]["val_mse"]) > 0
    pipe = guidon.load(folder, device="cpu")
    prompt = "blue" if network == "dit" else PROMPT
    clip = pipe(prompt, **FEW)
    assert clip.frames.shape == (1 if network in ("dit", "pixart") else 4, 32, 32, 3)
    assert np.array_equal(pipe.reproduce(json.loads(json.dumps(clip.manifest)))[0].frames, clip.frames)
    assert pipe.planner.bench == "video"
    assert ("vb" in rows[0]) == (network != "stdit3")


@pytest.mark.parametrize("network", list(NETWORKS))
def test_the_folder_holds_what_was_trained(trained, recipe, tmp_path, network):
    folder = trained(network)
    task = task_of(recipe(tmp_path, network, start=str(folder)))
    assert task.config == task.beginning.configured({})
    other = task_of(recipe(tmp_path, network, start=str(folder)))
    weights = task.network.denoiser.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in other.network.denoiser.state_dict().items())
    with guidon.load(folder, device="cpu").model.network.in_use(torch.float32) as network:
        loaded = getattr(network, "network", network).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())


def test_prompts_are_read_by_the_words_of_the_captions(trained):
    folder = trained("stdit")
    assert load_component(folder / "text.safetensors", "text").config["own"] is True
    pipe = guidon.load(folder, device="cpu")
    with pytest.raises(InputError, match=r"cannot be followed: unknown words 'yellow'.*, 'hexagon'"):
        pipe("yellow hexagon", **FEW)
    assert pipe(PROMPT, **FEW).manifest["generation"].get("read_as", {}) == {}


def test_settings_of_sampling_are_those_of_the_recipe(recipe, tmp_path):
    sampling = {"sampler": "ddim", "steps": 7, "cfg_scale": 1.5, "cfg_channels": "3", "timing": "interval:0,0.5"}
    folder = run_recipe(recipe(tmp_path, steps=1, sampling=sampling))
    preset = find_preset(str(folder))
    assert {name: getattr(preset, name) for name in sampling} == sampling
    assert (preset.bench, preset.fps) == ("video", 8)


@pytest.mark.parametrize("network", ["stdit", "dit"])
def test_rows_of_a_batch_are_those_of_the_whole(recipe, tmp_path, network):
    task = task_of(recipe(tmp_path, network, caption_dropout=0.5))
    assert_rows_are_those_of_the_batch(task, 4)


def test_a_clip_without_a_caption_has_the_null_one(recipe, tmp_path):
    task = task_of(recipe(tmp_path, caption_dropout=0))
    batch = task.draw(0, torch.Generator().manual_seed(0))
    empty = list(batch.clips.captions)
    empty[1] = " "
    object.__setattr__(batch.clips, "captions", empty)
    torch.nn.init.normal_(task.network.denoiser.y_embedder.y_embedding)
    condition = task.network.condition(batch.clips, batch.dropped)
    null = task.network.network.null(1, torch.ones(1, task.config.model_max_length))
    assert torch.allclose(condition.keys_values[0][:, 1:2], null.keys_values[0], atol=1e-6)
    assert not torch.allclose(condition.keys_values[0][:, :1], null.keys_values[0], atol=1e-3)
    loss, _ = task.loss(task.predict(batch))
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in task.module.parameters())


def test_weighting_by_noise_is_that_of_min_snr(recipe, tmp_path):
    task = task_of(recipe(tmp_path, terms={"mse": {"weighting": "min-snr"}}))
    step = step_of(task)
    weights = task.module.terms["mse"].weights(step, torch.ones(4))
    assert torch.allclose(weights, step.snr.clamp(max=5) / step.snr)


def test_validation_loss_falls_while_it_trains(recipe, tmp_path):
    path = recipe(
        tmp_path, steps=40, evaluate_every=20, log_every=20, ema_decay=0.5, optimiser={"lr": 0.01, "warmup_steps": 5}
    )
    run_recipe(path)
    first, last = (float(row["val_mse"]) for row in rows_of(tmp_path / "run"))
    assert last < 0.9 * first


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"network": {"family": "stdt"}}, "network: family is 'stdt' (did you mean 'stdit'?)"),
        ({"network": {"hidden_size": 32}}, "network: family is missing; valid: stdit, stdit2, stdit3, dit, pixart"),
        ({"network": {"family": "stdit", "depht": 2}}, "network: unknown key 'depht' (did you mean 'depth'?)"),
        ({"network": {"family": "stdit", "num_heads": 5}}, "num_heads must divide hidden_size: 1152 is no multiple of 5"),
        ({"network": {"family": "stdit", "in_channels": 4}}, "in_channels is given, but the autoencoder says it: leave it out"),
        ({"network": {}}, "give network: {family: stdit, ...} to begin from nothing, or start"),
        ({"start": "weights", "network": {"family": "stdit"}}, "give one of them"),
        ({"network": {"family": "dit"}}, "conditioned on classes: give text: {classes: true}"),
        ({"text": {"classes": True}}, "stdit reads captions: leave out text: classes"),
        ({"text": {"t5": "a", "features": "b"}}, "text names t5 and features: give one of them"),
        ({"text": {"t5": "a", "width": 8}}, "text: width is for the small encoder"),
        ({"text": {"tokens": 8}}, "text: tokens is for T5"),
        ({"network": {"family": "pixart"}}, "pixart makes images: give data: {frames: 1}"),
        ({"network": {"family": "stdit3"}, "prediction": "eps"}, "stdit3 predicts the velocity of a rectified flow"),
        ({"lora": {"rank": 2}}, "lora trains adapters of a trained network: give its start"),
        ({"terms": {"area": {"weight": 1}}}, "the term area needs areas of the synthetic world"),
        ({"terms": {"mse": {"foreground": 2}}}, "foreground needs the objects of the synthetic world"),
        ({"accumulate": 3}, "accumulate must divide batch_size"),
        ({"accumulate": 2, "terms": {"mse": {"weighting": "balanced"}}}, "balanced needs the whole batch at once"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused_before_torch_works(recipe, tmp_path, values, message):
    with pytest.raises(InputError) as error:
        load_recipe(recipe(tmp_path, **values))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_sizes_that_do_not_fit_are_refused_before_clips_are_encoded(recipe, tmp_path):
    with pytest.raises(InputError, match="latent pixels and patches of the network must divide size"):
        task_of(recipe(tmp_path, data={"size": [40, 32]}))
    with pytest.raises(InputError, match="not there: give a trained vae"):
        task_of(recipe(tmp_path, vae="nothing"))
    impossible = {"family": "stdit2", "hidden_size": 28, "num_heads": 2, "depth": 1}
    with pytest.raises(InputError, match="hidden size of 28 cannot hold height"):
        task_of(recipe(tmp_path, "stdit2", network=impossible))
