"""The terms of a denoiser's loss, one file each. A new term needs a file here, and its settings in ``settings``."""

from typing import TYPE_CHECKING

from ...core.lazy import imported_later
from .settings import Terms, TermSettings

if TYPE_CHECKING:
    from .sum import total_loss
    from .term import Loss, Term, TrainingStep

__all__ = ["Loss", "Term", "TermSettings", "Terms", "TrainingStep", "total_loss"]
__getattr__ = imported_later(__name__, "term", "sum")
