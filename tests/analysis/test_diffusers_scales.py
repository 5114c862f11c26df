"""``match`` and ``tune`` on a tiny diffusers pipeline from its folder, by the command line."""

import numpy as np
import pytest

import guidon
from guidon import cli
from guidon.analysis.tuning import tune
from guidon.metrics.bench import open_bench
from guidon.metrics.choice import BenchChoice
from judges import make_clip
from tiny_pipelines.whole import WHOLE, write_pipeline

PROMPTS = ("a red ball", "blue cat", "green", "a sky")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Threads of tiny networks wait for each other longer than they compute."""
    monkeypatch.setattr("os.cpu_count", lambda: 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_pipeline("pixart", tmp_path_factory.mktemp("folders") / "pixart")


@pytest.fixture
def run(folder, capsys):
    def run(command, *words):
        given = [f"{name}={value}".replace("False", "false") for name, value in WHOLE["pixart"][1].items()]
        options = [word for argument in given for word in ("--call", argument)]
        with pytest.raises(SystemExit) as stop:
            cli.main([command, *map(str, words), "--model", f"diffusers:{folder}", *options, "--device", "cpu"])
        printed = capsys.readouterr()
        return stop.value.code, printed.out, printed.err

    return run


def test_a_scale_on_all_channels_is_matched(run, tmp_path):
    words = ("--cfg-scale", 3, "--cfg-channels", 3, "--steps", 2, "--out", tmp_path / "match")
    code, out, err = run("match", *PROMPTS[:2], *words, "--metric", "energy", "--metric", "saturation")
    assert code == 0, err
    assert out.startswith(
        "scale 3 on channels 3 is this scale on channels all (with the same sum of scale - 1: 2.50):\n  energy: "
    )
    scale = float(out.split("energy: ")[1].split()[0])
    assert 1 < scale < 3  # of what four channels carry, three carry less
    assert (tmp_path / "match" / "equivalence.png").exists()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "match" / "cells").rglob("clip.png")}
    assert run("match", *PROMPTS[:2], *words, "--metric", "energy")[0] == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before  # nothing is sampled twice


def test_scales_are_tuned_by_a_clip(run, tmp_path):
    clip = make_clip(tmp_path / "clip")
    words = ("--clip", clip, "--cfg-scale", 3, "--evaluations", 6, "--steps", 2)
    code, out, err = run("tune", *PROMPTS, *words, "--out", tmp_path / "tuned")
    assert code == 0, err
    assert out.startswith("--cfg-scale ")
    assert len(out.split()[1].split(",")) == 4
    assert "text_alignment: " in out
    assert "clipped: " in out
    assert "interpolation_error" not in out  # an image has no next frame
    assert (tmp_path / "tuned" / "tuning.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("tune", *PROMPTS), "the bench 'video' does not say what good scales are"),
        (("match", *PROMPTS, "--metric", "joint"), "the metric 'joint' does not exist"),
        (("match",), "the bench 'video' has no captions with exact truth: give prompts"),
        (("match", "a red ball"), "give at least 2"),
        (("match", *PROMPTS, "--sampler", "ddim"), "--sampler 'ddim' cannot be set"),
        (("tune", *PROMPTS, "--cfg-scale", 1), "does not say what good scales are"),
    ],
)
def test_what_cannot_be_matched_or_tuned_is_refused(run, words, message):
    code, out, err = run(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_too_few_prompts_and_scale_1_are_refused(run, tmp_path):
    clip = make_clip(tmp_path / "clip")
    assert "give at least 4" in run("tune", *PROMPTS[:3], "--clip", clip)[2]
    assert "is given twice" in run("tune", *PROMPTS, "green", "--clip", clip)[2]
    assert "guides nothing" in run("tune", *PROMPTS, "--clip", clip, "--cfg-scale", 1)[2]
    assert "has no captions" in run("tune", "--clip", clip)[2]


def test_the_kept_metric_is_the_fit_to_the_prompt(folder, tmp_path, monkeypatch):
    """The search lowers clipping where the fit allows it."""
    pipe = guidon.load(f"diffusers:{folder}", device="cpu", call=WHOLE["pixart"][1])
    bench = open_bench(BenchChoice(clip=make_clip(tmp_path / "clip")), pipe.planner.bench)

    def measured(pipe, bench, captions, scales, choices):
        rows = np.ones(len(captions)) * (1 + 0.001 * np.arange(len(captions)))
        clipped = sum((scale - 2) ** 2 for scale in scales)
        fit = 0.3 if scales[0] >= 3 else 0.29
        return {"text_alignment": fit * rows, "clipped": clipped * rows, "interpolation_error": np.nan * rows}

    monkeypatch.setattr("guidon.analysis.tuning._measured", measured)
    found = tune(pipe, 4.0, prompts=PROMPTS[:2], held_out=PROMPTS[2:], bench=bench, evaluations=120)
    assert found.scales[0] == pytest.approx(3, abs=0.2)
    assert found.scales[1:] == pytest.approx((2, 2, 2), abs=0.3)
    assert found.margin == 0.005
