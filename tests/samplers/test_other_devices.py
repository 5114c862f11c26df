"""Batches on another device than the levels. The meta device stands for any: it checks devices and computes nothing."""

import pytest
import torch

from guidon import IDDPM
from guidon.diffusion import (
    FlowPath,
    NoiseSchedule,
    Process,
    bits_per_dimension,
    q_sample,
    training_losses,
    velocity_loss,
)
from guidon.guidance import RULES, Guidance, GuidanceTrace, GuidedDenoiser, RotatedGuidance, WeakModel
from guidon.samplers import (
    FrameMask,
    ddim_reverse_step,
    sample_ddim,
    sample_ddpm,
    sample_dpm_solver,
    sample_euler,
    sample_heun,
)
from toy_network import Caption

DEVICE = "meta"
VARIANCES = ["learned_range", "fixed_large", "fixed_small"]


@pytest.fixture
def latents():
    return torch.empty(2, 4, 2, 4, 4, device=DEVICE)


@pytest.fixture
def schedule():
    """A schedule whose levels were made on the CPU."""
    schedule = NoiseSchedule.named().respaced(3)
    assert schedule.levels[0].log_betas.device.type == "cpu"
    return schedule


def network(learned):
    return lambda x, level, cond=None: torch.cat([x, x], 1) if learned else x


@pytest.mark.parametrize("variance", VARIANCES)
def test_samplers_and_losses_run_where_the_latents_are(schedule, latents, variance):
    denoiser, process = network("range" in variance), Process(variance=variance)
    noise = torch.empty_like
    assert sample_ddpm(denoiser, schedule, latents, noise, process=process).device.type == DEVICE
    assert sample_ddim(denoiser, schedule, latents, noise, process=process, eta=0.5).device.type == DEVICE
    assert sample_dpm_solver(denoiser, schedule, latents, noise, process=process, steps=3).device.type == DEVICE
    for level in schedule.levels:
        assert ddim_reverse_step(denoiser(latents, level), latents, level, process)[0].device.type == DEVICE
    bound = bits_per_dimension(denoiser, latents, noise, schedule, process)
    assert {value.device.type for value in vars(bound).values()} == {DEVICE}
    own = schedule.at(torch.tensor([0, 2], device=DEVICE), latents)
    for level in (*schedule.levels, own):
        x_t = q_sample(latents, level, latents)
        for kind in ("mse", "rescaled_mse", "kl", "rescaled_kl"):
            terms = training_losses(denoiser(x_t, level), latents, x_t, level, latents, process, kind=kind)
            assert {value.device.type for value in terms.values()} == {DEVICE}


@pytest.mark.parametrize("sampler", [sample_euler, sample_heun])
def test_the_samplers_of_a_flow_run_where_the_latents_are(latents, sampler):
    made = torch.ones(2, 2)
    for frames in (None, FrameMask(made), FrameMask(made, clean=latents, replace=True)):
        found = sampler(network(True), FlowPath(steps=3), latents, torch.empty_like, frames=frames)
        assert found.device.type == DEVICE
    level = FlowPath().at(torch.ones(2, device=DEVICE), latents)
    assert velocity_loss(q_sample(latents, level, latents), latents, latents).device.type == DEVICE


@pytest.mark.parametrize("rule", RULES)
def test_guidance_runs_where_the_latents_are(schedule, latents, rule):
    condition = Caption(torch.empty(2, device=DEVICE), torch.empty(2, 8, device=DEVICE))
    for scale in (0.5, [0.5, 1.0, 0.2, 0.3]):
        plain = Guidance(scale, "all", rule)
        for guidance in (plain, RotatedGuidance(plain, torch.empty(4, 4, device=DEVICE))):
            run = GuidedDenoiser(
                network(True),
                guidance,
                condition,
                condition,
                negative=condition,
                imageless=condition if plain.needs_imageless else None,
                observe=GuidanceTrace(),
                weak=WeakModel(network(True), condition),
            )
            assert all(run(latents, level).device.type == DEVICE for level in schedule.levels)


@pytest.mark.parametrize("settings", [{}, {"learn_sigma": False}, {"learn_sigma": False, "sigma_small": True}])
def test_iddpm_runs_where_the_latents_are(latents, settings):
    scheduler, learned = IDDPM(3, cfg_channels=3, **settings), settings.get("learn_sigma", True)
    t = torch.tensor([0, 2], device=DEVICE)

    def model(x, t, y=None, x_mask=None):
        assert t.device.type == DEVICE
        return network(learned)(x, t)

    found = [
        *scheduler.p_mean_variance(model, latents, t).values(),
        *scheduler.p_sample(model, latents, t).values(),
        *scheduler.ddim_sample(model, latents, t).values(),
        *scheduler.ddim_reverse_sample(model, latents, t).values(),
        *scheduler.training_losses(model, latents, t).values(),
        *scheduler.calc_bpd_loop(model, latents).values(),
        *scheduler.q_mean_variance(latents, t),
        *scheduler.q_posterior_mean_variance(latents, latents, t),
        scheduler.p_sample_loop(model, latents.shape, device=DEVICE),
        scheduler.ddim_sample_loop(model, latents.shape, latents),
    ]
    assert {value.device.type for value in found} == {DEVICE}

    class Words:
        def encode(self, prompts):
            return {"y": torch.empty(len(prompts), device=DEVICE)}

        def null(self, rows):
            return torch.empty(rows, device=DEVICE)

    whole = scheduler.sample(model, Words(), (4, 2, 4, 4), ["a", "b"], DEVICE)
    edited = scheduler.sample(model, Words(), latents, ["a", "b"], mask=torch.empty(2, 2, device=DEVICE))
    assert {whole.device.type, edited.device.type} == {DEVICE}
