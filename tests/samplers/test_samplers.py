"""What all samplers have in common."""

from functools import partial

import pytest
import torch

from goldens import golden, relative_error
from guidon.diffusion import FlowPath, NoiseSchedule, Process
from guidon.diffusion.spacing import Explicit
from guidon.guidance import Guidance, GuidedDenoiser
from guidon.models.stdit.network import STDiT, STDiTConfig
from guidon.samplers import (
    LegacyNoise,
    SampleNoise,
    sample_ddim,
    sample_ddpm,
    sample_dpm_solver,
    sample_dpm_solver_sde,
    sample_euler,
    sample_heun,
    sample_unipc,
)
from mixture import MixtureDenoiser
from toy_network import normal

FULL = NoiseSchedule.named()
FIXED = Process(variance="fixed_small")
every_sampler = pytest.mark.parametrize("sampler", [sample_ddpm, sample_ddim, sample_dpm_solver])


@pytest.mark.parametrize("kind", ["8", "20", "dpm10", "dpm20"])
@pytest.mark.parametrize("model", ["a", "b"])
def test_whole_guided_runs_equal_open_sora(model, kind):
    weights, case = golden(f"stdit/{model}")
    network = STDiT(STDiTConfig(**case["config"]))
    network.load_state_dict(
        {key.removeprefix("weights."): value for key, value in weights.items() if key.startswith("weights.")}
    )
    g, run = golden(f"sample/stdit_{model}_{kind}")
    with torch.no_grad():
        cond, uncond = network.prepare(g["y"], g["mask"]), network.null(2, g["mask"])
        torch.manual_seed(run["seed"])
        noise = LegacyNoise()
        x = noise.initial((2, 4, *case["config"]["input_size"]))
        denoiser = GuidedDenoiser(network, Guidance(run["cfg_scale"], run["cfg_channels"]), cond, uncond)
        if kind.startswith("dpm"):
            out = sample_dpm_solver(denoiser, FULL, x, noise, steps=run["num_sampling_steps"])
        else:
            out = sample_ddpm(denoiser, FULL.respaced(kind), x, noise)
    assert relative_error(out, g["sample"]) < 1e-4


@every_sampler
def test_the_sample_does_not_depend_on_what_the_network_predicts(sampler):
    x = SampleNoise(0, range(2)).initial((1, 64))
    schedule = FULL if sampler is sample_dpm_solver else FULL.respaced("20")
    by = {
        kind: sampler(
            MixtureDenoiser(predicts=kind),
            schedule,
            x,
            SampleNoise(1, range(2)),
            process=Process(kind, "fixed_small"),
        )
        for kind in ("eps", "x0", "v", "flow")
    }
    for kind in ("x0", "v", "flow"):
        assert relative_error(by[kind], by["eps"]) < 1e-4, kind


@pytest.mark.parametrize("sampler", [sample_dpm_solver, sample_dpm_solver_sde, sample_unipc])
def test_solvers_of_continuous_time_clamp_the_clean_sample_where_the_process_does(sampler):
    def sampled(process, low, high):
        noise = SampleNoise(1, range(2))
        return sampler(lambda x, _: (2 * x).clamp(low, high), FULL, normal(2, 1, 8), noise, process=process, steps=4)

    by_process = sampled(Process("x0", "fixed_small", clip_denoised=True), -9, 9)
    assert torch.equal(by_process, sampled(Process("x0", "fixed_small"), -1, 1))
    assert not torch.equal(by_process, sampled(Process("x0", "fixed_small"), -9, 9))


@pytest.mark.parametrize(
    "sampler",
    [sample_dpm_solver, sample_dpm_solver_sde, partial(sample_dpm_solver_sde, order=3), sample_unipc],
    ids=["2m", "2m-sde", "3m-sde", "unipc"],
)
@pytest.mark.parametrize("changes", [(1,), (1, 2)])
def test_a_multistep_solver_begins_anew_where_the_sample_was_changed(sampler, changes):
    timesteps, other = (999, 850, 700, 500, 300, 100), normal(2, 1, 8, seed=1)

    def sampled(x, first, after_step=None):
        listed = Explicit(timesteps[first:])
        options = {"process": FIXED, "steps": len(listed.timesteps), "spacing": listed, "after_step": after_step}
        return sampler(MixtureDenoiser(), FULL, x, torch.zeros_like, **options)

    def change(step, level, x):
        if step in changes:
            x[0, :, :4] = other[0, :, :4]  # in place, too
            return torch.cat([torch.cat([x[:1, :, :4], other[:1, :, 4:]], 2), x[1:]])
        return x

    start = normal(2, 1, 8)
    found, kept, anew = sampled(start, 0, change), sampled(start, 0), sampled(other, max(changes) + 1)
    assert torch.equal(found[0], anew[0])  # nothing is left of the steps before
    assert torch.equal(found[1], kept[1])
    assert torch.equal(sampled(start, 0, lambda step, level, x: x), kept)


@every_sampler
def test_progress_is_reported_after_every_step(sampler):
    seen = []
    options = {"steps": 5} if sampler is sample_dpm_solver else {}
    sampler(
        MixtureDenoiser(),
        FULL if options else FULL.respaced("5"),
        torch.zeros(1, 1, 2),
        torch.zeros_like,
        process=FIXED,
        on_step=lambda done, total: seen.append((done, total)),
        **options,
    )
    assert seen == [(k, 5) for k in range(1, 6)]


class Checking:
    """A denoiser that checks its predictions, and notes what it is asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, x, level):
        self.asked.append("prediction")
        return torch.zeros_like(x)

    def finish(self):
        self.asked.append("finish")


@pytest.mark.parametrize(
    ("sampler", "schedule", "options"),
    [
        *((sampler, FULL.respaced("5"), {"process": FIXED}) for sampler in (sample_ddpm, sample_ddim)),
        (sample_dpm_solver, FULL, {"process": FIXED, "steps": 5}),
        (sample_euler, FlowPath(steps=5), {}),
        (sample_heun, FlowPath(steps=3), {}),
    ],
)
def test_the_last_prediction_is_looked_at_before_the_run_ends(sampler, schedule, options):
    denoiser = Checking()
    sampler(denoiser, schedule, normal(1, 1, 2), torch.zeros_like, **options)
    assert denoiser.asked == ["prediction"] * 5 + ["finish"]


@every_sampler
def test_the_noise_that_it_starts_from_is_left_alone(sampler):
    x = normal(2, 1, 8)
    before = x.clone()
    schedule = FULL if sampler is sample_dpm_solver else FULL.respaced("5")
    sampler(MixtureDenoiser(), schedule, x, torch.zeros_like, process=FIXED)
    assert torch.equal(x, before)


@pytest.mark.parametrize("sampler", [sample_ddpm, sample_ddim])
def test_every_level_is_visited_once_from_noise_to_data(sampler):
    seen, schedule = [], FULL.respaced("7")

    def denoiser(x, level):
        seen.append(level)
        return torch.zeros_like(x)

    sampler(denoiser, schedule, normal(1, 1, 2), torch.zeros_like, process=FIXED)
    assert seen == list(schedule.levels)
