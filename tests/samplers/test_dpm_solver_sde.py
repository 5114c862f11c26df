import math

import pytest
import torch

from goldens import relative_error
from guidon.core.errors import InputError
from guidon.diffusion import NoiseLevel, NoiseSchedule, Process
from guidon.diffusion.spacing import Explicit, parse_spacing
from guidon.samplers import SampleNoise, sample_ddim, sample_ddpm, sample_dpm_solver_sde
from mixture import MixtureDenoiser, mean_and_variance
from toy_network import normal

FULL = NoiseSchedule.named()
FIXED = Process("eps", "fixed_small")
LISTED = (999, 800, 600, 420, 300, 200, 120, 60, 20, 3)


def sample(x, steps=20, order=2, denoiser=None, noise=None, spacing="uniform"):
    return sample_dpm_solver_sde(
        denoiser or MixtureDenoiser(), FULL, x, noise or SampleNoise(5, range(len(x))), process=FIXED, steps=steps,
        order=order, spacing=parse_spacing(spacing),
    )  # fmt: skip


def test_the_first_order_is_ancestral_sampling_with_the_variance_of_the_posterior():
    x, few = normal(3, 1, 8), FULL.spaced_by(10, Explicit((*LISTED[:-1], 0)))
    expected = sample_ddpm(MixtureDenoiser(), few, x, SampleNoise(5, range(3)), process=FIXED)
    listed = "at:" + ",".join(map(str, (*LISTED[:-1], 0)))
    assert relative_error(sample(x, 10, 1, spacing=listed), expected) < 1e-3


def reference(x, order, noises):
    """k-diffusion's arithmetic, in x / alpha: ``sample_dpmpp_3m_sde``, and the midpoint form of the second order."""
    levels = [FULL.between((t + 1) / 1000) for t in LISTED]
    y, denoiser, past, lengths = x / levels[0].alpha, MixtureDenoiser(), [], []
    for k, level in enumerate(levels):
        noisy = y * level.alpha
        clean = (noisy - level.sigma * denoiser(noisy, level)) / level.alpha
        if k == len(levels) - 1:
            return clean
        after = levels[k + 1]
        sigma, ahead = level.sigma / level.alpha, after.sigma / after.alpha
        h = math.log(sigma / ahead)
        y = math.exp(-2 * h) * y - math.expm1(-2 * h) * clean
        phi_2 = math.expm1(-2 * h) / (2 * h) + 1
        if past:
            slope = (clean - past[0]) / (lengths[0] / h)
            if order == 2:
                y = y - 0.5 * math.expm1(-2 * h) * slope
            elif len(past) == 1:
                y = y + phi_2 * slope
            else:
                r0, r1 = lengths[0] / h, lengths[1] / h
                bend = (slope - (past[0] - past[1]) / r1) / (r0 + r1)
                y = y + phi_2 * (slope + bend * r0) - (phi_2 / (2 * h) - 0.5) * bend
        y = y + noises[k] * ahead * math.sqrt(-math.expm1(-2 * h))
        past, lengths = [clean, *past[:1]], [h, *lengths[:1]]
    raise AssertionError


@pytest.mark.parametrize("order", [2, 3])
def test_a_run_is_that_of_the_authors_arithmetic(order):
    x, noises = normal(4, 1, 16), [normal(4, 1, 16, seed=k) for k in range(10)]
    draws = iter(noises)
    found = sample(x, 10, order, noise=lambda _: next(draws), spacing="at:" + ",".join(map(str, LISTED)))
    assert relative_error(found, reference(x, order, noises)) < 1e-5


@pytest.mark.parametrize("order", [2, 3])
def test_samples_have_the_moments_of_the_data(order):
    found = sample(SampleNoise(0, range(16)).initial((1, 512)), 60, order).double()
    mean, variance = mean_and_variance()
    assert found.mean().item() == pytest.approx(mean, abs=0.06)
    assert found.var().item() == pytest.approx(variance, rel=0.05)


def test_it_needs_fewer_steps_than_ancestral_sampling_for_the_distribution():
    """The variance of the data, by few steps: the error of ddpm with the same noise is several times as large."""
    x, (_, variance) = SampleNoise(0, range(16)).initial((1, 512)), mean_and_variance()
    few = FULL.respaced(8)
    ddpm = sample_ddpm(MixtureDenoiser(), few, x, SampleNoise(5, range(16)), process=FIXED)
    errors = [abs(each.double().var().item() / variance - 1) for each in (sample(x, 8), ddpm)]
    assert errors[0] < errors[1] / 2


def test_it_ends_at_the_predicted_data():
    x_0 = normal(2, 1, 4, seed=3)
    found = sample_dpm_solver_sde(
        lambda x, level: x_0, FULL, normal(2, 1, 4), torch.randn_like, process=Process("x0", "fixed_small"), steps=3
    )
    assert torch.equal(found, x_0)


def test_it_asks_the_network_once_a_step_where_the_spacing_says():
    seen: list[NoiseLevel] = []

    def denoiser(x, level):
        seen.append(level)
        return x

    sample(normal(1, 1, 2), 5, denoiser=denoiser, spacing="at:999,500.5,100,10,1")
    assert [level.timestep for level in seen] == pytest.approx([999, 500.5, 100, 10, 1])


@pytest.mark.parametrize("steps", [0, 1001])
def test_steps_out_of_range_are_refused(steps):
    with pytest.raises(InputError, match=f"asked for steps {steps}: give 1 to 1000"):
        sample(torch.zeros(1, 1, 2), steps)


def test_ddim_visits_the_spacing_too():
    few = FULL.spaced_by(12, parse_spacing("logsnr"))
    x = normal(4, 1, 64)
    truth = sample_ddim(MixtureDenoiser(), FULL, x, torch.randn_like, process=FIXED)
    found = sample_ddim(MixtureDenoiser(), few, x, torch.randn_like, process=FIXED)
    assert (found - truth).abs().mean() < 0.2
