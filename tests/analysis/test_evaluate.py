import csv
import json
import shlex

import numpy as np
import pytest

import guidon
from guidon import cli, world
from guidon.analysis.evaluate import (
    CEILING,
    TRUTH,
    Evaluation,
    Setting,
    evaluate,
    look_during_training,
    measure_files,
    settings_of,
)  # fmt: skip
from guidon.core.errors import InputError
from guidon.media.files import save_video
from guidon.metrics.bench import BENCHES
from guidon.metrics.metric import EVALUATION_SEED
from guidon.metrics.world import METRICS


@pytest.fixture(scope="module")
def pipe(tiny_model):
    return guidon.load(tiny_model, device="cpu")


def command(line, code=0):
    with pytest.raises(SystemExit) as stop:
        cli.main(shlex.split(line))
    assert stop.value.code == code, line


def test_every_scale_meets_every_choice_of_channels_once():
    assert [str(s) for s in settings_of([1, 2], ["3", "all"])] == [
        "no guidance", "scale 2, channels 3", "scale 2, channels all",
    ]  # fmt: skip
    assert len(settings_of([2, 2], ["3"])) == 1
    near = settings_of([2.5, 2.5000001, 2.50000011, 1.0000001], ["3"])
    assert len({str(s) for s in near}) == 4  # each has a row of its own
    assert str(near[0]) == "scale 2.5, channels 3"


def test_a_model_is_measured_beside_its_ceilings(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr("guidon.analysis.evaluate.BATCH", 2)  # true clips are measured in two blocks
    seen = []
    settings = settings_of([1.0, 3.0], ["all"])
    found = evaluate(
        pipe, settings, prompts=3, seeds=2, batch_size=4, steps=2, sampler="ddim",
        on_step=lambda *done: seen.append(done),
    )  # fmt: skip
    assert list(found.values) == [TRUTH, CEILING, "no guidance", "scale 3, channels all"]
    assert (found.values[TRUTH]["joint"] == 1).all()
    assert found.values["no guidance"]["joint"].shape == (3, 2)
    assert seen[-1] == (1000, 1000)
    assert seen == sorted(seen)
    assert "| truth | 100% |" in found.table()
    # every prompt has clips of its own seed, whichever block it is in; the last one is alone in its block
    options = {"num_samples": 2, "steps": 2, "sampler": "ddim", "cfg_scale": 3.0, "cfg_channels": "all"}
    for k in (1, 2):
        clips = np.stack([clip.frames for clip in pipe(found.captions[k], seed=found.sampling["seed"] + k, **options)])
        assert np.abs(found.pictures["scale 3, channels all"][k].astype(int) - clips[0]).max() <= 1
        spread = BENCHES["world"].examples.over_seeds(found.split, EVALUATION_SEED, k, clips)["start_spread"]
        assert found.over_seeds["scale 3, channels all"]["start_spread"][k] == pytest.approx(spread, abs=0.1)
    own = BENCHES["world"].measure(clips, [found.captions[2]] * 2)
    for name, values in found.values["scale 3, channels all"].items():
        assert np.array_equal(values[2], own[name], equal_nan=True)
    rows, summary, sheet = found.write(tmp_path / "out")
    with rows.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 3 + 3 + 6 + 6
    assert set(METRICS) <= set(table[0])
    content = json.loads(summary.read_text())
    assert content["against"] == "no guidance"
    assert content["compared"]["joint"]["scale 3, channels all"]["pairs"] == 3
    assert content["sampling"]["steps"] == 2
    assert content["settings"]["no guidance"].keys() == {*METRICS, "start_spread"}
    assert sheet.stat().st_size > 1000


def test_what_is_undefined_is_said_with_its_reason_and_never_as_a_number():
    half, none, whole = np.array([[0.5], [np.nan], [0.25]]), np.full((3, 1), np.nan), np.ones((3, 1))
    values = dict.fromkeys(METRICS, whole) | {"law_residual": half, "size": none, "speed": none}
    captions = ("a red circle moves left",) * 3
    found = Evaluation(BENCHES["world"], "toy", None, captions, 1, {}, {"no guidance": values}, {})
    row = found.table(("size", "law_residual", "speed", "joint")).splitlines()[-1]
    assert row.startswith("| no guidance | undefined | 0.38 [0.25, 0.50], 1 of 3 undefined | undefined | 100% [")
    assert "nan" not in row
    legend = found.legend(("size", "law_residual", "joint")).splitlines()
    assert legend[0].endswith("; higher is better; undefined where the caption does not say it")
    assert legend[1].endswith("; undefined where the object is visible in fewer than 4 frames")
    assert "undefined" not in legend[2]


def test_the_same_noise_serves_every_setting(pipe):
    twice = evaluate(pipe, [Setting(2.0, "3"), Setting(2.0, "0-2")], prompts=2, steps=2, sampler="ddim")
    first, second = (twice.values[name] for name in twice.sampled)
    for name in METRICS:
        assert np.array_equal(first[name], second[name], equal_nan=True)


def test_training_looks_at_what_it_exports(tiny_model, tmp_path, monkeypatch):
    import shutil

    def on_few(pipe, settings, **asked):
        assert asked == {"prompts": 16, "sampler": "ddim", "steps": 20}
        return evaluate(pipe, settings, prompts=3, sampler="ddim", steps=2)

    monkeypatch.setattr("guidon.analysis.evaluate.evaluate", on_few)
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    watched = {"joint", "colour", "shape", "direction", "size", "outline_error", "law_residual"}
    assert set(look_during_training(folder, 40)) == watched
    assert (tmp_path / "sheets" / "0000040.png").stat().st_size > 1000


def test_a_file_is_measured_whose_name_leaves_no_room_for_that_of_a_manifest(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3), dtype=np.uint8)
    path = save_video(frames, tmp_path / "a.gif").rename(tmp_path / ("a" * 251 + ".gif"))
    assert "sharpness" in measure_files([path]).values[path]


def test_files_are_measured_with_and_without_captions(tmp_path, capsys):
    clip = world.clip("L0", 5, 3)
    frames = (clip.frames() * 255).round().astype(np.uint8)
    path = save_video(frames, tmp_path / "clip.webp")
    command(f"evaluate {path}")
    alone = capsys.readouterr().out
    assert "warp_ratio" in alone
    assert "joint" not in alone
    command(f"evaluate {path} --caption {shlex.quote(clip.caption)} --out {tmp_path}/out")
    assert "| joint | right |" in capsys.readouterr().out
    kept = json.loads((tmp_path / "out" / "metrics.json").read_text())[str(path)]
    assert kept["shape"] == 1
    manifest = {"generation": {"prompts": [clip.caption]}, "frames": [16, 64, 64, 3]}
    (tmp_path / "clip.webp.json").write_text(json.dumps(manifest))
    command(f"evaluate {path}")
    assert "| direction | right |" in capsys.readouterr().out
    other = next(colour for colour in world.COLOURS if colour not in clip.caption)
    command(f"evaluate {path} --caption 'a {other} shape'")
    out = capsys.readouterr().out
    assert "| colour | wrong | " in out
    assert "| direction | undefined: the caption does not say it | " in out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--split L9 --prompts 2", "split 'L9' does not exist; valid: train, L0"),
        ("--caption 'a red ball'", "--caption belongs to video files"),
        ("--cfg-channels 9 --prompts 2", "--cfg-channels '9'"),
        ("--model nowhere", "neither a preset nor a folder"),
        ("{clip} --caption 'a dog'", "asks for nothing that the world has"),
        ("{tmp}/none.mp4", "none.mp4"),
        ("{clip} --steps 5", "--steps belongs to a model"),
        ("--prompts 1", "--prompts"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, line, message):
    frames = (world.clip("L0", 5, 3).frames() * 255).astype(np.uint8)
    clip = save_video(frames, tmp_path / "a.webp")
    command("evaluate " + line.format(clip=clip, tmp=tmp_path), code=2)
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_a_model_whose_bench_has_no_captions_is_refused(pipe):
    import dataclasses

    other = type(pipe)(
        pipe.preset,
        dataclasses.replace(pipe.model, facts=dataclasses.replace(pipe.model.facts, bench="video")),
        pipe.device,
    )
    with pytest.raises(InputError, match="'video' has no captions with exact truth"):
        evaluate(other, [Setting(1.0, "3")], prompts=2)


def test_a_setting_that_is_not_valid_is_refused_before_another_is_sampled(pipe, monkeypatch):
    monkeypatch.setattr(pipe, "generate", lambda *_, **__: pytest.fail("sampled"))
    with pytest.raises(InputError, match="cfg_channels"):
        evaluate(pipe, settings_of([1, 2], ["3", "9"]), prompts=2, steps=2)
    with pytest.raises(InputError, match="no setting to evaluate"):
        evaluate(pipe, [], prompts=2)
