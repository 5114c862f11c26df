"""Autoguidance from a model folder: a weaker model beside the one that is guided."""

import json
import shutil

import numpy as np
import pytest
import torch

import guidon
from guidon.cli import main
from guidon.core.errors import InputError
from guidon.models.stdit.network import STDiT
from guidon.models.trained.config import TextSource
from tiny_model import write_named_t5, write_tiny_model, write_tiny_trained

PROMPT = "a red circle moves left"
OPTIONS = {"steps": 3, "cfg_scale": 3.0, "timing": "constant", "guidance": "autoguidance"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return write_tiny_model(root / "strong"), write_tiny_model(root / "weak", seed=1)


@pytest.fixture(scope="module")
def pipe(folders):
    return guidon.load(folders[0], device="cpu", weak=folders[1])


def test_the_weak_models_prediction_takes_the_place_of_the_unconditional_one(pipe, folders, monkeypatch):
    """Every step is cond + (s - 1) (cond - weak), and the weak model reads the prompt with its own text encoder."""
    calls, forward = [], STDiT.forward

    def record(self, x, level, caption):
        out = forward(self, x, level, caption)
        calls.append((self, len(x), caption, out))
        return out

    monkeypatch.setattr(STDiT, "forward", record)
    seen = []
    pipe(PROMPT, **OPTIONS, callback_on_step_end=lambda pipe, step, timestep, given: seen.append(step) or given)
    strong, weak = calls[0][0], calls[1][0]
    assert [(call[0] is strong, call[1]) for call in calls] == [(True, 1), (False, 1)] * 3
    assert seen == [0, 1, 2]
    own = guidon.load(folders[1], device="cpu")
    with own.model.text.in_use() as text, torch.inference_mode():
        expected = weak.prepare(*text.encode((PROMPT,)))
    pairs = zip(calls[1][2].keys_values, expected.keys_values, strict=True)
    assert all(torch.equal(given, wanted) for given, wanted in pairs)


def test_a_manifest_holds_the_weak_weights_and_makes_the_clip_again(pipe, folders, tmp_path):
    video = pipe(PROMPT, **OPTIONS)
    weights = video.manifest["weights"]
    assert weights["weak-denoiser"] != weights["denoiser"]
    assert weights.keys() == {"denoiser", "text", "vae", "weak-denoiser", "weak-text"}
    again = guidon.reproduce(video.manifest, device="cpu", weak=folders[1])
    assert np.array_equal(again.frames, video.frames)
    with pytest.raises(InputError, match="guidance autoguidance needs a weaker model: give weak"):
        guidon.reproduce(video.manifest, device="cpu")
    other = write_tiny_model(tmp_path / "other", seed=2)
    with pytest.raises(InputError, match="weak has other denoiser weights than the weak model of the manifest"):
        guidon.reproduce(video.manifest, device="cpu", weak=other)


def test_other_rules_know_nothing_of_a_weak_model(pipe, folders):
    for choices in ({"guidance": "cfg"}, {"guidance": "autoguidance:share=0"}, {"guidance": "stg"}):
        video = pipe(PROMPT, **OPTIONS | choices)
        assert video.manifest["weights"].keys() == {"denoiser", "text", "vae"}
    alone = guidon.load(folders[0], device="cpu")
    assert np.array_equal(alone(PROMPT, **OPTIONS | {"guidance": "stg"}).frames, video.frames)


def test_mixed_with_cfg_three_branches_run(pipe):
    mixed, pure, plain = (
        pipe(PROMPT, **OPTIONS | {"guidance": rule}).frames
        for rule in ("autoguidance:share=0.5", "autoguidance", "autoguidance:share=0")
    )
    assert not np.array_equal(mixed, pure)
    assert not np.array_equal(mixed, plain)
    assert np.array_equal(plain, pipe(PROMPT, **OPTIONS | {"guidance": "cfg"}).frames)
    apart = pipe(PROMPT, **OPTIONS | {"guidance": "autoguidance:share=0.5"}, sequential=True).frames
    assert (np.abs(apart.astype(int) - mixed) <= 1).mean() > 0.999


def test_a_folder_that_cannot_be_the_weak_model_is_refused_in_one_line(folders, tmp_path):
    strong, weak = folders
    twin = shutil.copytree(strong, tmp_path / "twin")
    with pytest.raises(InputError, match=r"twin cannot be the weak model: it has the weights of .* itself"):
        guidon.load(strong, device="cpu", weak=twin)
    with pytest.raises(InputError, match=r"cannot be the weak model: its latent shape is .*, that of guidon-small is"):
        guidon.load("guidon-small", device="cpu", weak=weak)
    with pytest.raises(InputError, match="is neither a preset nor a folder"):
        guidon.load(strong, device="cpu", weak=tmp_path / "nothing")


def test_a_trained_weak_model_reads_prompts_by_what_was_named(tmp_path):
    t5, other = write_named_t5(tmp_path / "t5"), write_named_t5(tmp_path / "other")
    (other / "model.safetensors").write_text("other weights")
    text = TextSource(kind="t5", folder=other, tokens=16)
    strong, weak = (write_tiny_trained(tmp_path / f"{seed}", text, seed=seed) for seed in (0, 1))
    named = {"text_encoder": t5, "text_dtype": "bf16"}
    model = guidon.load(strong, device="cpu", weak=weak, **named).model
    assert model.reads_as_weak
    assert model.weak is not None
    assert model.weak.hashes["text"] == model.hashes["text"]
    assert model.weak.hashes["text_dtype"] == "bf16"
    # one that reads classes is named none of it
    classes = write_tiny_trained(tmp_path / "classes", TextSource(kind="classes", classes=("red", "blue")), seed=2)
    model = guidon.load(strong, device="cpu", weak=classes, **named).model
    assert not model.reads_as_weak


def test_prompts_are_read_anew_for_a_weak_model_of_other_classes_or_length(tmp_path):
    red, blue = (TextSource(kind="classes", classes=names) for names in (("red", "blue"), ("blue", "red")))
    short, long = (TextSource(kind="t5", folder=tmp_path / "t5", tokens=tokens) for tokens in (16, 24))
    write_named_t5(tmp_path / "t5")
    for number, (network, strong, weak) in enumerate((("dit", red, blue), ("stdit", short, long))):
        places = [tmp_path / f"{number}-{role}" for role in ("strong", "twin", "weak")]
        for seed, (place, text) in enumerate(zip(places, (strong, strong, weak), strict=True)):
            write_tiny_trained(place, text, seed=seed, network=network)
        assert guidon.load(places[0], device="cpu", weak=places[1]).model.reads_as_weak
        assert not guidon.load(places[0], device="cpu", weak=places[2]).model.reads_as_weak


def run(words, capsys):
    """The exit code of a command, and what it said."""
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    return stopped.value.code, capsys.readouterr().err.replace("\n", " ")


def test_on_the_command_line(folders, tmp_path, capsys):
    strong, weak = folders
    words = ["generate", PROMPT, "--model", strong, "--steps", 2, "--interval", "0,1", "--device", "cpu", "--out"]
    assert run([*words, tmp_path / "one", "--guidance", "autoguidance", "--weak", weak], capsys)[0] == 0
    (manifest,) = (tmp_path / "one").glob("*.json")
    found = json.loads(manifest.read_text())
    assert found["generation"]["guidance"] == "autoguidance:share=1"
    assert "weak-denoiser" in found["weights"]
    again = ["generate", "--from", manifest, "--device", "cpu", "--out"]
    assert run([*again, tmp_path / "two", "--weak", weak], capsys)[0] == 0
    for refused, message in (
        ([*words, "x", "--guidance", "autoguidance"], "--guidance autoguidance needs a weaker model: give --weak"),
        ([*words, "x", "--weak", weak], "--weak has an effect only with --guidance autoguidance"),
        ([*again, "x"], "needs a weaker model: give --weak"),
    ):
        code, said = run(refused, capsys)
        assert code == 2
        assert message in said


def test_a_study_compares_autoguidance_with_plain_guidance(folders, tmp_path, capsys):
    """The plan holds the weak weights, and the cells of other rules are still whole without them."""
    strong, weak = folders
    study = tmp_path / "study.yaml"
    study.write_text(f"""
title: a weaker model
model: {strong}
sources: {{weak: {weak}}}
bench: video
prompts: [{PROMPT}]
steps: 1
sampler: ddim
timing: constant
settings:
  - {{name: cfg, cfg_scale: 3, cfg_channels: all}}
  - {{name: autoguidance, cfg_scale: 3, cfg_channels: all, guidance: autoguidance}}
primary: {{metric: drift_1, baseline: cfg, against: autoguidance}}
""")
    out = tmp_path / "results"
    code, said = run(["study", "run", study, "--out", out], capsys)
    assert code == 0, said
    plan = json.loads((out / "plan.json").read_text())
    assert plan["weights"].keys() == {"denoiser", "text", "vae", "weak-denoiser", "weak-text"}


def test_evaluate_takes_a_weak_model_too(folders, tmp_path, capsys):
    strong, weak = folders
    words = ["evaluate", "--model", strong, "--prompts", 2, "--steps", 1, "--cfg-scale", 3, "--device", "cpu"]
    assert run([*words, "--guidance", "autoguidance", "--weak", weak], capsys)[0] == 0
    for more, message in (
        (["--guidance", "autoguidance"], "--guidance autoguidance needs a weaker model: give --weak"),
        (["--weak", weak], "--weak has an effect only with --guidance autoguidance"),
    ):
        code, said = run([*words, *more], capsys)
        assert code == 2
        assert message in said
