"""The recipe of a distilled network, which draws in a few steps of one call each."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from ...core.errors import InputError
from ...guidance import Guidance
from .run import Run
from .section import DIFFUSION_STEPS, Fraction, Section


class DistillSampling(Section):
    """How the clips are sampled that a distilled network learns from: by ddim, in the steps of that network."""

    cfg_scale: PositiveFloat = 3.0
    """The model's usual scale, at which the renderer corrects the clips."""
    cfg_channels: str = "3"
    """The channels that it usually guides."""
    timing: str = "interval:0,0.5"
    """When guidance acts, at every strength. The network learns it with guidance."""
    varied: Fraction = 0.28
    """Share of the blocks that have other strengths, drawn anew for each block."""
    scales: tuple[PositiveFloat, PositiveFloat] = (1.0, 7.0)
    """Range of the scales of these. Which channels have the scale is drawn too; the others have 1."""
    block: PositiveInt = 16
    """Clips that are sampled together, under the same strengths, and stored in one file."""

    @model_validator(mode="after")
    def _exists(self) -> DistillSampling:
        if self.scales[0] > self.scales[1]:
            raise InputError(f"scales {list(self.scales)} fall: give the smaller one first")
        settings = {"cfg_scale": self.cfg_scale, "cfg_channels": self.cfg_channels, "timing": self.timing}
        Guidance.from_settings(settings)
        return self


def must_fall(name: str, timesteps: tuple[int, ...]) -> None:
    if not timesteps or any(a <= b for a, b in pairwise(timesteps)):
        raise InputError(f"{name} {list(timesteps)} do not fall: give each once, the largest first")


class DistillRecipe(Run):
    """A run that distils a model: its network learns to draw in a few steps of one call each, told of guidance.

    The model of ``start`` samples clips in the same few steps, with two branches, by a deterministic sampler: noise and
    caption decide the clip. At first the network imitates the guided prediction of every step. At other strengths than
    the usual ones it goes on with that, so that strengths keep their meaning. At the usual ones the renderer then draws
    the clip again, as its caption asks, and the network learns to draw that from the same noise: a step of training
    runs all steps of sampling, each on the result of the one before. Of two expert networks, the one for high noise
    learns. At low noise the model's own networks take their steps unchanged.

    If ``start`` is distilled already, training goes on, and at the usual strengths the clips are those that the
    distilled network itself draws: it learns to mend its own errors.
    """

    task: Literal["distill"]
    start: Path
    """Model folder of an earlier run."""
    timesteps: tuple[Annotated[int, Field(ge=0, lt=DIFFUSION_STEPS)], ...] = (999, 780, 650, 540, 450, 385, 349, 60)
    """The steps of sampling, falling."""
    end: Annotated[int, Field(ge=0, lt=DIFFUSION_STEPS)] = 445
    """The distilled network takes the steps from this timestep up, and the model's own the others, without guidance."""
    rank: PositiveInt = 20
    """Rank of the matrices that are trained."""
    refiner_end: Annotated[int, Field(ge=0, le=DIFFUSION_STEPS)] = 500
    """The refiner acts at timesteps below this one, which saves its cost in the others; 0 where it acts in all."""
    rollouts: PositiveInt = 1600
    """Number of clips that are sampled for training and validation."""
    cache: Path | None = None
    """Folder of the rollouts, which several runs may share. ``out`` if it is not given."""
    sampling: DistillSampling = DistillSampling()
    """How they are sampled."""
    imitation: Annotated[int, Field(ge=0)] = 40
    """The first steps of training, in which every sample imitates the model's guided predictions."""
    forced: Fraction = 0.15
    """Share of the other samples whose steps begin where the model's own began, and not with what the network drew."""
    renewed: Fraction = 0.5
    """Share of these whose steps begin with the prediction of the step before and new noise, as the sampler
    ``consistency`` does once noise no longer hides the clip."""
    foreground: PositiveFloat = 4.0
    """Weight of an error on the object, relative to 1 on the background."""

    @property
    def shards(self) -> bool:
        """See ``Run``. It validates with the weights that it trains."""
        return False

    @property
    def result(self) -> Path:
        """The exported model folder."""
        return self.out / "model"

    @model_validator(mode="after")
    def _falls(self) -> DistillRecipe:
        must_fall("timesteps", self.timesteps)
        return self
