"""Single frames of a user's own videos and pictures, on which an autoencoder is trained: decoded once, kept on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..recipe.data import Data
from ..rows import ALL
from .checking import Checked
from .clips import checked_and_stored, digest_of, frames_as_images, in_buckets
from .order import Order
from .shards import Shards


class OwnFrames:
    """Frames of all clips of a recipe's ``data`` section. Made by ``prepare``."""

    def __init__(self, checked: Checked, data: Data, seed: int, shards: Shards) -> None:
        self.checked, self.seed = checked, seed
        self._shards = shards
        self.buckets = in_buckets(checked.clips, data.repeats)
        self._order = Order(seed, [len(clips) for clips in self.buckets.values()])

    @classmethod
    def prepare(cls, data: Data, place: Path, *, seed: int) -> OwnFrames:
        """Check the files, read what was stored, and decode what is missing.

        Args:
            data: the section of the recipe.
            place: the folder of decoded frames, which several runs and processes may share.
            seed: the seed of the order in which frames are drawn.

        Raises:
            InputError: files cannot be used, or there is nothing to train on.
        """
        shards = Shards(place, "clip-frames")

        def make(key: str, frames: np.ndarray) -> dict[str, Tensor]:
            return {_name(key, time): torch.from_numpy(frame.copy()) for time, frame in enumerate(frames)}

        checked = checked_and_stored(data, "nothing", shards, lambda clip: clip.key, make, "decoding")
        return cls(checked, data, seed, shards)

    @property
    def digest(self) -> str:
        """A hash of all files and clips."""
        return digest_of(self.checked, self.buckets)

    def batch(self, step: int, size: int, rows: slice = ALL) -> Tensor:
        """A random frame of each of the clips of a step, all of one size: (B, 3, H, W) in [-1, 1].

        Args:
            step: number of the step.
            size: frames in a batch.
            rows: which of these frames are read.
        """
        number, drawn = self._order.batch(step, size, rows)
        bucket, clips = list(self.buckets.items())[number]
        keys: list[str] = []
        for index, position in drawn:
            time = int(np.random.default_rng((self.seed, number, position, 14)).integers(bucket.frames))
            keys.append(_name(clips[index].key, time))
        return self._read(keys)

    def held_out(self, batches: int, size: int) -> list[Tensor]:
        """Frames of held-out clips, of which each gives one of its frames in turn; of the clips that are trained on
        where none is held out. At most ``batches`` batches of at most ``size``, of every size of clips as many as it
        has a share of all clips, but at least one."""
        found: list[tuple[float, list[str]]] = []
        for bucket, clips in in_buckets(self.checked.held_out or self.checked.clips).items():
            keys = [_name(clip.key, time) for time in range(bucket.frames) for clip in clips]
            found += [(k / len(clips), keys[k : k + size]) for k in range(0, min(len(keys), batches * size), size)]
        return [self._read(keys) for _, keys in sorted(found, key=lambda each: each[0])[:batches]]

    def _read(self, keys: list[str]) -> Tensor:
        return frames_as_images(torch.stack([self._shards.read(key) for key in keys]).numpy())


def _name(key: str, time: int) -> str:
    """The name of a clip's frame: the first one is named as the clip, so that a stored clip is found by its key."""
    return f"{key}.{time}" if time else key
