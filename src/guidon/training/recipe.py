"""What a recipe may say: the settings of one training run, or of several stages, read from YAML."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import ConfigDict, Field, PositiveFloat, PositiveInt, field_validator, model_validator

from ..core.errors import InputError, nearest
from ..core.settings import Settings, read_mapping, validated
from ..world import SHAPES, SIZE
from .terms import Terms

DIFFUSION_STEPS = 1000
SWAPPED_FROM = 350  # below this timestep noise hides no shape: x_t shows the true one
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
StageName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]  # it is part of a folder's name


def _must_divide(part: int, whole: int, what: str) -> None:
    if whole % part:
        raise InputError(f"{what}: {whole} is no multiple of {part}")


class Section(Settings):
    """A section whose fields are described by the text under them."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class Optimiser(Section):
    """AdamW, or Muon for the hidden matrices and AdamW for everything else."""

    name: Literal["adamw", "muon"] = "adamw"
    """Muon needs PyTorch 2.9."""
    lr: PositiveFloat = 1e-3
    """Learning rate of AdamW."""
    muon_lr: PositiveFloat = 0.01
    """Learning rate of Muon."""
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.99)
    """AdamW's."""
    weight_decay: NotNegative = 0.0
    """Of both."""
    warmup_steps: Annotated[int, Field(ge=0)] = 200
    """Steps over which the learning rate rises linearly from zero."""
    decay: Fraction = 0.3
    """The last share of the run, over which the learning rate falls linearly to zero."""
    grad_clip: PositiveFloat = 1.0
    """The largest norm of the gradient; a larger one is scaled down to it."""


class Run(Section):
    """What every training run has."""

    out: Path
    """Folder of the run: checkpoint, log and exported weights."""
    steps: PositiveInt
    """Length of the run."""
    batch_size: PositiveInt = 32
    """Samples in a step."""
    seed: Annotated[int, Field(ge=0, lt=2**40)] = 0
    """Of the weights, the data and the noise."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the network's products. Weights and losses are fp32."""
    ema_decay: Fraction = 0.999
    """Decay of the averaged weights, which are what is exported."""
    log_every: PositiveInt = 50
    """Steps between two rows of log.csv."""
    checkpoint_every: PositiveInt = 500
    """Steps between two checkpoints."""
    evaluate_every: Annotated[int, Field(ge=0)] = 0
    """Steps between two measurements of the averaged weights; 0 for none."""
    optimiser: Optimiser = Optimiser()
    """How the weights are adjusted."""

    incidental: ClassVar[frozenset[str]] = frozenset(
        {"out", "device", "log_every", "checkpoint_every", "evaluate_every", "compile", "cache"}
    )
    """Fields that do not say what is trained: where, how it is watched, how fast it runs."""


class VAEShape(Section):
    """Shape of the frame autoencoder."""

    block_out_channels: tuple[PositiveInt, ...] = (32, 64, 96)
    """Channels of each level; each after the first halves the size."""
    layers_per_block: PositiveInt = 1
    """Residual layers in a level."""
    latent_channels: PositiveInt = 4
    """Channels of the latents."""
    norm_num_groups: PositiveInt = 8
    """Groups of the group normalisation; divides every number of channels."""
    mid_block_attention: bool = False
    """Whether the innermost level attends over its pixels."""
    pixel_unshuffle: PositiveInt = 2
    """Pixels along each side that are folded into channels first."""

    @model_validator(mode="after")
    def _divides(self) -> VAEShape:
        for channels in self.block_out_channels:
            _must_divide(self.norm_num_groups, channels, "norm_num_groups must divide block_out_channels")
        downsampling = self.pixel_unshuffle * 2 ** (len(self.block_out_channels) - 1)
        _must_divide(downsampling, SIZE, "its downsampling must divide frames")
        return self


class VAERecipe(Run):
    """The frame autoencoder: L1 + MSE with the foreground weighted, and a KL term per latent element."""

    task: Literal["vae"]
    start: Path | None = None
    """Autoencoder file of an earlier run, whose weights this one starts from."""
    redraw: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Latent channels that start from new weights all the same: a channel that a strong KL term has put out does not
    come back by itself."""
    model: VAEShape = VAEShape()
    """Shape of the network."""
    foreground_weight: PositiveFloat = 10.0
    """How many times an error on the object counts."""
    kl_weight: NotNegative = 1e-4
    """What the KL term is multiplied by."""

    @property
    def result(self) -> Path:
        """The exported file."""
        return self.out / "vae.safetensors"

    @model_validator(mode="after")
    def _redraws(self) -> VAERecipe:
        channels = self.model.latent_channels
        if self.redraw and self.start is None:
            raise InputError("redraw leaves out weights of an earlier run: give its start")
        if len(set(self.redraw)) >= channels:
            raise InputError("redraw names every latent channel: leave one out, whose spread the new ones are given")
        if wrong := [channel for channel in self.redraw if channel >= channels]:
            raise InputError(f"redraw names latent channel {wrong[0]}, they are 0 to {channels - 1}")
        return self


class TextShape(Section):
    """Shape of the caption encoder."""

    features: PositiveInt = 64
    """Width."""
    layers: PositiveInt = 2
    """Transformer layers."""
    heads: PositiveInt = 4
    """Attention heads; divides the width."""
    max_length: PositiveInt = 20
    """Words of a caption that are read."""

    @model_validator(mode="after")
    def _divides(self) -> TextShape:
        _must_divide(self.heads, self.features, "heads must divide features")
        _must_divide(2, self.features, "positions need sines and cosines in features")
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
        _must_divide(self.num_heads, self.hidden_size, "num_heads must divide hidden_size")
        _must_divide(4, self.hidden_size, "positions need sines and cosines of two axes in hidden_size")
        if "refiner_depth" in self.model_fields_set and not self.refiner_channels:
            raise InputError("refiner_depth was given without refiner_channels: give both")
        return self


class Expert(Section):
    """One of two networks that share the timesteps (eDiff-I, 2211.01324, sec. 4)."""

    noise: Literal["low", "high"]
    """Which one: "low" is for the timesteps below ``boundary``."""
    boundary: Annotated[int, Field(gt=0, lt=DIFFUSION_STEPS)]
    """The first timestep of the network for high noise."""

    @property
    def timesteps(self) -> tuple[int, int]:
        """The first timestep that it is trained on, and the first after them."""
        return (0, self.boundary) if self.noise == "low" else (self.boundary, DIFFUSION_STEPS)


class DenoiserRecipe(Run):
    """STDiT with its caption encoder, on latents of the world that are computed once and kept."""

    task: Literal["denoiser"]
    vae: Path
    """Autoencoder file that an earlier run exported."""
    start: Path | None = None
    """Model folder of an earlier run, whose weights this one starts from."""
    expert: Expert | None = None
    """Train the network of one side of a boundary in the noise, the one for low noise first. It starts from that side's
    network in ``start``, or from the only one there. The caption encoder and the other side's network stay as they
    are."""
    train: Literal["all", "refiner"] = "all"
    """What is trained. "refiner" trains the refiner alone, a new one where ``start`` has none. The rest of the network
    stays as ``start`` has it, its learned variance too."""
    model: DenoiserShape = DenoiserShape()
    """Shape of the network."""
    text: TextShape = TextShape()
    """Shape of the caption encoder."""
    clips: PositiveInt = 12000
    """Clips that are encoded; each is also played backwards."""
    cache: Path | None = None
    """Folder of the encoded clips, which several runs may share; ``out`` where it is not given."""
    caption_dropout: Fraction = 0.1
    """Share of captions that are replaced by the null caption, so that guidance has an unconditional prediction."""
    caption_noise: Fraction = 0.0
    """Share of captions that are wrong about one attribute, as captions of the web often are. A model that learns them
    faithfully is wrong as often without guidance."""
    noise_schedule: Literal["linear", "squaredcos_cap_v2"] = "linear"
    """The diffusion process."""
    prediction: Literal["eps", "v", "x0"] = "eps"
    """What the network predicts."""
    timesteps: tuple[float, PositiveFloat] | None = None
    """(mean, std) draws t / 1000 from a logit-normal distribution (Esser et al. 2403.03206, eq. 19); of an expert,
    (t - first) / (end - first). Uniform where it is not given."""
    terms: Terms = Terms()
    """The terms of the loss."""
    shape_weights: dict[str, PositiveFloat] = Field(default_factory=dict)
    """How much captions of a shape count in every term, relative to 1 for the others; on average captions count as much
    as no caption. A weight that depends on the caption alone does not change what is right to predict for it. It
    decides what the network spends its capacity on."""
    shape_swap: Fraction = 0.0
    """Share of captioned, noisy samples in which a clip of another shape shows through, so that only the caption tells
    the shape. It needs the term ``shape_contrast``."""
    compile: bool = False
    """Give the blocks to torch.compile: a quarter more samples a second on two cores. It needs a C++ compiler."""

    @property
    def result(self) -> Path:
        """The exported model folder."""
        return self.out / "model"

    @property
    def timestep_range(self) -> tuple[int, int]:
        """The first timestep that is trained, and the first after them."""
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
            for name in ("batch_size", "clips"):
                _must_divide(len(SHAPES), getattr(self, name), f"families of shapes must divide {name}")
        elif self.shape_swap:
            raise InputError("shape_swap takes a clip of the same family: give terms: shape_contrast too")
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


MOVED = {
    "loss_weighting": ("mse", "weighting"),
    "foreground_weight": ("mse", "foreground"),
    "area_weight": ("area", "weight"),
    "shape_contrast": ("shape_contrast", "weight"),
}
"""Settings of earlier versions, and the term and setting that each is now."""

Recipe = VAERecipe | DenoiserRecipe
RECIPES: dict[str, type[VAERecipe] | type[DenoiserRecipe]] = {"vae": VAERecipe, "denoiser": DenoiserRecipe}
PARENTS: dict[str, dict[str, str]] = {"vae": {"start": "vae"}, "denoiser": {"vae": "vae", "start": "denoiser"}}
"""For each task, the fields that take what another run exports, and that run's task."""


class Common(Section):
    """Settings that stages share. A stage's own settings come first, then those of its task, then those of all."""

    every: dict[str, Any] = Field(default_factory=dict)
    """Of every stage."""
    vae: dict[str, Any] = Field(default_factory=dict)
    """Of stages with ``task: vae``."""
    denoiser: dict[str, Any] = Field(default_factory=dict)
    """Of stages with ``task: denoiser``."""


class Export(Section):
    """The result of a staged recipe."""

    stage: str
    """The stage whose model folder is the result."""
    folder: StageName = "model"
    """Where it is copied, inside ``out``."""


class StagedRecipe(Section):
    """Several runs in order, where one starts from what another exports."""

    out: Path
    """Folder of all stages: each has a folder in it, named by the stage and the hash of its settings and parents."""
    common: Common = Common()
    """Settings that stages share."""
    stages: dict[StageName, dict[str, Any]] = Field(min_length=1)
    """The stages in order, each as a recipe without ``out``; ``vae`` and ``start`` name earlier stages."""
    export: Export
    """The result."""

    def settings(self, name: str) -> dict[str, Any]:
        """A stage's settings, those of ``common`` among them. Sections are merged key by key."""
        own = self.stages[name]
        task = own.get("task")
        if not isinstance(task, str) or task not in RECIPES:
            raise InputError(f"stages.{name}: task is {task!r}{nearest(str(task), RECIPES)}")
        return _merged(_merged(self.common.every, getattr(self.common, task)), own)

    def parents(self, name: str) -> dict[str, str]:
        """The stages that a stage starts from, by the field that names each."""
        settings = self.settings(name)
        return {field: settings[field] for field in PARENTS[settings["task"]] if settings.get(field) is not None}

    def order(self, last: str | None = None) -> list[str]:
        """All stages in order, or only ``last`` and those that it needs."""
        if last is None:
            return list(self.stages)
        needed = [last]
        for name in needed:  # grows while it is read
            needed += self.parents(name).values()
        return [name for name in self.stages if name in needed]

    def recipe(self, name: str, out: Path, parents: Mapping[str, Path]) -> Recipe:
        """A stage as the recipe of one run, in the folder ``out``, from what its parents exported."""
        settings = self.settings(name)
        task: str = settings["task"]
        shared = {"cache": self.out / "clips"} if task == "denoiser" else {}
        return validated(RECIPES[task], {**shared, **settings, "out": out, **parents}, f"stages.{name}")

    @model_validator(mode="after")
    def _stages_fit(self) -> StagedRecipe:
        earlier: dict[str, str] = {}  # the tasks of the stages read so far
        for name in self.stages:
            settings = self.settings(name)
            if "out" in settings:
                raise InputError(f"stages.{name}: out is given once, for the whole recipe: leave it out here")
            for field, parent in self.parents(name).items():
                wanted = PARENTS[settings["task"]][field]
                fitting = [other for other, task in earlier.items() if task == wanted]
                if parent not in fitting:
                    hint = nearest(str(parent), fitting) if fitting else f"; there is no {wanted} before it"
                    raise InputError(f"stages.{name}: {field} is {parent!r}, expected an earlier {wanted} stage{hint}")
            self.recipe(name, self.out / name, {field: Path(p) for field, p in self.parents(name).items()})
            earlier[name] = settings["task"]
        if earlier.get(self.export.stage) != "denoiser":
            hint = nearest(self.export.stage, [name for name, task in earlier.items() if task == "denoiser"])
            raise InputError(f"export.stage is {self.export.stage!r}, expected a denoiser stage{hint}")
        return self


def load_recipe(path: Path) -> Recipe | StagedRecipe:
    """The validated recipe in a YAML file: of one run where ``task`` stands at the top, of stages otherwise.

    Raises:
        InputError: the file cannot be read, or a setting is unknown, missing, wrong or does not fit the others.
    """
    values = read_mapping(path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a mapping of settings, found {type(values).__name__}")
    if "stages" in values:
        return validated(StagedRecipe, values, str(path))
    task = values.get("task")
    if not isinstance(task, str) or task not in RECIPES:
        raise InputError(f"{path}: task is {task!r}{nearest(str(task), RECIPES)}")
    return validated(RECIPES[task], values, str(path))


def _merged(common: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """``own`` over ``common``; mappings that both have are merged in the same way."""
    both = {
        name: _merged(common[name], own[name]) for name in common.keys() & own.keys() if _mappings(common, own, name)
    }
    return {**common, **own, **cast("dict[str, Any]", both)}


def _mappings(common: Mapping[str, Any], own: Mapping[str, Any], name: str) -> bool:
    return isinstance(common[name], dict) and isinstance(own[name], dict)
