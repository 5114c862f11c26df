import pytest
import torch

from goldens import golden, relative_error
from guidon.core.errors import InputError
from guidon.diffusion import NoiseSchedule, Process
from guidon.guidance import ChannelScale, GuidedDenoiser
from guidon.models.stdit.network import STDiT, STDiTConfig
from guidon.samplers import (
    LegacyNoise,
    SampleNoise,
    ddim_reverse_step,
    ddim_step,
    ddpm_step,
    sample_ddim,
    sample_ddpm,
    sample_dpm_solver,
)
from mixture import MixtureDenoiser, mean_and_variance

FULL = NoiseSchedule.named()
FIXED = Process(variance="fixed_small")
STEP_CASES = [
    f"step/{kind}_{steps}"
    for kind in ("learned_range", "fixed_large", "fixed_small", "predict_xstart")
    for steps in ("50", "full")
]


@pytest.mark.parametrize("name", STEP_CASES)
def test_single_steps_equal_the_originals(name):
    g, case = golden(name)
    tables = FULL.respaced(case["timestep_respacing"]).tables()
    x0 = case["variance"] == "predict_xstart"
    for clip in (False, True):
        process = Process("x0" if x0 else "eps", "learned_range" if x0 else case["variance"], clip)
        arguments = g["model_output"], g["x"], g["t"]
        prefix = f"clip{int(clip)}."
        assert relative_error(ddpm_step(*arguments, g["noise"], tables, process)[0], g[prefix + "p_sample"]) < 1e-5
        for eta in (0.0, 0.5, 1.0):
            out, _ = ddim_step(*arguments, g["noise"], tables, process, eta)
            assert relative_error(out, g[f"{prefix}ddim_eta{eta}"]) < 1e-5
        assert relative_error(ddim_reverse_step(*arguments, tables, process)[0], g[prefix + "ddim_reverse"]) < 1e-5


def test_an_int_step_and_a_tensor_of_it_agree():
    tables = FULL.respaced("20").tables()
    x, prediction, noise = torch.randn(2, 4, 3), torch.randn(2, 8, 3), torch.randn(2, 4, 3)
    for step in (0, 7):
        many = torch.full((2,), step)
        assert torch.equal(
            ddpm_step(prediction, x, step, noise, tables, Process())[0],
            ddpm_step(prediction, x, many, noise, tables, Process())[0],
        )
        assert torch.equal(
            ddim_step(prediction, x, step, noise, tables, Process(), 1.0)[0],
            ddim_step(prediction, x, many, noise, tables, Process(), 1.0)[0],
        )


@pytest.mark.parametrize("kind", ["8", "20", "dpm10", "dpm20"])
@pytest.mark.parametrize("model", ["a", "b"])
def test_whole_guided_runs_equal_open_sora(model, kind):
    weights, case = golden(f"stdit/{model}")
    network = STDiT(STDiTConfig(**case["config"]))
    network.load_state_dict(
        {key.removeprefix("weights."): value for key, value in weights.items() if key.startswith("weights.")}
    )
    g, run = golden(f"sample/stdit_{model}_{kind}")
    scale = ChannelScale.parse(run["cfg_scale"], run["cfg_channels"], channels=4)
    with torch.no_grad():
        cond, uncond = network.prepare(g["y"], g["mask"]), network.null(2, g["mask"])
        torch.manual_seed(run["seed"])
        noise = LegacyNoise()
        x = noise.initial((2, 4, *case["config"]["input_size"]))
        if kind.startswith("dpm"):
            out = sample_dpm_solver(
                GuidedDenoiser(network, cond, uncond, scale, FULL), FULL, x, noise, steps=run["num_sampling_steps"]
            )
        else:
            schedule = FULL.respaced(kind)
            out = sample_ddpm(GuidedDenoiser(network, cond, uncond, scale, schedule), schedule, x, noise)
    assert relative_error(out, g["sample"]) < 1e-4


def test_ddim_and_dpm_solver_converge_to_the_truth():
    x = SampleNoise(0, range(8)).initial((1, 64))
    truth = sample_ddim(MixtureDenoiser(FULL), FULL, x, SampleNoise(0, range(8)), process=FIXED)
    ddim, solver = [], []
    for steps in (10, 40, 160):
        few = FULL.respaced(str(steps))
        ddim.append(
            (sample_ddim(MixtureDenoiser(few), few, x, torch.randn_like, process=FIXED) - truth).abs().mean().item()
        )
        solver.append(
            (sample_dpm_solver(MixtureDenoiser(FULL), FULL, x, torch.randn_like, process=FIXED, steps=steps) - truth)
            .abs()
            .mean()
            .item()
        )
    assert ddim[0] > 2 * ddim[1] > 4 * ddim[2]
    assert solver[0] > 2 * solver[1]
    assert ddim[2] < 0.02
    assert solver[2] < 0.02
    assert solver[1] < ddim[1]


@pytest.mark.parametrize("sampler", [sample_ddpm, sample_ddim, sample_dpm_solver])
def test_what_a_network_predicts_does_not_matter(sampler):
    x, schedule = SampleNoise(0, range(2)).initial((1, 64)), FULL.respaced("20")
    if sampler is sample_dpm_solver:
        schedule = FULL
    by = {
        kind: sampler(
            MixtureDenoiser(schedule, predicts=kind),
            schedule,
            x,
            SampleNoise(1, range(2)),
            process=Process(kind, "fixed_small"),
        )
        for kind in ("eps", "x0", "v")
    }
    assert relative_error(by["x0"], by["eps"]) < 1e-4
    assert relative_error(by["v"], by["eps"]) < 1e-4


@pytest.mark.parametrize(("sampler", "options"), [(sample_ddpm, {}), (sample_ddim, {"eta": 1.0})])
def test_ancestral_samples_have_the_mean_and_variance_of_the_data(sampler, options):
    noise = SampleNoise(3, range(4))
    x = sampler(MixtureDenoiser(FULL), FULL, noise.initial((1, 4096)), noise, process=FIXED, **options)
    mean, variance = mean_and_variance()
    assert x.mean().item() == pytest.approx(mean, abs=0.05)
    assert x.var().item() == pytest.approx(variance, rel=0.05)


def test_ddim_inverted_and_sampled_again_comes_back():
    schedule = FULL.respaced("250")
    tables, denoiser = schedule.tables(), MixtureDenoiser(schedule)
    start = torch.linspace(-1.5, 2.0, 50).view(1, 1, 50)
    x = start
    for step in range(len(schedule) - 1):
        x, _ = ddim_reverse_step(denoiser(x, step), x, step, tables, FIXED)
    for step in reversed(range(len(schedule))):
        x, _ = ddim_step(denoiser(x, step), x, step, None, tables, FIXED)
    assert (x - start).abs().max() < 0.1


def test_a_sample_does_not_depend_on_its_batch_mates():
    together, alone = SampleNoise(7, [0, 1, 2]), SampleNoise(7, [2])
    assert torch.equal(together.initial((4, 3, 5))[2:], alone.initial((4, 3, 5)))
    x = torch.zeros(3, 4, 3, 5)
    assert torch.equal(together(x)[2:], alone(x[2:]))
    assert not torch.equal(SampleNoise(8, [2]).initial((4, 3, 5)), SampleNoise(7, [2]).initial((4, 3, 5)))


def test_noise_is_standard_normal_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    values = SampleNoise(0, range(10)).initial((10000,))
    assert torch.equal(torch.randn(3), expected)
    assert values.mean().abs() < 0.02
    assert abs(values.std() - 1) < 0.02


def test_legacy_noise_replays_the_doubled_batch():
    torch.manual_seed(1)
    z, first = torch.randn(2, 3), torch.randn(4, 3)
    torch.manual_seed(1)
    noise = LegacyNoise()
    assert torch.equal(noise.initial((2, 3)), z)
    assert torch.equal(noise(z), first[:2])


@pytest.mark.parametrize("sampler", [sample_ddpm, sample_ddim, sample_dpm_solver])
def test_progress_is_reported_after_every_step(sampler):
    schedule, seen = FULL.respaced("5"), []
    options = {"steps": 5} if sampler is sample_dpm_solver else {}
    sampler(
        MixtureDenoiser(schedule, FULL),
        FULL if options else schedule,
        torch.zeros(1, 1, 2),
        torch.zeros_like,
        process=FIXED,
        on_step=lambda *a: seen.append(a[:2]),
        **options,
    )
    assert seen == [(k, 5) for k in range(1, 6)]


def test_settings_out_of_range_are_refused():
    x = torch.zeros(1, 1, 2)
    with pytest.raises(InputError, match=r"eta 1\.5"):
        sample_ddim(MixtureDenoiser(FULL), FULL, x, torch.randn_like, eta=1.5)
    with pytest.raises(InputError, match="give 1 to 1000"):
        sample_dpm_solver(MixtureDenoiser(FULL), FULL, x, torch.randn_like, steps=1001)


@pytest.mark.parametrize(("name", "steps"), [("linear", 2), ("squaredcos_cap_v2", 3), ("squaredcos_cap_v2", 8)])
def test_ddim_as_noisy_as_ddpm_stays_finite_in_few_steps(name, steps):
    schedule = NoiseSchedule.named(name, 1000).respaced(steps)
    noise = SampleNoise(0, [0])
    x = sample_ddim(
        lambda x, step: torch.zeros_like(x),
        schedule,
        noise.initial((4, 3, 3)),
        noise,
        eta=1.0,
        process=Process(variance="fixed_small"),
    )
    assert x.isfinite().all()
