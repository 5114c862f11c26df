"""Whether two ways to do the same work give the same result."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ...core.errors import InputError

TOLERANCE = 1e-5
"""The largest difference of one step that counts as rounding, in fp32, of values of about 1."""


@dataclass(frozen=True)
class Exactness:
    """How far a result is from the base's."""

    largest: float
    """The largest absolute difference."""
    rms: float
    """The root mean square of the difference."""
    of: float
    """The root mean square of the base's result."""

    @property
    def exact(self) -> bool:
        """Whether the results differ by rounding alone."""
        return self.largest <= TOLERANCE  # False for NaN

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
    return Exactness(largest, float(error.square().mean().sqrt()), float(reference.square().mean().sqrt()))
