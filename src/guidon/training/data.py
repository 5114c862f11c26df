"""The world's latents, encoded once and kept on disk, and batches of them by step number."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .. import world
from ..atomic import atomic_path
from ..models.vae import FrameVAE

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


class LatentClips:
    """Latents of the training split, with fresh captions every time one is drawn.

    Half of the draws are played backwards, under a caption that says so: the world's motion is reversible. Those that
    would show what the split holds out are not. With ``families`` the clips come in families of ``family_size``,
    neighbours in a batch, that differ in shape alone.
    """

    def __init__(
        self, path: Path, vae: FrameVAE, vae_hash: str, clips: int, seed: int, *, families: bool = False
    ) -> None:
        self.clips, self.seed = clips, seed
        self.family_size = len(world.SHAPES) if families else 1
        key = f"{vae_hash} {clips} {seed} {world.SIZE} {world.FRAMES} {self.family_size}"
        stored = self._stored(path, key)
        self.latents = self._encode(vae) if stored is None else stored
        if stored is None:
            with atomic_path(path) as temporary:
                temporary.write_bytes(save({"latents": self.latents}, metadata={"key": key}))

    def scene(self, index: int) -> world.Scene:
        """What clip ``index`` shows."""
        first, member = divmod(index, self.family_size)
        if self.family_size == 1:
            return world.clip("train", self.seed, first).scene
        return world.family("train", self.seed, first)[member]

    @staticmethod
    def _stored(path: Path, key: str) -> Tensor | None:
        """The latents kept by an earlier run of the same VAE and data, if they are whole."""
        try:
            with safe_open(path, framework="pt") as file:
                return file.get_tensor("latents") if (file.metadata() or {}).get("key") == key else None
        except (OSError, SafetensorError):
            return None

    def _encode(self, vae: FrameVAE) -> Tensor:
        """(clips, C, T, h, w) in fp16."""
        device = next(vae.parameters()).device
        console = Console(stderr=True)
        parts = []
        for index in track(range(self.clips), "encoding the world", console=console, disable=not console.is_terminal):
            frames = torch.from_numpy(world.render(self.scene(index))).to(device)
            with torch.autocast(device.type, torch.bfloat16):
                parts.append(vae.encode(frames.permute(3, 0, 1, 2)[None] * 2 - 1).half().cpu().contiguous())
        return torch.cat(parts).contiguous()

    def batch(self, step: int, size: int, *, caption_noise: float = 0.0) -> tuple[Tensor, list[str], Tensor]:
        """The latents (size, C, T, h, w) and captions of a step, and where its objects are (size, 1, T, h, w).

        Every clip is seen once before any is seen twice. ``caption_noise`` is the share of captions that are wrong.
        """
        latents, captions, objects = [], [], []
        for position in range(step * size, (step + 1) * size):
            count, member = divmod(position, self.family_size)
            epoch, offset = divmod(count, self.clips // self.family_size)
            index = int(self._order(epoch)[offset]) * self.family_size + member
            scene, latent = self.scene(index), self.latents[index].float()
            if np.random.default_rng((self.seed, count, 7)).integers(2) and self._reversible(index - member):
                scene, latent = scene.reversed(), latent.flip(1)
            latents.append(latent)
            rng = np.random.default_rng((self.seed, position, 8))
            told = world.mistaken(scene, rng) if rng.random() < caption_noise else scene
            captions.append(world.caption(told, rng))
            objects.append(touched(scene, latent.shape[-1]))
        return torch.stack(latents), captions, torch.stack(objects)[:, None]

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
