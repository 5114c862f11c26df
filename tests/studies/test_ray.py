"""A study on a local Ray cluster of two workers: the same bytes as one process, also where a worker is lost."""

import os
import threading
import time

import pytest

import guidon
from guidon import cli
from guidon.core.errors import InputError
from guidon.pipeline.planner import Planner
from guidon.studies.cells import cells_of, read_plan
from guidon.studies.planning import make_plan
from guidon.studies.ray_engine import Cluster, plan_study
from guidon.studies.run import run_study
from guidon.studies.study import load_study
from studies.small import content, study, write
from tiny_pipelines.whole import WHOLE, write_pipeline

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def workers():
    """A cluster whose head does no work, and its two workers."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster as Local

    local = Local(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [local.add_node(num_cpus=1) for _ in range(2)]
    ray.init(address=local.address, log_to_driver=False, logging_level="ERROR")
    yield local, nodes
    ray.shutdown()
    local.shutdown()


@pytest.fixture
def tiny_study(tmp_path, tiny_model):
    return study(tmp_path, tiny_model), Planner.find(str(tiny_model))


def test_the_cluster_gives_the_bytes_of_one_process(workers, whole, tiny_study, tmp_path):
    given, planner = tiny_study
    seen = []
    with Cluster.connected(given, "cpu") as cluster:
        plan = plan_study(cluster, given, planner, 1)
        assert plan == read_plan(whole)
        assert cluster.run(plan, tmp_path / "out", on_cell=lambda *done: seen.append(done)) == 18
        assert cluster.run(plan, tmp_path / "out") == 0
    assert content(tmp_path / "out") == content(whole)
    assert seen[-1] == (18, 18)
    assert not list((tmp_path / "out").glob(".*"))


def test_blocks_of_a_lost_worker_are_done_by_the_other(workers, whole, tiny_study, tmp_path):
    local, nodes = workers
    given, planner = tiny_study
    out, killed = tmp_path / "out", []

    def kill():
        while not list((out / "cells").glob("*/*/hashes.json")):
            time.sleep(0.01)
        killed.append(local.remove_node(nodes.pop(), allow_graceful=False))

    with Cluster.connected(given, "cpu") as cluster:
        plan = plan_study(cluster, given, planner, 1)
        thread = threading.Thread(target=kill)
        thread.start()
        cluster.run(plan, out)
        thread.join()
    assert len(killed) == 1
    assert content(out) == content(whole)
    nodes.append(local.add_node(num_cpus=1))


def test_damaged_cells_are_done_again_and_no_others(workers, whole, tiny_study, tmp_path):
    given, planner = tiny_study
    said = []
    with Cluster.connected(given, "cpu") as cluster:
        plan = plan_study(cluster, given, planner, 1)
        cluster.run(plan, tmp_path / "out")
        clip = cells_of(plan, tmp_path / "out")[3].folder / "clip.png"
        clip.write_bytes(clip.read_bytes()[:-9])
        assert cluster.run(plan, tmp_path / "out", say=said.append) == 1
    assert content(tmp_path / "out") == content(whole)
    assert len(said) == 1


def test_the_command_line_runs_a_diffusers_pipeline_on_the_cluster(workers, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    folder = write_pipeline("pixart", tmp_path / "pixart")
    matched = [
        {"name": "three", "cfg_scale": 4, "cfg_channels": 3},
        {"name": "all", "energy_of": "three", "cfg_channels": "all"},
    ]
    path = write(
        tmp_path / "study.yaml", model={"diffusers": str(folder)}, call=WHOLE["pixart"][1], prompts=["a", "b"], seeds=1,
        settings=matched, block=1, primary={"metric": "sharpness", "baseline": "three", "against": "all"},
    )  # fmt: skip
    for words in (["--dry-run"], []):
        command = ["study", "run", str(path), "--out", str(tmp_path / "out"), "--engine", "ray", "--device", "cpu"]
        with pytest.raises(SystemExit) as stop:
            cli.main([*command, *words])
        assert stop.value.code == 0, capsys.readouterr().err
    assert capsys.readouterr().out.count("4 cells") == 1
    pipe = guidon.load(f"diffusers:{folder}", device="cpu", call=WHOLE["pixart"][1])
    run_study(make_plan(load_study(path), pipe, threads=1), pipe, tmp_path / "alone", say=lambda line: None)
    assert content(tmp_path / "alone") == content(tmp_path / "out")
    assert (tmp_path / "alone" / "scales.json").read_bytes() == (tmp_path / "out" / "scales.json").read_bytes()


def test_what_a_node_refuses_is_one_line(workers, tiny_study, tmp_path):
    given, planner = tiny_study
    with Cluster.connected(given, "cpu") as cluster:
        plan = plan_study(cluster, given, planner, 1)
        other = plan.model_copy(update={"torch": "2.0.0"})
        with pytest.raises(InputError, match=r"has torch .*, and the plan is for 2.0.0"):
            cluster.run(other, tmp_path / "out")
        other = plan.model_copy(update={"weights": {"network": "0"}})
        with pytest.raises(InputError, match="are not those of the plan"):
            cluster.run(other, tmp_path / "other")
    assert not list((tmp_path / "out").glob("cells/*/*"))
