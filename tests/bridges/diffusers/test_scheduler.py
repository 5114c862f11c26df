"""IDDPM's sampler as a diffusers scheduler."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import guidon
from guidon.bridges.diffusers.scheduler import IDDPMScheduler
from guidon.core.errors import InputError
from guidon.diffusion import NoiseLevel, NoiseSchedule, Process, space_timesteps
from guidon.samplers.ddpm import ddpm_step, sample_ddpm
from tiny_pipelines import PIPELINES, in_dtype, record, run

FAMILIES = {tiny.name: tiny for tiny in PIPELINES}


def toy(x: Tensor, timestep: float) -> Tensor:
    """A prediction of 2C channels with a variance inside its range."""
    mixed = torch.cat([x.roll(1, 1) * 0.9, x.sin()], dim=1)
    return mixed + timestep / 1e4


def sampled(scheduler: IDDPMScheduler, steps: int, seed: int = 0) -> Tensor:
    """A run of the scheduler on the toy network."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(9))
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        x = scheduler.step(toy(scheduler.scale_model_input(x, t), float(t)), t, x, generator=generator).prev_sample
    return x


@pytest.mark.parametrize(("respacing", "steps"), [("", 20), ("", 7), ("ddim50", 50), ("10,10", 20), ("3,4,5", 12)])
@pytest.mark.parametrize(
    ("settings", "process"),
    [
        ({}, Process()),
        ({"variance_type": "clamped_range", "prediction_type": "sample"}, Process("x0", "clamped_range")),
        ({"variance_type": "fixed_small_log", "prediction_type": "v_prediction"}, Process("v", "fixed_small")),
        ({"variance_type": "fixed_large", "clip_sample": True}, Process("eps", "fixed_large", True)),
    ],
)
def test_a_run_is_that_of_the_sampler(respacing: str, steps: int, settings: dict[str, Any], process: Process) -> None:
    generator = torch.Generator().manual_seed(0)
    expected = sample_ddpm(
        lambda x, level: toy(x, float(level.timestep)),
        NoiseSchedule.named("linear").respaced(respacing or str(steps)),
        torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(9)),
        lambda x: torch.randn(x.shape, generator=generator),
        process=process,
    )
    assert torch.equal(sampled(IDDPMScheduler(respacing=respacing, **settings), steps), expected)


def test_the_timesteps_are_openais() -> None:
    scheduler = IDDPMScheduler()
    for respacing, steps in (("", 100), ("ddim25", 25), ("10,15,20", 45)):
        scheduler = IDDPMScheduler(respacing=respacing)
        scheduler.set_timesteps(steps)
        assert scheduler.timesteps.tolist() == space_timesteps(1000, respacing or str(steps))[::-1]
    scheduler.set_timesteps(45, device="cpu")
    assert scheduler.num_inference_steps == 45


def test_noise_comes_from_the_generator() -> None:
    assert torch.equal(sampled(IDDPMScheduler(), 5, seed=1), sampled(IDDPMScheduler(), 5, seed=1))
    assert not torch.equal(sampled(IDDPMScheduler(), 5, seed=1), sampled(IDDPMScheduler(), 5, seed=2))


def test_a_step_returns_both_samples_in_the_latents_dtype() -> None:
    scheduler = IDDPMScheduler()
    scheduler.set_timesteps(4)
    x = torch.randn(1, 4, 16, 16).bfloat16()
    output = scheduler.step(toy(x, 0.0), scheduler.timesteps[-1], x)
    level = scheduler.visited.levels[-1]
    _, clean = ddpm_step(toy(x, 0.0).float(), x.float(), level, torch.zeros(x.shape), Process())
    assert torch.equal(output.pred_original_sample, clean.bfloat16())
    assert output.prev_sample.dtype == torch.bfloat16
    as_tuple = scheduler.step(toy(x, 0.0), int(scheduler.timesteps[-1]), x, return_dict=False)
    assert torch.equal(as_tuple[0], output.prev_sample)
    # noise is drawn in fp32
    before = scheduler.step(toy(x, 0.0), scheduler.timesteps[0], x, torch.Generator().manual_seed(1)).prev_sample
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    expected, _ = ddpm_step(toy(x, 0.0).float(), x.float(), scheduler.visited.levels[0], noise, Process())
    assert torch.equal(before, expected.bfloat16())


def test_a_prediction_without_a_variance_is_clipped_too() -> None:
    clean = []
    for clips in (True, False):
        scheduler, x = IDDPMScheduler(clip_sample=clips), torch.full((1, 4, 2, 2), 5.0)
        scheduler.set_timesteps(4)
        clean.append(float(scheduler.step(x, scheduler.timesteps[-1], x).pred_original_sample.max()))
    assert clean[0] == 1 < clean[1]


def stepped(seen: Any, k: int, level: NoiseLevel, prediction: Tensor, noise: Tensor, variance: str) -> Tensor:
    process = Process("eps", variance)  # pyright: ignore[reportArgumentType]
    return ddpm_step(prediction, seen[k].sample, level, noise, process)[0]  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", ["dit", "pixart-sigma", "latte-learned-range"])
@pytest.mark.parametrize("learned", [True, False])
def test_a_real_pipeline_samples_with_it(name: str, learned: bool) -> None:
    tiny = FAMILIES[name]
    pipe = tiny.make()
    pipe.scheduler = IDDPMScheduler.from_config(pipe.scheduler.config)
    noise = torch.Generator()
    with torch.random.fork_rng():
        torch.manual_seed(3)  # DiT's pipeline gives its scheduler no generator
        if learned:
            with pipe.scheduler.variance_from(pipe.transformer):
                _, seen = record(tiny, pipe, steps=4, batch=2)
        else:
            _, seen = record(tiny, pipe, steps=4, batch=2)
    assert not pipe.transformer._forward_hooks
    if name == "dit":
        noise.manual_seed(3)
    else:
        noise.manual_seed(0)
        torch.randn(seen[0].sample.shape, generator=noise)  # the initial latents
    for k, level in enumerate(pipe.scheduler.visited.levels[:-1]):
        drawn = torch.randn(seen[k].sample.shape, generator=noise)
        received, output = seen[k].model_output, seen[k].outputs[0][0]
        if name == "latte-learned-range":  # it passes all its channels on
            expected = stepped(seen, k, level, received, drawn, "learned_range")
        elif learned:
            own = output[:, 4:] if name == "dit" else output[2:, 4:]  # of [uncond, cond] the conditional half
            expected = stepped(seen, k, level, torch.cat([received, own], dim=1), drawn, "learned_range")
        else:
            expected = stepped(seen, k, level, received, drawn, "fixed_large")
        if name == "dit":  # its pipeline continues both halves from the conditional one
            expected = torch.cat([expected[:2], expected[:2]])
        assert torch.equal(seen[k + 1].sample, expected)


def test_a_variance_is_read_in_bfloat16_and_under_compile() -> None:
    tiny = FAMILIES["pixart-sigma"]
    pipe = in_dtype(tiny.make(), torch.bfloat16)
    pipe.scheduler = IDDPMScheduler.from_config(pipe.scheduler.config)
    with pipe.scheduler.variance_from(pipe.transformer):
        plain, _ = record(tiny, pipe, steps=3)
        pipe.transformer.compile(backend="eager")
        arguments = tiny.arguments(steps=3, dtype=torch.bfloat16)
        compiled = pipe(**arguments, guidance_scale=tiny.scale, return_dict=False)[0]
    fixed = pipe(**arguments, guidance_scale=tiny.scale, return_dict=False)[0]
    assert torch.equal(compiled, plain)
    assert not torch.equal(fixed, plain)


def test_a_weak_prediction_gives_no_variance() -> None:
    tiny = FAMILIES["pixart-sigma"]
    pipe = tiny.make()
    pipe.scheduler = IDDPMScheduler.from_config(pipe.scheduler.config)
    guidance = guidon.Guidance(4.0, "all", "stg:blocks=0")
    guidon.apply(pipe, guidance)
    with pipe.scheduler.variance_from(pipe.transformer):
        before = run(tiny, pipe)
        guidon.apply(pipe, guidance)  # its hook is now behind the one that reads
        assert torch.equal(run(tiny, pipe), before)


def test_noise_is_added_as_by_ddpm() -> None:
    ours, theirs = IDDPMScheduler(), diffusers.DDPMScheduler()
    x, noise = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([0, 500, 999])
    for name in ("add_noise", "get_velocity"):
        got, wanted = (getattr(scheduler, name)(x, noise, timesteps) for scheduler in (ours, theirs))
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)  # theirs is a product of 1000 fp32 numbers
    assert ours.init_noise_sigma == 1.0
    assert len(ours) == 1000


@pytest.mark.parametrize(
    "other",
    [
        diffusers.DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
        diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2", num_train_timesteps=500, clip_sample=False),
        diffusers.DPMSolverMultistepScheduler(prediction_type="v_prediction"),
        diffusers.EulerDiscreteScheduler(trained_betas=[0.1, 0.2, 0.3]),
    ],
    ids=lambda other: type(other).__name__,
)
def test_it_takes_the_noise_schedule_of_another_configuration(other: Any) -> None:
    scheduler = IDDPMScheduler.from_config(other.config)
    torch.testing.assert_close(scheduler.betas, other.betas)
    torch.testing.assert_close(scheduler.alphas_cumprod, other.alphas_cumprod, rtol=1e-4, atol=1e-6)
    assert scheduler.config["prediction_type"] == other.config["prediction_type"]
    assert scheduler.process.variance == "learned_range"
    assert type(other) in scheduler.compatibles


def test_it_is_saved_with_its_pipeline(tmp_path: Path) -> None:
    tiny = FAMILIES["pixart-sigma"]
    pipe = tiny.make()
    pipe.scheduler = IDDPMScheduler(respacing="2,3", variance_type="clamped_range", beta_end=0.01)
    pipe.register_modules(scheduler=pipe.scheduler)
    pipe.save_pretrained(tmp_path)
    again = diffusers.PixArtSigmaPipeline.from_pretrained(tmp_path, vae=None, tokenizer=None, text_encoder=None)
    assert type(again.scheduler) is IDDPMScheduler
    assert dict(again.scheduler.config).items() >= {"respacing": "2,3", "variance_type": "clamped_range"}.items()
    runs = [p(**tiny.arguments(steps=5), guidance_scale=4.0, return_dict=False)[0] for p in (pipe, again)]
    assert torch.equal(*runs)


def test_copies_are_whole() -> None:
    scheduler = IDDPMScheduler()
    scheduler.set_timesteps(900)
    sampled(scheduler, 3)
    again = copy.deepcopy(scheduler)
    assert torch.equal(sampled(again, 6), sampled(scheduler, 6))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (diffusers.FlowMatchEulerDiscreteScheduler(), "no schedule of betas"),
        (diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"), "no schedule"),
        (diffusers.CogVideoXDDIMScheduler(), "snr_shift_scale 3.0"),
        (diffusers.DDIMScheduler(rescale_betas_zero_snr=True), "rescale_betas_zero_snr True"),
        (diffusers.DDPMScheduler(thresholding=True), "thresholding True"),
        (diffusers.DDPMScheduler(beta_schedule="sigmoid"), "beta_schedule 'sigmoid'"),
        (diffusers.DDPMScheduler(variance_type="learned"), "variance_type 'learned'"),
    ],
)
def test_a_configuration_that_it_cannot_honour_is_refused(other: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        IDDPMScheduler.from_config(other.config)


def test_steps_that_do_not_exist_are_refused() -> None:
    scheduler = IDDPMScheduler(respacing="ddim50")
    with pytest.raises(InputError, match="num_inference_steps=50"):
        scheduler.set_timesteps(20)
    with pytest.raises(InputError, match="where there are 1000"):
        IDDPMScheduler().set_timesteps(1001)
    scheduler.set_timesteps(50)
    x = torch.zeros(1, 4, 2, 2)
    with pytest.raises(InputError, match="timestep 7 is not one of the 50"):
        scheduler.step(x, 7, x)
    with pytest.raises(InputError, match="expected 4 or 8"):
        scheduler.step(torch.zeros(1, 6, 2, 2), 980, x)


def test_a_network_without_a_variance_is_refused() -> None:
    network = torch.nn.Conv2d(4, 4, 1)
    scheduler = IDDPMScheduler()
    scheduler.set_timesteps(5)
    x = torch.zeros(1, 4, 2, 2)
    with scheduler.variance_from(network), torch.no_grad(), pytest.raises(InputError, match="learned variance"):
        scheduler.step(network(x), scheduler.timesteps[0], x)


def test_a_variance_is_not_kept_after_the_block() -> None:
    network, x, previous = torch.nn.Conv2d(4, 8, 1), torch.ones(1, 4, 2, 2), []
    for reads in (True, False):
        scheduler = IDDPMScheduler()
        scheduler.set_timesteps(5)
        if reads:
            with scheduler.variance_from(network), torch.no_grad():
                network(x)
        previous.append(scheduler.step(x, 999, x, torch.Generator().manual_seed(0)).prev_sample)
    assert torch.equal(*previous)
