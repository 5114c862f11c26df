import pytest
import yaml

from panned_clips import write_clips, write_rows

DATA = {"size": [16, 16], "frames": 2, "validation": 0.3}
SHAPE = {"block_out_channels": [8, 8], "norm_num_groups": 4}


@pytest.fixture
def clips(tmp_path):
    return write_clips(tmp_path / "clips", 4, frames=3, height=16, width=24)


@pytest.fixture
def recipe(tmp_path, clips):
    """Writes the recipe of an autoencoder, or of two in stages, and returns its path."""

    def recipe(*, staged=False, **data):
        vae = {"task": "vae", "steps": 1, "batch_size": 2, "device": "cpu", "model": SHAPE}
        vae["data"] = {"folder": str(clips), **DATA, **data}
        values = vae | {"out": str(tmp_path / "run")}
        if staged:
            network = {"task": "videos", "vae": "eye", "steps": 1, "device": "cpu", "data": vae["data"]}
            network["network"] = {"family": "stdit", "hidden_size": 16, "depth": 1, "num_heads": 2}
            stages = {"eye": vae, "network": network}
            values = {"out": str(tmp_path / "run"), "stages": stages, "export": {"stage": "network"}}
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return recipe


def test_clips_are_counted_and_stored_once(run, recipe, tmp_path):
    code, out, err = run("prepare", recipe())
    assert (code, err) == (0, "")
    assert "to train on: 3 clips of 3 files" in out or "to train on: 2 clips of 2 files" in out
    assert "  2 x 16 x 16: " in out
    stored = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    assert len(stored) == 1
    assert run("prepare", recipe()) == (0, out, "")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()} == stored


def test_a_dry_run_lists_all_defects_and_writes_nothing(run, recipe, clips, tmp_path):
    write_rows(clips, [{"file_name": name, "caption": "x"} for name in ("00.mp4", "gone.mp4", "01.mp4", "none.mp4")])
    code, out, err = run("prepare", recipe(), "--dry-run")
    assert code == 2
    assert f"cannot be used: {clips / 'gone.mp4'} ({clips / 'metadata.jsonl'}, line 2): it is not there" in out
    assert "cannot be used: 2 files (2 missing)" in out
    assert err.startswith("guidon: 2 files (2 missing) cannot be used, as listed. Mend them, or train on the others")
    assert err.count("\n") == 1
    code, left_out, err = run("prepare", recipe(unreadable="leave_out"), "--dry-run")
    assert (code, left_out, err) == (0, out, "")
    assert not (tmp_path / "run").exists()


def test_files_that_cannot_be_used_are_refused_or_left_out(run, recipe, clips, tmp_path):
    (clips / "02.mp4").write_bytes(b"no video")
    code, out, err = run("prepare", recipe())
    assert (code, out) == (2, "")
    assert f"1. {clips / '02.mp4'} ({clips / 'metadata.jsonl'}, line 3): cannot be read as a video" in err
    code, out, err = run("prepare", recipe(unreadable="leave_out"))
    assert code == 0
    assert "cannot be used: 1 file (1 undecodable)" in out
    assert err.count("guidon: left out: ") == 1


def test_a_file_that_two_stages_leave_out_is_named_once(run, recipe, clips):
    (clips / "02.mp4").write_bytes(b"no video")
    code, _, err = run("prepare", recipe(staged=True, unreadable="leave_out"))
    assert code == 0
    assert err.count("guidon: left out: ") == 1


def test_a_stage_whose_autoencoder_is_not_trained_is_checked(run, recipe, clips):
    code, out, _ = run("prepare", recipe(staged=True))
    assert code == 0
    assert "eye: to train on: " in out
    assert "network: its clips are encoded when the stages before it are trained" in out
    code, out, _ = run("prepare", recipe(staged=True), "--stage", "eye")
    assert "network" not in out
    write_rows(clips, [{"file_name": f"{number:02}.mp4"} for number in range(4)])
    code, out, err = run("prepare", recipe(staged=True))  # an autoencoder needs no captions
    assert code == 2
    assert "eye: to train on: " in out
    assert "4 files (4 no caption) cannot be used" in err


def test_a_recipe_without_data_is_refused(refused, recipe, tmp_path):
    path = recipe()
    values = {name: value for name, value in yaml.safe_load(path.read_text()).items() if name != "data"}
    path.write_text(yaml.safe_dump(values))
    assert "has no data section to prepare" in refused("prepare", path)
    assert "is not in" in refused("prepare", recipe(staged=True), "--stage", "nope")
