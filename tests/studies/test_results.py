"""Values of all cells, the CSV and the answer."""

import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from guidon.core.errors import InputError
from guidon.core.locks import try_held
from guidon.studies.cells import cells_of
from guidon.studies.results import answer, results, write_csv


def test_results_are_those_of_the_cells(whole, plan):
    found = results(plan, whole)
    assert found["no guidance"]["joint"].shape == (3, 2)
    for cell in cells_of(plan, whole):
        for name, value in cell.metrics().items():
            assert found[cell.setting][name][cell.prompt, cell.sample] == pytest.approx(value, nan_ok=True)


def test_a_csv_has_a_row_a_cell_and_a_column_a_metric(whole, plan, tmp_path):
    write_csv(plan, results(plan, whole), tmp_path / "results.csv")
    lines = (tmp_path / "results.csv").read_text().splitlines()
    assert len(lines) == 19
    assert lines[0] == ",".join(["setting", "prompt", "sample", "caption", *plan.metrics])
    assert lines[2].startswith(f"no guidance,0,1,{plan.captions[0]},") or '"' in lines[2]


def test_a_study_without_cells_has_no_results(plan, tmp_path):
    with pytest.raises(InputError, match=r"18 of 18 cells of .* run `guidon study run` again"):
        results(plan, tmp_path)


def test_results_of_a_study_that_runs_say_so(plan, tmp_path):
    with try_held(tmp_path, ".block-0.lock") as ours:
        assert ours
        with pytest.raises(InputError, match=r"18 of 18 cells .* are not done yet, .* wait until it ends"):
            results(plan, tmp_path)


def test_clips_of_two_sizes_are_refused(whole, plan, tmp_path):
    shutil.copytree(whole, tmp_path / "copy")
    cell = cells_of(plan, tmp_path / "copy")[4]
    made = SimpleNamespace(frames=cell.frames()[:-1], manifest=json.loads((cell.folder / "manifest.json").read_text()))
    made.manifest["frames"] = list(made.frames.shape)
    cell.write(made, cell.metrics(), cell.trace())
    assert cell.damage() is None
    with pytest.raises(InputError, match=r"holds a clip of \(15, 64, 64, 3\)"):
        results(plan, tmp_path / "copy")


def answered(plan, a, b):
    plan = plan.model_copy(update={"captions": tuple(map(str, range(len(a))))})
    name = plan.primary.metric
    values = {plan.primary.baseline: {name: np.array(a)[:, None]}, plan.primary.against: {name: np.array(b)[:, None]}}
    return answer(plan, values)


def test_the_answer_says_whether_there_is_a_difference_and_what_could_be_seen(plan):
    low, high = np.zeros(10), 1 + 0.01 * np.arange(10)
    differs = answered(plan, low, high)
    assert "'scale 3, channels all' differs significantly from 'scale 3, channels 3': difference 1.04" in differs
    assert "10 prompts; with 10 prompts, effects of d_z = 1.00 or more are detected with 80% power" in differs
    assert "does not differ significantly" in answered(plan, low, low)
    assert "no prompt differs" in answered(plan, low, low)
    assert "with 4 prompts no effect can reach p = 0.05" in answered(plan, low[:4], high[:4])
    half = np.where(np.arange(10) < 2, math.nan, high)
    assert "8 prompts, 2 prompts undefined" in answered(plan, low, half)
    assert "fewer than two prompts have both values, 10 prompts undefined" in answered(plan, low, np.full(10, math.nan))
