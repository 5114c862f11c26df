import csv
import json
import shutil

import numpy as np
import pytest

import judges
from guidon import world
from guidon.core.errors import InputError
from guidon.media import Video, save_video
from guidon.pipeline.planner import Planner
from tiny_model import write_tiny_adapters


def test_a_model_is_measured_at_every_setting(run, tiny_model, tmp_path):
    code, out, _ = run(
        "evaluate", "--model", tiny_model, "--prompts", 2, "--guidance-scale", 1, "--cfg-scale", 2, "--cfg-channels",
        "3", "--cfg-channel", "all", "--interval", "0,1", "--num-inference-steps", 2, "--sampler", "ddim", "--device",
        "cpu", "--out", tmp_path, "--lora", f"{write_tiny_adapters(tmp_path / 'style')}=0.5",
    )  # fmt: skip
    assert code == 0
    for row in ("| no guidance |", "| scale 2, channels 3 |", "| scale 2, channels all |"):
        assert row in out
    assert "ddim, 2 steps" in out
    assert len(list(csv.DictReader((tmp_path / "metrics.csv").open()))) == 2 * (3 + 2)  # and truth, and its ceiling
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["prompts"] == 2
    assert {"denoiser", "lora 1: style*0.5"} <= summary["weights"].keys()


def test_files_are_measured(run, tmp_path):
    clip = world.clip("L0", 5, 3)
    path = save_video((clip.frames() * 255).round().astype(np.uint8), tmp_path / "clip.webp")
    code, out, _ = run("evaluate", path, "--caption", clip.caption)
    assert code == 0
    assert "clip.webp" in out
    assert "| joint | right | one_object, colour, shape" in out


def test_what_cannot_be_measured_is_named_and_left_out(run, tmp_path):
    clip = world.clip("L0", 5, 3)
    frames = (clip.frames() * 255).round().astype(np.uint8)
    whole = save_video(frames, tmp_path / "whole.webp")
    wide = save_video(frames.repeat(2, axis=2), tmp_path / "wide.webp")
    for path, prompt in ((whole, clip.caption), (wide, clip.caption)):
        manifest = {"generation": {"prompts": [prompt]}, "frames": [16, 64, 64, 3]}
        path.with_name(path.name + ".json").write_text(json.dumps(manifest))
    bare = save_video(frames, tmp_path / "bare.webp")
    for name in ("a-sheet.png", "notes.mp4"):
        (tmp_path / name).write_text("no video")
    code, out, err = run("evaluate", *sorted(tmp_path.iterdir()), "--out", tmp_path / "out")
    assert code == 0
    head, *_, last = out.splitlines()
    assert head == "| metric | bare.webp | whole.webp | wide.webp | what it says |"
    assert "| joint |  | right |  | one_object, colour" in out
    assert last == str(tmp_path / "out" / "metrics.json")
    told = {line.split(": ")[1].rpartition("/")[2]: line for line in err.splitlines()}
    assert "it is a contact sheet" in told["a-sheet.png"]
    assert "cannot be read as video" in told["notes.mp4"]
    assert "measured without a caption: there is no manifest with one prompt beside it" in told["bare.webp"]
    assert "measured without a caption: the video is 128x64" in told["wide.webp"]
    assert "it is json, no video" in told["wide.webp.json"]
    assert set(json.loads((tmp_path / "out" / "metrics.json").read_text())) == {str(p) for p in (bare, whole, wide)}
    assert "joint" not in json.loads((tmp_path / "out" / "metrics.json").read_text())[str(bare)]


def test_prompts_of_a_file_are_measured_without_truth(run, tiny_model, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red circle moves left on a white background\n")
    code, out, _ = run(
        "evaluate", "--model", tiny_model, "--prompts-file", tmp_path / "prompts.txt", "--cfg-scale", 2, "--guidance",
        "apg", "--ramp", "linear", "--seed", 3, "--batch-size", 1, "--steps", 2, "--device", "cpu", "--out", tmp_path,
    )  # fmt: skip
    assert code == 0
    assert "truth" not in out
    sampling = json.loads((tmp_path / "summary.json").read_text())["sampling"]
    assert (sampling["guidance"].partition(":")[0], sampling["timing"], sampling["seed"]) == ("apg", "linear", 3)


def test_prompts_that_a_model_cannot_follow_are_refused_with_their_line(refused, tiny_model, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a red circle moves left on a white background\n\na red elephant moves left\n")
    message = refused("evaluate", "--model", tiny_model, "--prompts-file", file)
    assert message.startswith(f"{file}, line 3: the prompt 'a red elephant moves left' cannot be followed")
    assert "force" not in message
    own = [f"a red circle moves {where} on a white background" for where in ("left", "right", "up")]
    for command in ("tune", "match", "calibrate-fast"):
        words = (*own, "a red elephant moves left", "--model", tiny_model, "--out", tmp_path / "out")
        assert "unknown word 'elephant'" in refused(command, *words)


@pytest.mark.parametrize("command", ["evaluate", "tune", "match"])
def test_fast_settings_bring_their_own_scale(run, tiny_model, tmp_path, monkeypatch, command):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    own = {"sampler": "ddim", "steps": 2, "cfg_scale": 2.3, "measured": "nothing"}
    (folder / "Guidon.fast.json").write_text(json.dumps(own))
    asked = []
    complete = Planner.complete

    def noted(self, prompts, samples=(0,), **choices):
        request = complete(self, prompts, samples, **choices)
        asked.append(request.guidance.scale)
        return request

    def load(*_, **__):
        raise InputError("noted")

    monkeypatch.setattr(Planner, "complete", noted)
    monkeypatch.setattr("guidon.pipeline.load", load)
    for more, scale in ((("--fast",), 2.3), ((), 3), (("--fast", "--cfg-scale", 4.7), 4.7)):
        asked.clear()
        assert run(command, "--model", folder, "--device", "cpu", *more)[0] == 2
        assert scale in asked
        assert not {2.3, 3, 4.7} - {scale} & set(asked)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("a.mp4", "--steps", 5), "--steps belongs to a model"),
        (("a.mp4", "--guidance-scale", 5), "--cfg-scale belongs to a model"),
        (("a.mp4", "--interval", "0,1"), "--interval belongs to a model"),
        (("--caption", "a red circle"), "--caption belongs to video files"),
        (("--prompts", 1), "--prompts"),
        (("--guidance", "nope"), "--guidance"),
        (("--lora", "gone"), "--lora gone is not there"),
        (("a.mp4", "--lora", "gone"), "--lora belongs to a model"),
        (("--features", "f"), "brings its own weights: leave out --features"),
        (("a.mp4", "--guidance", "apg"), "--guidance belongs to a model"),
        (("none.mp4",), "no file could be measured: none.mp4: cannot be read as video: it is not there"),
    ],
)
def test_what_cannot_be_measured_is_refused(refused, words, message):
    assert message in refused("evaluate", *words)


def test_an_enlarged_clip_that_is_not_its_manifests_is_refused(refused, tmp_path):
    frames = np.zeros((4, 64, 64, 3), np.uint8)
    Video(frames, 8, {"frames": [4, 64, 64, 3]}).save(tmp_path / "a.webp", upscale=2)
    save_video(frames, tmp_path / "a.webp")
    message = refused("evaluate", tmp_path / "a.webp")
    assert "its frames are 64x64, its manifest says 64x64 enlarged 2 times" in message


def test_learned_metrics_of_a_model_and_of_files(run, refused, tiny_model, tmp_path):
    weights = judges.make_all(tmp_path / "judges")
    options = [word for name, path in weights.items() for word in (f"--{name}", path)]
    sampled = ["--model", tiny_model, "--prompts", 2, "--steps", 1, "--cfg-scale", 1, "--device", "cpu"]
    code, out, _ = run("evaluate", *sampled, "--bench", "learned", *options, "--out", tmp_path / "out")
    assert code == 0
    assert "| subject_consistency (cosine) |" in out.splitlines()[0]
    assert "aesthetic measures with aesthetic.pth, SHA-256 " in out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["bench"] == "world+clip+dino+lpips+aesthetic"
    assert set(summary["bench_weights"]) == {"clip", "dino", "lpips", "aesthetic"}
    clip = save_video(np.zeros((4, 64, 64, 3), np.uint8), tmp_path / "waves.mp4")
    code, out, err = run("evaluate", clip, "--caption", "waves roll", *options)
    assert (code, err) == (0, "")
    assert "| text_alignment (cosine) |" in out
    assert "| dynamics (px/frame) | 0 |" in out
    assert "clip measures with clip, SHA-256 " in out
    assert "(did you mean 'learned'?)" in refused("evaluate", clip, "--bench", "leerned")
    assert "--bench 'world' is for a model" in refused("evaluate", clip, "--bench", "world")
    assert "give --clip, a CLIP or SigLIP such as" in refused("evaluate", clip, "--bench", "video+clip")
    assert "leave out --download" in refused("evaluate", "--prompts", 2, "--download")
