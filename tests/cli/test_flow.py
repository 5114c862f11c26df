"""A rectified flow from the command line: clips, spectrum, match and a study of channels to its report."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import yaml
from PIL import Image

import guidon
from guidon.analysis import matching
from guidon.diffusion import FlowPath, clip_shift
from guidon.samplers import SAMPLERS

PROMPT = "a red circle moves left on a white background"
STUDY = {
    "prompts": 2,
    "steps": 2,
    "sampler": "heun",
    "settings": [{"name": "three", "cfg_channels": 3}, {"name": "all", "cfg_channels": "all"}],
    "primary": {"metric": "background_flicker", "baseline": "three", "against": "all"},
}


@pytest.fixture
def made(run, tmp_path):
    """Runs ``guidon generate``: the bytes of the clip, and the path of its manifest."""

    def made(*words):
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        code, _, err = run("generate", *words, "--device", "cpu", "--out", out, "--format", "webp")
        assert code == 0, err
        (clip,) = out.glob("*.webp")
        return clip.read_bytes(), clip.with_name(clip.name + ".json")

    return made


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_a_clip_is_generated_and_made_again(made, tiny_flow, sampler):
    clip, manifest = made(PROMPT, "--model", tiny_flow, "--sampler", sampler, "--steps", 3)
    assert json.loads(manifest.read_text())["generation"]["sampler"] == sampler
    assert made("--from", manifest)[0] == clip


def test_its_own_sampler_is_euler_and_those_of_a_diffusion_are_refused(made, refused, tiny_flow, tiny_model):
    _, manifest = made(PROMPT, "--model", tiny_flow, "--steps", 1)
    assert json.loads(manifest.read_text())["generation"]["sampler"] == "euler"
    for sampler in ("ddpm", "ddim", "dpm-solver"):
        said = refused("generate", PROMPT, "--model", tiny_flow, "--sampler", sampler)
        assert (
            said == f"--sampler {sampler} does not go with {tiny_flow}, which is a rectified flow: give euler or heun"
        )
    said = refused("generate", PROMPT, "--model", tiny_model, "--sampler", "heun")
    assert said.endswith(f"which is a diffusion model: give {' or '.join(SAMPLERS['diffusion'])}")
    said = refused(
        "generate", PROMPT, "--model", tiny_flow, "--guidance", "cfg++", "--cfg-scale", 0.5, "--sampler", "heun"
    )
    assert "cfg++ needs --sampler ddim with --eta 0, or euler on a rectified flow" in said


def test_guidance_is_split_by_channel(run, tiny_flow, tmp_path):
    code, out, _ = run(
        "spectrum", PROMPT, "--model", tiny_flow, "--steps", 3, "--looks", 2, "--cfg-scale", 2, "--cfg-channels",
        "0-2", "--interval", "0,1", "--device", "cpu", "--out", tmp_path,
    )  # fmt: skip
    assert code == 0
    assert "sampled at scale 2 on first 3 channels, 3 steps" in out
    with np.load(tmp_path / "spectrum.npz") as arrays:
        assert arrays["scale"].tolist() == [[2, 2, 2, 1]] * 3
        assert arrays["timestep"] == pytest.approx([1000, 1000 * 2 / 3, 1000 / 3])
        assert np.isfinite(arrays["gain"]).all()


def test_scales_are_matched(run, tiny_flow, tmp_path, monkeypatch):
    monkeypatch.setattr(matching, "STEPS_OF_GRID", (1, 5 / 3))
    code, out, _ = run(
        "match", "--model", tiny_flow, "--cfg-scale", 3, "--cfg-channels", "3", "--to", "all", "--captions", 2,
        "--steps", 2, "--metric", "video", "--device", "cpu", "--out", tmp_path,
    )  # fmt: skip
    assert code == 0
    assert "scale 3 on channels 3 is this scale on channels all" in out


def test_a_study_of_channels_runs_to_its_report(run, tiny_flow, tmp_path):
    path, out = tmp_path / "study.yaml", tmp_path / "results"
    path.write_text(yaml.safe_dump(STUDY | {"model": str(tiny_flow)}))
    code, printed, _ = run("study", "run", path, "--out", out, "--device", "cpu")
    assert code == 0
    assert "background flicker" in printed
    assert run("study", "report", out, "--no-videos")[0] == 0
    assert "<html" in (out / "report.html").read_text()
    with (out / "results.csv").open() as file:
        assert {row["setting"] for row in csv.DictReader(file)} == {"three", "all"}


def test_the_first_frame_is_a_picture_with_both_samplers(tiny_flow, tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    pipe = guidon.load(tiny_flow, device="cpu")
    shown = pipe.autoencode(picture[None].astype(np.float32) / 255)[0]
    euler, heun = (
        pipe(PROMPT, first_frame=tmp_path / "picture.png", sampler=sampler, steps=3).frames.astype(float)
        for sampler in ("euler", "heun")
    )
    assert np.abs(euler[0] / 255 - shown).max() < 1 / 255
    assert np.array_equal(euler[0], heun[0])
    assert not np.array_equal(euler[-1], heun[-1])


@pytest.mark.filterwarnings("ignore:.*was trained on another size")
def test_the_levels_of_a_run_depend_on_size_and_length_where_the_model_says_so(tiny_flow):
    own = guidon.load(tiny_flow, device="cpu")
    model = replace(own.model, schedule=FlowPath(by_size=True))
    trace = guidon.GuidanceTrace()
    guidon.Pipeline(own.preset, model, own.device)(
        PROMPT, size=(32, 64), frames=20, steps=3, timing="constant", trace=trace
    )
    expected = FlowPath(steps=3, shift=clip_shift(32, 64, 20)).levels
    assert trace.as_arrays()["timestep"] == pytest.approx([level.timestep for level in expected])
