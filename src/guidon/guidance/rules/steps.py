"""Rules that look at the steps before or after this one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...core.errors import InputError, setting
from .contract import Branches, Rule, Scale
from .plain import cfg

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class CFGPlusPlus(Rule):
    """CFG++ (Chung et al. 2406.08070, algorithm 2): x_0 is guided by a scale s in [0, 1], and the noise that is put
    back is the unconditional prediction. Its sampler is deterministic DDIM.

    With alpha, sigma of this level, alpha', sigma' of the next one and A = alpha' / alpha, its step is DDIM's under
    plain guidance of scale s A sigma / (A sigma - sigma'). That is what is computed: plain CFG of a scale that falls
    during sampling and ends at s. There is no neutral setting.
    """

    name = "cfg++"
    takes_ramps = False

    @property
    def by_scale_one(self) -> bool:
        return False

    def check(self, scales: Sequence[float]) -> None:
        if any(scale > 1 for scale in scales):
            raise InputError(
                f"{setting('guidance')} cfg++ takes a {setting('cfg_scale')} from 0 to 1, such as 0.6: "
                f"{max(scales):g} was given"
            )

    def __call__(self, branches: Branches, scale: Scale) -> Tensor:
        level, after = branches.level, branches.level.next
        if after is None:
            raise InputError(
                f"{setting('guidance')} cfg++ needs {setting('sampler')} ddim with {setting('eta')} 0, or euler on a "
                "rectified flow"
            )
        # numerator and denominator are multiplied by alpha, which is 0 where rectified flow begins
        carried = after.alpha * level.sigma
        moved = carried - level.alpha * after.sigma
        if isinstance(moved, int | float) and not moved:  # schedules may end with a step that stays at its level
            return branches.cond
        return cfg(branches, scale * (carried / moved))


@dataclass(frozen=True)
class Momentum(Rule):
    """Momentum guidance (Liao et al. 2602.20360, after the abstract and two implementations for ComfyUI, one of which
    names eq. 12 and 13). Neutral: alpha 0.

    The velocity v of plain guidance is pushed away from the mean m of those before: v + alpha (v - m). m is an
    exponential average, beta m + (1 - beta) v at each step, and begins with the first v.

    On rectified flow the velocity is the paper's. On a variance-preserving schedule it is v of Salimans & Ho
    (2202.00512).
    """

    name = "momentum"
    space = "velocity"
    alpha: float = 0.5
    beta: float = 0.6

    def __post_init__(self) -> None:
        self._require("alpha", 0)
        self._require("beta", 0, 1)

    @property
    def is_plain(self) -> bool:
        return not self.alpha

    def keeps(self, branches: Branches, scale: Scale) -> Mapping[str, Tensor]:
        velocity = cfg(branches, scale)
        mean = branches.kept.get("mean", velocity)
        return {"mean": self.beta * mean + (1 - self.beta) * velocity}

    def __call__(self, branches: Branches, scale: Scale) -> Tensor:
        velocity = cfg(branches, scale)
        return velocity + self.alpha * (velocity - branches.kept.get("mean", velocity))
