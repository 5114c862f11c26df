"""Clips in the layouts of diffusers' outputs: arrays, tensors or pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from .video import Video


@dataclass(frozen=True, eq=False)
class DiffusersOutput:
    """What a call with ``output_type`` gives.

    As in diffusers, ``output.frames``, ``output["frames"]`` and ``output[0]`` are the same; a model of images has
    ``images``. ``output.frames[0]`` is the first clip.
    """

    frames: np.ndarray | Tensor | list[list[Image.Image]]
    """All clips, by ``output_type``:

    - "np": float32 (clips, time, height, width, 3) in [0, 1], in steps of 1/255
    - "pt": the same as a tensor (clips, time, 3, height, width)
    - "pil": a list of clips, each a list of pictures
    - "latent": a tensor (clips, C, time, height, width), or (clips, C, height, width) of images
    """
    manifests: tuple[dict[str, Any], ...]
    """The settings of every clip, as ``Video.manifest`` holds them."""
    is_image: bool
    """Whether the model makes images."""

    @property
    def images(self) -> Any:
        """The frames without the axis of time, of a model that makes images.

        Raises:
            AttributeError: the model makes video.
        """
        if not self.is_image:
            raise AttributeError("this model makes video: its output has 'frames', not 'images'")
        if isinstance(self.frames, list):
            return [clip[0] for clip in self.frames]
        return self.frames[:, 0] if self.frames.ndim == 5 else self.frames

    @property
    def manifest(self) -> dict[str, Any]:
        """The settings of the only clip.

        Raises:
            AttributeError: there are several clips.
        """
        if len(self.manifests) != 1:
            raise AttributeError(f"{len(self.manifests)} clips were made: take manifests[0] to manifests[-1]")
        return self.manifests[0]

    def __getitem__(self, key: int | str) -> Any:
        if not isinstance(key, str):
            return ((self.images if self.is_image else self.frames),)[key]
        if key not in (self._name, "manifest", "manifests"):
            raise KeyError(f"the output has {self._name!r} and 'manifests', not {key!r}")
        return getattr(self, key)

    @property
    def _name(self) -> str:
        """What diffusers calls the output of such a model."""
        return "images" if self.is_image else "frames"


def frames_as(videos: Sequence[Video], output_type: str) -> np.ndarray | Tensor | list[list[Image.Image]]:
    """The frames of clips of one size, in the layout of ``output_type``; see ``DiffusersOutput``."""
    if output_type == "pil":
        from .files import as_images

        return [as_images(video.frames) for video in videos]
    frames = np.stack([video.frames for video in videos]).astype(np.float32) / 255
    if output_type == "np":
        return frames
    import torch

    return torch.from_numpy(frames).permute(0, 1, 4, 2, 3).contiguous()
