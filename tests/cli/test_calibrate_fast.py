import csv
import shutil

import pytest


def test_the_settings_that_are_found_serve_the_model_folder(run, tiny_model, tmp_path):
    code, out, err = run(
        "calibrate-fast", "--model", tiny_model, "--steps", 2, "--sampler", "ddim", "--captions", 2, "--held-out", 2,
        "--dtype", "fp32", "--metric", "joint", "--margin", "joint=2", "--coarse", "--device", "cpu", "--out", tmp_path,
    )  # fmt: skip
    assert code == 0
    assert "margin of joint: 2" in err
    assert "fast settings" in out
    assert len(list(csv.DictReader((tmp_path / "calibration.csv").open()))) == 4
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    shutil.copy(tmp_path / "Guidon.fast.json", folder)
    code, out, _ = run("models", folder)
    assert "--fast: sampler ddim, steps 2" in out
    clip = ("a red circle stays still", "--model", folder, "--device", "cpu", "--out", tmp_path / "clips")
    assert run("generate", *clip, "--fast")[0] == 0
    (manifest,) = (tmp_path / "clips").glob("*.mp4.json")
    assert '"sampler": "ddim"' in manifest.read_text()
    (folder / "Guidon.fast.json").write_text('{"sampler": "ddimm", "steps": 2, "measured": ""}')
    code, _, err = run("generate", *clip, "--fast")
    assert code == 2
    assert "Guidon.fast.json" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--margin", "joint"), "--margin 'joint' cannot be read: give NAME=NUMBER, such as joint=0.05"),
        (("--margin", "chroma=1"), "or not of a guarded metric"),
        (("--metric", "speed"), "speed is neither better higher nor lower"),
        (("--sampler", "euler"), "--sampler euler does not go with guidon-small"),
        (("--steps", "2000"), "more than guidon-small was trained for"),
        (("--dtype", "fp8"), "fp8"),
        (("--candidate", "step=3"), "cannot be read: give NAME=VALUE of sampler, steps, spacing"),
        (("--candidate", "steps=x"), "--steps 'x' is not a number"),
        (("--candidate", "fast=yes"), "--candidate fast=yes cannot be read: give fast=true, or leave it out"),
        (("--candidate", "steps=3 spacing=karas"), "did you mean 'karras'"),
        (("--candidate", "steps=3", "--steps", "2"), "--candidate says all that is tried first: leave out --steps"),
        (("--candidate", "steps=3", "--dtype", "bf16"), "leave out --dtype, or write dtype=VALUE into --candidate"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(refused, tmp_path, options, message):
    assert message in refused("calibrate-fast", "--out", tmp_path, *options)
