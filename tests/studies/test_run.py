import contextlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

import guidon
from guidon.cli import app, main
from guidon.core.errors import InputError
from guidon.studies import plan as planning
from guidon.studies import run as running
from guidon.metrics.world import METRICS

ROOT = Path(__file__).parents[2]
STUDY = {
    "prompts": 3, "steps": 2, "seeds": 2, "block": 4,
    "settings": [{"cfg_scale": 1}, {"grid": {"cfg_scale": [3], "cfg_channels": [3, "all"]}}],
    "primary": {"metric": "law_residual", "baseline": "scale 3, channels 3", "against": "scale 3, channels all"},
}  # fmt: skip


def write(path, **changes):
    path.write_text(yaml.safe_dump(STUDY | changes))
    return path


def study(tmp_path, model, **changes):
    return planning.load_study(write(tmp_path / "study.yaml", model=str(model), **changes))


@pytest.fixture(scope="module")
def pipe(tiny_model):
    return guidon.load(tiny_model, device="cpu")


@pytest.fixture(scope="module")
def plan(tmp_path_factory, tiny_model, pipe):
    return planning.make_plan(study(tmp_path_factory.mktemp("plan"), tiny_model), pipe)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, plan, pipe):
    """Results of an uninterrupted run."""
    out = tmp_path_factory.mktemp("whole") / "results"
    assert running.run_study(plan, pipe, out) == plan.cells == 18
    return out


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted((folder / "cells").rglob("*")) if p.is_file()}


def test_a_plan_says_everything_and_is_the_same_every_time(plan, pipe, tmp_path, tiny_model):
    assert list(plan.settings) == ["no guidance", "scale 3, channels 3", "scale 3, channels all"]
    assert len(set(plan.captions)) == 3
    chosen = plan.settings["scale 3, channels all"]
    assert (chosen["steps"], chosen["sampler"], chosen["cfg_channels"], chosen["guidance"]) == (2, "ddpm", "all", "cfg")
    assert planning.make_plan(study(tmp_path, tiny_model), pipe).hash == plan.hash
    assert planning.make_plan(study(tmp_path, tiny_model, seeds=3), pipe).hash != plan.hash
    throughout = planning.make_plan(study(tmp_path, tiny_model, timing="constant"), pipe)
    assert {own["timing"] for own in throughout.settings.values()} == {"constant"}


def test_every_cell_keeps_its_clip_metrics_trace_and_manifest(whole, plan, pipe):
    cell = running.cells_of(plan, whole)[7]
    assert (cell.setting, cell.prompt, cell.sample) == ("scale 3, channels 3", 0, 1)
    manifest = json.loads((cell.folder / "manifest.json").read_text())
    again = pipe.generate(running.validated(guidon.request.Generation, manifest["generation"], "manifest"))[0]
    assert np.abs(again.frames.astype(int) - cell.frames()).max() <= 1  # its batch was another
    assert cell.metrics().keys() == METRICS.keys()
    trace = np.load(cell.folder / "trace.npz")
    assert trace["difference"].shape == (1, 4)  # the model's interval holds one of the two steps
    assert trace["scale"].tolist() == [[3, 3, 3, 1]]
    unguided = np.load(running.cells_of(plan, whole)[0].folder / "trace.npz")
    assert unguided["timestep"].shape == (0,)


def test_settings_share_their_noise(whole, plan):
    cells = {(c.setting, c.prompt, c.sample): c.frames().astype(int) for c in running.cells_of(plan, whole)}
    near = np.abs(cells["no guidance", 0, 0] - cells["scale 3, channels 3", 0, 0]).mean()
    far = np.abs(cells["no guidance", 0, 0] - cells["no guidance", 0, 1]).mean()
    assert near < far


def test_what_is_done_is_not_done_again_and_what_is_damaged_is(whole, plan, pipe, tmp_path):
    before, said = content(whole), []
    assert running.run_study(plan, pipe, whole, say=said.append) == 0
    cells = running.cells_of(plan, whole)
    clip = cells[3].folder / "clip.png"
    clip.write_bytes(clip.read_bytes()[:-9])
    (cells[5].folder / "hashes.json").unlink()
    with pytest.raises(InputError, match="2 of 18 cells"):
        running.results(plan, whole)
    assert running.run_study(plan, pipe, whole, say=said.append) == 2
    assert len(said) == 2
    assert "clip.png is not what was written" in said[0]
    assert content(whole) == before


def test_two_ranks_write_the_bytes_of_one_process(whole, plan, pipe, tmp_path, monkeypatch):
    out = tmp_path / "ranks"
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert 0 < running.run_study(plan, pipe, out) < plan.cells
    assert content(out) == content(whole)


def test_results_are_read_back_written_and_answered(whole, plan, tmp_path):
    found = running.results(plan, whole)
    assert found["no guidance"]["joint"].shape == (3, 2)
    running.write_csv(plan, found, tmp_path / "results.csv")
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 19
    assert "3 prompts" in running.answer(plan, found) or "fewer than two" in running.answer(plan, found)


def test_another_plan_a_foreign_folder_and_other_weights_are_refused(whole, plan, pipe, tmp_path, tiny_model):
    other = planning.make_plan(study(tmp_path, tiny_model, seeds=1), pipe)
    with pytest.raises(InputError, match="results of another plan"):
        running.run_study(other, pipe, whole)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="holds no study"):
        running.run_study(plan, pipe, tmp_path / "full")
    with pytest.raises(InputError, match=r"weights of .* are not those of the plan"):
        running.run_study(plan.model_copy(update={"weights": plan.weights | {"vae": "0"}}), pipe, tmp_path / "x")
    with pytest.raises(InputError, match=r"no plan\.json"):
        running.read_plan(tmp_path / "full")


def test_a_plan_that_was_changed_is_refused(plan, tmp_path):
    running.open_plan(plan, tmp_path / "out")
    path = tmp_path / "out" / "plan.json"
    path.write_text(path.read_text().replace('"seeds": 2', '"seeds": 3'))
    with pytest.raises(InputError, match="changed after it was frozen"):
        running.read_plan(tmp_path / "out")


def test_a_full_disk_keeps_what_is_done(plan, pipe, tmp_path, monkeypatch):
    original, count = running._write, []

    def write(*args):
        count.append(1)
        if len(count) == 6:
            raise OSError(28, "No space left on device")
        original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(running, "_write", write)
        with pytest.raises(InputError, match=r"No space left on device.*run the same command again"):
            running.run_study(plan, pipe, tmp_path / "out")
    assert sum(cell.damage() is None for cell in running.cells_of(plan, tmp_path / "out")) == 5
    assert running.run_study(plan, pipe, tmp_path / "out") == plan.cells - 5


def test_a_scale_of_the_same_energy_moves_the_prediction_as_far(pipe, tmp_path, tiny_model):
    settings = [
        {"name": "three", "cfg_scale": 3, "cfg_channels": 3},
        {"name": "all", "energy_of": "three", "cfg_channels": "all"},
        {"name": "same", "energy_of": "three", "cfg_channels": 3},
    ]
    primary = {"metric": "joint", "baseline": "three", "against": "all"}
    made = planning.make_plan(study(tmp_path, tiny_model, settings=settings, primary=primary), pipe).settings
    assert 1 < made["all"]["cfg_scale"] < 3
    assert made["same"]["cfg_scale"] == pytest.approx(3, abs=0.25)  # traced along the path of scale 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": []}, "settings"), ({"seeds": 0}, "seeds"), ({"prompts": 0}, "prompts"), ({"promts": 3}, "did you mean 'prompts'"),
        ({"settings": [{"cfg_scal": 2}]}, "did you mean 'cfg_scale'"), ({"settings": [{"grid": {}}]}, "a grid is empty"),
        ({"settings": [{"grid": {"cfg_scale": []}}]}, "the grid's cfg_scale is empty"),
        ({"settings": [{"grid": {"cfg_scael": [1]}}]}, "did you mean 'cfg_scale'"),
        ({"settings": [{"cfg_scale": 1}, {"cfg_scale": 1}]}, "two settings are called 'no guidance'"),
        ({"settings": [{"cfg_scale": 2, "guidance": "apgg"}], "primary": None}, "primary"),
        ({"primary": STUDY["primary"] | {"metric": "jont"}}, "did you mean 'joint'"),
        ({"primary": STUDY["primary"] | {"against": "scale 4"}}, "no setting is called 'scale 4'"),
        ({"primary": STUDY["primary"] | {"against": "scale 3, channels 3"}}, "compared with itself"),
        ({"prompts": ["a red circle", "a red circle"]}, "given twice"),
        ({"settings": [*STUDY["settings"], {"name": "m", "energy_of": "no guidance"}]}, "guides nothing"),
        ({"settings": [*STUDY["settings"], {"name": "m", "energy_of": "k"}]}, "which is no setting"),
        ({"settings": [*STUDY["settings"], {"cfg_channels": 9}]}, "cfg_channels 9"),
        ({"settings": [*STUDY["settings"], {"guidance": "apgg"}]}, "did you mean 'apg'"),
    ],
)  # fmt: skip
def test_bad_studies_are_refused_in_one_line_on_the_command_line(tmp_path, tiny_model, monkeypatch, changes, message):
    path = write(tmp_path / "study.yaml", model=str(tiny_model), **changes)
    run = [sys.executable, "-m", "guidon", "study", "run", str(path), "--out", str(tmp_path / "out"), "--device", "cpu"]
    error = io.StringIO()
    monkeypatch.setattr(sys, "argv", run[2:])
    with contextlib.redirect_stderr(error), pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert message in error.getvalue()
    assert error.getvalue().count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_dry_run_prints_cells_cost_and_what_can_be_seen(tmp_path, tiny_model):
    path = write(tmp_path / "study.yaml", model=str(tiny_model))
    result = CliRunner().invoke(app, ["study", "run", str(path), "--out", str(tmp_path / "out"), "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "18 cells" in result.output
    assert "d_z" in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "studies").glob("*.yaml")))
def test_the_ready_studies_are_valid(name, pipe, tiny_model):
    wanted = planning.load_study(ROOT / "studies" / name).model_copy(update={"tuning_prompts": 1})
    plan = planning.make_plan(wanted, pipe)
    assert len(plan.settings) >= 3
    assert len(plan.captions) >= 12


def test_killed_again_and_again_it_ends_with_the_bytes_of_an_uninterrupted_run(whole, plan, tmp_path, tiny_model):
    path, out = write(tmp_path / "study.yaml", model=str(tiny_model)), tmp_path / "out"
    command = [sys.executable, "-m", "guidon", "study", "run", str(path), "--out", str(out), "--device", "cpu"]
    kills = int(os.environ.get("GUIDON_KILLS", "3"))
    chance = random.Random(0)
    for _ in range(kills):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(chance.uniform(2, 6))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert content(out) == content(whole)
    assert not list(out.rglob("*.tmp*"))


def test_prompts_do_not_share_their_noise(plan):
    first, second = (plan.generation("no guidance", slice(k, k + 1)) for k in (0, 1))
    assert (first.seed, second.seed) == (0, 1)
    assert plan.generation("no guidance", slice(1, 3)).seed_per_prompt


def test_what_a_kill_left_while_the_plan_was_written_is_no_obstacle(plan, tmp_path):
    (tmp_path / ".plan.99999999.tmp.json").write_text("{")
    running.open_plan(plan, tmp_path)
    assert running.read_plan(tmp_path).hash == plan.hash
    assert running.threads_of(tmp_path) == plan.threads


def test_classes_are_prompts(tmp_path):
    assert study(tmp_path, "dit-xl-2-256", prompts=[207, 360]).prompts == ("207", "360")
