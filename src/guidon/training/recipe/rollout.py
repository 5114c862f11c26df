"""The recipe of a finisher, trained on what a model itself draws."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from ...core.errors import InputError
from ...guidance import Guidance
from ..terms import Terms
from ..terms.settings import MSESettings
from .run import Run
from .section import DIFFUSION_STEPS, Fraction, Section


class FinisherShape(Section):
    """Shape of the finisher: convolutions that go over the prediction in the last steps of sampling."""

    channels: PositiveInt = 64
    """Channels of its layers."""
    depth: PositiveInt = 5
    """Layers."""
    end: Annotated[int, Field(gt=0, le=DIFFUSION_STEPS)] = 100
    """It acts at timesteps below this one."""


class Sampling(Section):
    """How rollouts are sampled: by ddpm, some of them guided."""

    steps: PositiveInt = 50
    """Denoising steps."""
    guided: Fraction = 0.75
    """Share of rollouts that are guided. The others are sampled without guidance."""
    cfg_scale: PositiveFloat = 3.0
    """Guidance scale of the guided ones."""
    cfg_channels: str = "3"
    """Guided latent channels, such as "3" or "all"."""
    timing: str = "interval:0,0.5"
    """When guidance acts, such as "constant" or "interval:0,0.5"."""
    block: PositiveInt = 16
    """Rollouts that are sampled together and stored in one file. A GPU is busy with 256."""

    @model_validator(mode="after")
    def _guidance_exists(self) -> Sampling:
        settings = {"cfg_scale": self.cfg_scale, "cfg_channels": self.cfg_channels, "timing": self.timing}
        Guidance.from_settings(settings)
        return self


class RolloutRecipe(Run):
    """A run that trains a finisher on what the model itself draws.

    The model of ``start`` samples clips (rollouts). Each is paired with the clean rendering of the scene that it shows.
    The finisher learns to predict the clean latents from the noisy rollout. All other weights stay as they are.
    """

    task: Literal["rollout"]
    start: Path
    """Model folder of an earlier run. Of two expert networks, the one for low noise gets the finisher."""
    finisher: FinisherShape = FinisherShape()
    """Shape of the finisher."""
    rollouts: PositiveInt = 1600
    """Number of clips that are sampled for training and validation."""
    cache: Path | None = None
    """Folder of the rollouts, which several runs may share. ``out`` if it is not given."""
    sampling: Sampling = Sampling()
    """How rollouts are sampled."""
    blend: Fraction = 0.5
    """Share of samples in which the rollout is mixed with its clean version, as it is after steps with a finisher."""
    caption_dropout: Fraction = 0.1
    """Share of captions that are replaced by the null caption."""
    terms: Terms = Terms(mse=MSESettings(weighting="balanced", foreground=4))
    """The terms of the loss. Those that need area gradients or families of clips cannot be used."""
    compile: bool = False
    """Compile the blocks and the finisher's layers with torch.compile. It needs a C++ compiler."""

    @property
    def shards(self) -> bool:
        """See ``Run``. It validates with the weights that it trains."""
        return False

    @property
    def result(self) -> Path:
        """The exported model folder."""
        return self.out / "model"

    @model_validator(mode="after")
    def _terms_need_nothing(self) -> RolloutRecipe:
        for what in ("areas", "families"):
            if names := [name for name, term in self.terms.chosen.items() if what in term.needs]:
                raise InputError(f"the term {names[0]} needs {what}, which rollouts do not have: leave it out")
        return self
