import csv
import json

import numpy as np
import pytest

from guidon import world
from guidon.media import Video, save_video


def test_a_model_is_measured_at_every_setting(run, tiny_model, tmp_path):
    code, out, _ = run(
        "evaluate", "--model", tiny_model, "--prompts", 2, "--guidance-scale", 1, "--cfg-scale", 2, "--cfg-channels",
        "3", "--cfg-channel", "all", "--interval", "0,1", "--num-inference-steps", 2, "--sampler", "ddim", "--device",
        "cpu", "--out", tmp_path,
    )  # fmt: skip
    assert code == 0
    for row in ("| no guidance |", "| scale 2, channels 3 |", "| scale 2, channels all |"):
        assert row in out
    assert "ddim, 2 steps" in out
    assert len(list(csv.DictReader((tmp_path / "metrics.csv").open()))) == 2 * (3 + 2)  # and truth, and its ceiling
    assert json.loads((tmp_path / "summary.json").read_text())["prompts"] == 2


def test_files_are_measured(run, tmp_path):
    clip = world.clip("L0", 5, 3)
    path = save_video((clip.frames() * 255).round().astype(np.uint8), tmp_path / "clip.webp")
    code, out, _ = run("evaluate", path, "--caption", clip.caption)
    assert code == 0
    assert "clip.webp" in out
    assert "| joint | share | 1 |" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("a.mp4", "--steps", 5), "--steps belongs to a model"),
        (("a.mp4", "--guidance-scale", 5), "--cfg-scale belongs to a model"),
        (("a.mp4", "--interval", "0,1"), "--interval belongs to a model"),
        (("--caption", "a red circle"), "--caption belongs to video files"),
        (("--prompts", 1), "--prompts"),
        (("none.mp4",), "none.mp4 cannot be read as video: it is not there"),
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
