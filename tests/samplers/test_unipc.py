import torch

from goldens import relative_error
from guidon.diffusion import NoiseSchedule, Process
from guidon.diffusion.spacing import parse_spacing
from guidon.samplers import SampleNoise, sample_ddim, sample_dpm_solver, sample_unipc
from mixture import MixtureDenoiser
from toy_network import normal

FULL = NoiseSchedule.named()
FIXED = Process("eps", "fixed_small")
LOGSNR = parse_spacing("logsnr")


def test_it_is_exact_where_the_predicted_x0_is_constant():
    x_0 = normal(2, 3, 4, seed=1)
    for steps in (1, 2, 7):
        found = sample_unipc(
            lambda x, level: x_0, FULL, normal(2, 3, 4), torch.randn_like, process=Process("x0", "fixed_small"),
            steps=steps,
        )  # fmt: skip
        assert relative_error(found, x_0) < 1e-5


def test_it_is_nearer_to_the_truth_than_the_solver_without_a_corrector():
    x = SampleNoise(0, range(8)).initial((1, 64))
    truth = sample_ddim(MixtureDenoiser(), FULL, x, SampleNoise(0, range(8)), process=FIXED)
    errors = {}
    for steps in (10, 20, 40):
        for name, sample in (("unipc", sample_unipc), ("dpm-solver", sample_dpm_solver)):
            found = sample(MixtureDenoiser(), FULL, x, torch.randn_like, process=FIXED, steps=steps, spacing=LOGSNR)
            errors[name, steps] = (found - truth).abs().mean().item()
    assert errors["unipc", 10] > 2 * errors["unipc", 20] > 4 * errors["unipc", 40]
    assert all(errors["unipc", steps] < 0.8 * errors["dpm-solver", steps] for steps in (20, 40))
    assert errors["unipc", 40] < 0.01


def test_the_corrector_costs_no_calls():
    calls = []

    def denoiser(x, level):
        calls.append(level.timestep)
        return x

    sample_unipc(denoiser, FULL, normal(1, 1, 2), torch.randn_like, process=FIXED, steps=9)
    assert len(calls) == 9
