"""Networks that are trained on a user's own clips, from the recipe to the model folder and its clips."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

import guidon
from guidon.checkpoints import load_component, read_tensors
from guidon.core.errors import InputError
from guidon.diffusion import FlowPath
from guidon.diffusion.flow import shifted
from guidon.models.catalogue import files_of, find_preset
from guidon.models.text.features import save_features
from guidon.models.text.t5 import T5Encoder
from guidon.training import load_recipe, plan_recipe, run_recipe
from guidon.training.tasks.beginning import find_beginning
from guidon.training.tasks.videos import VideosTask
from own_clips import CAPTIONS, NETWORKS, videos_recipe, write_clips
from recipes import CPU, assert_rows_are_those_of_the_batch, rows_of, step_of, write_recipe
from released import change_shard, into_shards, make_checkpoints, make_sized_checkpoints, make_t5, make_vae
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
    assert set(files_of(folder)) == set(folder.glob("*.safetensors"))
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
    assert condition.mask[1].all()  # all tokens of the null caption count
    assert not torch.allclose(condition.keys_values[0][:, :1], null.keys_values[0], atol=1e-3)
    loss, _ = task.loss(task.predict(batch))
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in task.module.parameters())


@pytest.mark.parametrize("network", ["stdit", "dit"])
def test_what_is_dropped_has_the_null_condition(recipe, tmp_path, network):
    task = task_of(recipe(tmp_path, network))
    for parameter in task.network.denoiser.y_embedder.state_dict().values():
        torch.nn.init.normal_(parameter)
    batch, dropped = task.draw(0, torch.Generator().manual_seed(0)), torch.tensor([True, False, False, True])

    def rows(condition):
        return condition.embedding if network == "dit" else condition.keys_values[0].transpose(0, 1)

    found, told = (rows(task.network.condition(batch.clips, each)) for each in (dropped, dropped & False))
    null = rows(task.network.network.null(4))
    assert torch.allclose(found[dropped], null[dropped], atol=1e-6)
    assert torch.allclose(found[~dropped], told[~dropped], atol=1e-6)
    assert not any(torch.allclose(row, null[0], atol=1e-2) for row in told)


def test_a_network_that_predicts_nothing_misses_all_of_the_noise(recipe, tmp_path):
    task = task_of(recipe(tmp_path))
    found = task.validate(task.module.state_dict())
    assert found["val_mse"] == pytest.approx(1, abs=0.1)
    assert found["val_low"] < found["val_mid"] < found["val_high"]


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
        ({"network": {"family": "stdit", "num_heads": 0}}, "num_heads must divide hidden_size: 1152 is no multiple of 0"),
        ({"network": {"family": "stdit", "depth": 0}}, "depth is 0, expected at least 1"),
        ({"ema_decay": 1}, "ema_decay is 1: expected less than 1"),
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
        ({"network": {"family": "stdit3"}, "noise_schedule": "squaredcos_cap_v2"}, "stdit3 is a rectified flow, and noise_schedule is not for one"),
        ({"prediction": "flow", "terms": {"bound": {"weight": 2}}}, "prediction: flow is a rectified flow, and terms: bound is not"),
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


@pytest.mark.parametrize("flow", [{"network": {"family": "stdit3"}}, {"prediction": "flow"}])
def test_defaults_of_a_diffusion_may_be_written_out_for_a_flow(recipe, tmp_path, flow):
    written = {"noise_schedule": "linear", "terms": {"bound": {}}}
    plain, given = (load_recipe(recipe(tmp_path, **flow, **more)) for more in ({}, written))
    assert given.decisive == plain.decisive


def test_a_flow_to_start_from_takes_the_default_noise_schedule(recipe, trained, tmp_path):
    folder = str(trained("stdit3"))
    task_of(recipe(tmp_path, "stdit3", start=folder, noise_schedule="linear"))
    with pytest.raises(InputError, match="is a rectified flow, and noise_schedule is not for one"):
        task_of(recipe(tmp_path, "stdit3", start=folder, noise_schedule="squaredcos_cap_v2"))


def test_sizes_that_do_not_fit_are_refused_before_clips_are_encoded(recipe, tmp_path):
    with pytest.raises(InputError, match="latent pixels and patches of the network must divide size"):
        task_of(recipe(tmp_path, data={"size": [40, 32]}))
    with pytest.raises(InputError, match="not there: give a trained vae"):
        task_of(recipe(tmp_path, vae="nothing"))
    with pytest.raises(InputError, match="sampler euler is not for a diffusion: give ddpm or"):
        task_of(recipe(tmp_path, sampling={"sampler": "euler"}))
    impossible = {"family": "stdit2", "hidden_size": 28, "num_heads": 2, "depth": 1}
    with pytest.raises(InputError, match="hidden size of 28 cannot hold height"):
        task_of(recipe(tmp_path, "stdit2", network=impossible))


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """Folders of small stand-ins for released weights, T5 and the autoencoder among them."""
    folder = tmp_path_factory.mktemp("released")
    make_t5(folder / "t5")
    make_vae(folder / "vae")
    make_checkpoints(folder)
    make_sized_checkpoints(folder)
    return folder


RELEASED = {
    "video.pth": ("stdit", "eps"), "image.pth": ("pixart", "eps"), "class.pt": ("dit", "eps"),
    "OpenSora-STDiT-v2-stage3": ("stdit2", "eps"), "OpenSora-STDiT-v3": ("stdit3", "flow"),
}  # fmt: skip


@pytest.mark.parametrize("file", list(RELEASED))
def test_released_weights_are_trained_on_and_generate_without_options(released, recipe, tmp_path, file, monkeypatch):
    monkeypatch.setattr(T5Encoder, "tokenize", _without_cleaning)
    family, prediction = RELEASED[file]
    text = {"text": {"t5": str(released / "t5"), "tokens": 16}} if family != "dit" else {}
    path = recipe(tmp_path, family, start=str(released / file), vae=str(released / "vae"), steps=2, **text)
    task = task_of(path)
    assert (task.beginning.family, task.beginning.prediction) == (family, prediction)
    own = read_tensors(released / file).tensors
    trained = dict(task.network.denoiser.named_parameters())
    for name in ("blocks.0.mlp.fc1.weight", "spatial_blocks.0.mlp.fc1.weight"):
        assert name not in own or torch.equal(trained[name], own[name])
    model = run_recipe(path)
    assert (model / "vae" / "config.json").is_file()
    pipe = guidon.load(model, device="cpu")
    assert (pipe.model.process.parameterization, pipe.model.facts.downsampling) == (prediction, 8)
    clip = pipe("red" if family == "dit" else PROMPT, dtype="fp32", **FEW)
    assert clip.frames.shape[1:3] == (32, 32)
    again = task_of(recipe(tmp_path, family, start=str(model), vae=str(released / "vae"), **text))
    assert (again.beginning.by_size, again.beginning.knows_given_frames) == (
        task.beginning.by_size, task.beginning.knows_given_frames,
    )  # fmt: skip


def test_other_shards_are_other_weights_to_start_from(released, recipe, tmp_path):
    start = shutil.copytree(released / "OpenSora-STDiT-v2-stage3", tmp_path / "start")
    index = into_shards(start / "model.safetensors")
    read = load_recipe(recipe(tmp_path, "stdit2", start=str(index), text={"t5": str(released / "t5"), "tokens": 16}))
    before = find_beginning(read).sha256
    change_shard(index)
    assert find_beginning(read).sha256 != before


def test_timesteps_are_shifted_by_size_as_in_sampling(recipe, tmp_path):
    task = task_of(recipe(tmp_path, "stdit3", timesteps=[0.0, 1.0]))
    of_size = dataclasses.replace(task, beginning=dataclasses.replace(task.beginning, by_size=True))
    plain, moved = (each.draw(0, torch.Generator().manual_seed(0)).t for each in (task, of_size))
    shift = FlowPath(by_size=True).for_clip(32, 32, 4).shift
    assert shift == pytest.approx(1 / 16)  # one latent frame of 32x32 pixels
    wanted = [1000 * shifted(float(t) / 1000, shift) for t in plain]
    assert moved.tolist() == pytest.approx(wanted, rel=1e-5)
    assert of_size.identity == task.identity | {"timestep_shift": "by size"}  # a run without it is told of it


def _without_cleaning(self, prompts):
    """As ``T5Encoder.tokenize``, without the cleaning that imports diffusers' pipelines."""
    batch = self.tokenizer(
        list(prompts), max_length=self.max_length, padding="max_length", truncation=True, return_tensors="pt"
    )
    return batch.input_ids, batch.attention_mask


def test_features_of_a_file_take_the_place_of_t5(recipe, tmp_path):
    captions = sorted(set(CAPTIONS))
    generator = torch.Generator().manual_seed(0)
    features = torch.randn((len(captions), 5, 12), generator=generator)
    mask = torch.ones(len(captions), 5, dtype=torch.long)
    mask[:, 4] = 0
    save_features(tmp_path / "captions.safetensors", captions, features, mask, encoder={"encoder": "stand-in"})
    path = recipe(tmp_path, text={"features": str(tmp_path / "captions.safetensors")})
    task = task_of(path)
    assert (task.config.caption_channels, task.config.model_max_length) == (12, 5)
    batch = task.draw(0, torch.Generator().manual_seed(0)).clips
    row = captions.index(batch.captions[0])
    assert torch.allclose(batch.features[0][:4], features[row][:4], atol=1e-3)
    model = run_recipe(path)
    assert (model / "features.safetensors").is_file()
    pipe = guidon.load(model, device="cpu")
    assert pipe(CAPTIONS[0], **FEW).frames.shape == (4, 32, 32, 3)
    with pytest.raises(InputError, match="holds no features of 'a prompt that is not there'"):
        pipe("a prompt that is not there", **FEW)


def test_new_words_and_classes_join_those_of_the_start(trained, clips, recipe, tmp_path):
    folders = {}
    for name, pictures in (("videos", False), ("pictures", True)):
        place = folders[name] = tmp_path / name
        shutil.copytree(clips[pictures], place)
        rows = (place / "metadata.jsonl").read_text().replace("green", "violet")
        (place / "metadata.jsonl").write_text(rows)
    before = trained("stdit")
    task = task_of(recipe(tmp_path, start=str(before), data={"folder": str(folders["videos"])}))
    old = load_component(before / "text.safetensors", "text")
    words = task.network.text.tokenizer
    assert {"violet", "blue", "green"} <= set(words.ids)
    ids = {word: k + 1 for k, word in enumerate(sorted(set(old.config["vocabulary"].values())))}
    for word in ("blue", "green", "pans"):
        assert torch.equal(
            task.network.text.embedding.weight[words.ids[word]], old.weights["embedding.weight"][ids[word]].float()
        )
    assert torch.equal(task.network.text.embedding.weight[0], old.weights["embedding.weight"][0].float())  # no word
    start = trained("dit")
    dit = task_of(recipe(tmp_path, "dit", start=str(start), data={"folder": str(folders["pictures"])}))
    table, kept = (
        dit.network.denoiser.y_embedder.embedding_table.weight,
        read_tensors(start / "model.safetensors").tensors,
    )
    assert dit.clips.classes == ["blue", "green", "red", "violet"]  # no clip is green any more
    known = kept["y_embedder.embedding_table.weight"].float()
    assert torch.equal(table[:3], known[:3])  # blue, green, red
    assert torch.equal(table[4], known[3])  # none
    labels = torch.cat([dit.draw(step, torch.Generator()).clips.labels for step in range(4)])
    assert set(labels.tolist()) == {0, 2, 3}
    assert dit.model_config.text.classes == ("blue", "green", "red", "violet")


@pytest.mark.parametrize(
    ("network", "what", "old", "new"), [("stdit", "words", "green", "amber"), ("dit", "classes", "green", "amber")]
)
def test_a_run_does_not_go_on_with_other_words_or_classes(clips, recipe, tmp_path, network, what, old, new):
    """As many as before, so that the weights fit: their rows would be those of others."""
    place = shutil.copytree(clips[network == "dit"], tmp_path / "clips")
    path = recipe(tmp_path, network, steps=1, evaluate_every=0, data={"folder": str(place)})
    run_recipe(path)
    text = (place / "metadata.jsonl").read_text()
    (place / "metadata.jsonl").write_text(text.replace(old, new))
    longer = recipe(tmp_path, network, steps=2, evaluate_every=0, data={"folder": str(place)})
    with pytest.raises(
        InputError, match=rf"cannot go on from .*: the recipe's {what} changed since .*: delete it"
    ) as error:
        run_recipe(longer)
    assert "\n" not in str(error.value)
    # fewer clips, of the same words and classes, go on
    (place / "metadata.jsonl").write_text("".join(text.splitlines(keepends=True)[:-1]))
    if network == "dit":
        assert run_recipe(longer) is not None


def test_classes_of_released_weights_that_no_clip_shows_are_kept(clips, released, recipe, tmp_path):
    place = tmp_path / "pictures"
    shutil.copytree(clips[True], place)
    rows = (place / "metadata.jsonl").read_text()
    for name, number in (("blue", "3"), ("green", "0"), ("red", "5")):
        rows = rows.replace(f'"label": "{name}"', f'"label": "{number}"')
    (place / "metadata.jsonl").write_text(rows)
    own = {"start": str(released / "class.pt"), "vae": str(released / "vae"), "data": {"folder": str(place)}}
    task = task_of(recipe(tmp_path, "dit", **own))
    table = task.network.denoiser.y_embedder.embedding_table.weight
    known = read_tensors(released / "class.pt").tensors["y_embedder.embedding_table.weight"]
    assert len(known) > 7
    assert torch.equal(table, known.float())
    assert task.clips.classes == [str(number) for number in range(len(known) - 1)]


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("video.pth", {}, "reads features of T5: give text: {t5: folder}"),
        ("class.pt", {"family": "stdit"}, "is a DiT, which is conditioned on classes: give text: {classes: true}"),
        ("OpenSora-STDiT-v3", {"prediction": "eps", "text": {"t5": "t5"}}, "predicts flow, the recipe says eps"),
        ("OpenSora-STDiT-v3", {"terms": {"bound": {"weight": 2}}, "text": {"t5": "t5"}}, "v3.* is a rectified flow, and terms: bound"),
        ("vae", {}, "this is an autoencoder|a denoiser"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_refused(released, recipe, tmp_path, file, values, message):
    if "text" in values:
        values = values | {"text": {"t5": str(released / "t5")}}
    with pytest.raises(InputError, match=message) as error:
        task_of(
            recipe(
                tmp_path, values.pop("family", "stdit"), start=str(released / file), vae=str(released / "vae"), **values
            )
        )
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("setting", [{"width": 32}, {"layers": 3}, {"heads": 8}, {"max_length": 4}])
def test_another_shape_of_the_encoder_to_start_from_is_refused(trained, recipe, tmp_path, setting):
    start = str(trained("stdit"))
    (name,) = setting
    with pytest.raises(InputError, match=rf"text.safetensors has the {name} \d+, text says \d+: leave it out") as error:
        task_of(recipe(tmp_path, start=start, text=setting))
    assert "\n" not in str(error.value)
    shape = {"width": 64, "layers": 2, "heads": 4, "max_length": 5}
    assert task_of(recipe(tmp_path, start=start, text=shape)).text_config.features == 64


def test_a_staged_recipe_trains_both_and_exports_the_folder(clips, tmp_path):
    data = {"folder": str(clips[False]), "size": [32, 32], "frames": 4}
    values = {
        "out": str(tmp_path / "mine"),
        "common": {"every": {"steps": 2, "batch_size": 2, "device": "cpu", "log_every": 1, "data": data}},
        "stages": {
            "vae": {"task": "vae", "model": {"block_out_channels": [8, 8, 8], "norm_num_groups": 4}},
            "network": {"task": "videos", "vae": "vae", "network": {"family": "stdit2", **NETWORKS["stdit2"]}},
        },
        "export": {"stage": "network"},
    }  # fmt: skip
    path = write_recipe(tmp_path / "mine.yaml", values)
    model = run_recipe(path)
    assert model == tmp_path / "mine" / "model"
    assert guidon.load(model, device="cpu")(PROMPT, **FEW).frames.shape == (4, 32, 32, 3)
    before = (model / "model.safetensors").stat().st_mtime_ns
    (model / "notes.txt").write_text("mine")
    assert run_recipe(path) == model  # done: nothing is trained or written
    assert (model / "model.safetensors").stat().st_mtime_ns == before


def test_a_stage_is_trained_again_if_the_files_of_its_data_change(clips, tmp_path):
    place = shutil.copytree(clips[False], tmp_path / "clips")
    data = {"folder": str(place), "size": [32, 32], "frames": 4}
    every = {"steps": 1, "batch_size": 2, "device": "cpu", "data": data}
    values = {
        "out": str(tmp_path / "mine"),
        "common": {"every": every},
        "stages": {
            "vae": {"task": "vae", "model": {"block_out_channels": [8, 8, 8], "norm_num_groups": 4}},
            "network": {"task": "videos", "vae": "vae", "network": {"family": "stdit", **NETWORKS["stdit"]}},
        },
        "export": {"stage": "network"},
    }
    path = write_recipe(tmp_path / "mine.yaml", values)

    def states():
        return [(stage.state, stage.folder) for stage in plan_recipe(path)]

    run_recipe(path)
    (_, vae), (_, network) = before = states()
    assert [state for state, _ in before] == ["done", "done"]
    rows = (place / "metadata.jsonl").read_text()
    (place / "metadata.jsonl").write_text(rows.replace("green", "amber"))
    (first, same), (second, other) = states()  # an autoencoder reads no captions
    assert (first, same, second) == ("done", vae, "train")
    assert other != network
    run_recipe(path)
    assert states() == [("done", vae), ("done", other)]
    (place / "metadata.jsonl").write_text(rows)
    assert states() == before
    (place / "7.mp4").unlink()
    (place / "metadata.jsonl").write_text("".join(rows.splitlines(keepends=True)[:-1]))
    assert [state for state, _ in states()] == ["train", "later"]
    shutil.rmtree(place)
    assert states() == before  # nothing to train on: what was trained is kept
