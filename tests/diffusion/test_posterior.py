import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from goldens import golden, relative_error
from guidon.core.errors import InputError
from guidon.diffusion import (
    NoiseSchedule,
    Process,
    eps_from_x0,
    p_mean_variance,
    q_mean_variance,
    q_posterior,
    q_sample,
    x0_from_eps,
)
from single_steps import STEP_CASES, process_of
from toy_network import normal

FULL = NoiseSchedule.named()


def level_of(step):
    return FULL.levels[999 - step]


@pytest.mark.parametrize("name", STEP_CASES)
def test_single_steps_equal_the_originals(name):
    g, case = golden(name)
    level = FULL.respaced(case["timestep_respacing"]).at(g["t"], g["x"])
    for key, values in zip(
        ("q_mean", "q_variance", "q_log_variance"), q_mean_variance(g["x_start"], level), strict=True
    ):
        assert relative_error(values.expand_as(g[key]), g[key]) < 1e-5, key
    assert relative_error(q_sample(g["x_start"], level, g["noise"]), g["q_sample"]) < 1e-5
    posterior = q_posterior(g["x_start"], g["x"], level)
    for key, values in zip(("posterior_mean", "posterior_variance", "posterior_log_variance"), posterior, strict=True):
        assert relative_error(values.expand_as(g[key]), g[key]) < 1e-5, key
    for clip in (0, 1):
        p = p_mean_variance(g["model_output"], g["x"], level, process_of(case, bool(clip)))
        for key, values in (
            ("mean", p.mean),
            ("variance", p.variance),
            ("log_variance", p.log_variance),
            ("pred_xstart", p.x_0),
        ):
            expected = g[f"clip{clip}.{key}"]
            assert relative_error(values.expand_as(expected), expected) < 1e-5, key


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 999), st.integers(0, 100))
def test_q_sample_then_x0_from_eps_is_the_identity(step, seed):
    level = level_of(step)
    generator = torch.Generator().manual_seed(seed)
    x_0, noise = torch.randn(2, 2, 4, 3, 5, 5, generator=generator)
    x_t = q_sample(x_0, level, noise)
    # the signal is divided by alpha, which magnifies fp32 rounding
    assert torch.allclose(x0_from_eps(x_t, level, noise), x_0, atol=1e-5 / level.alpha)
    if step > 0:
        assert torch.allclose(eps_from_x0(x_t, level, x_0), noise, atol=2e-3)


@pytest.mark.parametrize("step", [5, 300, 950])
def test_guidance_means_the_same_whatever_the_network_predicts(step):
    level = level_of(step)
    x_t, cond, uncond = normal(3, 2, 4, 3, 3).unbind(0)

    def in_terms_of(eps, kind):
        x_0 = x0_from_eps(x_t, level, eps)
        return {"v": level.alpha * eps - level.sigma * x_0, "flow": eps - x_0, "x0": x_0}[kind]

    def mean(output, kind):
        return p_mean_variance(output, x_t, level, Process(kind, "fixed_small")).mean

    expected = mean(uncond + 4 * (cond - uncond), "eps")
    for kind in ("v", "flow", "x0"):
        c, u = in_terms_of(cond, kind), in_terms_of(uncond, kind)
        assert relative_error(mean(u + 4 * (c - u), kind), expected) < 1e-4, kind


def test_one_level_for_the_batch_and_one_for_every_sample_agree():
    schedule = FULL.respaced("50")
    x, prediction = normal(3, 4, 2, 2), normal(3, 8, 2, 2, seed=1)
    one = p_mean_variance(prediction, x, schedule.levels[49 - 17], Process())
    many = p_mean_variance(prediction, x, schedule.at(torch.full((3,), 17), x), Process())
    assert torch.equal(one.mean, many.mean)
    assert torch.equal(one.log_variance, many.log_variance)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 998))
def test_learned_range_runs_between_the_two_fixed_choices(step):
    level, x = level_of(step), torch.zeros(1, 1, 2)
    for interpolation, expected in ((-1.0, level.posterior_log_variance_clipped), (1.0, level.log_betas)):
        prediction = torch.cat([x, torch.full_like(x, interpolation)], dim=1)
        assert torch.allclose(p_mean_variance(prediction, x, level, Process()).log_variance, expected)


def test_predictions_that_do_not_fit_are_refused():
    level, x = level_of(3), torch.zeros(1, 4, 2)
    with pytest.raises(InputError, match="needs 8 channels"):
        p_mean_variance(x, x, level, Process())
    with pytest.raises(InputError, match="gave 6 channels for 4"):
        p_mean_variance(torch.zeros(1, 6, 2), x, level, Process())


def test_a_process_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match="'velocity' does not exist; valid: eps, x0, v, flow"):
        Process("velocity")
    with pytest.raises(InputError, match="variance 'learned'"):
        Process(variance="learned")


def test_a_clamped_range_stays_between_the_two_fixed_choices():
    level, x = level_of(40), torch.zeros(1, 1, 3)
    prediction = torch.cat([x, torch.tensor([[[-3.0, 0.2, 5.0]]])], dim=1)
    clamped, free = (
        p_mean_variance(prediction, x, level, Process("x0", variance)).log_variance
        for variance in ("clamped_range", "learned_range")
    )
    ends = torch.stack([level.posterior_log_variance_clipped, level.log_betas])
    assert torch.allclose(clamped[0, 0, [0, 2]], ends)
    assert torch.equal(clamped[0, 0, 1], free[0, 0, 1])
    assert free[0, 0, 0] < clamped[0, 0, 0]
    assert free[0, 0, 2] > clamped[0, 0, 2]
    assert Process.trained("x0").variance == "clamped_range"
    for kind in ("eps", "v", "flow"):
        assert Process.trained(kind) == Process(kind)


def test_a_clean_sample_is_changed_before_it_is_clamped():
    level, x = level_of(400), normal(2, 4, 3)
    prediction = normal(2, 4, 3, seed=1)
    for clip in (True, False):
        process = Process("x0", "fixed_small", clip)
        found = p_mean_variance(prediction, x, level, process, lambda x_0: 10 * x_0).x_0
        assert torch.equal(found, (10 * prediction).clamp(-1, 1) if clip else 10 * prediction)
