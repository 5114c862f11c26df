"""Where the hook could be wrong: other guidances of the pipeline, two experts, schedulers, copies, direct calls."""

from __future__ import annotations

import copy
import gc
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.callbacks import SDCFGCutoffCallback
from torch import Tensor

import guidon
from guidon import Guidance, GuidanceTrace, InputError
from guidon.bridges.diffusers.levels import DETERMINISTIC, RunLevels
from guidon.guidance import START
from tiny_pipelines import PIPELINES, TinyPipeline, in_dtype, record, run

BY_NAME = {tiny.name: tiny for tiny in PIPELINES}


def per_channel(tiny: TinyPipeline) -> list[float]:
    return [1 + 0.5 * channel for channel in range(tiny.channels)]


def received(tiny: TinyPipeline, step: Any) -> Tensor:
    return tiny.to_channels(tiny.received(step))


# other guidances, which the pipeline adds to the formula


def test_skip_layer_guidance_reads_cond_as_it_was() -> None:
    """SD3's third call is on latents that are not doubled. Its term cond - skipped must not grow with our guidance."""
    tiny = BY_NAME["sd3"]
    pipe, scales = tiny.make(), per_channel(tiny)
    settings = {"skip_guidance_layers": [0], "skip_layer_guidance_stop": 1.0, "skip_layer_guidance_start": -1.0}
    own = run(tiny, pipe, batch=2, **settings)
    assert not torch.equal(run(tiny, pipe, batch=2), own)
    guidon.apply(pipe, channels="all")
    assert torch.equal(run(tiny, pipe, batch=2, **settings), own)
    guidon.apply(pipe, Guidance(scales))
    _, steps = record(tiny, pipe, batch=2, **settings)
    factor = torch.tensor(scales).view(1, -1, 1, 1)
    for step in steps:
        (doubled,), (skipped,) = step.outputs
        uncond, cond = doubled.chunk(2)
        wanted = uncond + factor * (cond - uncond) + 2.8 * (cond - skipped)
        torch.testing.assert_close(received(tiny, step), wanted, rtol=1e-4, atol=1e-4)


def test_ltx_2s_other_guidances_read_cond_as_it_was() -> None:
    """Spatio-temporal and modality guidance add terms of cond. One scale for all channels is the pipeline's formula."""
    tiny = BY_NAME["ltx-2"]
    more = {"stg_scale": 1.0, "modality_scale": 3.0, "spatio_temporal_guidance_blocks": [0]}
    pipe = tiny.make()
    own = run(tiny, pipe, **more)
    assert not torch.allclose(run(tiny, pipe), own)
    guidon.apply(pipe, Guidance([tiny.scale] * tiny.channels))
    torch.testing.assert_close(run(tiny, pipe, **more), own, rtol=1e-4, atol=1e-4)


# is it a pair of branches?


@pytest.mark.parametrize("name", ["dit", "kandinsky-5"])
def test_a_pipeline_that_does_not_say_whether_it_guides_is_asked_for_its_scale(name: str) -> None:
    tiny = BY_NAME[name]
    pipe = tiny.make()
    guidon.apply(pipe, Guidance(3, "all", "apg"))
    with pytest.raises(InputError, match="runs no unconditional branch"):
        run(tiny, pipe, 1.0, batch=2, steps=1)


def test_two_calls_at_other_timesteps_are_no_pair() -> None:
    pipe = BY_NAME["wan-2.1"].make()
    pipe.scheduler.set_timesteps(3)
    noisy, text = torch.randn(1, 4, 2, 4, 4), torch.randn(1, 6, pipe.transformer.config.text_dim)

    def predictions() -> list[Tensor]:
        return [
            pipe.transformer(noisy, timestep=torch.tensor([t]), encoder_hidden_states=text, return_dict=False)[0]
            for t in (900.0, 500.0)
        ]

    alone = predictions()
    guidon.apply(pipe, Guidance([3, 3, 3, 1]))
    pipe.transformer(noisy, timestep=torch.tensor([900.0]), encoder_hidden_states=text)
    with pytest.raises(InputError, match="runs no unconditional branch"):
        pipe.transformer(noisy, timestep=torch.tensor([500.0]), encoder_hidden_states=text)
    guidon.remove(pipe)
    assert all(torch.equal(now, then) for now, then in zip(predictions(), alone, strict=True))


def test_an_error_between_two_branches_does_not_spoil_the_next_run() -> None:
    tiny = BY_NAME["wan-2.1"]
    pipe, calls = tiny.make(), []
    guidon.apply(pipe, Guidance(per_channel(tiny), rule="apg:momentum=0.5"))
    wanted = run(tiny, pipe)

    def fail(*_: Any) -> None:
        calls.append(None)
        if len(calls) == 4:  # the unconditional branch of the second step
            raise MemoryError

    handle = pipe.transformer.register_forward_pre_hook(fail)
    with pytest.raises(MemoryError):
        run(tiny, pipe)
    handle.remove()
    assert torch.equal(run(tiny, pipe), wanted)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("sd-1.5", {"callback_on_step_end": SDCFGCutoffCallback(cutoff_step_ratio=0.4)}),
        ("z-image", {"cfg_truncation": 0.2}),
    ],
)
def test_a_pipeline_that_stops_to_guide_goes_on_with_the_single_branch(name: str, more: dict[str, Any]) -> None:
    tiny = BY_NAME[name]
    pipe = tiny.make()
    guidon.apply(pipe, Guidance(per_channel(tiny), rule="apg"))
    batch = 2 if name == "z-image" else 1  # two rows that are no two branches
    _, steps = record(tiny, pipe, steps=5, batch=batch, **more)
    single = []
    for step in steps:
        ((output,),) = step.outputs
        rows = torch.stack(output).squeeze(2).neg() if isinstance(output, list) else output
        single.append(len(rows) == batch)
        assert torch.equal(step.model_output, rows) == single[-1]
    assert sorted(single) == single
    assert set(single) == {False, True}


# two experts


def test_plain_guidance_of_two_experts_is_their_own() -> None:
    tiny = BY_NAME["wan-2.2"]
    pipe = in_dtype(tiny.make(), torch.bfloat16)
    own = run(tiny, pipe)  # guidance_scale 4, guidance_scale_2 2.5
    guidon.apply(pipe, Guidance(tiny.scale, "all"), second=Guidance(2.5, "all"))
    assert torch.equal(run(tiny, pipe), own)
    guidon.apply(pipe, Guidance(tiny.scale, "all"))
    assert torch.equal(run(tiny, pipe), own)
    guidon.apply(pipe, Guidance(tiny.scale, "all"), second=Guidance(4.0, "all"))
    assert not torch.equal(run(tiny, pipe), own)


@pytest.mark.parametrize("channels", [3, [1, 2, 3], "all"], ids=str)
def test_each_experts_rule_remembers_its_own_channels(channels: Any) -> None:
    tiny = BY_NAME["wan-2.2"]
    pipe = tiny.make()
    guidances = {"transformer": Guidance(4, 3, "apg"), "transformer_2": Guidance(3, channels, "apg")}
    guidon.apply(pipe, guidances["transformer"], second=guidances["transformer_2"])
    _, steps = record(tiny, pipe, steps=6)
    levels, memories = RunLevels.of(pipe.scheduler).levels, dict.fromkeys(guidances, START)
    assert {step.networks[0] for step in steps} == set(guidances)
    for level, step in zip(levels, steps, strict=True):
        name = step.networks[0]
        wanted, memories[name] = guidances[name].combine(
            *tiny.branches(step), tiny.noisy(step), level, memories[name], parameterization="flow"
        )
        torch.testing.assert_close(received(tiny, step), wanted, rtol=1e-4, atol=1e-5)


# schedulers


@pytest.mark.parametrize(
    "scheduler", ["PNDMScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "DPMSolverMultistepScheduler"]
)
def test_a_trace_of_a_scheduler_that_stays_at_a_timestep(scheduler: str) -> None:
    import diffusers

    tiny = BY_NAME["pixart-sigma"]
    pipe = tiny.make()
    more = {"use_karras_sigmas": True} if scheduler.startswith("DPM") else {}
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}  # Stable Diffusion's
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config, **betas, **more)
    trace = GuidanceTrace()
    guidon.apply(pipe, Guidance(3, "all", "apg"), observe=trace)
    assert run(tiny, pipe, steps=60 if more else 5).isfinite().all()
    timesteps = pipe.scheduler.timesteps.tolist()
    assert len(trace) == len(timesteps)
    if scheduler != "KDPM2DiscreteScheduler":  # which goes on by a part of a timestep
        assert len(set(timesteps)) < len(timesteps)


def test_timing_of_continuous_timesteps() -> None:
    import diffusers

    tiny = BY_NAME["sd-1.5"]
    pipe = tiny.make()
    pipe.scheduler = diffusers.EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction")
    trace = GuidanceTrace()
    guidon.apply(pipe, Guidance(3, "all", timing="interval:0,0.5"), observe=trace)
    run(tiny, pipe, steps=10)
    assert 3 <= len(trace) <= 8


@pytest.mark.parametrize("shift", [0.15, 0.2, 0.4, 1.0, 3.0])
def test_rectified_flow_begins_at_noise(shift: float) -> None:
    """Also where the scheduler's first sigma is rounded to a number above 1."""
    import diffusers

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(28)
    levels = RunLevels.of(scheduler).levels
    assert 0 <= levels[0].alpha == levels[0].progress < 1e-6
    assert [level.sigma for level in levels] == pytest.approx(scheduler.sigmas[:-1].tolist(), abs=1e-5)


def test_the_levels_of_a_scheduler_of_order_2() -> None:
    import diffusers

    tiny = BY_NAME["sd-1.5"]
    pipe, seen = tiny.make(), []
    pipe.scheduler = diffusers.HeunDiscreteScheduler.from_config(pipe.scheduler.config)
    guidon.apply(pipe, Guidance(3, "all", "apg"), observe=seen.append)
    run(tiny, pipe)
    ratios = [step.level.sigma / step.level.alpha for step in seen]
    assert ratios == pytest.approx(pipe.scheduler.sigmas[:-1].tolist())


def test_stochastic_flow_matching_adds_noise() -> None:
    import diffusers

    tiny = BY_NAME["sd3"]
    pipe = tiny.make()
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
    guidon.apply(pipe, Guidance(0.6, "all", "cfg++"))
    with pytest.raises(InputError, match=r"cfg\+\+ needs a scheduler that adds no noise"):
        run(tiny, pipe)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("name", [name for name in DETERMINISTIC if not name.startswith("FlowMatch")])
def test_cfg_plus_plus_of_every_schedule_is_finite(name: str, spacing: str) -> None:
    """Some end with a step that stays at its level."""
    import diffusers

    tiny = BY_NAME["sd-1.5"]
    pipe = tiny.make()
    guidon.apply(pipe, Guidance(0.6, "all", "cfg++"))
    euler = [{"final_sigmas_type": kind} for kind in ("zero", "sigma_min")]
    ddim = [{"set_alpha_to_one": one} for one in (True, False)]
    for last in euler if name.startswith("Euler") else ddim:
        pipe.scheduler = getattr(diffusers, name)(timestep_spacing=spacing, **last)
        assert run(tiny, pipe).isfinite().all(), last


def test_cfg_plus_plus_of_cosmos_2_is_finite() -> None:
    """Its last step stays at the last level but one."""
    tiny = BY_NAME["cosmos-2"]
    pipe = tiny.make()
    pipe.scheduler.register_to_config(final_sigmas_type="sigma_min")
    guidon.apply(pipe, Guidance(0.6, "all", "cfg++"))
    assert run(tiny, pipe).isfinite().all()
    assert pipe.scheduler.sigmas[-1] == pipe.scheduler.sigmas[-2]


@pytest.mark.parametrize("scale", [np.float32(4), np.float64(4), torch.tensor(4.0), 4], ids=repr)
def test_the_pipelines_number_may_be_of_any_type(scale: Any) -> None:
    tiny = BY_NAME["pixart-sigma"]
    pipe = in_dtype(tiny.make(), torch.bfloat16)
    own = run(tiny, pipe, scale)
    guidon.apply(pipe, Guidance(4, "all"))
    assert torch.equal(run(tiny, pipe, scale), own)


# networks that are copied, replaced, wrapped


def test_guidance_is_taken_off_a_copy() -> None:
    tiny = BY_NAME["wan-2.1"]
    pipe, twin = tiny.make(), tiny.make()
    own = run(tiny, pipe)
    guidon.apply(pipe, Guidance(per_channel(tiny)))
    twin.transformer = copy.deepcopy(pipe.transformer)
    assert not torch.equal(run(tiny, twin), own)
    guidon.remove(twin)
    assert torch.equal(run(tiny, twin), own)
    assert not torch.equal(run(tiny, pipe), own)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda pipe: pickle.loads(pickle.dumps(pipe))], ids=["copy", "pickle"]
)
def test_copies_and_pickles_of_a_pipeline_keep_its_guidance(copied: Any) -> None:
    tiny = BY_NAME["wan-2.2"]  # two networks with one memory
    pipe, seen = tiny.make(), []
    own = run(tiny, pipe)
    guidon.apply(pipe, Guidance(per_channel(tiny), rule="apg"), observe=seen.append)
    guided, steps = run(tiny, pipe), len(seen)
    twin = copied(pipe)
    assert not torch.equal(guided, own)
    assert torch.equal(run(tiny, twin), guided)
    assert len(seen) == (2 * steps if copied is copy.deepcopy else steps) > 0  # a pickle leaves the observer behind
    guidon.remove(twin)
    assert torch.equal(run(tiny, twin), own)
    assert torch.equal(run(tiny, pipe), guided)
    guidon.remove(pipe)
    assert not any(part._forward_hooks for part in (pipe.transformer, pipe.transformer_2, twin.transformer))


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda pipe: pickle.loads(pickle.dumps(pipe))], ids=["copy", "pickle"]
)
def test_copies_and_pickles_keep_the_weak_network(copied: Any) -> None:
    tiny = BY_NAME["sd3"]
    pipe = tiny.make()
    weak = copy.deepcopy(pipe.transformer)
    with torch.no_grad():
        for parameter in weak.parameters():
            parameter.mul_(0.9)
    guidon.apply(pipe, Guidance(2, "all", "autoguidance"), weak=weak)
    guided, twin = run(tiny, pipe), copied(pipe)
    assert torch.equal(run(tiny, twin), guided)


def test_a_copy_keeps_its_guidance_where_the_pipeline_is_gone() -> None:
    tiny = BY_NAME["sd3"]
    pipe = tiny.make()
    guidon.apply(pipe, Guidance(per_channel(tiny)))
    guided, twin = run(tiny, pipe), copy.deepcopy(pipe)
    del pipe
    gc.collect()
    assert torch.equal(run(tiny, twin), guided)


def test_guidance_is_taken_off_a_network_that_was_replaced() -> None:
    tiny = BY_NAME["sd3"]
    pipe = tiny.make()
    own = run(tiny, pipe)
    guidon.apply(pipe, Guidance(per_channel(tiny)))
    first, pipe.transformer = pipe.transformer, tiny.make().transformer
    assert torch.equal(run(tiny, pipe), own)
    guidon.remove(pipe)
    assert not first._forward_hooks
    pipe.transformer = first
    assert torch.equal(run(tiny, pipe), own)


class Wrapped(torch.nn.Module):
    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module, self.config, self.dtype, self.device = module, module.config, module.dtype, module.device

    def cache_context(self, *args: Any, **kwargs: Any) -> Any:
        return self.module.cache_context(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


def test_a_wrapped_expert_keeps_its_own_guidance() -> None:
    tiny = BY_NAME["wan-2.2"]
    pipe, scales = tiny.make(), per_channel(tiny)
    guidon.apply(pipe, Guidance(scales), second=Guidance(scales[::-1]))
    wanted = run(tiny, pipe)
    pipe.transformer_2 = Wrapped(pipe.transformer_2)
    assert torch.equal(run(tiny, pipe), wanted)


def test_guidance_is_inside_a_network_that_is_wrapped() -> None:
    tiny = BY_NAME["sd3"]
    pipe = tiny.make()
    own = run(tiny, pipe)
    guidon.apply(pipe, Guidance(per_channel(tiny)))
    wanted = run(tiny, pipe)
    pipe.transformer = Wrapped(pipe.transformer)
    assert torch.equal(run(tiny, pipe), wanted)
    guidon.remove(pipe)
    assert torch.equal(run(tiny, pipe), own)
