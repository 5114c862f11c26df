from pathlib import Path

import pytest


@pytest.fixture
def trained(monkeypatch):
    """Replaces training by its result."""

    def trained(result):
        calls = []

        def run_recipe(path, **options):
            calls.append((path, options["export_only"], callable(options["look"])))
            return result

        monkeypatch.setattr("guidon.training.run_recipe", run_recipe)
        return calls

    return trained


def test_the_weights_path_is_printed(run, trained):
    calls = trained(Path("runs/weights"))
    assert run("train", "a.yaml") == (0, "runs/weights\n", "")
    assert run("train", "a.yaml", "--export")[0] == 0
    assert calls == [(Path("a.yaml"), False, True), (Path("a.yaml"), True, True)]


def test_an_interrupted_run_says_how_it_resumes(run, trained):
    trained(None)
    assert run("train", "a.yaml") == (
        130,
        "",
        "guidon: stopped; the checkpoint is saved: the same command resumes from it\n",
    )


def test_a_recipe_that_is_not_there_is_refused(refused, tmp_path):
    assert "cannot read" in refused("train", tmp_path / "none.yaml")
