import math

import torch

from goldens import relative_error
from guidon.diffusion import NoiseSchedule, Process
from guidon.diffusion.spacing import Explicit, parse_spacing
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


def reference(x, times):
    """The authors' arithmetic with B_2, in multistep form of second order: weights solve a system of equations."""
    levels, denoiser, past = [FULL.between((t + 1) / 1000) for t in times], MixtureDenoiser(), []

    def half_log_snr(level):
        return math.log(level.alpha / level.sigma)

    def weights(ratios, hh):
        if len(ratios) == 1:
            return [0.5]
        phi, factorial, right = math.expm1(hh) / hh - 1, 1, []
        for k in range(2, len(ratios) + 2):
            right.append(phi * factorial / math.expm1(hh))
            factorial *= k
            phi = phi / hh - 1 / factorial
        left = torch.tensor([[ratio**k for ratio in ratios] for k in range(len(ratios))])
        return torch.linalg.solve(left, torch.tensor(right)).tolist()

    def moved(sample, level, others):
        """From the last level to another one, by the predictions at the last level and at others."""
        last, own = past[0]
        hh = half_log_snr(last) - half_log_snr(level)
        ratios = [(half_log_snr(last) - half_log_snr(other)) / hh for other, _ in others]
        slopes = [(clean - own) / ratio for (_, clean), ratio in zip(others, ratios, strict=True)]
        bend = sum(w * slope for w, slope in zip(weights(ratios, hh), slopes, strict=True)) if others else 0
        return level.sigma / last.sigma * sample - level.alpha * math.expm1(hh) * (own + bend)

    sample, before = x, None
    for k, level in enumerate(levels):
        clean = (sample - level.sigma * denoiser(sample, level)) / level.alpha
        if k == len(levels) - 1:
            return clean
        sample = sample if before is None else moved(before, level, [*past[1:2], (level, clean)])
        past = [(level, clean), *past]
        before, sample = sample, moved(sample, levels[k + 1], past[1:2])
    raise AssertionError


def test_a_run_is_that_of_the_authors_arithmetic():
    times, x = (999, 800, 600, 420, 300, 200, 120, 60, 20, 3), normal(4, 1, 16)
    found = sample_unipc(MixtureDenoiser(), FULL, x, torch.randn_like, process=FIXED, steps=10, spacing=Explicit(times))
    assert relative_error(found, reference(x, times)) < 1e-5


def test_the_corrector_costs_no_calls():
    calls = []

    def denoiser(x, level):
        calls.append(level.timestep)
        return x

    sample_unipc(denoiser, FULL, normal(1, 1, 2), torch.randn_like, process=FIXED, steps=9)
    assert len(calls) == 9
