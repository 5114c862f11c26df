from dataclasses import replace

import pytest

from guidon.core.errors import InputError
from guidon.pipeline.planner import Planner


@pytest.mark.parametrize(
    ("path", "sampler", "message"),
    [
        ("diffusion", "euler", "sampler euler does not go with guidon-small, which is a diffusion model: give ddpm or"),
        ("flow", "ddpm", "sampler ddpm does not go with guidon-small, which is a rectified flow: give euler or heun"),
        ("flow", "dpm-solver", "give euler or heun"),
    ],
)
def test_a_sampler_of_the_other_path_is_refused_in_one_line(path, sampler, message):
    own = Planner.find("guidon-small")
    with pytest.raises(InputError) as error:
        replace(own, facts=replace(own.facts, path=path)).complete(["a red circle"], sampler=sampler)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
