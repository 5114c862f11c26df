import pytest

import guidon
from guidon.studies.planning import make_plan
from guidon.studies.run import run_study
from studies.small import study


@pytest.fixture(scope="session")
def pipe(tiny_model):
    return guidon.load(tiny_model, device="cpu")


@pytest.fixture(scope="session")
def plan(tmp_path_factory, tiny_model, pipe):
    return make_plan(study(tmp_path_factory.mktemp("plan"), tiny_model), pipe, threads=1)


@pytest.fixture(scope="session")
def whole(tmp_path_factory, plan, pipe):
    """Results of an uninterrupted run."""
    out = tmp_path_factory.mktemp("whole") / "results"
    assert run_study(plan, pipe, out) == plan.cells == 18
    return out
