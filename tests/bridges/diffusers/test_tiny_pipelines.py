"""The tiny pipelines are what they say: guided by their formula, on branches that differ."""

from __future__ import annotations

import pytest
import torch

from tiny_pipelines import PIPELINES, VARIANTS, TinyPipeline, own, record, run, shared

pytestmark = pytest.mark.together("tiny pipelines")
each = pytest.mark.parametrize("tiny", PIPELINES, ids=str)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@each
def test_the_scheduler_receives_the_formula_on_branches_that_differ_and_runs_repeat(tiny: TinyPipeline) -> None:
    pipe = shared(tiny)
    latents, steps = record(tiny, pipe, steps=2, batch=tiny.most)
    assert len(steps) == 2
    assert latents.isfinite().all()
    for step in steps:
        guided = tiny.guided(step)
        received = tiny.received(step)
        assert received.shape == guided.shape
        if tiny.tolerance:
            assert difference(received, guided) < tiny.tolerance
        else:
            assert torch.equal(received, guided)
    cond, uncond = map(tiny.to_channels, tiny.branches(steps[0]))
    assert cond.shape[:2] == (tiny.most, tiny.channels)
    for channel in range(tiny.channels):
        assert difference(cond[:, channel], uncond[:, channel]) > 1e-3
    # the two prompts of a batch differ as well
    assert tiny.most == 1 or difference(cond[0], cond[-1]) > 1e-3
    # another pipeline, which was not recorded, gives the same; no wrapper is left behind
    assert torch.equal(own(tiny, steps=2, batch=tiny.most), latents)
    assert not any("forward" in vars(getattr(pipe, name)) for name in tiny.networks)


@pytest.mark.parametrize(
    "tiny",
    [pytest.param(tiny, marks=() if tiny in VARIANTS[:1] else pytest.mark.long, id=str(tiny)) for tiny in PIPELINES],
)
def test_the_scale_matters(tiny: TinyPipeline) -> None:
    unguided = run(tiny, shared(tiny), tiny.unguided_scale, steps=2, batch=tiny.most)
    assert difference(unguided, own(tiny, steps=2, batch=tiny.most)) > 1e-3


@pytest.mark.parametrize("name", ["flux", "flux-2-klein", "chroma", "qwen-image"])
def test_packed_channels_are_the_pipelines_own(name: str) -> None:
    tiny = next(tiny for tiny in PIPELINES if tiny.name == name)
    pipe = tiny.make()
    latents = torch.randn(2, tiny.channels, 8, 12)
    if name == "flux-2-klein":
        packed = pipe._pack_latents(pipe._patchify_latents(latents))
    else:
        packed = pipe._pack_latents(latents, 2, tiny.channels, 8, 12)
    assert torch.equal(tiny.to_channels(packed), latents)
