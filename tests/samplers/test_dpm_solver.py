import pytest
import torch

from goldens import relative_error
from guidon.core.errors import InputError
from guidon.diffusion import NoiseSchedule, Process
from guidon.diffusion.spacing import Explicit
from guidon.samplers import SampleNoise, sample_ddim, sample_dpm_solver
from mixture import MixtureDenoiser
from toy_network import normal

FULL = NoiseSchedule.named()
FIXED = Process(variance="fixed_small")


def test_it_is_exact_where_the_predicted_x0_is_constant():
    """Then the ODE is linear, and one step solves it: x = alpha x_0 + (sigma / sigma_T)(x_T - alpha_T x_0)."""
    x, x_0 = normal(2, 3, 4), normal(2, 3, 4, seed=1)
    start, end = FULL.levels[0], FULL.levels[-1]
    expected = end.alpha * x_0 + end.sigma / start.sigma * (x - start.alpha * x_0)
    for steps in (1, 2, 7, 20):
        found = sample_dpm_solver(
            lambda x, level: x_0, FULL, x, torch.randn_like, process=Process("x0", "fixed_small"), steps=steps
        )
        assert relative_error(found, expected) < 1e-5


def test_it_converges_to_the_truth_faster_than_ddim():
    x = SampleNoise(0, range(8)).initial((1, 64))
    truth = sample_ddim(MixtureDenoiser(), FULL, x, SampleNoise(0, range(8)), process=FIXED)

    def error(found):
        return (found - truth).abs().mean().item()

    ddim, solver = [], []
    for steps in (10, 40, 160):
        few = FULL.respaced(str(steps))
        ddim.append(error(sample_ddim(MixtureDenoiser(), few, x, torch.randn_like, process=FIXED)))
        solver.append(
            error(sample_dpm_solver(MixtureDenoiser(), FULL, x, torch.randn_like, process=FIXED, steps=steps))
        )
    assert ddim[0] > 2 * ddim[1] > 4 * ddim[2]
    assert solver[0] > 2 * solver[1]
    assert ddim[2] < 0.02
    assert solver[2] < 0.02
    assert solver[1] < ddim[1]


def test_it_visits_uniform_times_from_noise_to_the_first_step():
    seen = []

    def denoiser(x, level):
        seen.append(level)
        return x

    sample_dpm_solver(denoiser, FULL, normal(1, 1, 2), torch.randn_like, process=FIXED, steps=10)
    assert [level.timestep for level in seen] == pytest.approx([999 - 99.9 * k for k in range(10)])
    assert all(level.next is None for level in seen)


def test_it_ends_at_the_predicted_data_where_timesteps_are_listed_to_the_last():
    times, seen, denoiser = (*range(990, 0, -90), 0), [], MixtureDenoiser(predicts="x0")

    def watched(x, level):
        seen.append(denoiser(x, level))
        return seen[-1]

    found = sample_dpm_solver(
        watched, FULL, normal(2, 1, 8), torch.randn_like, process=Process("x0", "fixed_small"), steps=len(times),
        spacing=Explicit(times),
    )  # fmt: skip
    assert len(seen) == 12
    assert torch.equal(found, seen[-1])


@pytest.mark.parametrize("steps", [0, 1001])
def test_steps_out_of_range_are_refused(steps):
    with pytest.raises(InputError, match=f"a solver was asked for steps {steps}: give 1 to 1000"):
        sample_dpm_solver(MixtureDenoiser(), FULL, torch.zeros(1, 1, 2), torch.randn_like, steps=steps)
