"""What a recipe may say: the settings of a training run, read from YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from ..core.errors import InputError, nearest
from ..core.settings import Settings, read_mapping, validated
from ..world import SHAPES, SIZE

DIFFUSION_STEPS = 1000
SWAPPED_FROM = 350  # below, noise hides no shape: what x_t shows is what there is
Fraction = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]


def _divides(part: int, whole: int, what: str) -> None:
    if whole % part:
        raise InputError(f"{what}: {whole} is no multiple of {part}")


class Optimiser(Settings):
    """AdamW, or Muon for the hidden matrices with AdamW for everything else.

    The rate warms up linearly, holds, then falls linearly to zero over the last ``decay`` of the run.
    """

    name: Literal["adamw", "muon"] = "adamw"
    lr: PositiveFloat = 1e-3
    muon_lr: PositiveFloat = 0.01
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.99)
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    warmup_steps: Annotated[int, Field(ge=0)] = 200
    decay: Fraction = 0.3
    grad_clip: PositiveFloat = 1.0


class Run(Settings):
    """What every training run shares."""

    out: Path
    steps: PositiveInt
    batch_size: PositiveInt = 32
    seed: Annotated[int, Field(ge=0, lt=2**40)] = 0
    device: str = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    ema_decay: Fraction = 0.999
    log_every: PositiveInt = 50
    checkpoint_every: PositiveInt = 500
    evaluate_every: Annotated[int, Field(ge=0)] = 0  # steps; 0 never
    optimiser: Optimiser = Optimiser()


class VAEShape(Settings):
    block_out_channels: tuple[PositiveInt, ...] = (32, 64, 96)
    layers_per_block: PositiveInt = 1
    latent_channels: PositiveInt = 4
    norm_num_groups: PositiveInt = 8
    mid_block_attention: bool = False
    pixel_unshuffle: PositiveInt = 2

    @model_validator(mode="after")
    def _divides(self) -> VAEShape:
        for channels in self.block_out_channels:
            _divides(self.norm_num_groups, channels, "norm_num_groups must divide block_out_channels")
        _divides(
            self.pixel_unshuffle * 2 ** (len(self.block_out_channels) - 1), SIZE, "its downsampling must divide frames"
        )
        return self


class VAERecipe(Run):
    """The frame autoencoder: L1 + MSE with foreground weighted, and a KL term per latent element.

    ``start`` is the autoencoder file of an earlier run whose weights this one starts from, but for those next to the
    latent channels in ``redraw``: a channel that a strong KL term has put out does not come back by itself.
    """

    task: Literal["vae"]
    start: Path | None = None
    redraw: tuple[Annotated[int, Field(ge=0)], ...] = ()
    model: VAEShape = VAEShape()
    foreground_weight: PositiveFloat = 10.0
    kl_weight: Annotated[float, Field(ge=0)] = 1e-4

    @model_validator(mode="after")
    def _redraws(self) -> VAERecipe:
        if self.redraw and self.start is None:
            raise ValueError("redraw leaves out weights of an earlier run: give its start")
        if len(set(self.redraw)) >= self.model.latent_channels:
            raise ValueError("redraw names every latent channel, and new ones take after those that are kept")
        if wrong := [channel for channel in self.redraw if channel >= self.model.latent_channels]:
            raise ValueError(f"redraw names latent channel {wrong[0]}, they are 0 to {self.model.latent_channels - 1}")
        return self


class TextShape(Settings):
    features: PositiveInt = 64
    layers: PositiveInt = 2
    heads: PositiveInt = 4
    max_length: PositiveInt = 20

    @model_validator(mode="after")
    def _divides(self) -> TextShape:
        _divides(self.heads, self.features, "heads must divide features")
        _divides(2, self.features, "positions need sines and cosines in features")
        return self


class DenoiserShape(Settings):
    hidden_size: PositiveInt = 128
    depth: PositiveInt = 6
    num_heads: PositiveInt = 4
    patch_size: tuple[PositiveInt, PositiveInt, PositiveInt] = (1, 2, 2)
    mlp_ratio: PositiveFloat = 4.0
    refiner_channels: Annotated[int, Field(ge=0)] = 0
    refiner_depth: PositiveInt = 3

    @model_validator(mode="after")
    def _divides(self) -> DenoiserShape:
        _divides(self.num_heads, self.hidden_size, "num_heads must divide hidden_size")
        _divides(4, self.hidden_size, "positions need sines and cosines of two axes in hidden_size")
        if "refiner_depth" in self.model_fields_set and not self.refiner_channels:
            raise InputError("refiner_depth is of a refiner, and without refiner_channels there is none: give both")
        return self


class Expert(Settings):
    """One of two networks that share the timesteps (eDiff-I, 2211.01324, sec. 4): "low" noise is below ``boundary``."""

    noise: Literal["low", "high"]
    boundary: Annotated[int, Field(gt=0, lt=DIFFUSION_STEPS)]

    @property
    def timesteps(self) -> tuple[int, int]:
        """The first it is trained on, and the first after them."""
        return (0, self.boundary) if self.noise == "low" else (self.boundary, DIFFUSION_STEPS)


class DenoiserRecipe(Run):
    """STDiT with its caption encoder, on latents of the world that are computed once and kept in ``out``.

    ``foreground_weight`` is what an error where the object is counts more, once noise lets its place be seen.
    ``area_weight`` is that of how much the decoded object's area would vary over the frames, to first order, relative
    to what is usual at that noise (as ``loss_weighting: balanced`` has it for the whole error).
    ``shape_weights`` is how much captions of a shape count relative to those of others, 1; no caption counts as much as
    captions on average. A weight that depends on the caption alone leaves what is learnt for each caption as it is, and
    decides where the network's means go.
    ``shape_contrast`` None draws clips one by one. A number draws families of clips that differ in shape alone, under
    the same noise, timestep and caption dropout: what noise hides errs alike in all of them, so the gradient of what
    sets shapes apart is free of it; errors in the differences within a family count that many times. ``shape_swap`` is
    the share of captioned, noisy samples in which a sibling of another shape shows through, so that only the caption
    tells the shape.
    ``caption_noise`` is the share of captions that are wrong about one attribute, as captions of the web often are: a
    model that learns them faithfully disobeys as often without guidance.
    ``timesteps`` None draws them uniformly; (mean, std) draws t / 1000 from a logit-normal distribution (Esser et al.
    2403.03206, eq. 19), of an expert (t - first) / (end - first). ``start`` is the model
    folder of an earlier run whose weights this one starts from. ``expert`` trains the network of one side of a boundary
    in the noise, the low one first, from the side's network in ``start`` or, where both are still one, from that; the
    caption encoder and the other side's network are taken over as they are. ``train: refiner`` trains nothing but a
    refiner, new or not, on a network that stays as ``start`` has it, its learned variance too. ``compile`` hands
    the blocks to torch.compile: a quarter more samples a second on two cores; it needs a C++ compiler.
    """

    task: Literal["denoiser"]
    vae: Path
    start: Path | None = None
    expert: Expert | None = None
    train: Literal["all", "refiner"] = "all"
    model: DenoiserShape = DenoiserShape()
    text: TextShape = TextShape()
    clips: PositiveInt = 12000
    caption_dropout: Fraction = 0.1
    caption_noise: Fraction = 0.0
    noise_schedule: Literal["linear", "squaredcos_cap_v2"] = "linear"
    prediction: Literal["eps", "v", "x0"] = "eps"
    timesteps: tuple[float, PositiveFloat] | None = None
    loss_weighting: Literal["uniform", "min-snr", "balanced"] = "uniform"
    foreground_weight: PositiveFloat = 1.0
    area_weight: Annotated[float, Field(ge=0)] = 0.0
    shape_weights: dict[str, PositiveFloat] = Field(default_factory=dict)
    shape_contrast: PositiveFloat | None = None
    shape_swap: Fraction = 0.0
    compile: bool = False

    @field_validator("shape_weights")
    @classmethod
    def _known_shapes(cls, value: dict[str, float]) -> dict[str, float]:
        if wrong := [name for name in value if name not in SHAPES]:
            raise InputError(f"shape_weights names {wrong[0]!r}{nearest(wrong[0], SHAPES)}")
        return value

    @model_validator(mode="after")
    def _whole_families(self) -> DenoiserRecipe:
        if self.shape_contrast is not None:
            for name in ("batch_size", "clips"):
                _divides(len(SHAPES), getattr(self, name), f"families of shapes must divide {name}")
        elif self.shape_swap:
            raise InputError("shape_swap takes a sibling from a clip's family: give shape_contrast too")
        return self

    @model_validator(mode="after")
    def _refines_something(self) -> DenoiserRecipe:
        if self.train == "refiner" and (self.start is None or not self.model.refiner_channels):
            raise InputError("train: refiner trains one on an earlier run: give its start, and model: refiner_channels")
        if self.train == "refiner" and self.optimiser.name == "muon":
            raise InputError("train: refiner has no matrices for muon: leave the optimiser's name out, or say adamw")
        return self

    @model_validator(mode="after")
    def _expert_has_its_side(self) -> DenoiserRecipe:
        if self.expert and self.start is None:
            raise InputError("an expert takes one side of an earlier run's timesteps: give its start")
        if self.expert and self.shape_swap and self.expert.timesteps[1] <= SWAPPED_FROM:
            raise InputError(f"shape_swap begins at timestep {SWAPPED_FROM}, and this expert ends before: leave it out")
        return self


RECIPES: dict[str, type[VAERecipe] | type[DenoiserRecipe]] = {"vae": VAERecipe, "denoiser": DenoiserRecipe}


def load_recipe(path: Path) -> VAERecipe | DenoiserRecipe:
    """The validated recipe in a YAML file; its ``task`` says which kind it is."""
    values = read_mapping(path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a mapping of settings, found {type(values).__name__}")
    task = values.get("task")
    if not isinstance(task, str) or task not in RECIPES:
        raise InputError(f"{path}: task is {task!r}{nearest(str(task), RECIPES)}")
    return validated(RECIPES[task], values, str(path))
