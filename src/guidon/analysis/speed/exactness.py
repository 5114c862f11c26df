"""Whether two ways to do the same work give the same result."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ...core.errors import InputError

TOLERANCE = 1e-5
"""The largest difference of one step that counts as rounding in fp32, as a share of the base's largest value, or of 1
where that is smaller."""


@dataclass(frozen=True)
class Exactness:
    """How far a result is from the base's."""

    largest: float
    """The largest absolute difference."""
    rms: float
    """The root mean square of the difference."""
    of: float
    """The root mean square of the base's result."""
    top: float
    """The largest absolute value of the base's result."""

    @property
    def exact(self) -> bool:
        """Whether the results differ by rounding alone."""
        return self.largest <= TOLERANCE * max(1.0, self.top)  # False for NaN

    def __str__(self) -> str:
        if self.exact:
            return f"exact ({self.largest:.1e})"
        return f"lossy: rms {self.rms:.2g} of {self.of:.2g}, largest {self.largest:.2g}"


def compare_results(found: Tensor, base: Tensor) -> Exactness:
    """How far a result is from the base's, which has its shape.

    Raises:
        InputError: the shapes differ.
    """
    if found.shape != base.shape:
        raise InputError(f"an arm gave {tuple(found.shape)}, the base {tuple(base.shape)}: give arms of the same work")
    reference = base.detach().double().cpu()
    error = (found.detach().double().cpu() - reference).abs()
    largest = float(error.max()) if not bool(error.isnan().any()) else math.nan
    rms, of = (float(each.square().mean().sqrt()) for each in (error, reference))
    return Exactness(largest, rms, of, float(reference.abs().max()))
