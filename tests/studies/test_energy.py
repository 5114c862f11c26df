"""Scales of the same energy: solved at the start of a run, kept beside the plan, and the same for every rank."""

import json

import pytest

from guidon.core.errors import InputError
from guidon.guidance import GuidanceTrace, added_energy
from guidon.studies import energy
from guidon.studies.cells import open_plan, read_plan
from guidon.studies.energy import solve_scales
from guidon.studies.plan import FIRST_FORMAT
from guidon.studies.planning import make_plan
from guidon.studies.run import run_study
from studies.small import MATCHED, content, study


def matched(folder, tiny_model, pipe, **changes):
    return make_plan(study(folder, tiny_model, **(MATCHED | changes)), pipe, threads=1)


def silent(text):
    """What there is to tell is not printed."""


@pytest.fixture
def solved(tmp_path, tiny_model, pipe):
    plan, out = matched(tmp_path, tiny_model, pipe), tmp_path / "out"
    return solve_scales(open_plan(plan, out), pipe, out, say=silent), out


def test_a_scale_of_the_same_energy_moves_the_prediction_as_far(tmp_path, tiny_model, pipe):
    same = {"name": "same", "energy_of": "three", "cfg_channels": 3}
    plan = matched(tmp_path, tiny_model, pipe, settings=[*MATCHED["settings"], same])
    seen, out = [], tmp_path / "out"
    found = solve_scales(open_plan(plan, out), pipe, out, on_step=lambda *done: seen.append(done), say=silent)
    assert seen == [(done, 80) for done in range(1, 81)]  # two scales, two runs each
    assert 1 < found.scales["all"] < 3
    assert found.scales["same"] == pytest.approx(3, abs=0.25)  # measured along the path of scale 2


def test_energy_is_quadratic_in_the_scale_at_equal_predictions(solved, pipe):
    """The wanted energy over that at scale 2 is (s - 1)^2, traced anew on the tuning prompts."""
    plan, _ = solved

    def added(setting, scale):
        choices = {k: v for k, v in plan.settings[setting].items() if k not in ("model", "energy_of", "cfg_scale")}
        choices = {key: value for key, value in choices.items() if value is not None}
        trace = GuidanceTrace()
        request = pipe.plan(plan.tuning, **choices | {"steps": energy.STEPS, "cfg_scale": scale})
        pipe.generate(request, batch_size=8, trace=trace)
        return added_energy(trace.as_arrays())

    expected = 1 + (added("three", 3.0) / added("all", 2.0)) ** 0.5
    assert plan.scales["all"] == pytest.approx(expected, abs=6e-4)


def test_solved_scales_are_kept_and_not_solved_again(solved, pipe, monkeypatch):
    plan, out = solved
    assert read_plan(out).scales == plan.scales
    stored = json.loads((out / "scales.json").read_text())
    assert (stored["plan"], stored["scales"]) == (plan.hash, plan.scales)
    monkeypatch.setattr(pipe, "generate", lambda *_, **__: pytest.fail("sampled"))
    assert solve_scales(read_plan(out), pipe, out).scales == plan.scales


def test_every_rank_gets_the_same_scales_and_the_first_file_stays(solved, pipe, tmp_path):
    """A rank that found no file solves too: it gets the same numbers, and takes the file that is there by then."""
    plan, out = solved
    before = (out / "scales.json").read_bytes()
    late = plan.model_copy(update={"scales": {}})
    assert solve_scales(late, pipe, out, say=silent).scales == plan.scales
    assert (out / "scales.json").read_bytes() == before
    alone = solve_scales(open_plan(late, tmp_path / "other"), pipe, tmp_path / "other", say=silent)
    assert (tmp_path / "other" / "scales.json").read_bytes() == before
    assert alone.scales == plan.scales


def test_scales_that_were_changed_or_are_another_plans_are_refused(solved, tmp_path, tiny_model, pipe):
    _, out = solved
    path = out / "scales.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps(stored | {"scales": {"all": 9.0}}))
    with pytest.raises(InputError, match="was changed or belongs to another plan"):
        read_plan(out)
    path.write_text(json.dumps(stored))
    other = matched(tmp_path, tiny_model, pipe, seeds=1)
    open_plan(other, tmp_path / "second")
    (tmp_path / "second" / "scales.json").write_text(json.dumps(stored))
    with pytest.raises(InputError, match="was changed or belongs to another plan"):
        read_plan(tmp_path / "second")


def test_a_timing_that_guides_no_step_is_refused(tmp_path, tiny_model, pipe):
    plan = matched(tmp_path, tiny_model, pipe, timing="interval:0.501,0.502")
    with (
        pytest.warns(UserWarning, match="no step was guided"),
        pytest.raises(InputError, match="its timing guides none of 20 steps"),
    ):
        run_study(plan, pipe, tmp_path / "out", say=silent)


def test_a_run_solves_first_and_a_folder_of_the_first_format_goes_on(tmp_path, tiny_model, pipe):
    """That format holds the solved scale in the plan itself. Its folder is resumed to the same clips and its metrics."""
    plan, said = matched(tmp_path, tiny_model, pipe, seeds=1), []
    assert run_study(plan, pipe, tmp_path / "new", say=said.append) == plan.cells
    assert said == ["solving the scale of 'all'"]
    solved = read_plan(tmp_path / "new")
    settings = {name: solved.choices(name) for name in plan.settings}
    first = plan.model_copy(update={"format": FIRST_FORMAT, "tuning": (), "settings": settings})
    open_plan(first, tmp_path / "old")
    frozen = (tmp_path / "old" / "plan.json").read_bytes()
    assert run_study(plan, pipe, tmp_path / "old", say=pytest.fail) == plan.cells
    assert (tmp_path / "old" / "plan.json").read_bytes() == frozen
    assert not (tmp_path / "old" / "scales.json").exists()
    old, new = (content(tmp_path / name) for name in ("old", "new"))
    assert old.keys() == new.keys()
    measured = [name for name in new if name.endswith("metrics.json")]
    for name in measured:
        assert json.loads(old[name]).keys() < json.loads(new[name]).keys()  # outline_error came later
    others = [name for name in new if not name.endswith(("metrics.json", "hashes.json"))]
    assert measured
    assert [old[name] for name in others] == [new[name] for name in others]
