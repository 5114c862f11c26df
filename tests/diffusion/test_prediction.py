import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from goldens import relative_error
from guidon.core.errors import InputError
from guidon.diffusion import (
    NoiseLevel,
    NoiseSchedule,
    Process,
    convert,
    eps_from_x0,
    predicted_x0,
    q_sample,
    split_prediction,
    target,
)
from toy_network import flow_level, level_at, normal

ALL = ("eps", "x0", "v", "flow")
OF_FLOW = ("eps", "x0", "flow")  # v is defined where alpha^2 + sigma^2 = 1
FULL = NoiseSchedule.named()


def clean_and_noise(seed=0):
    return normal(2, 3, 4, 2, 5, 5, seed=seed).double().unbind(0)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 999), st.integers(0, 100))
def test_conversions_give_what_each_parameterisation_stands_for_on_a_noise_schedule(step, seed):
    level = FULL.levels[999 - step]
    x_0, noise = clean_and_noise(seed)
    x_t = q_sample(x_0, level, noise)
    for given_as, wanted in itertools.product(ALL, ALL):
        found = convert(target(x_0, noise, level, given_as), x_t, level, given_as, wanted)
        assert relative_error(found, target(x_0, noise, level, wanted)) < 1e-9, (given_as, wanted)


@settings(deadline=None, max_examples=40)
@given(st.floats(0.001, 0.999), st.integers(0, 100))
def test_conversions_give_what_each_parameterisation_stands_for_on_rectified_flow(s, seed):
    level = flow_level(s)
    x_0, noise = clean_and_noise(seed)
    x_t = q_sample(x_0, level, noise)
    for given_as, wanted in itertools.product(OF_FLOW, OF_FLOW):
        found = convert(target(x_0, noise, level, given_as), x_t, level, given_as, wanted)
        assert relative_error(found, target(x_0, noise, level, wanted)) < 1e-9, (given_as, wanted)


@pytest.mark.parametrize("level", [level_at(11), level_at(3), flow_level(0.3), flow_level(0.8)])
def test_conversions_undo_each_other(level):
    x, prediction = normal(2, 2, 4, 2, 3, 3).unbind(0)
    for given_as, wanted in itertools.product(ALL, ALL):
        back = convert(convert(prediction, x, level, given_as, wanted), x, level, wanted, given_as)
        assert torch.allclose(back, prediction, atol=1e-5), (given_as, wanted)
        if given_as == wanted:
            assert convert(prediction, x, level, given_as, wanted) is prediction


@pytest.mark.parametrize("step", [0, 400, 999])
def test_the_velocity_is_alpha_eps_minus_sigma_x0(step):
    level = FULL.levels[999 - step]
    x_0, noise = clean_and_noise()
    v = convert(x_0, q_sample(x_0, level, noise), level, "x0", "v")
    assert relative_error(v, level.alpha * noise - level.sigma * x_0) < 1e-9


def test_the_velocity_of_rectified_flow_leads_straight_from_one_level_to_another():
    x_0, noise = clean_and_noise()
    x_t = q_sample(x_0, flow_level(0.8), noise)
    velocity = convert(noise, x_t, flow_level(0.8), "eps", "flow")
    assert relative_error(velocity, noise - x_0) < 1e-12
    assert relative_error(x_t + (0.1 - 0.8) * velocity, q_sample(x_0, flow_level(0.1), noise)) < 1e-12


def test_the_velocity_of_rectified_flow_is_read_where_there_is_no_signal():
    level = flow_level(1.0)
    x_0, noise = clean_and_noise()
    flow, x_t = noise - x_0, q_sample(x_0, level, noise)
    assert torch.equal(x_t, noise)
    assert relative_error(convert(flow, x_t, level, "flow", "x0"), x_0) < 1e-12
    assert relative_error(convert(flow, x_t, level, "flow", "eps"), noise) < 1e-12
    assert relative_error(convert(x_0, x_t, level, "x0", "flow"), flow) < 1e-12


def test_conversions_agree_with_the_process():
    level, (x, prediction) = level_at(11), normal(2, 2, 3, 2, 4, 4).unbind(0)
    for given_as in ALL:
        x_0 = predicted_x0(prediction, x, level, Process(given_as))
        assert torch.allclose(convert(prediction, x, level, given_as, "x0"), x_0, atol=1e-5)
        eps = eps_from_x0(x, level, x_0)
        assert torch.allclose(convert(prediction, x, level, given_as, "eps"), eps, atol=1e-5)


def test_every_sample_may_have_a_level_of_its_own():
    schedule, step = NoiseSchedule.named(), torch.tensor([3, 500, 998])
    x, prediction = normal(2, 3, 4, 5, 5).unbind(0)
    together = schedule.at(step, x)
    for given_as, wanted in itertools.product(ALL, ALL):
        found = convert(prediction, x, together, given_as, wanted)
        for k, level in enumerate(schedule.levels[999 - int(s)] for s in step):
            alone = convert(prediction[k : k + 1], x[k : k + 1], level, given_as, wanted)
            assert torch.equal(found[k : k + 1], alone)


def test_a_target_is_what_the_conversion_makes_of_the_noise():
    level, (x_0, noise) = NoiseLevel(500.0, 0.6, 0.8, 0.5), clean_and_noise()
    x_t = q_sample(x_0, level, noise)
    for wanted in ALL:
        assert relative_error(target(x_0, noise, level, wanted), convert(noise, x_t, level, "eps", wanted)) < 1e-12


def test_a_prediction_is_split_into_views_and_refused_where_channels_do_not_fit():
    prediction = normal(2, 8, 3)
    output, variance = split_prediction(prediction, 4)
    assert torch.equal(torch.cat([output, variance], 1), prediction)
    assert output.data_ptr() == prediction.data_ptr()
    assert split_prediction(prediction, 8) == (prediction, None)
    with pytest.raises(InputError, match="gave 8 channels for 3 latent channels: expected 3 or 6"):
        split_prediction(prediction, 3)
