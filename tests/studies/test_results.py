"""Values of all cells, and the CSV."""

import json
import shutil
from types import SimpleNamespace

import pytest

from guidon.core.errors import InputError
from guidon.core.locks import try_held
from guidon.studies.cells import cells_of
from guidon.studies.results import results, write_csv


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
