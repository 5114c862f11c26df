"""Plain classifier-free guidance, to which every other rule reduces at its neutral setting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .contract import Branches, Rule, Scale

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class CFG(Rule):
    """uncond + s (cond - uncond): classifier-free guidance (Ho & Salimans 2207.12598, eq. 6 with s = 1 + w)."""

    name = "cfg"

    @property
    def is_plain(self) -> bool:
        return True

    def __call__(self, branches: Branches, scale: Scale) -> Tensor:
        return (branches.cond - branches.uncond).mul_(scale).add_(branches.uncond)


cfg = CFG()
