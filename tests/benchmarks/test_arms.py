"""The arms of the benchmarks do the same work, on shapes that take no time."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

from guidon.analysis.speed import compare_results

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def benchmarks():
    """The folder of the scripts, from which they import each other."""
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))


@pytest.fixture(params=[120, 7], ids="{} tokens".format)
def case(request):
    return importlib.import_module("step").make_case(request.param, depth=2, width=128, frames=3, side=4)


def results(arms):
    with torch.inference_mode():
        return {name: arm.result() for name, arm in arms.items()}


def test_every_exact_arm_of_a_step_is_exact(case):
    step = importlib.import_module("step")
    found = results({name: make(case) for name, make in step.EXACT.items()})
    for name, result in found.items():
        assert compare_results(result, found["original"]).exact, name
    assert found["original"].square().mean() > 0.3


def test_arms_that_change_the_result_are_labelled(case):
    step = importlib.import_module("step")
    found = results({name: make(case) for name, make in step.LOSSY.items()})
    exact = {name for name, result in found.items() if compare_results(result, found["original"]).exact}
    assert exact == {"original", "guidon"}


def test_a_planted_error_in_one_guided_channel_is_labelled_lossy(case):
    step = importlib.import_module("step")
    base = results({"original": step.EXACT["original"](case)})["original"]
    case.network.final_layer.linear.bias[0] += 1e-3
    found = results({"guidon": step.EXACT["guidon"](case)})["guidon"]
    assert not compare_results(found, base).exact


def test_every_arm_outside_the_network_is_exact_but_the_unguided_one():
    outside = importlib.import_module("outside")
    case = outside.make_case((2, 4, 3, 4, 4))
    arms = {name: make(case) for name, make in outside.ARMS.items()}
    found = results({name: arm for name, arm in arms.items() if arm.compared})
    exact = {name for name, result in found.items() if compare_results(result, found["original"]).exact}
    assert set(found) - exact == {"guidon, conditional only"}


def test_the_fused_step_stays_finite_when_its_memory_is_used_again():
    outside = importlib.import_module("outside")
    arm = outside.ARMS["fused by hand"](outside.make_case((1, 4, 2, 4, 4)))
    for _ in range(1000):
        out = arm.run()
    assert out.isfinite().all()


@pytest.mark.long  # importing diffusers takes seconds
@pytest.mark.parametrize("family", ["DiT", "PixArt"])
def test_diffusers_and_guidon_run_the_same_network(family):
    script = importlib.import_module("against_diffusers")
    with torch.inference_mode():
        theirs, ours, half = script.FAMILIES[family](384, 1, 2)
        assert compare_results(ours.result(), theirs.result()).exact
        assert not compare_results(half.result(), theirs.result()).exact
        for arm in (theirs, ours, half):
            arm.run()


def test_the_flops_of_the_released_sizes_are_those_of_their_shapes():
    flops, gpu = importlib.import_module("flops"), importlib.import_module("gpu")
    model = next(model for model in gpu.MODELS if model.name.startswith("DiT"))
    total, found, once = flops.shares(model)
    d, tokens, rows = 1152, 256, 2
    block = 2 * 12 * d * d + 4 * tokens * d  # of a token: projections and MLP, scores
    assert total == pytest.approx(rows * 28 * tokens * block, rel=0.01)
    assert found["MLP"] == pytest.approx(rows * 28 * tokens * 16 * d * d / total, rel=1e-6)
    assert once == 0
