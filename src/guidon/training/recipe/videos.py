"""The recipe of a network that is trained on a user's own videos or pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, cast, get_args

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from ...checkpoints.config import make_config
from ...core.errors import InputError, nearest, quoted
from ...models.trained.config import CONFIGS, IMAGES, NetworkName, SamplingSettings
from ..terms import Terms
from .data import Data, Wanted
from .run import Run
from .section import Fraction, Section, must_divide, refuse_for_flow

Tracker = Literal["tensorboard", "trackio", "wandb"]
DERIVED = {
    "input_size": "the size and length of clips say it",
    "in_channels": "the autoencoder says it",
    "caption_channels": "the text encoder says it",
    "model_max_length": "the text encoder says it",
    "num_classes": "the classes of the data say it",
    "learn_sigma": "a diffusion learns its variance, and a rectified flow has none",
}
"""Settings of a network that follow from other settings of the recipe."""
TOKENS: dict[NetworkName, int] = {"stdit": 120, "pixart": 120, "stdit2": 200, "stdit3": 300}
"""Tokens of T5's captions, as each network's authors pad them."""
PRETENDED = {"caption_channels": 64, "model_max_length": 4, "num_classes": 2, "in_channels": 4}


class OwnText(Section):
    """What reads captions: T5, a file of its features, a small encoder that is trained too, or none for classes.

    If nothing is given, it is the small encoder. Its vocabulary is the words of the captions.
    """

    t5: Path | None = None
    """Folder of T5 in hub layout. Its features of all captions are computed once."""
    features: Path | None = None
    """A file of ``guidon encode`` that holds the features of all captions."""
    classes: bool = False
    """Condition on classes, and not on captions: the network is a DiT."""
    tokens: PositiveInt | None = None
    """Tokens that T5's captions are padded to; as the network's authors did if it is not given."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of T5."""
    width: PositiveInt = 64
    """Width of the small encoder."""
    layers: PositiveInt = 2
    """Transformer layers of the small encoder."""
    heads: PositiveInt = 4
    """Attention heads of the small encoder; divides its width."""
    max_length: PositiveInt | None = None
    """Words of a caption that the small encoder reads; those of the longest caption if it is not given."""

    @property
    def kind(self) -> Literal["words", "t5", "features", "classes"]:
        """What reads captions, by the name that the model folder has for it."""
        if self.t5 is not None:
            return "t5"
        return "features" if self.features is not None else "classes" if self.classes else "words"

    @model_validator(mode="after")
    def _is_one(self) -> OwnText:
        given = [name for name in ("t5", "features", "classes") if getattr(self, name)]
        if len(given) > 1:
            raise InputError(f"text names {' and '.join(given)}: give one of them")
        small = ("width", "layers", "heads", "max_length")
        unused = small if given else ("tokens", "dtype")
        if given != ["t5"]:
            unused = (*unused, "tokens", "dtype")
        if wrong := [name for name in unused if name in self.model_fields_set]:
            whose = "the small encoder" if wrong[0] in small else "T5"
            raise InputError(f"text: {wrong[0]} is for {whose}, and another reads the captions: leave it out")
        must_divide(self.heads, self.width, "text: heads must divide width")
        must_divide(2, self.width, "text: positions need sines and cosines in width")
        return self


class LoraShape(Section):
    """Adapters of low rank (LoRA, Hu et al. 2106.09685), which are trained in place of the network's weights."""

    rank: PositiveInt = 16
    """Rank of the matrices."""
    alpha: PositiveFloat | None = None
    """What they are multiplied by is alpha / rank; alpha is the rank if it is not given."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of an adapted layer's inputs that its adapter does not see, drawn anew in each step."""
    targets: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """The linear layers that get adapters, by the end of their names; those of attention if none are given."""


class VideosRecipe(Run):
    """A run that trains one of the released networks on a user's own videos or pictures.

    It begins from nothing (``network``), from released weights or from a model folder (``start``). With ``lora`` only
    adapters are trained.
    """

    task: Literal["videos"]
    data: Data
    """The clips."""
    vae: Path
    """The autoencoder: a file that a run of the task vae exported, or a folder in hub layout."""
    start: Path | None = None
    """Weights that this run starts from: a released checkpoint, or a model folder of an earlier run."""
    network: dict[str, Any] = Field(default_factory=dict)
    """The network, where it starts from nothing: ``family`` (stdit, stdit2, stdit3, dit or pixart) and settings of its
    configuration class, such as hidden_size, depth and num_heads. What is left out is as in the released weights."""
    text: OwnText = OwnText()
    """What reads captions."""
    lora: LoraShape | None = None
    """Train adapters of these shapes, and nothing else."""
    prediction: Literal["eps", "v", "x0", "flow"] | None = None
    """What the network predicts; that of ``start`` if it is not given, or "eps", or "flow" of an STDiT3, which can
    predict nothing else. "flow" is a rectified flow (Liu et al. 2209.03003), without a learned variance."""
    noise_schedule: Literal["linear", "squaredcos_cap_v2"] = "linear"
    """The noise schedule of the diffusion process. A rectified flow has none."""
    timesteps: tuple[float, PositiveFloat] | None = None
    """(mean, std) of the logit-normal distribution (Esser et al. 2403.03206, eq. 19) from which t / 1000 is drawn. If
    it is not given, timesteps are uniform. For weights of Open-Sora 1.2 they are then shifted by the size of clips."""
    caption_dropout: Fraction = 0.1
    """Share of captions or classes that are replaced by the null one, so that guidance has an unconditional
    prediction."""
    terms: Terms = Terms()
    """The terms of the loss: ``mse`` with its weighting, and ``bound``, which trains the learned variance."""
    gradient_checkpointing: bool = False
    """Keep the inputs of blocks alone for the backward pass, and compute the rest again. Memory falls, and a step takes
    about a third longer. Gradients stay the same."""
    accumulate: PositiveInt = 1
    """Parts that a batch is computed in, one after the other, in the memory of one."""
    compile: bool = False
    """Compile the blocks with torch.compile. It needs a C++ compiler."""
    sampling: SamplingSettings = SamplingSettings()
    """How the model is sampled where a call does not choose it. The model folder holds it."""
    samples: Annotated[int, Field(ge=0, le=64)] = 4
    """Captions of held-out clips whose samples are shown each ``evaluate_every`` steps."""
    trackers: tuple[Tracker, ...] = ()
    """Programs that are told every row of log.csv too, and shown the sheets."""
    cache: Path | None = None
    """Folder of the encoded clips and captions, which several runs may share. ``out`` if it is not given."""

    without_effect: ClassVar[frozenset[str]] = Run.without_effect | {"trackers", "samples", "sampling"}
    incidental: ClassVar[frozenset[str]] = Run.incidental | {"trackers", "gradient_checkpointing", "accumulate"}
    changeable: ClassVar[frozenset[str]] = Run.changeable | {
        "gradient_checkpointing", "accumulate", "data", "timestep_shift", "dropout_masks"
    }  # fmt: skip

    @property
    def shards(self) -> bool:
        """See ``Run``. Adapters are trained in a network that is not."""
        return self.lora is None

    @property
    def parts(self) -> int:
        """See ``Run``."""
        return self.accumulate

    @property
    def told(self) -> tuple[str, ...]:
        """See ``Run``."""
        return self.trackers

    @property
    def result(self) -> Path:
        """The exported model folder; that of the adapters where only they are trained."""
        return self.out / ("model" if self.lora is None else "adapter")

    @property
    def wanted(self) -> Wanted:
        """What clips are trained with."""
        return "classes" if self.text.classes else "captions"

    @property
    def family(self) -> NetworkName | None:
        """The network; None where ``start`` says it."""
        return cast("NetworkName | None", self.network.get("family"))

    @property
    def shape(self) -> dict[str, Any]:
        """The settings of the network's configuration that the recipe gives."""
        return {name: value for name, value in self.network.items() if name != "family"}

    @field_validator("network")
    @classmethod
    def _network_exists(cls, values: dict[str, Any]) -> dict[str, Any]:
        if not values:
            return values
        family, valid = cast("NetworkName", values.get("family")), get_args(NetworkName)
        if family not in valid:
            given = f"network: family is {quoted(family)}" if "family" in values else "network: family is missing"
            raise InputError(f"{given}{nearest(str(family), valid)}")
        of, shape = CONFIGS[family], {name: value for name, value in values.items() if name != "family"}
        for name, why in DERIVED.items():
            if name in shape:
                raise InputError(f"network: {name} is given, but {why}: leave it out")
        valid_names = of.__dataclass_fields__
        assumed = {name: value for name, value in PRETENDED.items() if name in valid_names}
        config: Any = make_config(of, assumed | shape, "network")
        if config.depth < 1:
            raise InputError(f"network: depth is {config.depth}, expected at least 1")
        must_divide(config.num_heads, config.hidden_size, "network: num_heads must divide hidden_size")
        must_divide(4, config.hidden_size, "network: positions need sines and cosines of two axes in hidden_size")
        return values

    @model_validator(mode="after")
    def _begins_somewhere(self) -> VideosRecipe:
        if self.network and self.start is not None:
            raise InputError("network describes a new network, start names a trained one: give one of them")
        if not self.network and self.start is None:
            raise InputError("give network: {family: stdit, ...} to begin from nothing, or start to begin from weights")
        if self.lora is not None and self.start is None:
            raise InputError("lora trains adapters of a trained network: give its start")
        return self

    @model_validator(mode="after")
    def _network_fits(self) -> VideosRecipe:
        family = self.family
        if family is None:
            return self
        if (family == "dit") != self.text.classes:
            what = "a DiT is conditioned on classes: give text: {classes: true}"
            raise InputError(what if family == "dit" else f"{family} reads captions: leave out text: classes")
        if family == "stdit3" and self.prediction not in (None, "flow"):
            raise InputError(f"stdit3 predicts the velocity of a rectified flow, prediction is {self.prediction}")
        if family in IMAGES and self.data.lengths != (1,):
            raise InputError(f"{family} makes images: give data: {{frames: 1}}, or another family for videos")
        one_size = family == "dit" or (
            family == "pixart" and not (self.network.get("any_size") or self.network.get("micro_condition"))
        )
        if one_size and not self.data.is_square:
            also = ", or network: {any_size: true}" if family == "pixart" else ""
            raise InputError(f"{family} takes images of one square size: give one, such as size: [256, 256]{also}")
        return self

    @model_validator(mode="after")
    def _flows_without_a_diffusion(self) -> VideosRecipe:
        if self.prediction == "flow" or self.family == "stdit3":
            self.refuse_diffusion("prediction: flow" if self.prediction == "flow" else "stdit3")
        return self

    def refuse_diffusion(self, flow: str) -> None:
        """Refuse settings of a diffusion in a recipe of a rectified flow. Defaults that are written out change nothing.

        Args:
            flow: what is one.

        Raises:
            InputError: one is given, and is not the default.
        """
        scheduled = self.noise_schedule != type(self).model_fields["noise_schedule"].default
        refuse_for_flow(
            flow,
            (scheduled, "noise_schedule", "it has none"),
            (self.terms.bound != Terms().bound, "terms: bound", "it learns no variance"),
        )

    @model_validator(mode="after")
    def _terms_are_possible(self) -> VideosRecipe:
        for what in ("areas", "families"):
            if names := [name for name, term in self.terms.chosen.items() if what in term.needs]:
                raise InputError(f"the term {names[0]} needs {what} of the synthetic world: leave it out")
        if self.terms.mse.foreground != 1:
            raise InputError("terms: mse: foreground needs the objects of the synthetic world: leave it out")
        if self.accumulate > 1 and self.terms.mse.weighting == "balanced":
            raise InputError("weighting: balanced needs the whole batch at once: leave out accumulate, or weighting")
        if self.accumulate > 1:
            must_divide(self.accumulate, self.batch_size, "accumulate must divide batch_size")
        if self.optimiser.name == "muon" and self.lora is not None:
            raise InputError("adapters are trained by adamw: leave the optimiser's name out")
        return self
