"""Rules that bring the guided prediction back to the size of the conditional one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from ...core.broadcasting import per_sample
from ...core.errors import InputError, nearest, setting
from .contract import Branches, Rule, Scale
from .plain import cfg

if TYPE_CHECKING:
    from torch import Tensor

Over = Literal["token", "row", "sample"]
MOST_PATCH = 16
"""The largest side of a token in latent pixels; no network has more."""


@dataclass(frozen=True)
class Rescale(Rule):
    """Plain guidance, brought back towards the conditional prediction's standard deviation (Lin et al. 2305.08891, sec.
    3.4): phi std(cond) / std(guided) guided + (1 - phi) guided. It reduces overexposure. Neutral: phi 0.

    The standard deviation is over the guided channels, so that unguided ones do not change. diffusers takes it over all
    channels.
    """

    name = "rescale"
    phi: float = 0.7

    def __post_init__(self) -> None:
        self._require("phi", 0, 1)

    @property
    def is_plain(self) -> bool:
        return not self.phi

    def __call__(self, branches: Branches, scale: Scale) -> Tensor:
        import torch

        guided = cfg(branches, scale)
        wanted, found = (per_sample(part.flatten(1).std(1), guided) for part in (branches.cond, guided))
        ratio = torch.where(found > 0, wanted / found, 1)
        return guided * (self.phi * ratio + 1 - self.phi)


@dataclass(frozen=True)
class Renormalised(Rule):
    """Plain guidance, brought back to the L2 norm of the conditional prediction: (1 - phi + phi |cond| / |g|) g, part
    by part. Neutral: phi 0.

    ``over`` says what a part is. "token": all guided channels of one patch of latent pixels in one frame, ``patch``
    pixels wide and high. "row": one row of pixels in one channel. "sample": everything that is guided.

    ``renorm:patch=2`` is what Qwen-Image's pipeline does, and ``renorm:over=row`` what Lumina 2's does
    (``cfg_normalization``), after their code in diffusers. ``shrink`` 1 never makes a part longer, as ComfyUI's node
    CFGNorm (there a token is one pixel) and Z-Image's pipeline do (there over the whole sample). The norm is over the
    guided channels; those pipelines guide all.
    """

    name = "renorm"
    space = "noise"
    over: Over = "token"
    patch: int = 1
    phi: float = 1.0
    shrink: int = 0

    def __post_init__(self) -> None:
        if self.over not in get_args(Over):
            raise InputError(
                f"{setting('guidance')} renorm: over={self.over!s:.40} does not exist"
                f"{nearest(str(self.over), get_args(Over))}"
            )
        self._require("patch", 1, MOST_PATCH)
        if self.patch > 1 and self.over != "token":
            raise InputError(
                f"{setting('guidance')} renorm: patch is of over=token: leave it out with over={self.over}"
            )
        self._require("phi", 0, 1)
        self._require("shrink", 0, 1)

    @property
    def is_plain(self) -> bool:
        return not self.phi

    def check_size(self, height: int, width: int) -> None:
        if height % self.patch or width % self.patch:
            raise InputError(
                f"{setting('guidance')} renorm: latents of {height}x{width} hold no whole patches of {self.patch}x"
                f"{self.patch}: give another patch"
            )

    def __call__(self, branches: Branches, scale: Scale) -> Tensor:
        import torch

        guided = cfg(branches, scale)
        wanted, found = self._norms(branches.cond), self._norms(guided)
        ratio = torch.where(found > 0, wanted / found.clamp_min(1e-30), 1)
        if self.shrink:
            ratio = ratio.clamp_max(1)
        return guided * (self.phi * ratio + 1 - self.phi)

    def _norms(self, x: Tensor) -> Tensor:
        """The norm of the part to which each value belongs, shaped to multiply x (B, C, ..., H, W)."""
        from torch.nn import functional

        squares = x.square()
        if self.over == "sample":
            return per_sample(squares.flatten(1).sum(1), x).sqrt()
        if x.ndim < 4 and (self.over == "row" or self.patch > 1):
            raise InputError(f"{setting('guidance')} renorm: latents {tuple(x.shape)} have no height and width")
        if self.over == "row":
            return squares.sum(-1, keepdim=True).sqrt()
        of_pixels = squares.sum(1, keepdim=True)
        if self.patch == 1:
            return of_pixels.sqrt()
        self.check_size(x.shape[-2], x.shape[-1])
        planes = of_pixels.flatten(0, -3)[:, None]
        of_tokens = functional.avg_pool2d(planes, self.patch) * self.patch**2
        spread = of_tokens.repeat_interleave(self.patch, -2).repeat_interleave(self.patch, -1)
        return spread.view_as(of_pixels).sqrt()
