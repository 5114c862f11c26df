"""Fewer calls of guidance's other branches: none once they agree with the conditional one, and old ones used again.

Both are approximations: a run with them makes other clips. They know no network: ``GuidedDenoiser`` asks which calls to
leave out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..core.errors import InputError, setting

if TYPE_CHECKING:  # settings are checked without torch
    from torch import Tensor

MOST_REUSE = 1000


@dataclass(frozen=True)
class Sparing:
    """Which calls of the other branches a run leaves out."""

    adaptive: float | None = None
    """The cosine between the conditional prediction and every other one from which a clip is guided no more: above 0
    and up to 1 (adaptive guidance, Castillo et al. 2312.12487, sec. 4). None: it is guided to the end.

    Only guided channels are compared, in the parameterisation of the network, clip by clip. The calls end when all
    clips of the batch agree.
    """
    reuse: int = 1
    """The other branches are called at every so many guided steps, at least 1. Between them, the difference from the
    conditional prediction is the last one that was computed (FasterCache, Lv et al. 2410.19355, sec. 3.3, without its
    weights by frequency)."""

    def __post_init__(self) -> None:
        if self.adaptive is not None and not 0 < self.adaptive <= 1:
            raise InputError(
                f"{setting('adaptive')} {self.adaptive:g} is not a cosine that predictions can reach: give a number "
                "above 0 and up to 1, such as 0.99"
            )
        if not 1 <= self.reuse <= MOST_REUSE:
            raise InputError(f"{setting('reuse')} {self.reuse} is not valid: give 1 to {MOST_REUSE}, such as 2")

    @property
    def is_neutral(self) -> bool:
        """Whether no call is left out."""
        return self.adaptive is None and self.reuse == 1


EVERY_CALL = Sparing()


class Spared:
    """What one run knows of its other branches."""

    def __init__(self, sparing: Sparing) -> None:
        self.sparing = sparing
        self.stopped: Tensor | None = None
        """(B,), the clips that are guided no more; None while none is."""
        self.ended = False
        """Whether none of them is guided any more."""
        self._differences: dict[str, Tensor] = {}

    def needs_branches(self, guided: int) -> bool:
        """Whether the step after so many guided ones needs the other branches computed."""
        return guided % self.sparing.reuse == 0 or not self._differences

    def reused(self, cond: Tensor) -> dict[str, Tensor]:
        """All branches of a step, by its conditional prediction and the differences that were computed last."""
        return self._without_stopped({"cond": cond, **{name: cond - d for name, d in self._differences.items()}})

    def seen(self, found: Mapping[str, Tensor], compared: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Learn from all branches of a step, and give those that guidance is to use.

        Args:
            found: the predictions by branch, "cond" first.
            compared: what of a prediction tells whether it agrees with another one.
        """
        cond, others = found["cond"], {name: each for name, each in found.items() if name != "cond"}
        if self.sparing.reuse > 1:
            self._differences = {name: cond - each for name, each in others.items()}
        if self.sparing.adaptive is not None:
            agree = _least_cosine(compared(cond), map(compared, others.values())) >= self.sparing.adaptive
            self.stopped = agree if self.stopped is None else self.stopped | agree
            self.ended = bool(self.stopped.all())
        return self._without_stopped(found)

    def _without_stopped(self, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The branches; those of a clip that is guided no more are the conditional one."""
        cond = found["cond"]
        return {name: each if name == "cond" else self.only_guided(each, cond) for name, each in found.items()}

    def only_guided(self, prediction: Tensor, cond: Tensor) -> Tensor:
        """A prediction; the conditional one for the clips that are guided no more."""
        if self.stopped is None:
            return prediction
        import torch

        return torch.where(self.stopped.view(-1, *[1] * (cond.ndim - 1)), cond, prediction)


def _least_cosine(own: Tensor, others: Iterable[Tensor]) -> Tensor:
    """The least cosine (B,) between one prediction and others (B, ...)."""
    import torch
    from torch.nn.functional import cosine_similarity

    return torch.stack([cosine_similarity(own.flatten(1), each.flatten(1)) for each in others]).amin(0)
