"""Rollouts: clips that a model samples itself, each with the clean clip that it should have drawn there.

In training a network sees noisy clips of the world, in sampling noisy versions of what it drew itself. Errors that it
made early are then never corrected, because training never shows them. Pairs of a rollout and its clean version show
them (as scheduled sampling does for sequences, Bengio et al. 1506.03099).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ... import world
from ...core.hashing import hash_settings
from ...core.limits import require_memory
from ...core.ranks import ALONE, Ranks
from ...diffusion import NoiseSchedule
from ...guidance import Guidance, GuidedDenoiser
from ...models.model import Model
from ...models.vae import Autoencoder
from ...samplers import SampleNoise, sample_ddpm
from ..recipe import Sampling
from .cache import is_block, sampled_rollouts
from .redraw import RULES, redraw

MARGIN = 3  # pixels around the object that count as part of it, for it may be drawn too large


@dataclass(frozen=True, eq=False)
class Rollouts:
    """N rollouts that could be read, in the order in which they were sampled."""

    captions: list[str]
    """The captions that they were sampled for."""
    backwards: list[str | None]
    """What each caption says of the clip played backwards; None if the training split does not hold that."""
    drawn: Tensor
    """What the model drew: latents, fp16 (N, C, T, h, w)."""
    clean: Tensor
    """The same scenes, rendered and encoded: latents, fp16 (N, C, T, h, w)."""
    objects: Tensor
    """Latent pixels at the clean object, bool (N, T, h, w)."""

    def __len__(self) -> int:
        return len(self.captions)

    @classmethod
    def prepare(
        cls,
        folder: Path,
        model: Model,
        weights: str,
        count: int,
        seed: int,
        sampling: Sampling,
        device: torch.device,
        ranks: Ranks = ALONE,
    ) -> Rollouts:
        """Sample rollouts of the training split's captions, or read those that an earlier run stored.

        They are sampled and stored in blocks, so an interrupted run continues with the next block.

        Args:
            folder: where they are stored, in a folder of their own.
            model: the model that samples.
            weights: the hash of the model's weights.
            count: how many are sampled. Those that cannot be read are left out.
            seed: the seed of the captions and of the noise.
            sampling: how they are sampled.
            device: the device of the model.
            ranks: those that sample together.

        Raises:
            InputError: not one can be read, or they do not fit in memory.
        """
        # Two latents of each: one that was drawn and one that should have been, in fp16.
        needed = 4.0 * count * math.prod(model.facts.latent_shape)
        require_memory(f"{count} rollouts", needed, lower="rollouts")
        settings, size = sampling.model_dump(mode="json", exclude={"block"}), sampling.block
        key = hash_settings({"weights": weights, "seed": seed, "sampling": settings, "block": size, "rules": RULES})
        place = folder / f"rollouts-{key[:8]}"
        fits = partial(_fits, model)
        found = sampled_rollouts(
            place, key, count, size, fits, lambda numbers: _sample(model, seed, numbers, sampling, device), ranks
        )
        clips = [world.clip("train", seed, number) for number in found["numbers"].tolist()]
        captions, backwards = [clip.caption for clip in clips], [_backwards(clip) for clip in clips]
        return cls(captions, backwards, found["drawn"], found["clean"], found["objects"])


def _fits(model: Model, numbers: range, block: Mapping[str, Tensor]) -> bool:
    """Whether a stored block is one that ``_sample`` makes for rollouts of these numbers."""
    latents, grid = (model.facts.latent_shape, torch.float16), model.facts.latent_shape[1:]
    return is_block(block, numbers, {"drawn": latents, "clean": latents, "objects": (grid, torch.bool)})


def _backwards(clip: world.Clip) -> str | None:
    scene, said = clip.scene.reversed(), world.read_caption(clip.caption)
    if not world.holds("train", scene):
        return None
    return world.plain_caption(scene, size=said.size is not None, speed=said.speed is not None)


@torch.no_grad()
def _sample(
    model: Model, seed: int, numbers: Sequence[int], sampling: Sampling, device: torch.device
) -> dict[str, Tensor]:
    """Sample one block, draw its scenes again, and encode them."""
    captions = [world.clip("train", seed, number).caption for number in numbers]
    guided = np.array([np.random.default_rng((seed, number, 12)).random() < sampling.guided for number in numbers])
    schedule = model.schedule.respaced(sampling.steps)
    assert isinstance(schedule, NoiseSchedule)  # the task refuses a rectified flow
    drawn = torch.zeros(len(numbers), *model.facts.latent_shape)
    with model.text.in_use() as text, model.network.in_use(torch.float32) as network:
        features, mask = text.encode(captions)
        for chosen, scale in ((guided, sampling.cfg_scale), (~guided, 1.0)):
            rows = np.flatnonzero(chosen).tolist()
            if not rows:
                continue
            guidance = Guidance(scale, sampling.cfg_channels, timing=sampling.timing)
            own = None if mask is None else mask[rows]
            denoiser = GuidedDenoiser(
                network,
                guidance,
                network.prepare(features[rows], own),
                None if guidance.is_conditional else network.null(len(rows), own),
                parameterization=model.process.parameterization,
            )
            noise = SampleNoise([seed] * len(rows), [numbers[row] for row in rows])
            sample = partial(sample_ddpm, process=model.process)
            x = noise.initial(model.facts.latent_shape, device)
            drawn[rows] = sample(denoiser, schedule, x, noise).cpu()
    with model.vae.in_use() as vae:
        return _pairs(vae, drawn, numbers, captions, device)


def _pairs(
    vae: Autoencoder, drawn: Tensor, numbers: Sequence[int], captions: Sequence[str], device: torch.device
) -> dict[str, Tensor]:
    """What was drawn, and what should have been drawn, for the clips that can be read."""
    shown = ((vae.decode(drawn.to(device)) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1)
    again = redraw(shown.cpu().numpy(), [world.read_caption(caption) for caption in captions])
    usable = torch.from_numpy(again.usable)
    frames = torch.from_numpy(again.frames[again.usable]).permute(0, 4, 1, 2, 3)
    clean = vae.encode(frames.to(device) * 2 - 1).cpu() if len(frames) else drawn[usable]
    cell = world.SIZE // drawn.shape[-1]
    near = F.max_pool2d(torch.from_numpy(again.coverage[again.usable]), 2 * MARGIN + 1, stride=1, padding=MARGIN)
    objects = F.max_pool2d(near, cell) > 0
    return {
        "numbers": torch.tensor(numbers)[usable],
        "drawn": drawn[usable].half().contiguous(),
        "clean": clean.half().contiguous(),
        "objects": objects,
    }
