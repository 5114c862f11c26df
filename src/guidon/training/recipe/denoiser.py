"""The recipe of a network and its caption encoder, trained on clips of the world."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from ...core.errors import InputError, nearest
from ...world import SHAPES
from ..terms import Terms
from .run import Run
from .section import DIFFUSION_STEPS, Fraction, Section, must_divide, refuse_for_flow

SWAPPED_FROM = 350  # the first timestep of swaps; below it the noise is too weak to hide a shape
MOVED = {
    "loss_weighting": ("mse", "weighting"),
    "foreground_weight": ("mse", "foreground"),
    "area_weight": ("area", "weight"),
    "shape_contrast": ("shape_contrast", "weight"),
}
"""Settings of earlier versions: old name -> (term, name of the setting in that term)."""


class TextShape(Section):
    """Shape of the caption encoder."""

    features: PositiveInt = 64
    """Width."""
    layers: PositiveInt = 2
    """Transformer layers."""
    heads: PositiveInt = 4
    """Attention heads; divides the width."""
    max_length: PositiveInt = 20
    """The largest number of words in a caption."""

    @model_validator(mode="after")
    def _divides(self) -> TextShape:
        must_divide(self.heads, self.features, "heads must divide features")
        must_divide(2, self.features, "positions need sines and cosines in features")
        return self


class DenoiserShape(Section):
    """Shape of the STDiT."""

    hidden_size: PositiveInt = 128
    """Width."""
    depth: PositiveInt = 6
    """Blocks."""
    num_heads: PositiveInt = 4
    """Attention heads; divides the width."""
    patch_size: tuple[PositiveInt, PositiveInt, PositiveInt] = (1, 2, 2)
    """Latent pixels of a token along time, height and width."""
    mlp_ratio: PositiveFloat = 4.0
    """Width of the MLP in a block, relative to the block's."""
    refiner_channels: Annotated[int, Field(ge=0)] = 0
    """Channels of the refiner; 0 for a network without one."""
    refiner_depth: PositiveInt = 3
    """Layers of the refiner."""

    @model_validator(mode="after")
    def _divides(self) -> DenoiserShape:
        must_divide(self.num_heads, self.hidden_size, "num_heads must divide hidden_size")
        must_divide(4, self.hidden_size, "positions need sines and cosines of two axes in hidden_size")
        if "refiner_depth" in self.model_fields_set and not self.refiner_channels:
            raise InputError("refiner_depth was given without refiner_channels: give both")
        return self


class Expert(Section):
    """One of two networks that divide the timesteps between them (eDiff-I, 2211.01324, sec. 4)."""

    noise: Literal["low", "high"]
    """Which one: "low" is for the timesteps below ``boundary``."""
    boundary: Annotated[int, Field(gt=0, lt=DIFFUSION_STEPS)]
    """The first timestep of the network for high noise."""

    @property
    def timesteps(self) -> tuple[int, int]:
        """The range of timesteps that it is trained on: the first one, and the end (not included)."""
        return (0, self.boundary) if self.noise == "low" else (self.boundary, DIFFUSION_STEPS)


class DenoiserRecipe(Run):
    """A run that trains STDiT and its caption encoder on latents of the world's clips, which are encoded once."""

    task: Literal["denoiser"]
    vae: Path
    """Autoencoder file that an earlier run exported."""
    start: Path | None = None
    """Model folder of an earlier run, whose weights this one starts from."""
    expert: Expert | None = None
    """Train one of two expert networks. One is for timesteps below a boundary (low noise), the other for the rest.
    Train the expert for low noise first. An expert starts from its own network in ``start``, or from the only network
    there. The caption encoder and the other network are not changed."""
    train: Literal["all", "refiner"] = "all"
    """What is trained. "refiner" trains only the refiner; it is a new one if ``start`` has none. All other weights, and
    the learned variance, stay as in ``start``."""
    model: DenoiserShape = DenoiserShape()
    """Shape of the network."""
    text: TextShape = TextShape()
    """Shape of the caption encoder."""
    clips: PositiveInt = 12000
    """Number of clips that are encoded. A clip is also played backwards, unless the result is held out."""
    cache: Path | None = None
    """Folder of the encoded clips, which several runs may share. ``out`` if it is not given."""
    caption_dropout: Fraction = 0.1
    """Share of captions that are replaced by the null caption, so that guidance has an unconditional prediction."""
    caption_noise: Fraction = 0.0
    """Share of captions that are wrong about one attribute, as captions from the web often are. A model that learns
    these captions exactly is wrong equally often when it samples without guidance."""
    noise_schedule: Literal["linear", "squaredcos_cap_v2"] = "linear"
    """The noise schedule of the diffusion process. A rectified flow has none."""
    prediction: Literal["eps", "v", "x0", "flow"] = "eps"
    """What the network predicts. "flow" is the velocity eps - x_0 of rectified flow (Liu et al. 2209.03003): the path
    from data to noise is then a straight line in place of a diffusion, and no variance is learned."""
    timesteps: tuple[float, PositiveFloat] | None = None
    """(mean, std) of the logit-normal distribution (Esser et al. 2403.03206, eq. 19) from which t / 1000 is drawn. For
    an expert, (t - first) / (end - first) is drawn from it. If it is not given, timesteps are uniform. Those of a
    rectified flow lie between whole numbers, too."""
    terms: Terms = Terms()
    """The terms of the loss."""
    shape_weights: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Weight of the samples of each shape, in every term of the loss. A shape that is not named has weight 1. All
    weights are then scaled, so that captioned samples count 1 on average, like samples without a caption. Such weights
    do not change the best prediction for a caption. They change what the network spends its capacity on."""
    shape_swap: Fraction = 0.0
    """Share of captioned samples at high noise into which a clip of another shape is mixed, so that only the caption
    tells the true shape. It needs the term ``shape_contrast``."""
    size_swap: Fraction = 0.0
    """The same with the other size, as a share of the samples whose caption names the size, drawn independently of
    ``shape_swap``. A family then has every shape in both sizes: ``clips`` and ``batch_size`` are multiples of 8."""
    compile: bool = False
    """Compile the blocks, and the layers of a refiner, with torch.compile. It needs a C++ compiler."""

    @property
    def result(self) -> Path:
        """The exported model folder."""
        return self.out / "model"

    @property
    def flows(self) -> bool:
        """Whether it trains a rectified flow, not a diffusion."""
        return self.prediction == "flow"

    @property
    def family_size(self) -> int:
        """How many clips a family has: every shape, with ``size_swap`` in both sizes. 1 where clips are independent."""
        return len(SHAPES) * (2 if self.size_swap else 1) if self.terms.need("families") else 1

    @property
    def first_swap(self) -> str:
        """The first of ``shape_swap`` and ``size_swap`` that the recipe has; "" for none."""
        return next((name for name in ("shape_swap", "size_swap") if getattr(self, name)), "")

    @property
    def timestep_range(self) -> tuple[int, int]:
        """The range of timesteps that is trained: the first one, and the end (not included)."""
        return self.expert.timesteps if self.expert else (0, DIFFUSION_STEPS)

    @model_validator(mode="before")
    @classmethod
    def _terms_have_a_section(cls, values: Any) -> Any:
        for name, (term, key) in MOVED.items():
            if isinstance(values, dict) and name in values:
                raise InputError(f"{name} belongs to a term now: write terms: {{{term}: {{{key}: {values[name]}}}}}")
        return values

    @field_validator("shape_weights")
    @classmethod
    def _known_shapes(cls, value: dict[str, float]) -> dict[str, float]:
        if wrong := [name for name in value if name not in SHAPES]:
            raise InputError(f"shape_weights names {wrong[0]!r}{nearest(wrong[0], SHAPES)}")
        return value

    @model_validator(mode="after")
    def _whole_families(self) -> DenoiserRecipe:
        if self.terms.need("families"):
            family = "every shape in both sizes" if self.size_swap else "every shape"
            for name in ("batch_size", "clips"):
                must_divide(self.family_size, getattr(self, name), f"{name} must hold whole families, {family}")
        elif self.first_swap:
            raise InputError(f"{self.first_swap} takes a clip of the same family: give terms: shape_contrast too")
        return self

    @model_validator(mode="after")
    def _flows_without_a_diffusion(self) -> DenoiserRecipe:
        if self.flows:
            refuse_for_flow(
                "prediction: flow",
                ("noise_schedule" in self.model_fields_set, "noise_schedule", "it has none"),
                ("bound" in self.terms.model_fields_set, "terms: bound", "it learns no variance"),
                (bool(self.first_swap), self.first_swap, "it begins at a timestep of a diffusion"),
            )
        return self

    @model_validator(mode="after")
    def _refines_something(self) -> DenoiserRecipe:
        if self.train == "refiner" and (self.start is None or not self.model.refiner_channels):
            raise InputError("train: refiner trains one on an earlier run: give its start, and model: refiner_channels")
        return self

    @model_validator(mode="after")
    def _expert_has_its_side(self) -> DenoiserRecipe:
        if self.expert and self.start is None:
            raise InputError("an expert takes one side of an earlier run's timesteps: give its start")
        if self.expert and self.first_swap and self.expert.timesteps[1] <= SWAPPED_FROM:
            what = f"{self.first_swap} begins at timestep {SWAPPED_FROM}"
            raise InputError(f"{what}, and this expert ends before: leave it out")
        return self
