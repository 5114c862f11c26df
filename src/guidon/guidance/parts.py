"""A guided prediction that is computed part by part, while its numbers are in the processor's cache.

The parts together are bit for bit what ``Guidance.combine`` gives by the plain rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(eq=False)
class GuidedParts:
    """Both branches of a step, of which only the leading channels are guided, by one scale."""

    cond: Tensor
    """The conditional prediction (B, C or 2C, ...)."""
    uncond: Tensor | None
    """The unconditional prediction; None where guidance does not act."""
    channels: int
    """Guided channels, the first of the prediction."""
    factor: float
    """Their scale."""
    whole: Callable[[], Tensor]
    """Computes the guided prediction at once."""
    refuse: Callable[[Tensor], None]
    """Raises if the guided prediction is not finite."""

    def __post_init__(self) -> None:
        self.cond = self.cond.contiguous()
        self.uncond = None if self.uncond is None else self.uncond.contiguous()
        self._rows = self.cond.flatten(1)
        self._others = None if self.uncond is None else self.uncond.flatten(1)
        self._guided = 0 if self.uncond is None else self.channels * math.prod(self.cond.shape[2:])

    def output(self, row: int, start: int, stop: int, out: Tensor) -> Tensor:
        """Numbers ``start`` to ``stop`` of a row, which are guided, in the memory of ``out``; or a view of others."""
        cond, guided = self._rows[row, start:stop], min(self._guided, stop) - start
        if self._others is None or guided <= 0:
            return cond
        other, mixed = self._others[row, start : start + guided], out[:guided]
        torch.sub(cond[:guided], other, out=mixed).mul_(self.factor).add_(other)
        out[guided : stop - start].copy_(cond[guided:])
        return out[: stop - start]

    def check(self, total: float, shown: bool) -> None:
        """Refuse the step if a number of a branch, or of the guided prediction, is not finite.

        Args:
            total: the sum of numbers that follow from all parts.
            shown: whether it is not finite wherever a part, or a number of ``cond``, is not. Then only what no part
                depends on is looked at.

        Raises:
            InputError: the number, and where it is.
        """
        if shown:
            unseen = [] if self.uncond is None else [self.uncond[:, self.channels :]]
        else:
            unseen = [self.cond] if self.uncond is None else [self.cond, self.uncond]
        if not math.isfinite(total + sum(float(each.sum()) for each in unseen)):
            self.refuse(self.whole())
