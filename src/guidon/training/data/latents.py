"""The world's clips as latents: encoded once, kept on disk, and drawn in batches by step number."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ... import world
from ...core.atomic import sweep
from ...core.errors import InputError
from ...core.hashing import hash_text
from ...core.limits import require_disk, require_memory
from ...core.progress import progress
from ...core.ranks import ALONE, Ranks
from ...models.vae.frames import FrameVAE
from ..rows import ALL
from .areas import area_gradient
from .cache import store, stored


@dataclass(frozen=True, eq=False)
class Batch:
    """B clips and their captions. The latents of one clip are (C, T, h, w)."""

    latents: Tensor
    """(B, C, T, h, w)"""
    captions: list[str]
    objects: Tensor
    """Latent pixels that an object's bounding box overlaps, bool (B, 1, T, h, w)."""
    area_gradients: Tensor | None
    """The gradients of the objects' areas by the latents, (B, C, T, h, w); None unless a loss term needs them."""


@dataclass(frozen=True, eq=False)
class LatentClips:
    """Latents of the training split, with a new caption every time one is drawn.

    About half of the draws are played backwards, with the caption of the backward motion. The world's motion is
    reversible, so this gives more data. A clip is never played backwards if it would then show a combination that the
    split holds out.
    """

    seed: int
    family_size: int
    """How many clips a family has, which are consecutive: they differ in shape, or in shape and size. 1 for none."""
    latents: Tensor
    """The latents of all clips, fp16 (N, C, T, h, w)."""
    area_gradients: Tensor | None
    """The area gradients of all clips, like ``latents``; None unless a loss term needs them."""

    @classmethod
    def prepare(
        cls,
        folder: Path,
        vae: FrameVAE,
        vae_hash: str,
        clips: int,
        seed: int,
        *,
        family_size: int,
        areas: bool,
        ranks: Ranks = ALONE,
    ) -> LatentClips:
        """Encode clips, or read the file that an earlier run with the same autoencoder and data stored.

        Args:
            folder: where latents are stored.
            vae: the autoencoder.
            vae_hash: the hash of the autoencoder's file; it is part of the cache key.
            clips: how many; a multiple of ``family_size``.
            seed: the seed that the clips are generated from.
            family_size: clips in a family: 1, as many as there are shapes, or twice as many: every shape in both sizes.
            areas: whether the gradients of the objects' areas are needed.
            ranks: those that encode together, each a share of the clips. All call this.

        Raises:
            InputError: the autoencoder is broken, or the clips do not fit in memory or on the disk.
            RankFailed, MemoryError, RankLost: another rank failed, or ended.
        """
        key = f"{vae_hash} {clips} {seed} {world.SIZE} {world.FRAMES} {family_size}"
        sweep(folder)
        side = world.SIZE // vae.config.downsampling
        shape = (clips, vae.config.latent_channels, world.FRAMES, side, side)
        latents = _kept(folder, "latents", key, shape, partial(_encode, vae, seed, family_size), ranks)
        gradients = None
        if areas:
            gradient = partial(_area_gradient, vae, seed, family_size, latents)
            gradients = _kept(folder, "areas", key, shape, gradient, ranks)
        return cls(seed, family_size, latents, gradients)

    def batch(self, step: int, size: int, *, caption_noise: float = 0.0, rows: slice = ALL) -> Batch:
        """The clips of a step. Every clip is drawn once before any is drawn twice.

        Args:
            step: number of the step.
            size: clips in a batch.
            caption_noise: the probability that a caption is wrong about one attribute.
            rows: which of these clips are read.
        """
        latents: list[Tensor] = []
        gradients: list[Tensor] = []
        captions: list[str] = []
        objects: list[Tensor] = []
        for position in range(step * size, (step + 1) * size)[rows]:
            # Which clip, and in which direction: the same direction for a whole family.
            count, member = divmod(position, self.family_size)
            first = self._family(count)
            index = first + member
            scene = _scene(self.seed, self.family_size, index)
            backwards = bool(np.random.default_rng((self.seed, count, 7)).integers(2)) and self.reversible(first)
            if backwards:
                scene = scene.reversed()
            # Its latents and area gradient, reversed in time where it is played backwards.
            shown = self.latents[index].float()
            latents.append(shown.flip(1) if backwards else shown)
            if self.area_gradients is not None:
                gradient = self.area_gradients[index].float()
                gradients.append(gradient.flip(1) if backwards else gradient)
            objects.append(touched(scene, shown.shape[-1]))
            # Its caption, wrong on purpose with probability caption_noise.
            rng = np.random.default_rng((self.seed, position, 8))
            told = world.mistaken(scene, rng) if rng.random() < caption_noise else scene
            captions.append(world.caption(told, rng))
        together = torch.stack(gradients) if gradients else None
        return Batch(torch.stack(latents), captions, torch.stack(objects)[:, None], together)

    def scene(self, index: int) -> world.Scene:
        """The scene of clip ``index``."""
        return _scene(self.seed, self.family_size, index)

    def reversible(self, first: int) -> bool:
        """Whether the training split also contains every clip of the family at ``first`` when played backwards."""
        return all(world.holds("train", self.scene(first + k).reversed()) for k in range(self.family_size))

    def _family(self, count: int) -> int:
        """The first clip of the family that is drawn as number ``count``."""
        families = len(self.latents) // self.family_size
        epoch, offset = divmod(count, families)
        return int(shuffled(self.seed, epoch, families)[offset]) * self.family_size


@lru_cache(maxsize=4)
def shuffled(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """The order in which an epoch draws ``count`` families."""
    return np.random.default_rng((seed, epoch, 11)).permutation(count)


def touched(scene: world.Scene, side: int) -> Tensor:
    """Which cells of latent frames an object's bounding box overlaps, bool (T, side, side)."""
    cell = world.SIZE / side
    edges = np.arange(side) * cell
    out = np.zeros((world.FRAMES, side, side), bool)
    for thing in scene.things:
        x, y = thing.centroids().T[..., None]  # (T, 1) each
        left, right, up, down = world.extents(thing.shape, world.AREAS[thing.size])
        across = (edges + cell > x - left) & (edges < x + right)
        along = (edges + cell > y - up) & (edges < y + down)
        out |= along[:, :, None] & across[:, None, :]
    return torch.from_numpy(out)


def _scene(seed: int, family_size: int, index: int) -> world.Scene:
    if family_size == 1:
        return world.clip("train", seed, index).scene
    first, member = divmod(index, family_size)
    return world.family("train", seed, first, sizes=family_size > len(world.SHAPES))[member]


def _kept(
    folder: Path, name: str, key: str, shape: tuple[int, ...], make: Callable[[int], Tensor], ranks: Ranks
) -> Tensor:
    """The fp16 tensor of this shape, (N, ...), that is stored under this key.

    If there is none, it is made of ``make(index)`` of all N clips, of which every rank makes a share, and stored.

    Raises:
        InputError: a value is NaN, or too large for fp16; or they do not fit in memory or on the disk.
        RankFailed, MemoryError, RankLost: another rank failed, or ended.
    """
    path, own = folder / f"{name}-{hash_text(key)[:8]}.safetensors", f"{name} {key}"
    count = shape[0]

    def fits(tensors: Mapping[str, Tensor]) -> bool:
        found = tensors.get(name)
        return found is not None and found.shape == shape and found.dtype == torch.float16

    def share() -> list[Tensor]:
        made: list[Tensor] = []
        numbers = range(count)[ranks.share(count)]
        with progress(f"preparing clips: {name}") as on_step:
            for index in numbers:
                made.append(make(index).half().cpu())
                if len(made) == 1:
                    needed = float(count) * made[0].nbytes
                    require_memory(f"the {name} of {count} clips", needed, lower="clips")
                    require_disk(f"the {name} of {count} clips", needed, folder, lower="clips")
                on_step(len(made), len(numbers))
        if not all(one.isfinite().all() for one in made):
            raise InputError(f"the {name} of clips hold NaN or infinity: the autoencoder is broken, give another vae")
        return made

    kept = ranks.agreed(lambda: stored(path, own, f"clips' {name}", fits))
    if not ranks.any(kept is None) and kept is not None:
        return kept[name]
    shares = ranks.together_at_length(share)
    together = torch.stack([one for made in shares for one in made])
    ranks.from_first(lambda: store(path, own, {name: together}))
    return together


def _encode(vae: FrameVAE, seed: int, family_size: int, index: int) -> Tensor:
    """Latents (C, T, h, w) of a clip."""
    device = next(vae.parameters()).device
    frames = torch.from_numpy(world.render(_scene(seed, family_size, index))).to(device)
    with torch.autocast(device.type, torch.bfloat16):
        return vae.encode(frames.permute(3, 0, 1, 2)[None] * 2 - 1)[0]


def _area_gradient(vae: FrameVAE, seed: int, family_size: int, latents: Tensor, index: int) -> Tensor:
    """The area's gradient by a clip's latents, (C, T, h, w)."""
    device = next(vae.parameters()).device
    return area_gradient(vae, latents[index].to(device), _scene(seed, family_size, index))
