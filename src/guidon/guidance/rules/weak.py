"""Rules that push away from a weaker prediction: another model's, or the network's own with blocks skipped."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...core.errors import InputError, setting
from .contract import Branches, Rule, Scale
from .plain import cfg

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Autoguidance(Rule):
    """Autoguidance (Karras et al. 2406.02507, after the abstract and a summary of its mix with CFG). Neutral: share 0.

    A weaker model of the same data, smaller or trained less, is given the same prompt. Guidance pushes away from what
    it predicts: cond + (s - 1) ((1 - share) (cond - uncond) + share (cond - weak)). At share 1 the weak model takes
    the unconditional branch's place, which is not run.
    """

    name = "autoguidance"
    weak = "model"
    share: float = 1.0

    def __post_init__(self) -> None:
        self._require("share", 0, 1)

    @property
    def is_plain(self) -> bool:
        return not self.share

    @property
    def needs_uncond(self) -> bool:
        return self.share != 1

    def __call__(self, branches: Branches, scale: Scale) -> Tensor:
        cond, weak = branches.cond, _weak(self, branches)
        if not self.needs_uncond:
            return cond + (scale - 1) * (cond - weak)
        update = (1 - self.share) * (cond - branches.uncond) + self.share * (cond - weak)
        return cond + (scale - 1) * update


@dataclass(frozen=True)
class SkipGuidance(Rule):
    """Spatio-temporal skip guidance with residual skipping (STG-R, Hyung et al. 2411.18664, after the abstract and the
    skip-layer guidance in diffusers). Neutral: weight 0.

    The weak prediction is the network's own for the prompt, with some transformer blocks skipped: each gives what it
    was given. Plain guidance is pushed away from it: uncond + s (cond - uncond) + weight (cond - weak). The weight
    holds for every guided channel, wherever guidance acts. In image models the same is called skip-layer guidance.
    LTX-2's pipeline uses weight 1; a network of few blocks takes less.

    ``blocks`` are the numbers of the blocks, from 0, such as "8+9", or "middle".
    """

    name = "stg"
    weak = "blocks"
    weight: float = 0.25
    blocks: str = "middle"

    def __post_init__(self) -> None:
        self._require("weight", 0)
        given = str(self.blocks)
        if given != "middle" and not re.fullmatch(r"\d{1,4}(\+\d{1,4})*", given):
            raise InputError(
                f"{setting('guidance')} stg: blocks={given:.40} cannot be read: give numbers such as 8+9, or middle"
            )

    @property
    def is_plain(self) -> bool:
        return not self.weight

    def numbers(self, count: int) -> tuple[int, ...]:
        """The blocks to skip, of so many.

        Raises:
            InputError: the network has no such block.
        """
        if self.blocks == "middle":
            return (count // 2,)
        chosen = tuple(sorted({int(number) for number in self.blocks.split("+")}))
        if chosen[-1] >= count:
            raise InputError(
                f"{setting('guidance')} stg: blocks={self.blocks} names block {chosen[-1]}, but the network's are "
                f"numbered 0 to {count - 1}"
            )
        return chosen

    def __call__(self, branches: Branches, scale: Scale) -> Tensor:
        return cfg(branches, scale) + self.weight * (branches.cond - _weak(self, branches))


def _weak(rule: Rule, branches: Branches) -> Tensor:
    if branches.weak is None:
        raise InputError(f"{setting('guidance')} {rule.name} needs a weak prediction, and none was given")
    return branches.weak
