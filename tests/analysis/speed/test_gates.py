"""What a guided step may cost, in numbers that no machine changes. Time is never gated: it is measured in benchmarks/.

If a number falls, the work became cheaper: write the new one here. If it rises, look for the operator or the copy that
came in, and keep the higher number only for something that a user asked for.
"""

import pytest
import torch

from guidon.analysis.speed import count
from guidon.diffusion import NoiseSchedule, Process
from guidon.guidance import Guidance, GuidedDenoiser
from guidon.models.stdit.network import STDiT, STDiTConfig
from guidon.samplers import SampleNoise, ddpm, sample_ddpm
from guidon.samplers.ddpm import ddpm_next

WIDTH, DEPTH, FRAMES, PLACES, CAPTION = 32, 2, 4, 16, 6
TOKENS = FRAMES * PLACES
PINNED = pytest.mark.skipif(not torch.__version__.startswith("2.13"), reason="operators are counted for torch 2.13")


@pytest.fixture(scope="module")
def made():
    torch.manual_seed(0)
    config = STDiTConfig(
        (FRAMES, 8, 8), hidden_size=WIDTH, depth=DEPTH, num_heads=2, caption_channels=24, model_max_length=CAPTION
    )
    network = STDiT(config).eval().requires_grad_(False)
    features, mask = torch.randn(1, CAPTION, 24), torch.ones(1, CAPTION, dtype=torch.long)
    schedule = NoiseSchedule.named("linear", 1000).respaced(10)
    return network, network.prepare(features, mask), network.null(1, mask), schedule, torch.randn(1, 4, FRAMES, 8, 8)


def guided_step(made, batched=True, scale=7.0):
    """One step of ddpm as the pipeline takes it."""
    network, cond, uncond, schedule, x = made
    level, process, noise = schedule.levels[5], Process(), SampleNoise(0, [0])
    denoiser = GuidedDenoiser(network, Guidance(scale, 3), cond, None if scale == 1 else uncond, batched=batched)
    with torch.inference_mode():
        return count(lambda: ddpm_next(denoiser(x, level), x, level, noise(x), process))


def network_flops(rows):
    """FLOPs of the network by its sizes, for rows of the batch: 2 for each weight that a token meets."""
    d, n = WIDTH, TOKENS
    projections = 2 * n * (4 * d * d) * 2 + 2 * n * (2 * d * d) + 2 * n * (8 * d * d)  # two self-attentions, cross, MLP
    scores = 4 * n * d * (PLACES + FRAMES + CAPTION)  # in space, in time, to the caption
    timestep = 2 * (256 * d + d * d + 6 * d * d)
    patches = 2 * n * (4 * 4 * d + d * 4 * 8)  # in and out
    return rows * (DEPTH * (projections + scores) + timestep + patches)


def check(found, **pinned):
    was = {name: getattr(found, name) for name in pinned}
    assert was == pinned, (
        f"a guided step of the tiny STDiT now costs {was}; here it says {pinned}. Cheaper: write the new numbers. "
        "Dearer: find out what came in."
    )


def test_flops_of_a_guided_step_are_those_of_its_products(made):
    check(guided_step(made), flops=network_flops(2))
    check(guided_step(made, batched=False), flops=network_flops(2))
    check(guided_step(made, scale=1.0), flops=network_flops(1))


@PINNED
def test_operators_and_memory_of_a_guided_step(made):
    check(guided_step(made), operators=109, allocated=1_242_508, peak=240_896)
    check(guided_step(made, batched=False), operators=188, allocated=1_236_380, peak=124_544)
    check(guided_step(made, scale=1.0), operators=100, allocated=628_424, peak=116_352)


@PINNED
def test_a_step_outside_the_network(made):
    *_, schedule, x = made
    level, process, noise, guidance = schedule.levels[5], Process(), SampleNoise(0, [0]), Guidance(7.0, 3)
    cond, uncond = torch.randn(2, 1, 8, *x.shape[2:])
    with torch.inference_mode():
        found = count(lambda: ddpm_next(guidance.combine(cond, uncond, x, level)[0], x, level, noise(x), process))
    check(found, flops=0, operators=23, allocated=36_864)


@PINNED
def test_a_step_outside_the_network_on_large_latents(made, monkeypatch):
    *_, schedule, x = made
    large, level, process = torch.cat([x] * 4, dim=2), schedule.levels[5], Process()
    prediction = torch.randn(2, 8, *large.shape[2:])
    denoiser = GuidedDenoiser(lambda *given: prediction, Guidance(7.0, 3), _Nothing(), _Nothing())
    monkeypatch.setattr(ddpm, "PART", large.numel() // 2)

    def step(memory):
        return ddpm.ddpm_guided_next(denoiser, large, level, SampleNoise(0, [0]), process, memory)

    with torch.inference_mode():
        memory, first = [], count(lambda: step([]))
        step(memory)
        later = count(lambda: step(memory))
    # the doubled batch, x_{t-1}, and at first three pieces of memory of up to two parts each; the rest is single numbers
    latents = 4 * large.numel()
    assert first.allocated - 6 * latents < 100
    assert later.allocated - 3 * latents < 100
    check(first, operators=49)
    check(later, operators=46)


class _Nothing:
    """A condition that is not read."""

    def cat(self, other):
        return self


@PINNED
def test_a_short_caption_is_multiplied_with_the_weights_once():
    d, heads, tokens, places = 256, 4, 5, FRAMES * PLACES
    config = STDiTConfig(
        (FRAMES, 8, 8), hidden_size=d, depth=1, num_heads=heads, caption_channels=24, model_max_length=40
    )
    network = STDiT(config).eval().requires_grad_(False)
    mask = (torch.arange(40) < tokens).long()[None]
    with torch.inference_mode():
        caption = network.prepare(torch.randn(1, 40, 24), mask)
        x, t = torch.randn(1, 4, FRAMES, 8, 8), torch.tensor([500.0])
        network(x, t, caption)
        found = count(lambda: network(x, t, caption))
    products = places * (8 * d * d + 2 * heads * tokens * d + 8 * d * d)  # two attentions, the caption, the MLP
    scores = 2 * places * d * (PLACES + FRAMES)
    check(found, flops=2 * (products + scores + 256 * d + 7 * d * d + places * 48 * d))


@PINNED
def test_a_run_costs_its_steps_and_nothing_else(made):
    network, cond, uncond, schedule, x = made

    def run(steps):
        own, noise = schedule.respaced(steps), SampleNoise(0, [0])
        denoiser = GuidedDenoiser(network, Guidance(7.0, 3), cond, uncond)
        with torch.inference_mode():
            return count(lambda: sample_ddpm(denoiser, own, x, noise))

    one, two, four = run(1), run(2), run(4)
    assert four.flops == 4 * one.flops
    assert four.operators - two.operators == 2 * guided_step(made).operators
