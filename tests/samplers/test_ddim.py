import pytest
import torch

from goldens import golden, relative_error
from guidon.core.errors import InputError
from guidon.diffusion import NoiseSchedule, Process
from guidon.samplers import SampleNoise, ddim_reverse_step, ddim_step, sample_ddim
from mixture import MixtureDenoiser, mean_and_variance
from single_steps import STEP_CASES, process_of
from toy_network import normal

FULL = NoiseSchedule.named()
FIXED = Process(variance="fixed_small")


@pytest.mark.parametrize("name", STEP_CASES)
def test_single_steps_equal_the_originals(name):
    g, case = golden(name)
    level = FULL.respaced(case["timestep_respacing"]).at(g["t"], g["x"])
    for clip in (False, True):
        process, prefix = process_of(case, clip), f"clip{int(clip)}."
        for eta in (0.0, 0.5, 1.0):
            out, _ = ddim_step(g["model_output"], g["x"], level, g["noise"], process, eta)
            assert relative_error(out, g[f"{prefix}ddim_eta{eta}"]) < 1e-5
        out, _ = ddim_reverse_step(g["model_output"], g["x"], level, process)
        assert relative_error(out, g[prefix + "ddim_reverse"]) < 1e-5


@pytest.mark.parametrize("step", [0, 7])
def test_one_level_for_the_batch_and_one_for_every_sample_agree(step):
    schedule = FULL.respaced("20")
    x, prediction, noise = normal(2, 4, 3), normal(2, 8, 3, seed=1), normal(2, 4, 3, seed=2)
    one, many = schedule.levels[19 - step], schedule.at(torch.full((2,), step), x)
    for eta in (0.0, 1.0):
        shared, own = (ddim_step(prediction, x, level, noise, Process(), eta)[0] for level in (one, many))
        assert torch.equal(shared, own)
    assert torch.equal(*(ddim_reverse_step(prediction, x, level, Process())[0] for level in (one, many)))


def test_samples_have_the_mean_and_variance_of_the_data():
    noise = SampleNoise(3, range(4))
    x = sample_ddim(MixtureDenoiser(), FULL, noise.initial((1, 4096)), noise, process=FIXED, eta=1.0)
    mean, variance = mean_and_variance()
    assert x.mean().item() == pytest.approx(mean, abs=0.05)
    assert x.var().item() == pytest.approx(variance, rel=0.05)


def test_a_run_is_its_steps_with_new_noise_in_each():
    schedule, noise = FULL.respaced("4"), SampleNoise(3, range(2))
    x = normal(2, 1, 8)
    found = sample_ddim(MixtureDenoiser(), schedule, x, noise, process=FIXED, eta=0.5)
    again = SampleNoise(3, range(2))
    for level in schedule.levels:
        x, _ = ddim_step(MixtureDenoiser()(x, level), x, level, again(x), FIXED, 0.5)
    assert torch.equal(found, x)


def test_data_inverted_and_sampled_again_comes_back():
    schedule, denoiser = FULL.respaced("250"), MixtureDenoiser()
    start = torch.linspace(-1.5, 2.0, 50).view(1, 1, 50)
    x = start
    for level in reversed(schedule.levels[1:]):
        x, _ = ddim_reverse_step(denoiser(x, level), x, level, FIXED)
    for level in schedule.levels:
        x, _ = ddim_step(denoiser(x, level), x, level, None, FIXED)
    assert (x - start).abs().max() < 0.1


def test_no_noise_is_drawn_at_eta_0():
    def refuse(x):
        raise AssertionError("noise was drawn")

    x = normal(1, 1, 8)
    assert sample_ddim(MixtureDenoiser(), FULL.respaced("5"), x, refuse, process=FIXED).isfinite().all()


def test_eta_out_of_range_is_refused():
    x = torch.zeros(1, 1, 2)
    for eta in (1.5, -0.1):
        with pytest.raises(InputError, match=rf"eta {eta:g} is outside \[0, 1\]"):
            sample_ddim(MixtureDenoiser(), FULL, x, torch.randn_like, eta=eta)


@pytest.mark.parametrize(("name", "steps"), [("linear", 2), ("squaredcos_cap_v2", 3), ("squaredcos_cap_v2", 8)])
def test_as_noisy_as_ddpm_it_stays_finite_in_few_steps(name, steps):
    schedule, noise = NoiseSchedule.named(name, 1000).respaced(steps), SampleNoise(0, [0])
    x = noise.initial((4, 3, 3))
    assert (
        sample_ddim(lambda x, level: torch.zeros_like(x), schedule, x, noise, eta=1.0, process=FIXED).isfinite().all()
    )
