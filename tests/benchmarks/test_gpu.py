"""The script for a GPU, on small shapes and on the CPU: it is written as it grows, and one failure loses nothing."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from guidon.analysis.speed import comparison, rounds


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    sys.modules.pop("gpu", None)
    module = importlib.import_module("gpu")
    monkeypatch.setattr(module, "SECONDS", 0.01)
    monkeypatch.setattr(rounds, "SHORTEST", 1e-6)
    monkeypatch.setattr(rounds, "FEWEST", 1)
    monkeypatch.setattr(rounds, "MOST", 1)
    # the table has the memory of a GPU alone, which the script asks itself
    monkeypatch.setattr(comparison, "peak_memory", lambda *_: None)
    return module


def run(gpu, tmp_path, *words):
    out = tmp_path / "gpu.md"
    gpu.main(["--tiny", "--device", "cpu", "--no-compile", "--out", str(out), *words])
    rows = json.loads(out.with_suffix(".json").read_text())["rows"]
    assert len(out.read_text().splitlines()) == len(rows) + 4
    return rows


def test_every_architecture_is_measured(gpu, tmp_path, monkeypatch):
    """Each at one of its sizes: on small shapes they are one."""
    monkeypatch.setattr(gpu, "MODELS", tuple({model.network: model for model in gpu.MODELS}.values()))
    assert len(gpu.MODELS) == 5
    rows = run(gpu, tmp_path)
    assert {row["model"] for row in rows} == {model.name for model in gpu.MODELS}
    assert all(row["milliseconds"] > 0 for row in rows)
    assert all(row["share"] > 0 for row in rows)
    trained = [row for row in rows if row["what"].startswith("training")]
    assert len(trained) == len(gpu.MODELS)
    assert all(row["samples"] > 0 for row in trained)


def test_a_model_that_fails_is_a_row_and_the_others_go_on(gpu, tmp_path, monkeypatch):
    steps = gpu.steps

    def failing(model, device, peak):
        if model.name.startswith("PixArt"):
            raise RuntimeError("CUDA out of memory")
        yield from steps(model, device, peak)

    failing.__name__ = "steps"
    monkeypatch.setattr(gpu, "steps", failing)
    rows = run(gpu, tmp_path, "--only", "PixArt", "DiT-XL/2 256")
    first = next(row for row in rows if row["model"].startswith("PixArt"))
    assert "memory" in first["note"]
    assert any(row["what"] == "guided step" and row["milliseconds"] for row in rows)


def test_nothing_is_begun_when_the_minutes_are_over(gpu, tmp_path):
    rows = run(gpu, tmp_path, "--minutes", "0")
    assert len(rows) == 2 * len(gpu.MODELS)
    assert all("minutes were over" in row["note"] for row in rows)
