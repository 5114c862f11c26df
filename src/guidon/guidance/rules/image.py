"""Guidance by two conditions: the text, and an image that the clip is made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from ...core.errors import InputError, setting
from .contract import Branches, Rule, Scale
from .plain import cfg

if TYPE_CHECKING:
    from torch import Tensor

Oscillates = Literal["none", "text", "image"]


@dataclass(frozen=True)
class ThreeWay(Rule):
    """Guidance by text and image (Brooks et al. 2211.09800, eq. 3; Open-Sora 2.0). Neutral: image 1.

    With c for text and image, u for the image alone and i for neither: i + image (u - i) + s (c - u). Three branches
    run. The scale s is the text's; at s = 1 the image still guides.

    ``oscillate`` names the scale that is 1 at every second step from step ``start`` on. Where both oscillate, the whole
    of guidance does: give the timing "oscillation:10". With ``ramp`` 1, as Open-Sora 2.0 makes video from an image, the
    image's scale grows over the frames of a clip, from 1 at the first one. At the last one it falls over the steps,
    from ``image`` at the first step towards 1 at the end.
    """

    name = "three-way"
    image: float = 3.0
    oscillate: Oscillates = "none"
    start: int = 10
    ramp: int = 0

    def __post_init__(self) -> None:
        self._require("image", 0)
        if self.oscillate not in get_args(Oscillates):
            raise InputError(
                f"{setting('guidance')} three-way: oscillate={self.oscillate!s:.40} does not exist: give image, text "
                f"or none; for both at once give {setting('timing')} oscillation:10"
            )
        self._require("start", 0)
        self._require("ramp", 0, 1)

    @property
    def is_plain(self) -> bool:
        return self.image == 1 and self.oscillate != "text"

    @property
    def needs_imageless(self) -> bool:
        return self.image != 1

    @property
    def oscillates(self) -> bool:
        return self.oscillate != "none"

    @property
    def by_scale_one(self) -> bool:
        return self.image == 1

    def __call__(self, branches: Branches, scale: Scale) -> Tensor:
        lowered = branches.number >= self.start and branches.number % 2 == 1
        guided = cfg(branches, 1.0 if lowered and self.oscillate == "text" else scale)
        if self.image == 1 or (lowered and self.oscillate == "image"):
            return guided
        if branches.imageless is None:
            raise InputError(f"{setting('guidance')} three-way needs a prediction without the image: give imageless")
        # i + image (u - i) + s (c - u) = u + s (c - u) + (image - 1) (u - i)
        return guided + (self._image_scale(branches) - 1) * (branches.uncond - branches.imageless)

    def _image_scale(self, branches: Branches) -> Scale:
        """The image's scale; with a ramp one for each frame, (T, 1, 1)."""
        if not self.ramp or self.image <= 1:
            return self.image
        import torch

        x = branches.cond
        if x.ndim != 5:
            raise InputError(f"{setting('guidance')} three-way: ramp=1 is over the frames of a video: leave it out")
        last = self.image + (1 - self.image) * branches.share
        return torch.linspace(1.0, last, x.shape[2], device=x.device, dtype=x.dtype)[:, None, None]
