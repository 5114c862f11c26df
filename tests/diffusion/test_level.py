import dataclasses
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guidon.diffusion import CLEAN, NoiseLevel, NoiseSchedule, Process, bits_per_dimension, q_sample, training_losses
from guidon.diffusion.schedule import COEFFICIENTS
from guidon.samplers import sample_ddim
from toy_network import normal

SCHEDULES = {
    "linear": NoiseSchedule.named(),
    "linear 50": NoiseSchedule.named().respaced("50"),
    "ddim50": NoiseSchedule.named().respaced("ddim50"),
    "cosine 20": NoiseSchedule.named("squaredcos_cap_v2").respaced("20"),
    "one step": NoiseSchedule.named().respaced("1"),
}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


@every_schedule
def test_each_level_knows_the_next_and_the_last_one_is_the_data(schedule):
    level, visited = schedule.levels[0], []
    while level is not CLEAN:
        visited.append(level)
        level = level.next
    assert len(visited) == len(schedule)
    assert all(a is b for a, b in zip(visited, schedule.levels, strict=True))
    assert [level.step for level in visited] == list(reversed(range(len(schedule))))
    assert [level.timestep for level in visited] == schedule.timestep_map[::-1].tolist()
    assert all(level.steps == len(schedule) for level in visited)
    assert [level.reaches_data for level in visited] == [False] * (len(schedule) - 1) + [True]


def test_the_data_is_a_level_without_noise():
    assert (CLEAN.timestep, CLEAN.alpha, CLEAN.sigma, CLEAN.progress, CLEAN.next) == (0, 1, 0, 1, None)


@every_schedule
def test_progress_is_linear_in_the_timestep_from_noise_to_data(schedule):
    for level in schedule.levels:
        assert level.progress == 1 - level.timestep / 999
        assert 0 <= level.progress <= 1


def test_progress_begins_at_0_and_ends_at_1_whatever_the_number_of_steps():
    for steps in (2, 20, 1000):
        levels = NoiseSchedule.named().respaced(steps).levels
        assert (levels[0].progress, levels[-1].progress) == (0, 1)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(["linear", "squaredcos_cap_v2"]), st.integers(30, 200), st.integers(1, 30))
def test_signal_and_noise_share_the_variance_and_the_signal_grows(name, total, count):
    levels = NoiseSchedule.named(name, total).respaced(count).levels
    assert all(abs(level.alpha**2 + level.sigma**2 - 1) < 1e-12 for level in levels)
    for before, after in itertools.pairwise(levels):
        assert before.alpha < after.alpha
        assert before.sigma > after.sigma


@every_schedule
def test_a_level_for_every_sample_has_the_numbers_of_the_shared_levels_bit_for_bit(schedule):
    step = torch.arange(len(schedule)).flip(0)
    many = schedule.at(step, torch.zeros(len(schedule), 4, 2, 3))
    assert many.step is step
    assert many.steps == len(schedule)
    assert many.timestep.dtype == torch.long
    assert many.alpha.shape == many.log_betas.shape == (len(schedule), 1, 1, 1)
    assert many.reaches_data.tolist() == [level.reaches_data for level in schedule.levels]
    for k, level in enumerate(schedule.levels):
        assert many.timestep[k] == level.timestep
        assert many.progress[k] == pytest.approx(level.progress, abs=1e-6)
        for name in ("alpha", "sigma"):  # multiplying fp32 by a float rounds the float to fp32
            assert getattr(many, name)[k].item() == torch.tensor(getattr(level, name), dtype=torch.float32).item()
        for name in COEFFICIENTS:
            assert torch.equal(getattr(many, name)[k].squeeze(), getattr(level, name)), name


@every_schedule
def test_levels_between_steps_meet_the_steps(schedule):
    for level in schedule.levels:
        same = schedule.between((level.step + 1) / len(schedule))
        assert same.timestep == pytest.approx(level.timestep, abs=1e-9)
        for name in ("alpha", "sigma", "progress"):
            assert getattr(same, name) == pytest.approx(getattr(level, name), abs=1e-12)
        assert same.next is None


@given(st.floats(0.05, 1), st.floats(0.05, 1))
def test_levels_between_steps_grow_noisier_with_time(first, second):
    schedule = SCHEDULES["cosine 20"]
    earlier, later = (schedule.between(time) for time in sorted((first, second)))
    assert earlier.timestep <= later.timestep
    assert earlier.alpha >= later.alpha
    assert earlier.progress >= later.progress
    assert later.alpha**2 + later.sigma**2 == pytest.approx(1)


def test_a_network_is_told_one_timestep_for_every_sample():
    x = torch.zeros(3, 4, 2)
    shared = NoiseLevel(12.5, 0.6, 0.8, 0.3).timesteps(x)
    assert shared.tolist() == [12.5] * 3
    assert shared.dtype == torch.float32
    own = SCHEDULES["linear 50"].at(torch.tensor([0, 3, 49]), x)
    assert own.timesteps(x) is own.timestep
    assert own.timestep.tolist() == SCHEDULES["linear 50"].timestep_map[[0, 3, 49]].tolist()


def test_a_level_cannot_be_changed_and_can_be_replaced():
    level = SCHEDULES["linear 50"].levels[3]
    with pytest.raises(dataclasses.FrozenInstanceError):
        level.alpha = 0.5
    other = dataclasses.replace(level, timestep=7.0)
    assert (other.timestep, other.step, other.next) == (7.0, level.step, level.next)


def test_levels_made_in_inference_mode_serve_training():
    schedule = NoiseSchedule.named().respaced("11")
    with torch.inference_mode():
        assert schedule.levels[0].step == 10
        schedule.at(torch.tensor([1, 2]), torch.zeros(2, 4, 3))
    for level in (schedule.levels[4], schedule.at(torch.tensor([0, 6]), torch.zeros(2, 4, 3))):
        x_0, noise = normal(2, 2, 4, 3).unbind(0)
        x_0.requires_grad_()
        prediction = normal(2, 8, 3, seed=1).requires_grad_()
        x_t = q_sample(x_0, level, noise)
        training_losses(prediction, x_0, x_t, level, noise, Process())["loss"].sum().backward()
        assert x_0.grad.isfinite().all()
        assert x_0.grad.abs().max() > 0
        assert prediction.grad.abs().max() > 0


def test_levels_made_for_training_serve_inference_mode():
    schedule = NoiseSchedule.named().respaced("9")
    assert schedule.levels
    schedule.at(torch.tensor([1]), torch.zeros(1, 4, 3))

    def denoiser(x, level):
        return x * level.sigma

    def run():
        x, fixed = torch.ones(1, 4, 3), Process(variance="fixed_small")
        bound = bits_per_dimension(denoiser, x, torch.ones_like, schedule, fixed)
        return sample_ddim(denoiser, schedule, x, torch.ones_like, process=fixed, eta=1.0), bound.total_bpd

    with torch.inference_mode():
        inside = run()
    assert all(torch.equal(a, b) for a, b in zip(inside, run(), strict=True))
