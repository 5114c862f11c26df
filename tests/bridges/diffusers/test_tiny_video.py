"""What single video families do besides guidance by their formula; the bridge must know each of these facts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tiny_pipelines import VIDEO, TinyPipeline, join, record, run

NAMED = {tiny.name: tiny for tiny in VIDEO}
TWO_CALLS = ["wan-2.1", "wan-2.2", "wan-2.2-5b", "hunyuan-video", "hunyuan-video-1.5", "kandinsky-5", "cosmos-1"]
COPIED = ["cosmos-2", "cosmos-2.5"]


def watch(tiny: TinyPipeline, pipe: Any, **more: Any) -> list[dict[str, Any]]:
    """The keyword arguments of every network call of a run."""
    calls: list[dict[str, Any]] = []
    hooks = [
        getattr(pipe, name).register_forward_pre_hook(lambda _, __, given: calls.append(given), with_kwargs=True)
        for name in tiny.networks
    ]
    run(tiny, pipe, **more)
    for hook in hooks:
        hook.remove()
    return calls


def change_cond_late(tiny: TinyPipeline, pipe: Any) -> Tensor:
    """The final latents when every conditional output is changed in place after the unconditional call."""
    outputs: list[Tensor] = []

    def change(module: Any, args: Any, output: Any) -> None:
        if len(outputs) % 2:
            outputs[-1].add_(1.0)
        outputs.append(output[0])

    hooks = [getattr(pipe, name).register_forward_hook(change) for name in tiny.networks]
    latents = run(tiny, pipe)
    for hook in hooks:
        hook.remove()
    return latents


@pytest.mark.parametrize("name", [*TWO_CALLS, *COPIED])
def test_two_calls_of_a_step_are_given_one_tensor(name: str) -> None:
    tiny = NAMED[name]
    inputs = [call["hidden_states"] for call in watch(tiny, tiny.make())]
    assert len(inputs) == 6
    assert all(inputs[i] is inputs[i + 1] for i in (0, 2, 4))
    # Kandinsky 5 writes every step into the same tensor, so that the tensor alone does not tell a step from the next
    assert (inputs[1] is inputs[2]) == (name == "kandinsky-5")


@pytest.mark.parametrize("name", TWO_CALLS)
def test_a_late_change_of_cond_is_seen(name: str) -> None:
    tiny = NAMED[name]
    assert not torch.equal(change_cond_late(tiny, tiny.make()), run(tiny, tiny.make()))


@pytest.mark.parametrize("name", COPIED)
def test_cond_is_copied_before_the_second_call(name: str) -> None:
    tiny = NAMED[name]
    assert torch.equal(change_cond_late(tiny, tiny.make()), run(tiny, tiny.make()))


def test_wan_22_runs_both_experts() -> None:
    tiny = NAMED["wan-2.2"]
    _, steps = record(tiny, tiny.make())
    assert [step.networks for step in steps] == [("transformer",) * 2, *[("transformer_2",) * 2] * 2]
    # the second scale is the second expert's: the formula with the first scale is not what the scheduler was given
    assert torch.equal(steps[0].model_output, tiny.guide(*tiny.branches(steps[0])))
    assert not torch.equal(steps[1].model_output, tiny.guide(*tiny.branches(steps[1])))


def test_wan_22_5b_gives_every_token_its_timestep() -> None:
    tiny = NAMED["wan-2.2-5b"]
    pipe = tiny.make()
    calls = watch(tiny, pipe, batch=2)
    for call, timestep in zip(calls[::2], pipe.scheduler.timesteps, strict=True):
        assert call["timestep"].shape == (2, 8)  # 2 frames of 2 x 2 tokens
        assert (call["timestep"] == timestep).all()


def test_dynamic_cfg_changes_the_scale() -> None:
    tiny = NAMED["cogvideox-dynamic-cfg"]
    _, steps = record(tiny, tiny.make())
    assert len({tiny.scale_at(step, tiny.scale) for step in steps}) == 3


def test_ltx_2_adds_two_guidances_and_a_rescale() -> None:
    tiny = NAMED["ltx-2"]
    scales: dict[str, Any] = tiny.more["all guidances"]
    _, steps = record(tiny, tiny.make(), batch=2, **scales)
    for step in steps:
        sigma = torch.tensor(step.sigma)
        assert len(step.outputs) == 3
        cond, uncond = tiny.branches(step)
        skipped, alone = (step.sample - output[0] * sigma for output in step.outputs[1:])
        guided = (
            join(tiny.formula, cond, uncond, tiny.scale)
            + scales["stg_scale"] * (cond - skipped)
            + (scales["modality_scale"] - 1) * (cond - alone)
        )
        share = cond.std(dim=(1, 2), keepdim=True) / guided.std(dim=(1, 2), keepdim=True)
        guided = guided * (1 + scales["guidance_rescale"] * (share - 1))
        torch.testing.assert_close(tiny.received(step), guided, rtol=1e-4, atol=1e-4)


def test_ltx_2_returns_exactly_to_a_velocity() -> None:
    tiny = NAMED["ltx-2"]
    _, steps = record(tiny, tiny.make())
    for step in steps:
        assert torch.equal(step.model_output, (step.sample - tiny.guided(step)) / torch.tensor(step.sigma))


def test_cosmos_25_keeps_the_frames_that_are_given() -> None:
    tiny = NAMED["cosmos-2.5"]
    video = torch.rand(1, 3, 9, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    _, steps = record(tiny, tiny.make(), video=video, num_latent_conditional_frames=1)
    kept = steps[0].model_output[:, :, :1]
    for step in steps:
        # the first latent frame moves straight to what is given, unguided
        assert torch.equal(step.model_output[:, :, :1], kept)
        assert torch.equal(step.model_output[:, :, 1:], tiny.guided(step)[:, :, 1:])
        assert not torch.allclose(tiny.guided(step)[:, :, :1], kept, atol=1e-2)
