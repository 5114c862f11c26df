"""Euler and Heun on rectified flow, against the exact velocity of a Gaussian mixture and of constant velocities."""

import itertools

import pytest
import torch

from goldens import relative_error
from guidon.core.errors import InputError
from guidon.diffusion import FlowPath, Process, q_sample
from guidon.diffusion.spacing import Explicit
from guidon.samplers import FrameMask, SampleNoise, sample_euler, sample_heun
from mixture import MixtureDenoiser, mean_and_variance
from toy_network import normal

every_sampler = pytest.mark.parametrize("sampler", [sample_euler, sample_heun])
FLOW = MixtureDenoiser("flow")


def exact(x, level):
    """The mixture's velocity; at pure noise, where its x_0 is not defined, that is x minus the mean of the data."""
    return FLOW(x, level) if level.alpha else x - mean_and_variance()[0]


def sampled(sampler, steps, x, **path):
    return sampler(exact, FlowPath(steps=steps, **path), x, torch.zeros_like)


def errors(sampler, x, truth, steps, **path):
    return [(sampled(sampler, n, x, **path) - truth).abs().mean().item() for n in steps]


@pytest.fixture(scope="module")
def noise_and_truth():
    x = SampleNoise(0, range(8)).initial((1, 32))
    return x, sampled(sample_heun, 1000, x)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_is_of_first_order_and_heun_of_second(noise_and_truth, shift):
    euler = errors(sample_euler, *noise_and_truth, (64, 128, 256), shift=shift)
    heun = errors(sample_heun, *noise_and_truth, (64, 128, 256), shift=shift)
    for coarse, fine in itertools.pairwise(euler):
        assert 1.8 < coarse / fine < 2.2
    for coarse, fine in itertools.pairwise(heun):
        assert 3.3 < coarse / fine < 5.5
    assert heun[0] < euler[-1]


def test_samples_have_the_moments_of_the_mixture():
    x = SampleNoise(0, range(16)).initial((1, 1024))
    found = sampled(sample_heun, 40, x)
    mean, variance = mean_and_variance()
    assert found.mean().item() == pytest.approx(mean, abs=0.03)
    assert found.var().item() == pytest.approx(variance, rel=0.03)


@every_sampler
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_constant_velocity_is_followed_exactly(sampler, steps):
    x, x_0 = normal(2, 3, 4), normal(2, 3, 4, seed=1)
    found = sampler(lambda _, level: x - x_0, FlowPath(steps=steps, shift=2.5), x, torch.zeros_like)
    assert relative_error(found, x_0) < 1e-6


@every_sampler
def test_a_second_half_of_the_channels_is_left_aside(sampler):
    x, path = normal(2, 3, 4), FlowPath(steps=5)
    found = sampler(lambda x, level: torch.cat([exact(x, level), x * 7], 1), path, x, torch.zeros_like)
    assert torch.equal(found, sampler(exact, path, x, torch.zeros_like))


@every_sampler
def test_the_sample_does_not_depend_on_what_the_network_predicts(sampler):
    x, path = SampleNoise(0, range(2)).initial((1, 64)), FlowPath(steps=20)

    def x_0(x, level):
        return x - level.sigma * exact(x, level)

    found = sampler(x_0, path, x, torch.zeros_like, process=Process("x0"))
    assert relative_error(found, sampler(exact, path, x, torch.zeros_like)) < 1e-4


@every_sampler
def test_levels_are_visited_in_order_and_steps_reported(sampler):
    seen, reported, stepped = [], [], []

    def denoiser(x, level):
        seen.append(level.timestep)
        return torch.zeros_like(x)

    x = normal(1, 1, 2)
    before = x.clone()
    path = FlowPath(steps=4)

    def after_step(step, level, x):
        stepped.append((step, level.timestep))
        return x + 1

    found = sampler(
        denoiser, path, x, torch.zeros_like, on_step=lambda *done: reported.append(done), after_step=after_step
    )
    expected = [1000, 750, 500, 250] if sampler is sample_euler else [1000, 750, 750, 500, 500, 250, 250]
    assert seen == expected
    assert reported == [(k, 4) for k in range(1, 5)]
    assert stepped == list(enumerate([1000, 750, 500, 250]))
    assert torch.equal(x, before)
    assert torch.allclose(found, x + 4)


@every_sampler
def test_a_prediction_that_is_not_finite_is_refused(sampler):
    with pytest.raises(InputError, match=r"not finite at step 1 \(timestep 1000\)"):
        sampler(lambda x, level: x / 0, FlowPath(steps=3), normal(1, 1, 2), torch.zeros_like)


# frames that are kept

MADE = torch.tensor([[0.0, 1.0, 0.3, 0.6], [1.0, 0.0, 1.0, 0.99]])


def masked(sampler, denoiser, x, made=MADE, steps=10, noise=torch.zeros_like, **options):
    return sampler(denoiser, FlowPath(steps=steps), x, noise, frames=FrameMask(made, **options))


def drift(x, level):
    """A velocity that mixes the frames."""
    return torch.tanh(x + x.roll(1, 2)) + level.sigma


@every_sampler
def test_kept_frames_come_back_exactly_and_the_others_move(sampler):
    x, clean = normal(2, 3, 4, 2, 2), normal(2, 3, 4, 2, 2, seed=1)
    for given, options in ((x, {}), (clean, {"clean": clean}), (clean, {"clean": clean, "replace": True})):
        found = masked(sampler, drift, x, **options)
        for row, frame in ((0, 0), (1, 1)):
            assert torch.equal(found[row, :, frame], given[row, :, frame])
        assert ((found != given).flatten(3).any(3).all(1) == (MADE > 0)).all()


@every_sampler
def test_a_frame_joins_noised_at_the_first_level_that_its_share_reaches(sampler):
    """Open-Sora 1.2's rule: share T >= t. 0.3 joins at t = 300 of 1000, 900, ..., and 0.99 at 900."""
    x, noise = normal(2, 3, 4, 2, 2), normal(2, 3, 4, 2, 2, seed=1)
    seen = {}

    def denoiser(x, level):
        seen.setdefault(round(level.timestep), (level, x))
        return torch.zeros_like(x)

    masked(sampler, denoiser, x, noise=lambda _: noise)
    for row, frame, joins in ((0, 2, 300), (0, 3, 600), (1, 3, 900)):
        for t, (level, shown) in seen.items():
            assert bool(level.noisy[row, frame]) == (t <= joins)
            expected = q_sample(x, seen[joins][0], noise) if t <= joins else x
            assert torch.allclose(shown[row, :, frame], expected[row, :, frame])
    assert all(level.noisy[0, 1] and not level.noisy[0, 0] for level, _ in seen.values())


@every_sampler
def test_a_frame_may_join_at_the_first_step(sampler):
    x, noise, seen = normal(1, 3, 2, 2, 2), normal(1, 3, 2, 2, 2, seed=1), []

    def denoiser(x, level):
        seen.append((level, x))
        return torch.zeros_like(x)

    path, made = FlowPath().spaced_by(2, Explicit((900, 400))), torch.tensor([[1.0, 0.95]])
    sampler(denoiser, path, x, lambda _: noise, frames=FrameMask(made))
    (level, shown), *_ = seen
    assert level.noisy.tolist() == [[True, True]]
    assert torch.equal(shown[:, :, 0], x[:, :, 0])  # it was noise before
    assert torch.allclose(shown[:, :, 1], q_sample(x, level, noise)[:, :, 1])


@every_sampler
def test_frames_join_at_the_same_share_whatever_the_timestep_of_pure_noise_is(sampler):
    x, noise = normal(2, 3, 4, 2, 2), normal(2, 3, 4, 2, 2, seed=1)
    found, expected = (
        sampler(drift, FlowPath(total, steps=10), x, lambda _: noise, frames=FrameMask(MADE)) for total in (500, 1000)
    )
    assert relative_error(found, expected) < 1e-6


@every_sampler
def test_a_mask_of_ones_changes_nothing(sampler):
    x = normal(2, 3, 4, 2, 2)
    found = masked(sampler, drift, x, made=torch.ones(2, 4), noise=torch.randn_like)
    assert torch.equal(found, sampler(drift, FlowPath(steps=10), x, torch.zeros_like))


@every_sampler
def test_a_network_that_reads_no_mask_is_shown_kept_frames_noised(sampler):
    x, clean, noise = normal(1, 3, 2, 2, 2), normal(1, 3, 2, 2, 2, seed=1), normal(1, 3, 2, 2, 2, seed=2)
    shown = []

    def denoiser(x, level):
        shown.append((level, x))
        return torch.zeros_like(x)

    made = torch.tensor([[0.0, 1.0]])
    masked(sampler, denoiser, x, made, noise=lambda _: noise, clean=clean, replace=True)
    for level, seen in shown:
        assert torch.allclose(seen[:, :, 0], q_sample(clean, level, noise)[:, :, 0])


def test_heun_stays_of_second_order_beside_kept_frames():
    x, made = normal(2, 3, 4, 2, 2), torch.tensor([[0.0, 1.0, 1.0, 1.0]] * 2)
    truth = masked(sample_heun, drift, x, made, steps=800)
    found = [(masked(sample_heun, drift, x, made, steps=n) - truth).abs().mean().item() for n in (16, 32, 64)]
    assert all(3.3 < coarse / fine < 5.5 for coarse, fine in itertools.pairwise(found))


@every_sampler
def test_a_mask_that_does_not_fit_is_refused(sampler):
    with pytest.raises(InputError, match=r"mask is \(2, 4\), expected one value a frame: \(2, 3\)"):
        masked(sampler, drift, normal(2, 3, 3, 2, 2))
