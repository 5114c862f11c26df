"""What samplers are written against: a denoiser, and a source of noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, runtime_checkable

from ..core.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from ..diffusion import NoiseLevel

CLIPS_TOGETHER = 8
"""How many clips are denoised together where a call does not say it."""
SamplerName = Literal[
    "ddpm", "ddim", "dpm-solver", "dpm-solver-sde", "dpm-solver-3m-sde", "unipc", "consistency", "euler", "heun"
]
PathName = Literal["diffusion", "flow"]
"""The path from data to noise that a model was trained on: a diffusion schedule, or rectified flow."""
SAMPLERS: dict[PathName, tuple[SamplerName, ...]] = {
    "diffusion": ("ddpm", "ddim", "dpm-solver", "dpm-solver-sde", "dpm-solver-3m-sde", "unipc", "consistency"),
    "flow": ("euler", "heun"),
}
"""The samplers of each path."""
WHOLE: tuple[SamplerName, ...] = ("ddpm", "ddim", "consistency")
"""The samplers that visit whole timesteps of a diffusion schedule. The others visit levels between them."""
Noise: TypeAlias = "Callable[[Tensor], Tensor]"
"""``noise(x)`` gives standard normal values shaped like x."""
AfterStep: TypeAlias = "Callable[[int, NoiseLevel, Tensor], Tensor]"
"""``after_step(step, level, x)`` is called at the end of step 0, 1, ..., which began at ``level``. It returns the x
(B, C, ...) that sampling goes on with."""


class Denoiser(Protocol):
    """What a sampler sees of a model under guidance."""

    def __call__(self, x: Tensor, level: NoiseLevel, /) -> Tensor:
        """The prediction (B, C or 2C, ...) for x (B, C, ...) at a level."""
        ...


@runtime_checkable
class CheckedDenoiser(Protocol):
    """A denoiser that refuses predictions that are not finite, as ``GuidedDenoiser`` does."""

    def __call__(self, x: Tensor, level: NoiseLevel, /) -> Tensor:
        """See ``Denoiser``. It raises an InputError at the step whose prediction is not finite, or one step later."""
        ...

    def finish(self) -> None:
        """Look at the last step, whose prediction may not have been looked at. It raises as the call does."""
        ...


class DenoiserInParts(Protocol):
    """A denoiser whose prediction can be computed part by part, as that of ``GuidedDenoiser``."""

    def parts(self, x: Tensor, level: NoiseLevel, /) -> Parts | None:
        """The parts, which are what the call gives; or None, without having run the network."""
        ...


class Parts(Protocol):
    """A prediction of B rows that is computed part by part. The numbers of a row are in the order of its memory."""

    @property
    def cond(self) -> Tensor:
        """A prediction of the same shape, of which the learned variance is taken."""
        ...

    @property
    def whole(self) -> Callable[[], Tensor]:
        """Computes all parts at once."""
        ...

    def output(self, row: int, start: int, stop: int, out: Tensor) -> Tensor:
        """Numbers ``start`` to ``stop`` of the first C channels of a row; ``out`` is memory for as many."""
        ...

    def check(self, total: float, shown: bool) -> None:
        """Refuse the step if a number of a branch, or of the prediction, is not finite.

        Args:
            total: the sum of numbers that follow from all parts.
            shown: whether it is not finite wherever a part, or the learned variance, is not.
        """
        ...


def checked(denoiser: Denoiser) -> CheckedDenoiser:
    """The denoiser itself if it checks its predictions, else one that checks them for it."""
    return denoiser if isinstance(denoiser, CheckedDenoiser) else _Checked(denoiser)


class _Checked:
    """Any denoiser, with a check of every prediction."""

    def __init__(self, denoiser: Denoiser) -> None:
        from ..core.finite import FiniteCheck  # it needs torch, which those who only name a sampler do not

        self.denoiser, self.steps, self.check = denoiser, 0, FiniteCheck()

    def __call__(self, x: Tensor, level: NoiseLevel, /) -> Tensor:
        prediction = self.denoiser(x, level)
        self.steps += 1
        step = self.steps

        def fail() -> None:
            if not bool(prediction.isfinite().all()):
                raise InputError(
                    f"the denoiser's prediction is not finite at step {step} (timestep {level.shown}): look at "
                    "its weights, its precision and the scale of its guidance"
                )

        self.check.look((prediction,), fail)
        return prediction

    def finish(self) -> None:
        self.check.finish()
