"""Rules that turn or take away a part of the update or of a branch, by projections of whole samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...core.errors import InputError, setting
from .contract import Branches, Rule, Scale
from .geometry import dot, norm, projected

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class APG(Rule):
    """Adaptive projected guidance (Sadat et al. 2410.02416, algorithm 1). Neutral: eta 1, norm_limit 0, momentum 0.

    The update is a running sum over the steps (``momentum``; a negative one pushes away from earlier updates). Its norm
    is limited. Its part along the conditional x_0, which saturates colours, is weighted by ``eta``.

    ``norm_limit`` is the paper's r, an L2 norm over one sample's guided channels: 15 on the 65,536 elements of SDXL. 0
    sets no limit.
    """

    name = "apg"
    space = "x0"
    eta: float = 0.0
    norm_limit: float = 15.0
    momentum: float = -0.5

    def __post_init__(self) -> None:
        self._require("eta", 0)
        self._require("norm_limit", 0)
        self._require("momentum", -1, 1)

    @property
    def is_plain(self) -> bool:
        return self.eta == 1 and not self.norm_limit and not self.momentum

    def _update(self, branches: Branches) -> Tensor:
        """The running sum of cond - uncond."""
        update = branches.cond - branches.uncond
        if not self.momentum:
            return update
        return update + self.momentum * branches.kept.get("update", update.new_zeros(()))

    def keeps(self, branches: Branches, scale: Scale) -> Mapping[str, Tensor]:
        return {"update": self._update(branches)} if self.momentum else {}

    def __call__(self, branches: Branches, scale: Scale) -> Tensor:
        update = self._update(branches)
        if self.norm_limit:
            update = update * (self.norm_limit / norm(update).clamp_min(1e-12)).clamp(max=1)
        along = projected(update, branches.cond)
        return branches.cond + (scale - 1) * (update - along + self.eta * along)


@dataclass(frozen=True)
class CFGZero(Rule):
    """CFG-Zero* (Fan et al. 2503.18886, algorithm 1). Neutral: project 0 and zeroed 0.

    The unconditional velocity is scaled by its optimal factor <cond, uncond> / ||uncond||^2; the factor used is
    1 + project (optimum - 1). During the first fraction ``zeroed`` of sampling the velocity is zero.

    On rectified flow the velocity is the paper's. On a variance-preserving schedule it is v of Salimans & Ho
    (2202.00512). At pure noise v is -x_0, so a velocity of zero predicts x_0 = 0, the mean of latents.
    """

    name = "cfg-zero"
    space = "velocity"
    project: float = 1.0
    zeroed: float = 0.04

    def __post_init__(self) -> None:
        self._require("project", 0, 1)
        self._require("zeroed", 0, 1)

    @property
    def is_plain(self) -> bool:
        return not self.project and not self.zeroed

    def __call__(self, branches: Branches, scale: Scale) -> Tensor:
        if branches.level.progress < self.zeroed:
            return branches.cond.new_zeros(branches.cond.shape)
        optimum = dot(branches.cond, branches.uncond) / dot(branches.uncond, branches.uncond).clamp_min(1e-12)
        uncond = branches.uncond * (1 + self.project * (optimum - 1))
        return uncond + scale * (branches.cond - uncond)


@dataclass(frozen=True)
class PerpendicularNegative(Rule):
    """Perp-Neg (Armandpour et al. 2304.04968, eq. 8). Neutral: weight 0.

    Of the negative prompt, only the part perpendicular to the prompt is subtracted:
    uncond + s ((cond - uncond) - weight (negative - uncond)_perpendicular). The negative prompt does not take the null
    caption's place: three branches run.
    """

    name = "perp-neg"
    needs_negative = True
    weight: float = 1.0

    def __post_init__(self) -> None:
        self._require("weight", 0)

    @property
    def is_plain(self) -> bool:
        return not self.weight

    def __call__(self, branches: Branches, scale: Scale) -> Tensor:
        if branches.negative is None:
            raise InputError(f"{setting('guidance')} perp-neg needs a negative prompt")
        wanted, unwanted = branches.cond - branches.uncond, branches.negative - branches.uncond
        return branches.uncond + scale * (wanted - self.weight * (unwanted - projected(unwanted, wanted)))


@dataclass(frozen=True)
class TangentialDamping(Rule):
    """TCFG, tangential damping (Kwon et al. 2503.18137, after the abstract and the implementation in diffusers).
    Neutral: damping 0.

    cond and uncond span a plane. Of its singular value decomposition only the direction that both share is kept in
    uncond; the direction in which they differ most, the tangential one, is taken away. The part ``damping`` of it is
    taken.
    """

    name = "tcfg"
    space = "noise"
    damping: float = 1.0

    def __post_init__(self) -> None:
        self._require("damping", 0, 1)

    @property
    def is_plain(self) -> bool:
        return not self.damping

    def __call__(self, branches: Branches, scale: Scale) -> Tensor:
        import torch

        cond, uncond = branches.cond, branches.uncond
        # The first right singular vector of the rows (cond, uncond) is (a cond + b uncond) / s, where (a, b) is the
        # first eigenvector of their inner products and s^2 its eigenvalue. uncond's part along it is b (a cond + b
        # uncond). The angle of (a, b) is half that of (cc - uu, 2 cu).
        cc, uu, cu = dot(cond, cond), dot(uncond, uncond), dot(cond, uncond)
        length = torch.hypot(cc - uu, 2 * cu)
        safe = length.clamp_min(1e-30)
        along = cu / safe * cond + (1 - (cc - uu) / safe) / 2 * uncond
        along = torch.where(length > 0, along, uncond)  # no direction stands out
        uncond = uncond + self.damping * (along - uncond)
        return uncond + scale * (cond - uncond)
