import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from goldens import golden, golden_json, relative_error
from guidon.core.errors import InputError
from guidon.diffusion import NoiseSchedule, space_timesteps

CASES = [
    f"schedule/{name}"
    for name in (
        "linear_1000_full", "linear_1000_100", "linear_1000_ddim50", "linear_200_20",
        "squaredcos_cap_v2_1000_full", "squaredcos_cap_v2_1000_100", "squaredcos_cap_v2_1000_ddim50", "squaredcos_cap_v2_200_20",
    )
]  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_table_equals_the_originals(name):
    tensors, case = golden(name)
    schedule = NoiseSchedule.named(case["noise_schedule"], case["diffusion_steps"]).respaced(case["timestep_respacing"])
    for table, expected in tensors.items():
        given, expected = np.asarray(getattr(schedule, table)), expected.numpy()
        if table == "timestep_map":
            assert (given == expected).all()
        else:
            assert np.linalg.norm(given - expected) <= 1e-12 * np.linalg.norm(expected), table


def test_respacing_equals_openai_for_every_recorded_spec():
    cases = golden_json("respacing.json")
    assert len(cases) > 10
    for case in cases:
        assert space_timesteps(case["num_timesteps"], case["respacing"]) == case["timesteps"], case["respacing"]


@given(st.integers(1, 400), st.data())
def test_respacing_keeps_that_many_distinct_steps_in_order(total, data):
    count = data.draw(st.integers(1, total))
    kept = space_timesteps(total, count)
    assert len(kept) == count
    assert kept == sorted(set(kept))
    assert kept[0] == 0
    assert count == 1 or kept[-1] == total - 1


@settings(deadline=None)
@given(st.sampled_from(["linear", "squaredcos_cap_v2"]), st.integers(30, 1000), st.integers(1, 30))
def test_respacing_keeps_the_marginals(name, total, count):
    full = NoiseSchedule.named(name, total)
    few = full.respaced(count)
    assert np.allclose(few.alphas_cumprod, full.alphas_cumprod[few.timestep_map], rtol=1e-9)


@pytest.mark.parametrize("spec", ["", "50", 50, [50]])
def test_a_schedule_respaced_to_all_its_steps_is_itself(spec):
    schedule = NoiseSchedule.named("linear", 50)
    assert schedule.respaced(spec) is schedule


def test_respacing_twice_maps_to_original_timesteps():
    twice = NoiseSchedule.named().respaced("100").respaced("10")
    assert set(twice.timestep_map) <= set(NoiseSchedule.named().respaced("100").timestep_map)
    assert twice.num_original_timesteps == 1000


@pytest.mark.parametrize("spec", ["0", "1001", "abc", "-5", "10,,5", "ddim600", "ddimx", "900,10", 0, [], [True]])
def test_bad_specs_are_refused_in_one_line(spec):
    with pytest.raises(InputError) as error:
        NoiseSchedule.named().respaced(spec)
    assert "\n" not in str(error.value)
    assert repr(spec) in str(error.value)


def test_a_section_of_one_step_keeps_its_first_index():
    assert space_timesteps(10, "1,1") == [0, 5]


def test_bad_schedules_are_refused():
    with pytest.raises(InputError, match="did you mean 'linear'"):
        NoiseSchedule.named("lineer")
    with pytest.raises(InputError, match="from 1 to 100,000"):
        NoiseSchedule.named("linear", 0)
    for betas in ([], [0.1, 1.5], [0.0]):
        with pytest.raises(InputError):
            NoiseSchedule.from_betas(betas)


def test_a_schedule_of_one_step_has_finite_coefficients():
    (level,) = NoiseSchedule.named().respaced("1").levels
    assert level.posterior_log_variance_clipped.isfinite()
    assert all(np.isfinite(getattr(level, name)) for name in ("alpha", "sigma", "progress"))


def test_schedules_of_the_same_noise_are_the_same():
    schedule = NoiseSchedule.named("linear", 50)
    assert schedule.is_same(NoiseSchedule.from_betas(schedule.betas))
    assert schedule.is_same(NoiseSchedule.named("linear", 50))
    assert not schedule.is_same(NoiseSchedule.named("squaredcos_cap_v2", 50))
    assert not schedule.is_same(schedule.respaced(10))


def test_levels_are_made_once():
    schedule = NoiseSchedule.named()
    assert schedule.levels is schedule.levels


def test_a_schedule_whose_levels_were_made_can_be_copied():
    schedule = NoiseSchedule.named()
    assert len(schedule.levels) == 1000
    for copied in (copy.deepcopy(schedule), pickle.loads(pickle.dumps(schedule))):
        assert np.array_equal(copied.betas, schedule.betas)
        assert copied.levels[7].alpha == schedule.levels[7].alpha


@pytest.mark.parametrize(("name", "spec"), [("full", ""), ("100", "100"), ("ddim50", "ddim50")])
def test_single_precision_tables_equal_open_sora_1_1(name, spec):
    g, _ = golden(f"schedule_1_1/linear_{name}")
    schedule = NoiseSchedule.named("linear", 1000).respaced(spec).single_precision()
    for table, expected in g.items():
        found = torch.tensor(getattr(schedule, table))
        assert found.dtype == expected.dtype
        assert relative_error(found, expected) < 1e-6, table


def test_schedules_that_would_leave_no_signal_are_refused():
    for steps in (10, 20):
        with pytest.raises(InputError, match="give at least 21"):
            NoiseSchedule.named("linear", steps)
    assert len(NoiseSchedule.named("linear", 21)) == 21
    with pytest.raises(InputError, match="below 1"):
        NoiseSchedule.from_betas([0.1, 1.0])
