"""The world's latents, encoded once and kept on disk, and batches of them by step number."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ... import world
from ...core.atomic import atomic_path
from ...models.vae.frames import FrameVAE
from .areas import area_gradient

B = TypeVar("B")


class Prefetch(Generic[B]):
    """Batches by step number, each drawn by a thread while the step before it is computed."""

    def __init__(self, draw: Callable[[int], B]) -> None:
        self.draw, self.reader = draw, ThreadPoolExecutor(1)
        self.next: tuple[int, Future[B]] | None = None

    def __call__(self, step: int) -> B:
        batch = self.next[1].result() if self.next and self.next[0] == step else self.draw(step)
        self.next = step + 1, self.reader.submit(self.draw, step + 1)
        return batch


class Batch(NamedTuple):
    """N clips: their latents (N, C, T, h, w), captions, where objects are (N, 1, T, h, w), and their areas' gradients,
    shaped like the latents, where those are asked for.
    """

    latents: Tensor
    captions: list[str]
    objects: Tensor
    area_gradients: Tensor | None


class LatentClips:
    """Latents of the training split, with fresh captions every time one is drawn.

    Half of the draws are played backwards, under a caption that says so: the world's motion is reversible. Those that
    would show what the split holds out are not. With ``families`` the clips come in families of ``family_size``,
    neighbours in a batch, that differ in shape alone. With ``areas`` their objects' area gradients come too.
    """

    def __init__(
        self, folder: Path, vae: FrameVAE, vae_hash: str, clips: int, seed: int, *, families: bool, areas: bool
    ) -> None:
        self.clips, self.seed = clips, seed
        self.family_size = len(world.SHAPES) if families else 1
        key = f"{vae_hash} {clips} {seed} {world.SIZE} {world.FRAMES} {self.family_size}"
        self.latents = self._kept(folder, "latents", key, "encoding the world", partial(self._encode, vae))
        self.area_gradients = None
        if areas:
            self.area_gradients = self._kept(
                folder, "areas", key, "how areas answer to latents", partial(self._area_gradient, vae)
            )

    def scene(self, index: int) -> world.Scene:
        """What clip ``index`` shows."""
        first, member = divmod(index, self.family_size)
        if self.family_size == 1:
            return world.clip("train", self.seed, first).scene
        return world.family("train", self.seed, first)[member]

    def _kept(self, folder: Path, name: str, key: str, doing: str, make: Callable[[int], Tensor]) -> Tensor:
        """``make`` of every clip, in fp16, or what an earlier run of the same VAE and data kept, if it is whole."""
        path = folder / f"{name}.safetensors"
        try:
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}).get("key") == key:
                    return file.get_tensor(name)
        except (OSError, SafetensorError):
            pass
        console = Console(stderr=True)
        indices = track(range(self.clips), doing, console=console, disable=not console.is_terminal)
        made = torch.stack([make(index).half().cpu() for index in indices]).contiguous()
        with atomic_path(path) as temporary:
            temporary.write_bytes(save({name: made}, metadata={"key": key}))
        return made

    def _encode(self, vae: FrameVAE, index: int) -> Tensor:
        """Latents (C, T, h, w) of a clip."""
        device = next(vae.parameters()).device
        frames = torch.from_numpy(world.render(self.scene(index))).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            return vae.encode(frames.permute(3, 0, 1, 2)[None] * 2 - 1)[0]

    def _area_gradient(self, vae: FrameVAE, index: int) -> Tensor:
        """Of a clip, (C, T, h, w)."""
        return area_gradient(vae, self.latents[index].to(next(vae.parameters()).device), self.scene(index))

    def batch(self, step: int, size: int, *, caption_noise: float = 0.0) -> Batch:
        """What step ``step`` trains on.

        Every clip is seen once before any is seen twice. ``caption_noise`` is the share of captions that are wrong.
        """
        tensors, captions, objects = [], [], []
        kept = [self.latents] if self.area_gradients is None else [self.latents, self.area_gradients]
        for position in range(step * size, (step + 1) * size):
            count, member = divmod(position, self.family_size)
            epoch, offset = divmod(count, self.clips // self.family_size)
            index = int(self._order(epoch)[offset]) * self.family_size + member
            scene, shown = self.scene(index), torch.stack([values[index].float() for values in kept])
            if np.random.default_rng((self.seed, count, 7)).integers(2) and self._reversible(index - member):
                scene, shown = scene.reversed(), shown.flip(2)
            tensors.append(shown)
            rng = np.random.default_rng((self.seed, position, 8))
            told = world.mistaken(scene, rng) if rng.random() < caption_noise else scene
            captions.append(world.caption(told, rng))
            objects.append(touched(scene, shown.shape[-1]))
        latents, *gradients = torch.stack(tensors, dim=1)
        return Batch(latents, captions, torch.stack(objects)[:, None], gradients[0] if gradients else None)

    def _reversible(self, first: int) -> bool:
        """Whether the split holds all of a family played backwards."""
        return all(world.holds("train", self.scene(first + k).reversed()) for k in range(self.family_size))

    def _order(self, epoch: int) -> np.ndarray:
        if getattr(self, "_epoch", None) != epoch:
            self._epoch = epoch
            self._permutation = np.random.default_rng((self.seed, epoch, 11)).permutation(
                self.clips // self.family_size
            )
        return self._permutation


def touched(scene: world.Scene, side: int) -> Tensor:
    """Which cells (T, side, side) of a latent frame any object's box overlaps."""
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
