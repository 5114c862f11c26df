"""Clips of a user's own videos and pictures: encoded once, kept on disk, and drawn in batches by step number."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.errors import InputError
from ...core.hashing import hash_settings, hash_text
from ...core.progress import progress
from ...core.ranks import own_rank
from ...core.warn import note
from ...models.network import IMAGE_FPS, ClipFacts
from ...models.text import TextEncoder
from ...models.vae import Autoencoder
from ..recipe.data import Data, Wanted
from ..rows import ALL
from .checking import HELD, Bucket, Checked, Clip, check_data
from .cutting import cut_out
from .defects import Defect, refuse_or_tell
from .order import Order
from .shards import Shards

AWAY = ("missing", "unsupported", "undecodable")  # defects of files that may be whole again
HELD_OUT = 64  # held-out clips that are measured, at the most
HELD_OUT_ROWS = 16  # of a batch of them


@dataclass(frozen=True, eq=False)
class OwnBatch:
    """B clips of one size and length, with their captions or classes."""

    latents: Tensor
    """Scaled latents as ``Autoencoder.encode`` gives them, fp32 (B, C, T, h, w); (B, C, h, w) of ``images``."""
    captions: list[str]
    """One caption for each clip; "" where it has none."""
    features: Tensor | None
    """Features of the captions, fp32 (B, L, F), zero at padding; None without a text encoder. A clip without a caption
    has zeros, which mean nothing: give the network its null caption there."""
    mask: Tensor | None
    """Which tokens count, bool (B, L); None without a text encoder. Of no caption, the first token counts."""
    labels: Tensor | None
    """Numbers of the classes, (B,), as in ``PreparedClips.classes``; None unless classes are wanted."""
    fps: Tensor
    """Frames per second of each clip, (B,)."""
    clip: ClipFacts
    """Size and frames in pixels. Its fps is the mean over the whole batch: files may differ in it."""


class PreparedClips:
    """All clips of a recipe's ``data`` section, encoded. Batches are the same for the same files, seed and step.

    Made by ``prepare``. Latents are stored in 16 bits: that rounds each value by at most 1/2048 of itself.
    """

    def __init__(
        self,
        checked: Checked,
        repeats: Sequence[int] | None,
        seed: int,
        latents: Shards,
        vae_hash: str,
        features: Shards | None,
        text_hash: str,
        images: bool,
    ) -> None:
        self.checked, self.images = checked, images
        self._latents, self._vae_hash = latents, vae_hash
        self._features, self._text_hash = features, text_hash
        self.buckets = in_buckets(checked.clips, repeats)
        self._order = Order(seed, [len(clips) for clips in self.buckets.values()])

    @classmethod
    def prepare(
        cls,
        data: Data,
        place: Path,
        vae: Callable[[], Autoencoder],
        vae_hash: str,
        *,
        seed: int,
        wanted: Wanted = "captions",
        text: Callable[[], TextEncoder] | None = None,
        text_hash: str = "",
        images: bool = False,
    ) -> PreparedClips:
        """Check the files, read what an earlier run or another process encoded, and encode what is missing.

        Args:
            data: the section of the recipe.
            place: the folder of encoded clips and captions, which several runs and processes may share.
            vae: loads the autoencoder. It is called only if a clip is not encoded yet.
            vae_hash: the hash of the autoencoder's weights, which is part of the key of what is stored.
            seed: the seed of the order in which clips are drawn.
            wanted: what clips are trained with. Files without it cannot be used.
            text: loads the text encoder. It is called only if a caption is not encoded yet. None for no features.
            text_hash: the hash of the text encoder's weights and settings.
            images: whether latents have no T, for a network of images. ``data.frames`` must be 1 then.

        Raises:
            InputError: files cannot be used, or there is nothing to train on.
        """
        if images and data.lengths != (1,):
            raise InputError(f"the network makes images, and frames is {list(data.lengths)}: give frames: 1")
        latents = Shards(place, "clip-latents")
        checked = checked_and_stored(
            data, wanted, latents, partial(_latents_key, vae_hash), partial(_encode, cache(vae)), "encoding"
        )
        features = None
        if text is not None:
            features = Shards(place, "clip-captions")
            if not any(clip.given.captions for clip in checked.clips):
                raise InputError("no clip has a caption: write some, or train a network without a text encoder")
            _encode_captions(checked, features, text, text_hash)
        return cls(checked, data.repeats, seed, latents, vae_hash, features, text_hash, images)

    @property
    def captions(self) -> list[str]:
        """All different captions of the clips to train on, sorted; [] unless captions are wanted."""
        return sorted({caption for clip in self.checked.clips for caption in clip.given.captions or ()})

    @property
    def classes(self) -> list[str] | None:
        """The names of the classes by their numbers; None unless classes are wanted."""
        return self.checked.classes

    def number_classes(self, classes: list[str]) -> None:
        """Number the classes as in a list that has all of them, and may have more."""
        self.checked = replace(self.checked, classes=classes)

    @property
    def digest(self) -> str:
        """A hash of everything that batches depend on: files, clips, captions, classes and repeats."""
        return digest_of(self.checked, self.buckets)

    def batch(self, step: int, size: int, rows: slice = ALL) -> OwnBatch:
        """The clips of a step, all of one size and length. It may be called from any thread.

        Within a size and length, every clip is drawn once before any is drawn twice. Each size and length gets as many
        batches as it has a share of all clips. If it has fewer clips than a batch, some are in the batch several times.

        Args:
            step: number of the step.
            size: clips in a batch.
            rows: which of these clips are read.
        """
        number, drawn = self._order.batch(step, size, ALL)
        bucket, clips = list(self.buckets.items())[number]
        chosen = [clips[index] for index, _ in drawn]
        captions = [
            _drawn(clip, (self._order.seed, number, position))
            for clip, (_, position) in zip(chosen, drawn, strict=True)
        ]
        return self._read(bucket, chosen, captions, rows)

    @property
    def validation(self) -> list[OwnBatch]:
        """Batches of held-out clips, each with its first caption, the same every time.

        There are at most ``HELD_OUT`` clips, those of the lowest hash.
        """
        found: list[OwnBatch] = []
        chosen = sorted(self.checked.held_out[:HELD_OUT], key=lambda clip: clip.bucket)
        for bucket, clips in groupby(chosen, key=lambda clip: clip.bucket):
            together = list(clips)
            parts = [together[k : k + HELD_OUT_ROWS] for k in range(0, len(together), HELD_OUT_ROWS)]
            found += [self._read(bucket, part, [_first(clip) for clip in part], ALL) for part in parts]
        return found

    def _read(self, bucket: Bucket, clips: Sequence[Clip], told: Sequence[str], rows: slice) -> OwnBatch:
        fps = [clip.fps if bucket.frames > 1 else IMAGE_FPS for clip in clips]
        facts = ClipFacts(bucket.height, bucket.width, bucket.frames, float(np.mean(fps)))
        chosen, captions = clips[rows], list(told[rows])
        latents = torch.stack([self._latents.read(_latents_key(self._vae_hash, clip)) for clip in chosen]).float()
        features, mask = (None, None) if self._features is None else self._read_features(self._features, captions)
        labels = None
        if self.classes is not None:
            labels = torch.tensor([self.checked.class_number(clip) for clip in chosen])
        return OwnBatch(
            latents[:, :, 0] if self.images else latents,
            captions,
            features,
            mask,
            labels,
            torch.tensor(fps)[rows],
            facts,
        )

    def _stored_features(self, shards: Shards, caption: str) -> tuple[Tensor, Tensor]:
        """Features of the tokens of a caption that count, (n, F), and which count, (L,)."""
        key = _caption_key(self._text_hash, caption)
        return shards.read(key), shards.read(key + _MASK)

    def _read_features(self, shards: Shards, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        found = [self._stored_features(shards, caption) if caption else None for caption in captions]
        known = next((pair for pair in found if pair is not None), None)
        if known is None:  # a batch without captions: any caption tells the shape
            known = self._stored_features(shards, self.captions[0])
        features = torch.zeros(len(captions), len(known[1]), known[0].shape[1])
        mask = torch.zeros(features.shape[:2], dtype=torch.bool)
        for row, pair in enumerate(found):
            mask[row] = pair[1].bool() if pair is not None else torch.arange(mask.shape[1]) == 0
            if pair is not None:
                features[row, mask[row]] = pair[0].float()
        return features, mask


def _first(clip: Clip) -> str:
    return (clip.given.captions or ("",))[0]


def _drawn(clip: Clip, place: tuple[int, ...]) -> str:
    """One of a clip's captions, at random; "" where it has none.

    Args:
        clip: the clip.
        place: decides which one: the seed, and where in the order of all draws this is.
    """
    captions = clip.given.captions or ("",)
    return captions[0] if len(captions) == 1 else captions[np.random.default_rng((*place, 15)).integers(len(captions))]


_MASK = ".mask"  # after the key of a caption: the name of its mask


def checked_and_stored(
    data: Data,
    wanted: Wanted,
    shards: Shards,
    key: Callable[[Clip], str],
    make: Callable[[str, Any], Mapping[str, Tensor]],
    doing: str,
) -> Checked:
    """Check the files, and store what is made of each clip, unless it is stored already.

    Args:
        data: the section of the recipe.
        wanted: what clips are trained with.
        shards: where it is stored.
        key: the key of a clip.
        make: makes what is stored from the frames of a clip.
        doing: what this is, such as "encoding".

    Returns:
        The clips that are stored.

    Raises:
        InputError: files cannot be used, or there is nothing to train on.
    """
    checked = check_data(data, wanted, place=shards.folder)
    leave_out, speaks = data.unreadable == "leave_out", not own_rank()
    for line in checked.notes if speaks else ():
        note(line)
    refuse_or_tell(checked.defects, leave_out, speaks)
    by_key = {key(clip): clip for clip in (*checked.clips, *checked.held_out)}
    with progress(f"{doing} {len(by_key)} clips", "clips") as on_step:
        failed = shards.fill(list(by_key), lambda one: cut_out(by_key[one]), make, on_step)
    defects: list[Defect] = []
    for one, error in failed.items():
        given = by_key[one].given
        defects.append(given.defect("undecodable", str(error).removeprefix(f"{given.name} ")))
    refuse_or_tell(defects, leave_out, speaks)
    checked = checked.without({clip.sha256 for one, clip in by_key.items() if one in failed}, defects)
    if not checked.clips:
        places = ", ".join(map(str, data.folders))
        raise InputError(f"{places} holds no video or picture to train on: give a folder that does")
    return checked


def in_buckets(clips: Sequence[Clip], repeats: Sequence[int] | None = None) -> dict[Bucket, list[Clip]]:
    """Clips by size and length, each as often as ``repeats`` says of its folder."""
    found: dict[Bucket, list[Clip]] = {}
    for clip in clips:
        found.setdefault(clip.bucket, []).extend([clip] * (repeats[clip.given.folder] if repeats else 1))
    return dict(sorted(found.items()))


def digest_of(checked: Checked, buckets: Mapping[Bucket, Sequence[Clip]]) -> str:
    """A hash of all clips, of what is said of them, and of how often they are drawn."""
    drawn = [_said_of(clip) for clips in buckets.values() for clip in clips]
    held = [_said_of(clip) for clip in checked.held_out]
    return hash_settings({"drawn": drawn, "held_out": held, "classes": checked.classes})


@dataclass(frozen=True)
class DataState:
    """What the files of a recipe's data section are."""

    hash: str
    """A hash of all files that can be used, and of what is said of them where that is trained with."""
    away: tuple[str, ...]
    """The files that are missing or cannot be read, and the places without any clip."""


def data_state(data: Data, wanted: Wanted, place: Path, *, keep: bool) -> DataState | None:
    """What the files of a recipe's data section are.

    Args:
        data: the section.
        wanted: what clips are trained with.
        place: the folder of what is stored of them.
        keep: write what was found into ``place``, so that the next check is faster.

    Returns:
        The state; None where a place cannot be read, or no clip is there.
    """
    try:
        checked = check_data(data, wanted, place=place, keep=keep)
    except InputError:
        return None
    if not checked.clips:
        return None
    places = dict(enumerate(data.folders)) | ({HELD: data.validation} if isinstance(data.validation, Path) else {})
    filled = {clip.given.folder for clip in (*checked.clips, *checked.held_out)}
    away = {defect.file for defect in checked.defects if defect.kind in AWAY}
    away |= {str(path) for number, path in places.items() if number not in filled}
    if wanted == "nothing":
        found = hash_settings([[clip.key for clip in part] for part in (checked.clips, checked.held_out)])
    else:
        found = digest_of(checked, in_buckets(checked.clips))
    return DataState(found, tuple(sorted(away)))


def _said_of(clip: Clip) -> list[Any]:
    captions = clip.given.captions
    return [clip.key, captions if captions is None or len(captions) > 1 else _first(clip), clip.given.label]


def tell_of_small(buckets: Mapping[Bucket, Sequence[Clip]], size: int) -> None:
    """Say which buckets have fewer clips than a batch."""
    for bucket, clips in buckets.items():
        if len(clips) < size and not own_rank():
            note(
                f"{bucket}: {len(clips)} clips, fewer than a batch of {size}, so a batch holds some of them repeatedly"
            )


def frames_as_images(frames: np.ndarray) -> Tensor:
    """Frames uint8 (T, H, W, 3) as (T, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1


def _latents_key(vae_hash: str, clip: Clip) -> str:
    return hash_text(f"{vae_hash} {clip.key}")[:32]


def _caption_key(text_hash: str, caption: str) -> str:
    return hash_text(f"{text_hash} {caption}")[:32]


@torch.inference_mode()
def _encode(vae: Callable[[], Autoencoder], key: str, frames: np.ndarray) -> dict[str, Tensor]:
    """The latents of a clip, fp16 (C, T, h, w).

    Raises:
        InputError: a value is NaN, or too large for fp16.
    """
    model: Any = vae()
    device = next(iter(model.parameters()), torch.empty(0)).device
    latents = model.encode(frames_as_images(frames).transpose(0, 1)[None].to(device))[0].half().cpu().contiguous()
    if not latents.isfinite().all():
        raise InputError("the latents of a clip hold NaN or infinity: the autoencoder is broken, give another vae")
    return {key: latents.clone()}


def _encode_captions(checked: Checked, shards: Shards, text: Callable[[], TextEncoder], text_hash: str) -> None:
    """Store the features of all captions, without those of padding."""
    captions = {caption for clip in (*checked.clips, *checked.held_out) for caption in clip.given.captions or ()}
    by_key = {_caption_key(text_hash, caption): caption for caption in captions}
    encoder = cache(text)

    def encode(key: str, caption: str) -> dict[str, Tensor]:
        features, mask = encoder().encode([caption])
        if mask is None:
            mask = torch.ones(features.shape[:2], dtype=torch.bool)
        counts = mask[0].cpu().bool()
        kept = features[0].cpu()[counts].contiguous()
        if not kept.isfinite().all():
            raise InputError("the features of a caption hold NaN or infinity: encode them in bf16 or fp32")
        return {key: kept.clone(), key + _MASK: counts.to(torch.uint8)}

    with progress(f"encoding {len(by_key)} captions", "captions") as on_step:
        shards.fill(list(by_key), lambda key: by_key[key], encode, on_step)
