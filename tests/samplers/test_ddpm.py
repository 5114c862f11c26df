import pytest
import torch

from goldens import golden, relative_error
from guidon.diffusion import NoiseSchedule, Process
from guidon.samplers import SampleNoise, ddpm_step, sample_ddpm
from guidon.samplers.ddpm import ddpm_next
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


@pytest.mark.parametrize("variance", ["learned_range", "clamped_range", "fixed_small"])
@pytest.mark.parametrize("parameterization", ["eps", "x0", "v"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_step_that_reuses_memory_gives_the_same_bits_and_changes_nothing(variance, parameterization, dtype):
    schedule = FULL.respaced("20")
    for clip, shape in ((False, (2, 4, 3, 7, 5)), (True, (3, 3, 17)), (False, (1, 16, 33, 31))):
        process = Process(parameterization, variance, clip)
        given = normal(*shape).to(dtype), normal(*shape, seed=1).to(dtype)
        prediction = 1.5 * normal(shape[0], 2 * shape[1], *shape[2:], seed=2)
        for level in (*schedule.levels[::6], FULL.levels[500]):
            x, noise = (each.clone() for each in given)
            kept = prediction.clone()
            found = ddpm_next(kept, x, level, noise, process)
            assert torch.equal(found, ddpm_step(prediction, given[0], level, given[1], process)[0])
            assert all(torch.equal(*pair) for pair in ((x, given[0]), (noise, given[1]), (kept, prediction)))


def test_a_step_can_be_differentiated():
    x, prediction, noise = normal(2, 4, 3), normal(2, 8, 3, seed=1).requires_grad_(), normal(2, 4, 3, seed=2)
    found = [step(prediction, x, FULL.levels[500], noise, Process()) for step in (ddpm_next, ddpm_step)]
    gradients = [torch.autograd.grad(out.sum(), prediction)[0] for out in (found[0], found[1][0])]
    assert torch.equal(*gradients)
    assert gradients[0].abs().sum() > 0


def test_samples_have_the_mean_and_variance_of_the_data():
    noise = SampleNoise(3, range(4))
    x = sample_ddpm(MixtureDenoiser(), FULL, noise.initial((1, 4096)), noise, process=Process(variance="fixed_small"))
    mean, variance = mean_and_variance()
    assert x.mean().item() == pytest.approx(mean, abs=0.05)
    assert x.var().item() == pytest.approx(variance, rel=0.05)
