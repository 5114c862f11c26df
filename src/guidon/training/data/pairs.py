"""Noise and the clip that a model makes of it, by a deterministic sampler: what a distilled network learns from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ... import world
from ...core.hashing import hash_settings
from ...core.limits import require_memory
from ...core.ranks import ALONE, Ranks
from ...diffusion import NoiseLevel, NoiseSchedule, split_prediction
from ...diffusion.spacing import Explicit
from ...guidance import Guidance, GuidedDenoiser
from ...models.model import Model
from ...models.network import ToldOfGuidance
from ...samplers import SampleNoise, sample_ddim
from ..recipe import DistillRecipe
from .cache import is_block, sampled_rollouts
from .redraw import correct

RULES = 2  # raise it when the rules below, or how clips are read, change: stored pairs are then made again
ALL, LEADING = 0.2, 0.4  # share of the varied blocks that guide all channels, and the leading three


@dataclass(frozen=True, eq=False)
class Pairs:
    """N clips with all steps of their sampling that matter, in the order in which they were sampled."""

    captions: list[str]
    clips: Tensor
    """What should be drawn: latents, fp16 (N, C, T, h, w)."""
    before: Tensor
    """Where each of the first steps of sampling began, fp16 (N, steps, C, T, h, w). The first began with noise."""
    guided: Tensor
    """The guided prediction of x_0 there, like ``before``."""
    varied: Tensor
    """Which were sampled at other strengths than the usual ones, bool (N,)."""
    strengths: Tensor
    """The strength of guidance on each channel, (N, C)."""

    def __len__(self) -> int:
        return len(self.captions)

    @classmethod
    def prepare(
        cls,
        folder: Path,
        model: Model,
        weights: str,
        recipe: DistillRecipe,
        steps: int,
        device: torch.device,
        ranks: Ranks = ALONE,
    ) -> Pairs:
        """Sample the clips, or read those that an earlier run stored. They are stored in blocks.

        Args:
            folder: where they are stored, in a folder of their own.
            model: the model that samples.
            weights: the hash of its weights.
            recipe: how many are sampled, and how. Those that cannot be read are left out.
            steps: how many steps of sampling are kept, from the first.
            device: the device of the model.
            ranks: those that sample together.

        Raises:
            InputError: not one can be used, or they do not fit in memory.
        """
        count, size = recipe.rollouts, recipe.sampling.block
        needed = 2.0 * (1 + 2 * steps) * count * math.prod(model.facts.latent_shape)
        require_memory(f"{count} rollouts", needed, lower="rollouts")
        settings = recipe.model_dump(mode="json", include={"seed", "timesteps", "sampling"})
        key = hash_settings({"weights": weights, "settings": settings, "steps": steps, "rules": RULES})
        place = folder / f"pairs-{key[:8]}"
        fits = partial(_fits, model, steps)
        found = sampled_rollouts(
            place, key, count, size, fits, lambda numbers: _sample(model, numbers, recipe, steps, device), ranks
        )
        numbers = found["numbers"].tolist()
        captions = [world.clip("train", recipe.seed, number).caption for number in numbers]
        parts = (found[name] for name in ("clips", "before", "guided", "varied", "strengths"))
        return cls(captions, *parts)


def _fits(model: Model, steps: int, numbers: range, block: Mapping[str, Tensor]) -> bool:
    """Whether a stored block is one that ``_sample`` makes for clips of these numbers."""
    latents = model.facts.latent_shape
    of_steps = ((steps, *latents), torch.float16)
    forms = {"clips": (latents, torch.float16), "before": of_steps, "guided": of_steps}
    return is_block(
        block, numbers, {**forms, "varied": ((), torch.bool), "strengths": ((model.facts.channels,), torch.float32)}
    )


def draw_strengths(rng: np.random.Generator, channels: int, scales: tuple[float, float]) -> list[float]:
    """The strength of every channel: one scale, on channels that are drawn, and 1 on the others."""
    scale, kind = float(rng.uniform(*scales)), rng.random()
    guided = rng.random(channels) < 0.5
    if kind < ALL:
        guided[:] = True
    elif kind < ALL + LEADING:
        guided = np.arange(channels) < 3
    return [scale if on else 1.0 for on in guided]


@torch.no_grad()
def _sample(
    model: Model, numbers: Sequence[int], recipe: DistillRecipe, steps: int, device: torch.device
) -> dict[str, Tensor]:
    """Sample one block. At the usual strengths, its clips are drawn again as their captions ask.

    A model that has a distilled network samples with that at the usual strengths. At others it runs two branches.
    """
    channels, seed, sampling = model.facts.channels, recipe.seed, recipe.sampling
    captions = [world.clip("train", seed, number).caption for number in numbers]
    usual = Guidance(sampling.cfg_scale, sampling.cfg_channels, timing=sampling.timing)
    strengths = list(usual.scales_for(channels).scales)
    rng = np.random.default_rng((seed, numbers[0], 13))
    if varied := rng.random() < sampling.varied:
        strengths = draw_strengths(rng, channels, sampling.scales)
    guidance = Guidance(strengths, timing=sampling.timing)
    schedule = model.schedule.spaced_by(len(recipe.timesteps), Explicit(tuple(map(float, recipe.timesteps))))
    assert isinstance(schedule, NoiseSchedule)  # the task refuses a rectified flow
    before: list[Tensor] = []
    guided: list[Tensor] = []
    stage = model.network if varied or model.distilled is None else model.distilled
    with model.text.in_use() as text, stage.in_use(torch.float32) as network:
        features, mask = text.encode(captions)
        condition, parameterization = network.prepare(features, mask), model.process.parameterization
        if isinstance(network, ToldOfGuidance):
            told = network.under(torch.tensor(strengths))
            denoiser = GuidedDenoiser(told, Guidance(1.0), condition, parameterization=parameterization)
        else:
            null = None if guidance.is_conditional else network.null(len(numbers), mask)
            denoiser = GuidedDenoiser(network, guidance, condition, null, parameterization=parameterization)

        def recorded(x: Tensor, level: NoiseLevel) -> Tensor:
            prediction = denoiser(x, level)
            if len(before) < steps:
                before.append(x.half().cpu())
                guided.append(split_prediction(prediction, channels)[0].half().cpu())
            return prediction

        noise = SampleNoise(seed, list(numbers))
        x = noise.initial(model.facts.latent_shape, device)
        drawn = sample_ddim(recorded, schedule, x, noise, process=model.process)
    kept, clips = list(range(len(numbers))), drawn
    if not varied:
        with model.vae.in_use() as vae:
            shown = ((vae.decode(drawn) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 4, 1)
            scenes = correct(shown.cpu().numpy(), [world.read_caption(caption) for caption in captions])
            kept = [row for row, scene in enumerate(scenes) if scene is not None]
            rendered = [torch.from_numpy(world.render(scene)) for scene in scenes if scene is not None]
            if rendered:
                clips = vae.encode(torch.stack(rendered).permute(0, 4, 1, 2, 3).to(device) * 2 - 1)
    return {
        "numbers": torch.tensor(numbers)[kept],
        "clips": clips[: len(kept)].half().cpu().contiguous(),
        "before": torch.stack(before, 1)[kept].contiguous(),
        "guided": torch.stack(guided, 1)[kept].contiguous(),
        "varied": torch.full((len(kept),), varied),
        "strengths": torch.tensor(strengths).expand(len(kept), -1).contiguous(),
    }
