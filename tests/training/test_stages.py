"""Staged recipes: what is done, what is done again, what the result says of its making."""

import os
import shutil
import signal
from pathlib import Path

import pytest
import yaml

import guidon
from guidon.checkpoints import load_component
from guidon.core.errors import InputError
from guidon.core.ranks import Ranks
from guidon.training import plan_recipe, run_recipe, stages
from guidon.training.data import pairs, rollouts
from guidon.training.recipe import check_recipe
from guidon.training.stages import weights_hash
from own_clips import NETWORKS, write_clips
from ranks import on_ranks
from recipes import (
    DENOISER,
    HIGH,
    LOW,
    VAE,
    assert_equal_weights,
    at_step,
    redraw_truth,
    scenes_of_captions,
    vae_recipe,
    weights_of,
    write_recipe,
)  # fmt: skip

SHIPPED = Path(__file__).parents[2] / "recipes" / "guidon-small.yaml"


def staged(folder, **changes):
    """An autoencoder, a network, its expert for low noise, and one for high noise. ``stage__setting`` changes one."""
    common = {name: value for name, value in DENOISER.items() if name != "task"} | {"steps": 2, "vae": "eye"}
    stages = {
        "eye": dict(VAE) | {"steps": 2},
        "base": {"task": "denoiser"},
        "low": {"task": "denoiser", "start": "base", "expert": LOW},
        "high": {"task": "denoiser", "start": "low", "expert": HIGH},
    }
    for path, value in changes.items():
        stage, name = path.split("__")
        stages[stage][name] = value
    values = {
        "out": str(folder / "runs"),
        "common": {"denoiser": common},
        "stages": stages,
        "export": {"stage": "high"},
    }
    return write_recipe(folder / "staged.yaml", values)


def states(path, **which):
    return [f"{stage.name} {stage.state}" for stage in plan_recipe(path, **which)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder in which all stages are done."""
    folder = tmp_path_factory.mktemp("staged")
    run_recipe(staged(folder))
    return folder


@pytest.fixture
def copied(made, tmp_path):
    """The same in a folder of the test's own."""
    shutil.copytree(made / "runs", tmp_path / "runs")
    return tmp_path


def test_one_command_makes_the_model(made):
    folder = made / "runs" / "model"
    pipe = guidon.load(folder, device="cpu")
    assert pipe("a red circle moves left on a white background", steps=2).frames.shape == (16, 64, 64, 3)
    assert {path.stem for path in folder.iterdir()} == {"denoiser", "denoiser-low", "text", "vae"}
    assert states(made / "staged.yaml") == ["eye done", "base done", "low done", "high done"]


def test_what_is_done_is_left_alone(copied, capsys):
    def times():
        return {path: path.stat().st_mtime_ns for path in (copied / "runs").rglob("*") if path.is_file()}

    path, before = staged(copied), times()
    assert run_recipe(path) == copied / "runs" / "model"
    assert times() == before
    assert [line.split(",")[0] for line in capsys.readouterr().err.splitlines()] == [
        "eye: done",
        "base: done",
        "low: done",
        "high: done",
    ]


def test_a_changed_setting_trains_its_stage_and_those_after_it_elsewhere(copied):
    before = {path.name: path for path in (copied / "runs").iterdir() if path.name != "clips"}
    old = weights_of(copied / "runs" / "model")
    path = staged(copied, low__caption_dropout=0.5)
    assert states(path) == ["eye done", "base done", "low train", "high later"]
    run_recipe(path)
    new = {path.name for path in (copied / "runs").iterdir()} - before.keys() - {"clips"}
    assert {name.rpartition("-")[0] for name in new} == {"low", "high"}
    high = next(folder for name, folder in before.items() if name.startswith("high-"))
    assert_equal_weights(weights_of(high / "model"), old)
    changed = weights_of(copied / "runs" / "model")
    assert any(not (changed[name] == old[name]).all() for name in old if name.startswith("denoiser-low."))
    # the earlier settings find their stages again
    assert states(staged(copied)) == ["eye done", "base done", "low done", "high done"]


def test_how_a_run_is_watched_does_not_count(copied):
    path = staged(copied, low__log_every=1, base__checkpoint_every=1, eye__device="auto", high__evaluate_every=1)
    assert states(path) == ["eye done", "base done", "low done", "high done"]


def own_data(folder, **data):
    """A recipe whose stage "eye" trains on a user's own videos."""
    data = {"folder": str(folder / "videos"), "size": [32, 32], "frames": 4} | data
    tiny = {"block_out_channels": [8, 8, 8], "norm_num_groups": 4}
    every = {"steps": 1, "batch_size": 2, "device": "cpu", "data": data}
    stages = {
        "eye": {"task": "vae", "model": tiny},
        "network": {"task": "videos", "vae": "eye", "network": {"family": "stdit", **NETWORKS["stdit"]}},
    }
    values = {"common": {"every": every}, "stages": stages, "export": {"stage": "network"}}
    return write_recipe(folder / "own.yaml", {"out": str(folder / "runs"), **values})


@pytest.fixture(scope="module")
def made_of_own(tmp_path_factory):
    """A folder in which the stage of ``own_data`` is done, although one file was broken and could be left out."""
    folder = tmp_path_factory.mktemp("own")
    write_clips(folder / "videos", count=4)
    (folder / "videos" / "3.mp4").write_bytes(b"x")
    run_recipe(own_data(folder, unreadable="leave_out"), stage="eye")
    return folder


@pytest.fixture
def own(made_of_own):
    """The recipe in that folder; its videos are as they were, afterwards."""
    shutil.copytree(made_of_own / "videos", made_of_own / "whole")
    yield own_data(made_of_own, unreadable="leave_out")
    shutil.rmtree(made_of_own / "videos", ignore_errors=True)
    (made_of_own / "whole").rename(made_of_own / "videos")


def empty(videos):
    shutil.rmtree(videos)
    videos.mkdir()


@pytest.mark.parametrize(
    ("change", "state"),
    [
        (shutil.rmtree, "done"),
        (empty, "done"),
        (lambda videos: (videos / "0.mp4").write_bytes(b"x"), "done"),
        (lambda videos: (videos / "0.mp4").unlink(), "done"),  # a row of the metadata names it
        (lambda videos: shutil.copyfile(videos / "0.mp4", videos / "3.mp4"), "done"),  # the same content twice
        (lambda videos: write_clips(videos / "more", count=6), "train"),
    ],
)
def test_a_stage_stays_done_if_its_data_is_away_and_not_if_it_changed(own, change, state):
    assert states(own, stage="eye") == ["eye done"]
    change(own.parent / "videos")
    assert states(own, stage="eye") == [f"eye {state}"]


def touch(videos):
    """Give all files another time of change: they are read again."""
    for path in videos.iterdir():
        os.utime(path, (1e9, 1e9))


def test_a_plan_writes_nothing(own):
    def files():
        return {path: path.read_bytes() for path in (own.parent / "runs").rglob("*") if path.is_file()}

    before = files()
    touch(own.parent / "videos")
    assert states(own, stage="eye") == ["eye done"]
    assert files() == before


def test_the_first_rank_alone_reads_the_data_of_stages(own):
    recipe = check_recipe(own, "eye")
    write_clips(own.parent / "videos" / "more", count=6)

    def work():
        with Ranks.join() as ranks, pytest.MonkeyPatch.context() as patch:
            if not ranks.first:  # as on a machine without the folder
                patch.setattr(stages, "data_state", None)
            return [(stage.done, stage.recipe.out) for _, stage in stages.walk(recipe, "eye", ranks)]

    first, second = on_ranks(work)
    assert first == second
    assert not first[0][0]


def test_an_interrupted_stage_is_resumed(tmp_path, made, monkeypatch):
    path = staged(tmp_path)
    with monkeypatch.context() as patch:
        at_step(patch, 0, lambda: signal.raise_signal(signal.SIGINT))
        assert run_recipe(path) is None
    assert states(path) == ["eye resume", "base later", "low later", "high later"]
    assert str(plan_recipe(path)[0]).startswith("eye: goes on from step 1 of 2, in ")
    early = run_recipe(path, export_only=True)
    assert load_component(early, "vae").record["steps"] == 1
    assert states(path)[0] == "eye resume"  # exported is not done
    eye = run_recipe(path, stage="eye")
    assert weights_hash(eye) == weights_hash(next((made / "runs").glob("eye-*")) / "vae.safetensors")
    assert states(path) == ["eye done", "base train", "low later", "high later"]
    assert not (tmp_path / "runs" / "model").exists()


def test_weights_that_no_stage_wrote_are_refused_and_a_damaged_copy_is_copied_again(copied):
    path, runs = staged(copied), copied / "runs"
    exported = runs / "model" / "denoiser.safetensors"
    whole = exported.read_bytes()
    (runs / "model" / "notes.txt").write_text("mine")
    (runs / "model" / "link").symlink_to("nowhere")
    exported.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    run_recipe(path)
    assert exported.read_bytes() == whole
    assert (runs / "model" / "notes.txt").read_text() == "mine"
    assert (runs / "model" / "link").readlink() == Path("nowhere")
    eye = next(runs.glob("eye-*"))
    record = (eye / "stage.json").read_text()
    for damaged in (record[:-20], record.replace('"weights": "', '"weights": "0'), "[]", "{}"):
        (eye / "stage.json").write_text(damaged)
        with pytest.raises(InputError) as error:
            plan_recipe(path)
        assert "stage.json" in str(error.value)
        assert "\n" not in str(error.value)
    (eye / "stage.json").write_text(record)
    weights = eye / "vae.safetensors"
    before = weights.read_bytes()
    for damaged in (before[:-1] + bytes([before[-1] ^ 1]), before[:100]):
        weights.write_bytes(damaged)
        with pytest.raises(InputError, match=r"vae\.safetensors"):
            run_recipe(path)
    weights.unlink()
    with pytest.raises(InputError, match=r"delete .* to train the stage eye again"):
        run_recipe(path)


def test_a_refused_recipe_leaves_no_folder_behind(tmp_path):
    with pytest.raises(InputError, match="nothing"):
        run_recipe(vae_recipe(tmp_path, out=str(tmp_path / "a" / "b"), start=str(tmp_path / "nothing")))
    assert [path.name for path in tmp_path.iterdir()] == ["vae.yaml"]


def test_only_what_a_stage_needs_is_trained(tmp_path):
    path = staged(tmp_path)
    assert states(path, stage="base") == ["eye train", "base later"]
    for stage in ("bas", "model"):
        with pytest.raises(InputError, match=f"stage '{stage}' is not in .*staged.yaml"):
            run_recipe(path, stage=stage)
    plain = vae_recipe(tmp_path)
    with pytest.raises(InputError, match="has no stages: leave out stage"):
        run_recipe(plain, stage="base")
    with pytest.raises(InputError, match="has no stages to plan"):
        plan_recipe(plain)


def test_the_last_stage_asked_for_by_name_is_exported_and_another_one_is_not(copied):
    path, model = staged(copied), copied / "runs" / "model"
    shutil.rmtree(model)
    base = run_recipe(path, stage="base")
    assert (base.name, base.parent.name[:5], model.exists()) == ("model", "base-", False)
    assert run_recipe(path, stage="high") == model
    assert model.is_dir()


def test_the_result_says_which_stages_it_comes_from(made):
    runs, folder = made / "runs", made / "runs" / "model"
    lineage = {
        file: load_component(folder / f"{file}.safetensors", kind).record["lineage"]
        for file, kind in (("vae", "vae"), ("text", "text"), ("denoiser-low", "denoiser"), ("denoiser", "denoiser"))
    }
    names = {file: [entry["stage"] for entry in entries] for file, entries in lineage.items()}
    assert names == {
        "vae": ["eye"],
        "text": ["eye", "base"],
        "denoiser-low": ["eye", "base", "low"],
        "denoiser": ["eye", "base", "low", "high"],
    }
    eye, base, low, high = lineage["denoiser"]
    assert lineage["denoiser-low"] == [eye, base, low]
    for entry in (eye, base, low, high):
        assert (runs / f"{entry['stage']}-{entry['key'][:8]}").is_dir()
    assert low["settings"]["expert"] == LOW
    of_base = next(runs.glob("base-*"))
    of_eye = next(runs.glob("eye-*")) / "vae.safetensors"
    assert low["parents"] == {"vae": weights_hash(of_eye), "start": weights_hash(of_base / "model")}


def test_weights_are_the_same_whatever_their_record_says(made, tmp_path):
    """So that a stage made again elsewhere gives the stages after it the same keys."""
    from guidon.checkpoints import save_component

    path = next((made / "runs").glob("eye-*")) / "vae.safetensors"
    vae = load_component(path, "vae")
    save_component(tmp_path / "same.safetensors", "vae", vae.config, vae.weights, {"hours": 5})
    save_component(tmp_path / "other.safetensors", "vae", vae.config | {"scaling_factor": 2.0}, vae.weights, vae.record)
    assert weights_hash(tmp_path / "same.safetensors") == weights_hash(path)
    assert weights_hash(tmp_path / "other.safetensors") != weights_hash(path)


def test_a_tiny_version_of_the_shipped_recipe_runs_all_stages(tmp_path, monkeypatch):
    monkeypatch.setattr(rollouts, "redraw", redraw_truth)  # a tiny model draws nothing that can be read
    monkeypatch.setattr(pairs, "correct", lambda frames, wanted: scenes_of_captions(wanted))
    values = yaml.safe_load(SHIPPED.read_text())
    values["out"] = str(tmp_path / "runs")
    tiny = {"hidden_size": 16, "depth": 1, "num_heads": 2}
    values["common"]["every"] |= {"device": "cpu"}
    values["common"]["denoiser"] |= {"clips": 4, "compile": False, "text": {"features": 8, "layers": 1, "heads": 2}}
    values["common"]["denoiser"]["model"] |= tiny
    values["common"]["vae"]["model"] |= {"block_out_channels": [8, 8]}
    for stage in values["stages"].values():
        stage |= {"steps": 2, "batch_size": 4}
    tiny_finisher = {"finisher": {"channels": 4, "depth": 1}, "rollouts": 4, "sampling": {"steps": 2}}
    values["stages"]["finished"] |= tiny_finisher
    for stage in ("distilled", "fast"):
        values["stages"][stage] |= {"rollouts": 4, "rank": 2, "sampling": {"block": 4}}
    values["stages"]["faithful"] |= {"clips": 4}
    values["stages"]["sized"] |= {"clips": 8, "batch_size": 8}
    for stage in ("low", "low-steady", "high-refined", "faithful", "sized"):
        values["stages"][stage]["model"] |= {"refiner_channels": 4, "refiner_depth": 1}
    path = write_recipe(tmp_path / "tiny.yaml", values)
    folder = run_recipe(path)
    pipe = guidon.load(folder, device="cpu")
    prompt = "a red circle moves left on a white background"
    assert pipe(prompt, steps=2).frames.shape == pipe(prompt, fast=True).frames.shape == (16, 64, 64, 3)
    low, high = (load_component(folder / f"{name}.safetensors", "denoiser") for name in ("denoiser-low", "denoiser"))
    assert (low.config["finisher_channels"], low.config["boundary"], low.config["finisher_end"]) == (4, 350, 100)
    assert not high.config["finisher_channels"]
    chains = {
        name: [entry["stage"] for entry in file.record["lineage"]] for name, file in (("low", low), ("high", high))
    }
    assert high.record["lineage"][: len(low.record["lineage"])] == low.record["lineage"]
    whole = list(values["stages"])
    assert chains == {"low": whole[: whole.index("finished") + 1], "high": whole[: whole.index("sized") + 1]}
    values["stages"]["finished"]["finisher"]["end"] = 351
    with pytest.raises(InputError, match="ends at timestep 350: give 350 or less"):
        run_recipe(write_recipe(path, values))
    values["stages"]["finished"]["finisher"]["end"] = 100
    write_recipe(path, values)
    assert {state.split()[1] for state in states(path)} == {"done"}
