"""What is read off a pipeline's source code: of pipelines that are proved, of others, and of loops that must be refused."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

from guidon.bridges.diffusers.families import FAMILIES
from guidon.bridges.diffusers.source import Loop, read_loop

PROVED = [(name, family) for family in FAMILIES for name in family.pipelines]
UNREADABLE = (
    "HunyuanVideo15Pipeline", "LTX2Pipeline", "CosmosTextToWorldPipeline", "StableDiffusion3Pipeline",
    "LTXImageToVideoPipeline", "Lumina2Pipeline", "ZImagePipeline", "ZImageImg2ImgPipeline", "QwenImagePipeline",
    "QwenImageImg2ImgPipeline", "QwenImageEditPipeline",
)  # fmt: skip
"""Proved pipelines whose code does more than the reader knows."""


@pytest.mark.parametrize(("name", "family"), PROVED, ids=[name for name, _ in PROVED])
def test_the_code_of_proved_pipelines_says_the_same(name: str, family: Any) -> None:
    loop = read_loop(getattr(diffusers, name).__call__)
    assert isinstance(loop, str) == (name in UNREADABLE)
    if isinstance(loop, Loop):
        assert loop.order == family.order
        assert set(loop.networks) <= set(family.networks)
        assert loop.argument == family.argument


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("StableDiffusionUpscalePipeline", "uncond, cond"),
        ("IFPipeline", "uncond, cond"),
        ("KandinskyV22Pipeline", "uncond, cond"),
        ("PRXPipeline", "uncond, cond"),
        ("AnyFlowPipeline", "uncond, cond"),
        ("LucyEditPipeline", "two calls"),
        ("WanAnimatePipeline", "two calls"),
    ],
)
def test_other_pipelines_are_read(name: str, order: str) -> None:
    if not hasattr(diffusers, name):
        pytest.skip("not in this version of diffusers")
    loop = read_loop(getattr(diffusers, name).__call__)
    assert isinstance(loop, Loop)
    assert loop.order == order


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("StableDiffusionPAGPipeline", "_apply_perturbed_attention_guidance"),
        ("SanaPAGPipeline", "_apply_perturbed_attention_guidance"),
        ("StableDiffusionSAGPipeline", "which branch comes first"),  # a third call, on degraded latents
        ("StableDiffusionGLIGENTextImagePipeline", "which branch comes first"),  # each branch is of another call
        ("StableDiffusionAttendAndExcitePipeline", "which branch comes first"),
        ("StableDiffusionInstructPix2PixPipeline", "does not show that it joins two branches"),
        ("LEditsPPPipelineStableDiffusion", "does not show that it joins two branches"),
        ("OmniGenPipeline", "does not show that it joins two branches"),
        ("Kandinsky3Pipeline", "does not show that it joins two branches"),  # (s + 1) cond - s uncond is rounded
        ("BriaPipeline", "noise_pred_text.std"),
        ("QwenImageInpaintPipeline", "torch.norm"),
        ("LDMPipeline", "does not show that it joins two branches"),
    ],
)
def test_pipelines_that_do_more_are_refused(name: str, why: str) -> None:
    if not hasattr(diffusers, name):
        pytest.skip("not in this version of diffusers")
    loop = read_loop(getattr(diffusers, name).__call__)
    assert isinstance(loop, str)
    assert why in loop


# loops of our own, which are read and never run


def cond_first(self: Any, latents: Any, guidance_scale: float) -> Any:
    for t in self.scheduler.timesteps:
        noise_pred = self.transformer(torch.cat([latents] * 2), t)[0]
        noise_pred_text, noise_pred_uncond = noise_pred.chunk(2)
        noise_pred = noise_pred_text + (guidance_scale - 1) * (noise_pred_text - noise_pred_uncond)
        latents = self.scheduler.step(-noise_pred.float(), t, latents)[0]
    return latents


def two_calls(self: Any, latents: Any, true_cfg_scale: float) -> Any:
    network = self.transformer
    for t in self.scheduler.timesteps:
        pred = network(latents, t)[0]
        neg_pred = network(latents, t)[0]
        pred = neg_pred + true_cfg_scale * (pred - neg_pred)
        latents = self.scheduler.step(pred, t, latents)[0]
    return latents


def uncond_call_first(self: Any, latents: Any, guidance_scale: float) -> Any:
    neg_pred = self.transformer(latents)[0]
    pred = self.transformer(latents)[0]
    return neg_pred + guidance_scale * (pred - neg_pred)


def third_call(self: Any, latents: Any, guidance_scale: float) -> Any:
    pred = self.transformer(latents)[0]
    neg_pred = self.transformer(latents)[0]
    skipped = self.transformer(latents)[0]
    pred = neg_pred + guidance_scale * (pred - neg_pred)
    return pred + 2 * (pred - skipped)


def halves_of_channels(self: Any, latents: Any, guidance_scale: float) -> Any:
    pred = self.unet(latents)
    cond, uncond = pred.chunk(2, dim=1)
    return uncond + guidance_scale * (cond - uncond)


def both_orders(self: Any, latents: Any, guidance_scale: float) -> Any:
    pred = self.unet(latents)
    if guidance_scale > 3:
        cond, uncond = pred.chunk(2)
    else:
        uncond, cond = pred.chunk(2)
    return uncond + guidance_scale * (cond - uncond)


def swapped(self: Any, latents: Any, guidance_scale: float) -> Any:
    pred = self.unet(latents)
    uncond, cond = pred.chunk(2)
    return cond + guidance_scale * (uncond - cond)


def normalised(self: Any, latents: Any, guidance_scale: float) -> Any:
    pred = self.unet(latents)
    uncond, cond = pred.chunk(2)
    pred = uncond + guidance_scale * (cond - uncond)
    return pred / pred.abs().amax()


def scale_of_the_branches(self: Any, latents: Any, guidance_scale: float) -> Any:
    pred = self.unet(latents)
    uncond, cond = pred.chunk(2)
    return uncond + guidance_scale * cond.norm() * (cond - uncond)


def added_after(self: Any, latents: Any, guidance_scale: float) -> Any:
    pred = self.unet(latents)
    uncond, cond = pred.chunk(2)
    pred = uncond + guidance_scale * (cond - uncond)
    pred += 0.1 * uncond
    return pred


def added_in_the_formula(self: Any, latents: Any, guidance_scale: float) -> Any:
    pred = self.unet(latents)
    uncond, cond = pred.chunk(2)
    return uncond + guidance_scale * (cond - uncond) + 0.1 * cond


def mixed_by_a_matrix(self: Any, latents: Any, guidance_scale: float) -> Any:
    pred = self.unet(latents)
    uncond, cond = pred.chunk(2)
    pred = uncond + guidance_scale * (cond - uncond)
    return self.matrix @ pred


def written_into(self: Any, latents: Any, guidance_scale: float) -> Any:
    pred = self.unet(latents)
    uncond, cond = pred.chunk(2)
    pred = uncond + guidance_scale * (cond - uncond)
    pred[:, :1] = cond[:, 1:2]
    return pred


def in_a_comprehension(self: Any, latents: Any, guidance_scale: float) -> Any:
    pred = self.unet(latents)
    uncond, cond = pred.chunk(2)
    pred = uncond + guidance_scale * (cond - uncond)
    return [self.whiten(part) for part in pred]


def fed_back(self: Any, latents: Any, guidance_scale: float) -> Any:
    pred = self.unet(latents)
    pred = self.unet(pred)
    uncond, cond = pred.chunk(2)
    return uncond + guidance_scale * (cond - uncond)


def test_the_forms_that_are_known() -> None:
    assert read_loop(cond_first) == Loop("cond, uncond", ("transformer",), "guidance_scale")
    assert read_loop(two_calls) == Loop("two calls", ("transformer",), "true_cfg_scale")


@pytest.mark.parametrize(
    "loop",
    [
        uncond_call_first, third_call, halves_of_channels, both_orders, swapped, normalised, scale_of_the_branches,
        added_after, added_in_the_formula, mixed_by_a_matrix, written_into, in_a_comprehension, fed_back,
    ],
)  # fmt: skip
def test_any_other_form_is_refused(loop: Any) -> None:
    assert isinstance(read_loop(loop), str)


def test_a_function_without_source_code_is_refused() -> None:
    assert read_loop(eval("lambda self: self.unet(1)")) == "its source code cannot be read"
