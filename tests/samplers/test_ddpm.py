import pytest
import torch

from goldens import golden, relative_error
from guidon.diffusion import NoiseSchedule, Process
from guidon.samplers import SampleNoise, ddpm_step, sample_ddpm
from mixture import MixtureDenoiser, mean_and_variance
from single_steps import STEP_CASES, process_of
from toy_network import normal

FULL = NoiseSchedule.named()


@pytest.mark.parametrize("name", STEP_CASES)
def test_single_steps_equal_the_originals(name):
    g, case = golden(name)
    level = FULL.respaced(case["timestep_respacing"]).at(g["t"], g["x"])
    for clip in (False, True):
        out, _ = ddpm_step(g["model_output"], g["x"], level, g["noise"], process_of(case, clip))
        assert relative_error(out, g[f"clip{int(clip)}.p_sample"]) < 1e-5


@pytest.mark.parametrize("step", [0, 7])
def test_one_level_for_the_batch_and_one_for_every_sample_agree(step):
    schedule = FULL.respaced("20")
    x, prediction, noise = normal(2, 4, 3), normal(2, 8, 3, seed=1), normal(2, 4, 3, seed=2)
    one = ddpm_step(prediction, x, schedule.levels[19 - step], noise, Process())
    many = ddpm_step(prediction, x, schedule.at(torch.full((2,), step), x), noise, Process())
    assert torch.equal(one[0], many[0])
    assert torch.equal(one[1], many[1])


def test_the_last_step_adds_no_noise():
    level, x, prediction = FULL.levels[-1], normal(2, 4, 3), normal(2, 8, 3, seed=1)
    quiet, loud = (ddpm_step(prediction, x, level, scale * torch.ones(2, 4, 3), Process())[0] for scale in (0, 100))
    assert torch.equal(quiet, loud)


def test_samples_have_the_mean_and_variance_of_the_data():
    noise = SampleNoise(3, range(4))
    x = sample_ddpm(MixtureDenoiser(), FULL, noise.initial((1, 4096)), noise, process=Process(variance="fixed_small"))
    mean, variance = mean_and_variance()
    assert x.mean().item() == pytest.approx(mean, abs=0.05)
    assert x.var().item() == pytest.approx(variance, rel=0.05)
