from pathlib import Path

import pytest

RECIPE = Path(__file__).parents[2] / "recipes" / "guidon-small.yaml"


@pytest.fixture
def trained(monkeypatch):
    """Replaces training by its result."""

    def trained(result):
        calls = []

        def run_recipe(path, **options):
            calls.append((path, options["stage"], options["export_only"], callable(options["look"])))
            return result

        monkeypatch.setattr("guidon.training.run_recipe", run_recipe)
        return calls

    return trained


def test_the_weights_path_is_printed(run, trained):
    calls = trained(Path("runs/weights"))
    assert run("train", RECIPE) == (0, "runs/weights\n", "")
    assert run("train", RECIPE, "--stage", "vae", "--export")[0] == 0
    assert calls == [(RECIPE, None, False, True), (RECIPE, "vae", True, True)]


def test_an_interrupted_run_says_how_it_resumes(run, trained):
    trained(None)
    resumes = "guidon: stopped; the checkpoint is saved: the same command resumes from it\n"
    assert run("train", RECIPE) == (130, "", resumes)


def test_a_dry_run_prints_the_stages_and_trains_nothing(run, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    calls = trained(None)
    code, out, err = run("train", RECIPE, "--dry-run")
    assert (code, err) == (0, "")
    first, second, *_ = out.splitlines()
    assert first.startswith("vae: ")
    assert second.endswith("after the stages before it")
    assert run("train", RECIPE, "--dry-run", "--stage", "vae")[1].count("\n") == 1
    assert not calls
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_trained_is_refused(refused, tmp_path):
    assert "it is not there" in refused("train", tmp_path / "none.yaml")
    assert "--stage 'vea' is not in" in refused("train", RECIPE, "--stage", "vea")
