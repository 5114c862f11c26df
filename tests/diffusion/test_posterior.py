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

CASES = [
    f"step/{kind}_{steps}"
    for kind in ("learned_range", "fixed_large", "fixed_small", "predict_xstart")
    for steps in ("50", "full")
]


def process_of(case, clip=False):
    if case["variance"] == "predict_xstart":
        return Process("x0", "learned_range", clip)
    return Process("eps", case["variance"], clip)


@pytest.mark.parametrize("name", CASES)
def test_single_steps_equal_the_originals(name):
    g, case = golden(name)
    tables = NoiseSchedule.named().respaced(case["timestep_respacing"]).tables()
    t = g["t"]
    for key, values in zip(
        ("q_mean", "q_variance", "q_log_variance"), q_mean_variance(g["x_start"], t, tables), strict=True
    ):
        assert relative_error(values.expand_as(g[key]), g[key]) < 1e-5, key
    assert relative_error(q_sample(g["x_start"], t, g["noise"], tables), g["q_sample"]) < 1e-5
    posterior = q_posterior(g["x_start"], g["x"], t, tables)
    for key, values in zip(("posterior_mean", "posterior_variance", "posterior_log_variance"), posterior, strict=True):
        assert relative_error(values.expand_as(g[key]), g[key]) < 1e-5, key
    for clip in (0, 1):
        p = p_mean_variance(g["model_output"], g["x"], t, tables, process_of(case, bool(clip)))
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
    tables = NoiseSchedule.named().tables()
    generator = torch.Generator().manual_seed(seed)
    x_0, noise = torch.randn(2, 2, 4, 3, 5, 5, generator=generator)
    x_t = q_sample(x_0, step, noise, tables)
    # the signal is divided by sqrt(alphas_cumprod), which magnifies fp32 rounding
    tolerance = 1e-5 / tables.sqrt_alphas_cumprod[step].item()
    assert torch.allclose(x0_from_eps(x_t, step, noise, tables), x_0, atol=tolerance)
    if step > 0:
        assert torch.allclose(eps_from_x0(x_t, step, x_0, tables), noise, atol=2e-3)


@pytest.mark.parametrize("step", [5, 300, 950])
def test_guidance_means_the_same_whatever_the_network_predicts(step):
    tables = NoiseSchedule.named().tables()
    x_t, cond, uncond = torch.randn(3, 2, 4, 3, 3).unbind(0)
    a, b = tables.sqrt_alphas_cumprod[step], tables.sqrt_one_minus_alphas_cumprod[step]

    def velocity_of(eps):
        return a * eps - b * x0_from_eps(x_t, step, eps, tables)

    def mean(output, kind):
        return p_mean_variance(output, x_t, step, tables, Process(kind, "fixed_small")).mean

    guided = uncond + 4 * (cond - uncond)
    guided_v = velocity_of(uncond) + 4 * (velocity_of(cond) - velocity_of(uncond))
    assert relative_error(mean(guided_v, "v"), mean(guided, "eps")) < 1e-4


def test_an_int_step_and_a_tensor_of_it_agree():
    tables = NoiseSchedule.named().respaced("50").tables()
    x, prediction = torch.randn(3, 4, 2, 2), torch.randn(3, 8, 2, 2)
    one = p_mean_variance(prediction, x, 17, tables, Process())
    many = p_mean_variance(prediction, x, torch.full((3,), 17), tables, Process())
    assert torch.equal(one.mean, many.mean)
    assert torch.equal(one.log_variance, many.log_variance)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 998))
def test_learned_range_runs_between_the_two_fixed_choices(step):
    tables = NoiseSchedule.named().tables()
    x = torch.zeros(1, 1, 2)
    for interpolation, expected in ((-1.0, tables.posterior_log_variance_clipped), (1.0, tables.log_betas)):
        prediction = torch.cat([x, torch.full_like(x, interpolation)], dim=1)
        assert torch.allclose(p_mean_variance(prediction, x, step, tables, Process()).log_variance, expected[step])


def test_predictions_that_do_not_fit_are_refused():
    tables, x = NoiseSchedule.named().tables(), torch.zeros(1, 4, 2)
    with pytest.raises(InputError, match="needs 8 channels"):
        p_mean_variance(x, x, 3, tables, Process())
    with pytest.raises(InputError, match="gave 6 channels for 4"):
        p_mean_variance(torch.zeros(1, 6, 2), x, 3, tables, Process())


def test_a_process_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match="'flow' does not exist; valid: eps, x0, v"):
        Process("flow")
    with pytest.raises(InputError, match="variance 'learned'"):
        Process(variance="learned")


def test_a_clamped_range_stays_between_the_two_fixed_choices():
    tables, x = NoiseSchedule.named().tables(), torch.zeros(1, 1, 3)
    prediction = torch.cat([x, torch.tensor([[[-3.0, 0.2, 5.0]]])], dim=1)
    clamped, free = (
        p_mean_variance(prediction, x, 40, tables, Process("x0", variance)).log_variance
        for variance in ("clamped_range", "learned_range")
    )
    assert torch.allclose(
        clamped[0, 0, [0, 2]], torch.stack([tables.posterior_log_variance_clipped[40], tables.log_betas[40]])
    )
    assert torch.equal(clamped[0, 0, 1], free[0, 0, 1])
    assert free[0, 0, 0] < clamped[0, 0, 0]
    assert free[0, 0, 2] > clamped[0, 0, 2]
    assert Process.trained("x0").variance == "clamped_range"
    assert Process.trained("v") == Process("v")
