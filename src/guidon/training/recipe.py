"""The settings in a recipe, read from YAML: those of one training run, or of several stages."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import ConfigDict, Field, PositiveFloat, PositiveInt, field_validator, model_validator

from ..core.devices import check_device
from ..core.errors import InputError, nearest, quoted, setting
from ..core.settings import Settings, read_mapping, validated
from ..guidance import Guidance
from ..world import SHAPES, SIZE
from .terms import Terms
from .terms.settings import MSESettings

DIFFUSION_STEPS = 1000
SWAPPED_FROM = 350  # the first timestep of shape_swap; below it the noise is too weak to hide a shape
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
StageName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]  # it is part of a folder's name


def _must_divide(part: int, whole: int, what: str) -> None:
    if whole % part:
        raise InputError(f"{what}: {whole} is no multiple of {part}")


class Section(Settings):
    """Base of the sections of a recipe. The docstring under a field is the field's description."""

    model_config = ConfigDict(use_attribute_docstrings=True, allow_inf_nan=False)


class Optimiser(Section):
    """AdamW, or Muon for the hidden matrices and AdamW for everything else."""

    name: Literal["adamw", "muon"] = "adamw"
    """Muon needs PyTorch 2.9."""
    lr: PositiveFloat = 1e-3
    """Learning rate of AdamW."""
    muon_lr: PositiveFloat = 0.01
    """Learning rate of Muon."""
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.99)
    """The two betas of AdamW."""
    weight_decay: NotNegative = 0.0
    """Weight decay of AdamW and Muon."""
    warmup_steps: Annotated[int, Field(ge=0)] = 200
    """Steps over which the learning rate rises linearly from zero."""
    decay: Fraction = 0.3
    """The last share of the run, over which the learning rate falls linearly to zero."""
    grad_clip: PositiveFloat = 1.0
    """The largest norm of the gradient; a larger one is scaled down to it."""


class Run(Section):
    """Settings of every training run."""

    out: Path
    """Folder of the run: checkpoint, log and exported weights."""
    steps: PositiveInt
    """Number of training steps."""
    batch_size: PositiveInt = 32
    """Samples in a step."""
    seed: Annotated[int, Field(ge=0, lt=2**40)] = 0
    """Seed of the initial weights, the data and the noise."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the matrix products in the network. Weights and losses are fp32."""
    ema_decay: Fraction = 0.999
    """Decay of the averaged weights. The averaged weights are exported."""
    log_every: PositiveInt = 50
    """Steps between two rows of log.csv."""
    checkpoint_every: PositiveInt = 500
    """Steps between two checkpoints."""
    evaluate_every: Annotated[int, Field(ge=0)] = 0
    """Steps between two measurements of the averaged weights; 0 for none."""
    optimiser: Optimiser = Optimiser()
    """Settings of the optimiser."""

    without_effect: ClassVar[frozenset[str]] = frozenset(
        {"out", "log_every", "checkpoint_every", "evaluate_every", "cache"}
    )
    """Fields that the weights do not depend on."""
    incidental: ClassVar[frozenset[str]] = without_effect | {"device", "compile"}
    """Fields that do not define what is trained: those above, and those that change only how numbers are rounded."""
    changeable: ClassVar[frozenset[str]] = frozenset(
        {"steps", "device", "compile"}
        | {f"optimiser.{name}" for name in ("lr", "muon_lr", "warmup_steps", "decay", "grad_clip")}
    )
    """Settings that may change when a run is resumed, although the result then differs. A line on stderr names them.
    Every other setting that the weights depend on must be the one that the checkpoint was trained with."""

    @property
    def decisive(self) -> dict[str, Any]:
        """All settings that the weights depend on, as plain data."""
        return self.model_dump(mode="json", exclude=set(self.without_effect))


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
    """Whether the innermost level has self-attention."""
    pixel_unshuffle: PositiveInt = 2
    """Side of the squares of pixels that become channels before the first level; 1 for none."""
    padding: Literal["zeros", "replicate"] = "zeros"
    """What convolutions see beyond the border: zeros, which leave ticks in the corners, or the border itself."""

    @model_validator(mode="after")
    def _divides(self) -> VAEShape:
        for channels in self.block_out_channels:
            _must_divide(self.norm_num_groups, channels, "norm_num_groups must divide block_out_channels")
        downsampling = self.pixel_unshuffle * 2 ** (len(self.block_out_channels) - 1)
        _must_divide(downsampling, SIZE, "its downsampling must divide frames")
        return self


class VAERecipe(Run):
    """A run that trains the frame autoencoder. The loss is L1 + MSE with a weighted foreground, plus a KL term."""

    task: Literal["vae"]
    start: Path | None = None
    """Autoencoder file of an earlier run, whose weights this one starts from."""
    redraw: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Latent channels that start from new weights, not from those of ``start``. Use it for a channel that a strong KL
    term has made constant: such a channel does not recover by itself."""
    model: VAEShape = VAEShape()
    """Shape of the network."""
    foreground_weight: PositiveFloat = 10.0
    """Weight of an error on the object, relative to 1 on the background."""
    kl_weight: NotNegative = 1e-4
    """Weight of the KL term."""

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
    """The largest number of words in a caption."""

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
    compile: bool = False
    """Compile the blocks with torch.compile: 25% more samples per second on two cores. It needs a C++ compiler."""

    @property
    def result(self) -> Path:
        """The exported model folder."""
        return self.out / "model"

    @property
    def flows(self) -> bool:
        """Whether it trains a rectified flow, not a diffusion."""
        return self.prediction == "flow"

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
            for name in ("batch_size", "clips"):
                _must_divide(len(SHAPES), getattr(self, name), f"families of shapes must divide {name}")
        elif self.shape_swap:
            raise InputError("shape_swap takes a clip of the same family: give terms: shape_contrast too")
        return self

    @model_validator(mode="after")
    def _flows_without_a_diffusion(self) -> DenoiserRecipe:
        if not self.flows:
            return self
        for given, name, why in (
            ("noise_schedule" in self.model_fields_set, "noise_schedule", "it has none"),
            ("bound" in self.terms.model_fields_set, "terms: bound", "it learns no variance"),
            (self.shape_swap > 0, "shape_swap", "it begins at a timestep of a diffusion"),
        ):
            if given:
                raise InputError(
                    f"prediction: flow is a rectified flow, and {name} is not for one, since {why}: leave it out"
                )
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

    @model_validator(mode="after")
    def _no_matrices(self) -> RolloutRecipe:
        if self.optimiser.name == "muon":
            raise InputError("a finisher has no matrices for muon: leave the optimiser's name out, or say adamw")
        return self


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


def _must_fall(name: str, timesteps: tuple[int, ...]) -> None:
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
    def result(self) -> Path:
        """The exported model folder."""
        return self.out / "model"

    @model_validator(mode="after")
    def _falls(self) -> DistillRecipe:
        _must_fall("timesteps", self.timesteps)
        return self


MOVED = {
    "loss_weighting": ("mse", "weighting"),
    "foreground_weight": ("mse", "foreground"),
    "area_weight": ("area", "weight"),
    "shape_contrast": ("shape_contrast", "weight"),
}
"""Settings of earlier versions: old name -> (term, name of the setting in that term)."""

Recipe = VAERecipe | DenoiserRecipe | RolloutRecipe | DistillRecipe
RECIPES: dict[str, type[VAERecipe] | type[DenoiserRecipe] | type[RolloutRecipe] | type[DistillRecipe]] = {
    "vae": VAERecipe,
    "denoiser": DenoiserRecipe,
    "rollout": RolloutRecipe,
    "distill": DistillRecipe,
}
MODEL_TASKS = ("denoiser", "rollout", "distill")
"""The tasks whose result is a model folder."""
PARENTS: dict[str, dict[str, tuple[str, ...]]] = {
    "vae": {"start": ("vae",)},
    "denoiser": {"vae": ("vae",), "start": MODEL_TASKS},
    "rollout": {"start": MODEL_TASKS},
    "distill": {"start": MODEL_TASKS},
}
"""For each task: the fields that take the result of another run -> the tasks of that run."""


class Common(Section):
    """Settings that stages share. A stage's own settings win over those of its task, and these win over ``every``."""

    every: dict[str, Any] = Field(default_factory=dict)
    """Settings of every stage."""
    vae: dict[str, Any] = Field(default_factory=dict)
    """Settings of stages with ``task: vae``."""
    denoiser: dict[str, Any] = Field(default_factory=dict)
    """Settings of stages with ``task: denoiser``."""
    rollout: dict[str, Any] = Field(default_factory=dict)
    """Settings of stages with ``task: rollout``."""
    distill: dict[str, Any] = Field(default_factory=dict)
    """Settings of stages with ``task: distill``."""


class Export(Section):
    """The result of a staged recipe."""

    stage: str
    """The stage whose model folder is the result."""
    folder: StageName = "model"
    """The folder inside ``out`` to which it is copied."""


class StagedRecipe(Section):
    """Several runs in order. A run can start from what an earlier one exported."""

    out: Path
    """Folder of all stages. Each stage has its own folder in it, named after the stage and a hash (see ``stages``)."""
    common: Common = Common()
    """Settings that stages share."""
    stages: dict[StageName, dict[str, Any]] = Field(min_length=1)
    """The stages in order, each as a recipe without ``out``; ``vae`` and ``start`` name earlier stages."""
    export: Export
    """The result."""

    def settings(self, name: str) -> dict[str, Any]:
        """A stage's settings, merged with those of ``common``. Sections are merged key by key."""
        own = self.stages[name]
        task = own.get("task")
        if not isinstance(task, str) or task not in RECIPES:
            raise InputError(f"stages.{name}: {_no_task(task)}")
        return _merged(_merged(self.common.every, getattr(self.common, task)), own)

    def parents(self, name: str) -> dict[str, str]:
        """The earlier stages whose results a stage takes: field -> name of the stage."""
        settings = self.settings(name)
        return {field: settings[field] for field in PARENTS[settings["task"]] if settings.get(field) is not None}

    def order(self, last: str | None = None) -> list[str]:
        """All stages in order, or only ``last`` and those that it needs."""
        if last is None:
            return list(self.stages)
        needed = [last]
        for name in needed:  # the list grows during this loop
            needed += self.parents(name).values()
        return [name for name in self.stages if name in needed]

    def recipe(self, name: str, out: Path, parents: Mapping[str, Path]) -> Recipe:
        """One stage as the recipe of a single run in the folder ``out``. ``parents``: field -> the parent's result."""
        settings = self.settings(name)
        task: str = settings["task"]
        shared = {"cache": self.out / "clips"} if task in MODEL_TASKS else {}
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
                fitting = [other for other, task in earlier.items() if task in wanted]
                if parent not in fitting:
                    kind = " or ".join(wanted)
                    hint = nearest(str(parent), fitting) if fitting else f"; there is no {kind} before it"
                    raise InputError(f"stages.{name}: {field} is {parent!r}, expected an earlier {kind} stage{hint}")
            self.recipe(name, self.out / name, {field: Path(p) for field, p in self.parents(name).items()})
            earlier[name] = settings["task"]
        if earlier.get(self.export.stage) not in MODEL_TASKS:
            hint = nearest(self.export.stage, [name for name, task in earlier.items() if task in MODEL_TASKS])
            kind = " or ".join(MODEL_TASKS)
            raise InputError(f"export.stage is {self.export.stage!r}, expected a {kind} stage{hint}")
        return self


def _no_task(task: object) -> str:
    """The message for settings whose task is missing or unknown."""
    if task is None:
        return f"the key 'task' is missing: give one of {', '.join(RECIPES)}"
    return f"task is {quoted(task)}{nearest(str(task), RECIPES)}"


def load_recipe(path: Path) -> Recipe | StagedRecipe:
    """Read and validate a recipe. A file with the key ``stages`` is a staged recipe; any other describes one run.

    Raises:
        InputError: the file cannot be read, or a setting is unknown, missing, wrong or does not fit the others.
    """
    values = read_mapping(path, "a recipe")
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a mapping of settings, found {type(values).__name__}")
    if "stages" in values:
        return validated(StagedRecipe, values, str(path))
    task = values.get("task")
    if not isinstance(task, str) or task not in RECIPES:
        raise InputError(f"{path}: {_no_task(task)}")
    return validated(RECIPES[task], values, str(path))


def check_recipe(path: Path, stage: str | None = None) -> Recipe | StagedRecipe:
    """Read and validate a recipe, and the stage that is asked for. It needs no torch.

    Raises:
        InputError: as ``load_recipe``; or the recipe has no such stage.
    """
    recipe = load_recipe(path)
    if not isinstance(recipe, StagedRecipe):
        if stage is not None:
            raise InputError(f"{path} has no stages: leave out {setting('stage')}")
        check_device(recipe.device)
        return recipe
    if stage is not None and stage not in recipe.stages:
        raise InputError(f"{setting('stage')} {stage!r} is not in {path}{nearest(stage, recipe.stages)}")
    for name in recipe.order(stage):
        check_device(recipe.settings(name).get("device", "auto"))
    return recipe


def _merged(common: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """``own`` over ``common``; mappings that both have are merged in the same way."""
    both = {
        name: _merged(common[name], own[name]) for name in common.keys() & own.keys() if _mappings(common, own, name)
    }
    return {**common, **own, **cast("dict[str, Any]", both)}


def _mappings(common: Mapping[str, Any], own: Mapping[str, Any], name: str) -> bool:
    return isinstance(common[name], dict) and isinstance(own[name], dict)
