from importlib.util import find_spec

import pytest
import yaml

STUDY = {
    "prompts": 2,
    "steps": 2,
    "sampler": "ddim",
    "settings": [{"name": "three", "cfg_channels": 3}, {"name": "all", "cfg_channels": "all"}],
    "primary": {"metric": "background_flicker", "baseline": "three", "against": "all"},
}


@pytest.fixture
def study(tiny_model, tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY | {"model": str(tiny_model)}))
    return path


def test_a_study_is_planned_run_and_reported(run, study, tmp_path):
    out = tmp_path / "results"
    code, printed, _ = run("study", "run", study, "--out", out, "--device", "cpu", "--dry-run")
    assert code == 0
    assert "4 cells" in printed
    assert not out.exists()
    code, printed, _ = run("study", "run", study, "--out", out, "--device", "cpu")
    assert code == 0
    first, headline, numbers = printed.splitlines()
    assert first == str(out / "results.csv")
    assert headline.startswith("Better here with all than with three, but not certain: background flicker ")
    assert "Two prompts are too few" in headline
    assert numbers.startswith("Difference in background flicker (background_flicker): ")
    code, printed, _ = run("study", "report", out, "--no-videos")
    assert code == 0
    assert printed.splitlines() == [headline, numbers, str(out / "report.html"), str(out / "summary.csv")]
    assert not (out / "videos").exists()


def test_an_engine_that_is_not_there_is_refused(refused, study, tmp_path):
    words = ("study", "run", study, "--out", tmp_path / "results", "--engine")
    assert refused(*words, "rays") == "--engine 'rays' does not exist (did you mean 'ray'?)"
    if find_spec("ray") is None:
        assert "pip install 'guidon-diffusion[ray]'" in refused(*words, "ray")
    assert not (tmp_path / "results" / "plan.json").exists()


def test_under_torchrun_the_first_rank_answers(run, study, tmp_path, monkeypatch):
    out = tmp_path / "results"
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        code, printed, err = run("study", "run", study, "--out", out, "--device", "cpu")
        assert (code, err) == (0, "")
        assert bool(printed) == (rank == "0")


def test_results_that_cannot_be_read_are_an_error_of_the_command(run, study, tmp_path, monkeypatch):
    from guidon.core.errors import InputError

    def fail(*_):
        raise InputError("the disk is full")

    monkeypatch.setattr("guidon.studies.results.results", fail)
    code, _, err = run("study", "run", study, "--out", tmp_path / "results", "--device", "cpu")
    assert (code, err) == (2, "guidon: the disk is full\n")


def test_what_cannot_be_run_or_reported_is_refused(refused, study, tmp_path):
    assert "it is not there" in refused("study", "run", tmp_path / "none.yaml", "--out", tmp_path / "out")
    assert "holds no plan.json" in refused("study", "report", tmp_path)
