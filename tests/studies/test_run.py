"""Every cell once: resumed, damaged, killed, shared over ranks; always the same bytes."""

import dataclasses
import shutil
import signal
from contextlib import ExitStack

import numpy as np
import pytest

import guidon
from faults.harness import leftovers, tree
from guidon.cli import main
from guidon.core.errors import InputError
from guidon.core.hashing import hash_files
from guidon.core.locks import try_held
from guidon.core.workspaces import _workspace_name
from guidon.metrics.bench import BENCHES
from guidon.models.sources import DISTILLED
from guidon.studies.cells import Cell, cells_of, open_plan
from guidon.studies.energy import solve_scales
from guidon.studies.plan import Plan
from guidon.studies.planning import make_plan
from guidon.studies.results import results
from guidon.studies.run import run_study, seconds_per_cell
from guidon.studies.study import load_study
from studies.small import MATCHED, content, study, toy_bench, write
from tiny_model import write_tiny_distilled


def test_what_is_done_is_not_done_again_and_what_is_damaged_is(whole, plan, pipe):
    before, said = content(whole), []
    assert run_study(plan, pipe, whole, say=said.append) == 0
    cells = cells_of(plan, whole)
    clip = cells[3].folder / "clip.png"
    clip.write_bytes(clip.read_bytes()[:-9])
    (cells[5].folder / "hashes.json").unlink()
    with pytest.raises(InputError, match="2 of 18 cells"):
        results(plan, whole)
    seen = []
    assert run_study(plan, pipe, whole, say=said.append, on_cell=lambda *done: seen.append(done)) == 2
    assert len(said) == 2
    assert "clip.png is not what was written" in said[0]
    assert content(whole) == before
    assert seen == [(done, 18) for done in (12, 16, 18)]


FAST = {
    "prompts": 2, "seeds": 1, "settings": [{"name": "own"}, {"name": "fast", "fast": True}],
    "primary": {"metric": "law_residual", "baseline": "own", "against": "fast"},
}  # fmt: skip


def test_a_study_of_fast_settings_keeps_to_its_distilled_network(tmp_path, tiny_model):
    folder = write_tiny_distilled(shutil.copytree(tiny_model, tmp_path / "model"))
    pipe, out = guidon.load(folder, device="cpu"), tmp_path / "out"
    plan = make_plan(study(tmp_path, folder, **FAST), pipe, threads=1)
    assert plan.weights == pipe.hashes | {DISTILLED: hash_files(folder / f"{DISTILLED}.safetensors")}
    assert run_study(plan, pipe, out) == 4
    own, fast = (cell.read() for cell in cells_of(plan, out)[1:3])
    assert own.manifest.weights == pipe.hashes
    assert fast.manifest.weights == plan.weights
    assert "difference" in own.trace
    assert "difference" not in fast.trace
    assert seconds_per_cell(plan, pipe) > 0
    assert run_study(plan, pipe, out) == 0

    other = guidon.load(write_tiny_distilled(folder, seed=1), device="cpu")
    with pytest.raises(InputError, match=rf"the weights of .* \({DISTILLED}\) are not those of the plan"):
        run_study(plan, other, out)
    with pytest.raises(InputError, match=r"holds results of another plan .* differ in weights"):
        run_study(make_plan(study(tmp_path, folder, **FAST), other, threads=1), other, out)
    # a study without fast settings is the same with any distilled network, and without one
    plain = study(tmp_path, folder)
    hashes = {make_plan(plain, each, threads=1).hash for each in (pipe, other)}
    (folder / f"{DISTILLED}.safetensors").unlink()
    assert hashes == {make_plan(plain, guidon.load(folder, device="cpu"), threads=1).hash}


def test_energies_are_not_matched_with_a_distilled_network(tmp_path, tiny_model):
    folder = write_tiny_distilled(shutil.copytree(tiny_model, tmp_path / "model"))
    settings = [{"name": "fast", "fast": True}, {"name": "all", "energy_of": "fast", "cfg_channels": "all"}]
    asked = study(
        tmp_path, folder, settings=settings, primary={"metric": "joint", "baseline": "fast", "against": "all"}
    )
    with pytest.raises(InputError, match="the distilled network of 'fast' runs one"):
        make_plan(asked, guidon.load(folder, device="cpu"))


def test_a_compiled_study_is_not_continued_without(tmp_path, plan, tiny_model):
    compiled = guidon.load(tiny_model, device="cpu", compile=True)
    asked = make_plan(study(tmp_path, tiny_model, compile=True), compiled, threads=1)
    assert Plan.model_validate(asked.content).hash == asked.hash != plan.hash
    assert "compile" not in plan.content
    assert asked.differences(plan) == ["compile"]
    assert study(tmp_path, tiny_model, compile=False).parts == {}
    with pytest.raises(InputError, match="the plan is for a network that is not compiled"):
        run_study(plan, compiled, tmp_path / "out")


def test_listed_timesteps_stay_as_they_are(tmp_path, pipe, tiny_model):
    settings = [each | {"spacing": "at:900,500,100", "steps": 3} for each in MATCHED["settings"]]
    plan = make_plan(study(tmp_path, tiny_model, **MATCHED | {"settings": settings, "prompts": 2}), pipe, threads=1)
    assert seconds_per_cell(plan, pipe) > 0
    assert solve_scales(open_plan(plan, tmp_path / "out"), pipe, tmp_path / "out").unsolved == []


@pytest.fixture
def lacking(whole, plan, tmp_path):
    """``lacking(k)``: a copy of the results without the 6 cells of setting k, which are a block of 4 and one of 2."""

    def lacking(number):
        out = shutil.copytree(whole, tmp_path / "out")
        for cell in cells_of(plan, out)[6 * number : 6 * number + 6]:
            shutil.rmtree(cell.folder)
        return out

    return lacking


def test_progress_counts_what_others_do(lacking, plan, pipe, monkeypatch):
    out, seen, written = lacking(1), [], []
    original = Cell.write
    monkeypatch.setattr(Cell, "write", lambda cell, *rest: written.append(cell) or original(cell, *rest))

    def beside(done, total):
        seen.append(done)
        if len(seen) == 2:  # another process does the rest
            run_study(plan, pipe, out)

    assert run_study(plan, pipe, out, on_cell=beside) == 4
    assert seen == [12, 16, 18]
    assert len(written) == 6


def test_ctrl_c_finishes_the_block_in_work_and_a_second_one_loses_it(whole, plan, pipe, tmp_path, monkeypatch, request):
    out, said, original = tmp_path / "out", [], type(pipe).generate
    presses = {2: 1, 3: 2}  # block -> how often Ctrl-C is pressed in it
    calls = []

    def generate(self, asked, **options):
        calls.append(asked)

        def on_step(done, total):
            options["on_step"](done, total)
            for _ in range(presses.get(len(calls), 0) * (done == 1)):
                signal.raise_signal(signal.SIGINT)

        return original(self, asked, **options | {"on_step": on_step})

    monkeypatch.setattr(type(pipe), "generate", generate)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a test that runs in the background ignores it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    for cells in (6, 6):
        with pytest.raises(KeyboardInterrupt):
            run_study(plan, pipe, out, say=said.append)
        assert sum(cell.damage() is None for cell in cells_of(plan, out)) == cells
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert said[0].startswith("finishing the 2 clips in work, which takes about 1 s; press Ctrl-C again to stop now")
    assert said[1].startswith("finishing the 4 clips in work, which takes about ")
    assert run_study(plan, pipe, out) == 12
    assert content(out) == content(whole)


def test_a_rank_starts_at_its_share_and_does_what_nobody_does(whole, plan, pipe, tmp_path, monkeypatch):
    order, original = [], Cell.write
    monkeypatch.setattr(Cell, "write", lambda cell, *rest: order.append(cell.setting) or original(cell, *rest))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert run_study(plan, pipe, tmp_path / "out") == plan.cells
    assert list(dict.fromkeys(order)) == [list(plan.settings)[k] for k in (1, 2, 0)]
    assert content(tmp_path / "out") == content(whole)


def test_only_the_first_rank_prints_the_answer(tmp_path, tiny_model, pipe, monkeypatch, capsys):
    path = write(tmp_path / "study.yaml", model=str(tiny_model), **MATCHED)
    open_plan(make_plan(load_study(path), pipe, threads=1), tmp_path / "out")
    words = ["study", "run", str(path), "--out", str(tmp_path / "out"), "--device", "cpu"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    printed = []
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == ""
    assert "Difference in unsteady path (law_residual): " in printed[1]


def test_a_block_that_another_process_holds_is_left_to_it(whole, lacking, plan, pipe, monkeypatch):
    """Its cells are done when the lock is free and they are still missing; nothing else waits for them."""
    out, said, written = lacking(1), [], []
    lock = ExitStack()
    assert lock.enter_context(try_held(out, ".block-2.lock"))
    original = Cell.write
    monkeypatch.setattr(Cell, "write", lambda cell, *rest: written.append(cell) or original(cell, *rest))

    def sleep(seconds):
        assert len(written) == 2
        lock.close()

    monkeypatch.setattr("guidon.studies.run.time.sleep", sleep)
    assert run_study(plan, pipe, out, say=said.append) == 6
    assert said == ["other processes do the last 1 blocks: waiting for them"]
    assert content(out) == content(whole)


def test_what_killed_processes_left_is_deleted(whole, plan, pipe, tmp_path):
    out = shutil.copytree(whole, tmp_path / "out")
    before = tree(out)
    setting = next((out / "cells").iterdir())
    for leftover in (out / ".block-3.lock", out / ".plan.lock"):
        leftover.write_text("")
    token = _workspace_name(setting / "0000-0")
    (setting / token).mkdir()
    (setting / token / ".guidon.lock").write_text("")
    assert run_study(plan, pipe, out) == 0
    assert tree(out) == before
    assert leftovers(out) == []


def test_other_weights_are_refused(plan, pipe, tmp_path):
    with pytest.raises(InputError, match=r"weights of .* are not those of the plan"):
        run_study(plan.model_copy(update={"weights": plan.weights | {"vae": "0"}}), pipe, tmp_path / "x")


def test_a_full_disk_keeps_what_is_done(lacking, plan, pipe, monkeypatch):
    out, original, count = lacking(2), Cell.write, []

    def write(*args):
        count.append(1)
        if len(count) == 6:
            raise OSError(28, "No space left on device")
        original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(Cell, "write", write)
        with pytest.raises(InputError, match=r"No space left on device.*run the same command again"):
            run_study(plan, pipe, out)
    assert sum(cell.damage() is None for cell in cells_of(plan, out)) == 12 + 5
    assert run_study(plan, pipe, out) == 1


def test_a_dry_run_prints_cells_and_cost_and_writes_nothing(tmp_path, tiny_model, capsys):
    path = write(tmp_path / "study.yaml", model=str(tiny_model), **MATCHED)
    with pytest.raises(SystemExit) as stop:
        main(["study", "run", str(path), "--out", str(tmp_path / "out"), "--dry-run"])
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert "12 cells" in printed
    assert "solved at the start of the run" in printed
    assert not (tmp_path / "out").exists()


def test_the_cost_is_measured_with_guidance_at_every_step(plan, pipe, monkeypatch):
    asked, generate = [], pipe.generate
    monkeypatch.setattr(pipe, "generate", lambda request, **how: asked.append(request) or generate(request, **how))
    assert seconds_per_cell(plan, pipe) > 0
    assert {request.guidance.timing.text for request in asked} == {"constant"}
    assert [request.steps for request in asked] == [2, 4] * len(plan.settings)


def test_a_third_bench_is_studied_reported_evaluated_matched_and_tuned(tmp_path, tiny_model, pipe, monkeypatch):
    """By being a bench and having a name: nothing else knows of it."""
    from guidon.analysis.evaluate import Setting, evaluate
    from guidon.analysis.matching import equivalents, matching_study
    from guidon.analysis.tuning import tune
    from guidon.studies.report import write_report

    bench = toy_bench()
    monkeypatch.setitem(BENCHES, "toy", bench)
    facts = dataclasses.replace(pipe.model.facts, bench="toy")
    toy = type(pipe)(pipe.preset, dataclasses.replace(pipe.model, facts=facts), pipe.device)
    primary = {"metric": "error", "baseline": "three", "against": "all"}
    plan = make_plan(study(tmp_path, tiny_model, **(MATCHED | {"primary": primary, "split": "all"})), toy, threads=1)
    assert plan.captions == ("a green circle", "a blue circle", "a yellow circle")
    run_study(plan, toy, tmp_path / "out", say=lambda text: None)
    found = results(plan, tmp_path / "out")
    assert set(found["all"]) == {"light", "error"}
    assert "error" in write_report(tmp_path / "out", videos=False)[0].read_text()
    measured = evaluate(toy, [Setting(1.0, "3"), Setting(2.0, "3")], prompts=2, seeds=2, steps=2)
    assert measured.values["truth"]["error"] == pytest.approx(np.zeros((2, 1)), abs=1e-2)
    assert "| truth |" in measured.table()
    grid = matching_study(toy.planner, str(tiny_model), [2.0], "3", "all", prompts=2, steps=2)
    plan = make_plan(grid, toy, threads=1)
    run_study(plan, toy, tmp_path / "grid")
    assert {row.metric for row in equivalents(plan, tmp_path / "grid", 4)} == {"video", "energy", "light"}
    tuned = tune(toy, 2.0, prompts=2, held_out=2, evaluations=6, steps=2)
    assert list(tuned.held_out) == ["light", "error"]
