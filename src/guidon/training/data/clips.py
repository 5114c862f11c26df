"""Clips of a user's own videos and pictures: encoded once, kept on disk, and drawn in batches by step number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from ...models.network import ClipFacts
from ...models.text import TextEncoder
from ...models.vae import Autoencoder
from ..recipe.data import Data

Wanted = Literal["captions", "classes", "nothing"]
"""What clips are trained with: their captions, their classes, or nothing, as those of an autoencoder."""


@dataclass(frozen=True, eq=False)
class OwnBatch:
    """B clips of one size and length, with their captions or classes."""

    latents: Tensor
    """Scaled latents as ``Autoencoder.encode`` gives them, fp32 (B, C, T, h, w); (B, C, h, w) of ``images``."""
    captions: list[str]
    """One caption for each clip; "" where it has none."""
    features: Tensor | None
    """Features of the captions, (B, L, F), zero at padding; None without a text encoder."""
    mask: Tensor | None
    """Which tokens count, (B, L); None without a text encoder, or where it gives none."""
    labels: Tensor | None
    """Numbers of the classes, (B,), as in ``PreparedClips.classes``; None unless classes are wanted."""
    clip: ClipFacts
    """Size and frames in pixels. Its fps is the mean over the batch: files may differ in it."""


class PreparedClips:
    """All clips of a recipe's ``data`` section, encoded. Batches are the same for the same files, seed and step."""

    captions: list[str]
    """All different captions of the clips to train on, sorted; [] unless captions are wanted."""
    classes: list[str] | None
    """The names of the classes by their numbers; None unless classes are wanted."""
    digest: str
    """A hash of everything that batches depend on: files, clips, captions and classes."""

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
        raise NotImplementedError

    def batch(self, step: int, size: int) -> OwnBatch:
        """The clips of a step, all of one size and length. It may be called from any thread.

        Within a size and length, every clip is drawn once before any is drawn twice. Each size and length gets as many
        batches as it has a share of all clips.

        Args:
            step: number of the step.
            size: clips in a batch.
        """
        raise NotImplementedError

    @property
    def validation(self) -> list[OwnBatch]:
        """Batches of held-out clips, the same every time: at most ``HELD_OUT`` clips, those of the lowest hash."""
        raise NotImplementedError
