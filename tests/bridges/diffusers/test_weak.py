"""A third, weaker call of a pipeline's network: skip guidance and autoguidance on tiny random pipelines."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import guidon
from guidon import Guidance, InputError
from guidon.bridges.diffusers.hook import blocks_of
from guidon.bridges.diffusers.levels import RunLevels
from guidon.guidance import START
from tiny_pipelines import PIPELINES, TinyPipeline, record, run

BY_NAME = {tiny.name: tiny for tiny in PIPELINES}
OURS = pytest.mark.parametrize("name", ["wan-2.1", "ltx", "pixart-sigma"])
"""Two calls of a video; a doubled batch of a packed video; a doubled batch with a learned variance."""


def in_order(tiny: TinyPipeline, step: Any) -> tuple[Tensor, Tensor, Tensor]:
    """cond, uncond and weak of a step in which the network was called once more, after the call that had the prompt."""
    first, weak, *second = step.outputs
    names = step.networks[: 1 + len(second)]
    cond, uncond = tiny.branches(replace(step, outputs=(first, *second), networks=names))
    weaker, _ = tiny.branches(replace(step, outputs=(weak, *second), networks=names))
    return tuple(tiny.to_channels(branch) for branch in (cond, uncond, weaker))


def check(tiny: TinyPipeline, pipe: Any, guidance: Guidance, steps: list[Any], branches: list[Any]) -> None:
    """What the scheduler received is ``combine`` on the three branches; other channels are conditional to the bit."""
    course, memory = RunLevels.of(pipe.scheduler), START
    for level, step, (cond, uncond, weak) in zip(course.levels[-len(steps) :], steps, branches, strict=True):
        noisy = tiny.to_channels(tiny.noisy(step))
        wanted, memory = guidance.combine(
            cond, uncond, noisy, level, memory, weak=weak, parameterization=course.parameterization
        )
        found = tiny.to_channels(tiny.received(step))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
        assert torch.equal(found[:, 3:], cond[:, 3:])
        assert not torch.allclose(weak, cond, atol=1e-3)


@OURS
def test_skip_guidance_calls_the_network_once_more_with_its_blocks_skipped(name: str) -> None:
    tiny = BY_NAME[name]
    pipe, guidance = tiny.make(), Guidance(tiny.scale, 3, "stg:weight=0.7,blocks=0")
    own = run(tiny, pipe)
    guidon.apply(pipe, guidance)
    _, steps = record(tiny, pipe)
    branches = [in_order(tiny, step) for step in steps]
    check(tiny, pipe, guidance, steps, branches)
    # the weak prediction is that of a network that lacks the block
    lacking = tiny.make()
    block = blocks_of(lacking.transformer)[0]
    block.forward = lambda *args, **kwargs: args[0] if args else kwargs["hidden_states"]
    _, (first, *_) = record(tiny, lacking)
    assert torch.equal(tiny.to_channels(tiny.branches(first)[0]), branches[0][2])
    # nothing is left
    guidon.remove(pipe)
    assert torch.equal(run(tiny, pipe), own)
    assert not any(block._forward_hooks for block in blocks_of(pipe.transformer))


@OURS
def test_autoguidance_calls_the_weak_network_with_the_same(name: str) -> None:
    tiny = BY_NAME[name]
    pipe, weak, guidance = tiny.make(), tiny.make().transformer, Guidance(tiny.scale, 3, "autoguidance:share=0.6")
    with torch.no_grad():
        for parameter in weak.parameters():
            parameter.mul_(0.9)
    given: list[Any] = []

    def note(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        given.append(output[0].clone())

    weak.register_forward_hook(note, with_kwargs=True)
    guidon.apply(pipe, guidance, weak=weak)
    _, steps = record(tiny, pipe)
    assert len(given) == len(steps)
    three = [replace(s, outputs=(s.outputs[0], (g,), *s.outputs[1:])) for s, g in zip(steps, given, strict=True)]
    check(tiny, pipe, guidance, steps, [in_order(tiny, step) for step in three])


def test_both_experts_skip_their_own_blocks_where_guidance_acts() -> None:
    tiny = BY_NAME["wan-2.2"]
    pipe, guidance = tiny.make(), Guidance(tiny.scale, 3, "stg", "interval:0,0.5")
    guidon.apply(pipe, guidance)
    _, steps = record(tiny, pipe)
    acts = [guidance.timing(float(level.progress)) > 0 for level in RunLevels.of(pipe.scheduler).levels]
    assert [len(step.networks) for step in steps] == [3 if acting else 2 for acting in acts]
    assert {len(set(step.networks)) for step in steps} == {1}
    assert any(acts)


def test_the_pipelines_own_third_calls_are_not_taken_for_ours() -> None:
    """SD3's skip-layer guidance runs its network a third time, on the prompt alone."""
    tiny = BY_NAME["sd3"]
    pipe = tiny.make()
    options = {"skip_guidance_layers": [0], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0}
    own = run(tiny, pipe, **options)
    guidon.apply(pipe, Guidance(tiny.scale, "all", "stg:weight=0"))
    assert torch.equal(run(tiny, pipe, **options), own)
    guidon.apply(pipe, Guidance(tiny.scale, "all", "stg"))
    with pytest.raises(InputError, match="stg skips blocks that give one tensor"):
        run(tiny, pipe, **options)


def test_what_cannot_have_a_weak_branch_is_refused() -> None:
    wan = BY_NAME["wan-2.1"].make()
    network = BY_NAME["wan-2.1"].make().transformer
    refused = [
        (wan, "autoguidance", {}, "autoguidance needs a weaker network: give weak="),
        (wan, "cfg", {"weak": network}, "weak has an effect only with guidance autoguidance"),
        (wan, "autoguidance", {"weak": "folder"}, "weak is str: give a network"),
        (wan, "autoguidance", {"weak": wan.transformer}, "weak is the network of WanPipeline itself"),
        (wan, "stg:blocks=99", {}, "blocks=99 names block 99, but the network's are numbered 0 to"),
        (BY_NAME["sd-1.5"].make(), "stg", {}, "UNet2DConditionModel has no blocks or transformer_blocks or"),
    ]
    for pipe, rule, options, message in refused:
        with pytest.raises(InputError, match=message):
            guidon.apply(pipe, Guidance(4, 3, rule), **options)


def test_a_weak_network_of_another_kind_is_refused_when_it_runs() -> None:
    tiny = BY_NAME["wan-2.1"]
    pipe = tiny.make()
    guidon.apply(pipe, Guidance(tiny.scale, 3, "autoguidance"), weak=nn.Linear(2, 2))
    with pytest.raises(InputError, match=r"weak network cannot be called as that of WanPipeline is .*: give one of"):
        run(tiny, pipe)
