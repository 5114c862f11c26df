"""Guidance along a rectified flow: every rule, timing and choice of channels, from pure noise to the data."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from goldens import relative_error
from guidon.diffusion import FlowPath
from guidon.guidance import RULES, Guidance, WeakModel
from guidon.samplers import sample_euler, sample_heun
from toy_network import COND, GENTLE, UNCOND, denoiser, latents

PATH = FlowPath(steps=6, shift=2)
LEVELS = st.sampled_from(PATH.levels)
CHANNELS = st.sets(st.integers(0, 3), max_size=4).map(sorted)
TIMINGS = ["constant", "linear", "cosine", "exponential:0.7", "interval:0.2,0.8", "oscillation:2"]


class Velocity:
    """eps - x_0 that depends on the latents, the level and the condition; a channel sees itself alone."""

    predicts = "flow"

    def __init__(self, seed=0):
        self.seed, self.rows = seed, []

    def __call__(self, x, level, cond):
        self.rows.append(len(x))
        time, said = (v.view(-1, *[1] * (x.ndim - 1)) for v in (level.timesteps(x) / 1000, cond.value))
        return torch.tanh(x * (1 + time) + said * x.roll(1, -1) + 0.2 * said + 0.1 * self.seed)


def rule_of(name):
    return GENTLE.get(name, name)


def scale_of(name):
    return 0.7 if name == "cfg++" else 3.0


def guided(name, channels="all", timing="constant", scale=None):
    guidance = Guidance(scale_of(name) if scale is None else scale, channels, rule_of(name), timing)
    return denoiser(guidance, Velocity(), weak=WeakModel(Velocity(seed=3), COND) if guidance.needs_weak else None)


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=10)
@given(level=LEVELS, channels=CHANNELS)
def test_unguided_channels_are_conditional_bit_for_bit_at_every_level(name, level, channels):
    x = latents()
    alone = Velocity()(x, level, COND)
    found = guided(name, channels or "none")(x, level)
    others = [channel for channel in range(4) if channel not in channels]
    assert found.isfinite().all()
    assert torch.equal(found[:, others], alone[:, others])
    first = level is PATH.levels[0] and name == "cfg-zero"  # whose first steps stand still
    if channels and not first:
        assert not torch.equal(found[:, channels], alone[:, channels])


@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        (name, sampler)
        for name in RULES
        for sampler in (sample_euler, sample_heun)
        if (name, sampler) != ("cfg++", sample_heun)
    ],
)
def test_a_whole_run_under_every_rule_guides_the_chosen_channels_alone(name, sampler):
    x = latents()
    conditional = sampler(denoiser(Guidance(1.0), Velocity()), PATH, x, torch.randn_like)
    found = sampler(guided(name, "only:2"), PATH, x, torch.randn_like)
    everything = sampler(guided(name), PATH, x, torch.randn_like)
    assert torch.equal(found[:, [0, 1, 3]], conditional[:, [0, 1, 3]])
    assert found.isfinite().all()
    assert everything.isfinite().all()
    for channel in range(4):
        assert not torch.equal(everything[:, channel], conditional[:, channel])


@pytest.mark.parametrize("timing", TIMINGS)
def test_timings_act_along_a_flow_as_on_a_schedule(timing):
    """Progress is linear in the timestep: a step is guided by u + w (c - u), w of its progress and number."""
    x, network = latents(), Velocity()
    guidance = Guidance(3.0, "all", timing=timing)
    expected = x
    for number, level in enumerate(PATH.levels):
        weight = guidance.timing(1 - level.timestep / 1000, number)
        scale = 3.0 * weight if guidance.timing.of_whole_scale else 1 + 2.0 * weight
        c, u = network(expected, level, COND), network(expected, level, UNCOND)
        flow = c if weight == 0 else u + scale * (c - u)
        expected = expected + (level.next.sigma - level.sigma) * flow
    found = sample_euler(denoiser(guidance, Velocity()), PATH, x, torch.randn_like)
    assert relative_error(found, expected) < 1e-5


def test_all_channels_are_plain_guidance():
    x = latents()
    found = {
        channels: sample_euler(guided("cfg", channels), PATH, x, torch.randn_like) for channels in ("all", "0-3", "4")
    }
    assert torch.equal(found["all"], found["0-3"])
    assert torch.equal(found["all"], found["4"])
    expected = x
    for level in PATH.levels:
        c, u = (Velocity()(expected, level, each) for each in (COND, UNCOND))
        expected = expected + (level.next.sigma - level.sigma) * (u + 3 * (c - u))
    assert relative_error(found["all"], expected) < 1e-6


def test_cfg_plus_plus_puts_the_unconditional_noise_back():
    """Algorithm 2 of 2406.08070 with alpha = 1 - sigma: x_0 is guided, the noise that is put back is unconditional."""
    expected = latents()
    for level in PATH.levels:
        c, u = (Velocity()(expected, level, each) for each in (COND, UNCOND))
        guided_x0 = expected - level.sigma * (u + 0.7 * (c - u))
        noise = expected + level.alpha * u  # eps of the unconditional velocity
        expected = level.next.alpha * guided_x0 + level.next.sigma * noise
    found = sample_euler(guided("cfg++"), PATH, latents(), torch.randn_like)
    assert relative_error(found, expected) < 1e-5
