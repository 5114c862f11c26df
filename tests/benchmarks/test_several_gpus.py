"""The script for several GPUs, on two processes of a CPU."""

import contextlib
import importlib
import io
from pathlib import Path

import pytest

from ranks import on_ranks
from training.conftest import tiny_runs


@pytest.mark.long
def test_it_compares_runs_on_one_rank_and_on_several(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    script = importlib.import_module("several_gpus")

    def work():
        with tiny_runs(), contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()):
            code = script.main(["--tiny", "--device", "cpu", "--out", str(tmp_path / "out")])
        return code, [line.partition(":")[0] for line in out.getvalue().splitlines()]

    first, second = on_ranks(work, seconds=300)  # 8 s of CPU time, which may take minutes where others work
    assert first == (0, ["one", "ddp", "fsdp2", "fewer", "tensors went by gloo"])
    assert second == (0, [])
