"""The interface of a model family, and the plain data that a family offers: presets and exact replays.

Everything that is specific to a family is in its own folder, ``models/<family>/``: network, recognition of its
checkpoints, configuration, presets, replays, and where the stages of its models come from. ``registry.FAMILIES`` lists
the families.

Listing presets must stay quick: this module and the ``__init__`` of every family do not import torch. The methods of a
family import what they need.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

from ..core.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ..checkpoints import TensorFile
    from ..samplers import PathName, SamplerName
    from .model import Model
    from .sources import Sources

W = TypeVar("W")


@dataclass(frozen=True)
class Exact:
    """How an original implementation differs from Guidon in sampling. A replay always draws noise like the original."""

    source: str
    """Where the original's code is."""
    single_precision: bool = False
    """The schedule's tables are in float32."""
    noise_in_dtype: bool = False
    """The initial noise is drawn in the network's dtype, and so is the noise of the first step."""
    least_frames: int = 1
    """Shorter videos cannot be replayed, because the original gives them timesteps that are no numbers. Images can."""


@dataclass(frozen=True)
class Released:
    """Weights that do not come with the package: a description, and where their authors publish them."""

    repository: str
    """Hub repository of the checkpoint."""
    file: str | None
    """The checkpoint file in the repository, or a folder in diffusers' layout; None if its authors never published
    weights, so that the user must have some."""
    latent_shape: tuple[int, ...]
    """Shape of one sample at the preset's size: (C, T, H, W), or (C, H, W) for images."""
    config: Mapping[str, float] = field(default_factory=dict[str, float])
    """Settings of the network that depend on the size. A checkpoint with other values is refused."""
    vae: str = "stabilityai/sd-vae-ft-ema"
    """Hub repository of the autoencoder."""
    video_vae: bool = False
    """Whether that is Open-Sora 1.2's autoencoder, which compresses time, and not one of single frames."""


@dataclass(frozen=True)
class Fast:
    """Sampling settings of a model that cost less than its own, and what was measured of them.

    The setting ``fast`` takes them in place of the model's own. A request holds what they say, one by one, so that a
    manifest reproduces its clip whatever becomes of them.
    """

    sampler: SamplerName
    steps: int
    """Denoising steps."""
    measured: str
    """How much less they cost, and what was measured against the model's own settings."""
    spacing: str = "uniform"
    """Where the steps lie (``diffusion.parse_spacing``)."""
    timing: str = "constant"
    """When to guide."""
    cfg_scale: float | None = None
    """Guidance scale where a call does not choose one; None for the preset's."""
    adaptive: float | None = None
    """The cosine of the branches from which a clip is guided no more (``guidance.Sparing``)."""
    reuse: int | None = None
    """The unconditional branch is called at every so many guided steps; None for every one."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the network."""
    decode_dtype: Literal["fp32", "bf16"] = "fp32"
    """Precision in which the autoencoder decodes."""
    distilled: bool = False
    """Sample with the model's distilled network, which is told of guidance and runs one branch."""

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of a request that they decide, by name."""
        found = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "measured"}
        return found if self.distilled else {name: value for name, value in found.items() if name != "distilled"}


@dataclass(frozen=True)
class Preset(Generic[W]):
    """A named model and its default settings."""

    name: str
    family: str
    """The family that can load it."""
    summary: str
    """What it makes, in a line."""
    weights: W
    """Where its weights are, in the form of its family: a model folder, or a ``Released``."""
    sampler: SamplerName
    steps: int
    """Denoising steps."""
    cfg_scale: float
    """Guidance scale."""
    cfg_channels: str
    """Guided latent channels."""
    source: str
    """Where the settings come from."""
    bench: str
    """The bench (``guidon.metrics.bench``) that its videos are measured on."""
    timing: str = "constant"
    """When to guide."""
    fps: float = 8
    """Frames per second of its videos."""
    source_fps: float = 24
    """Frames per second of the videos that it was trained on, for a network that is told it."""
    seed: int = 0
    """Seed of the noise."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the network."""
    decode_dtype: Literal["fp32", "bf16"] = "fp32"
    """Precision in which the autoencoder decodes."""
    negative_prompt: str | None = None
    """What to steer away from; None for the network's null condition."""
    sizes: tuple[Literal["size", "frames"], ...] = ()
    """Which dimensions of its videos the user may choose."""
    originals: tuple[str, ...] = ()
    """Names of the exact replays (``Family.replays``) that belong to it."""
    is_image: bool = False
    """Whether it makes images."""
    classes: int = 0
    """How many classes its prompts choose from; 0 where they are text."""
    measured: str = ""
    """Measured results of these settings, and the data that they were measured on."""
    fast: Fast | None = None
    """What the setting ``fast`` stands for; None where nothing was calibrated for the model."""

    def computed_in(self, **precisions: Any) -> Preset[W]:
        """The preset with these precisions (``dtype``, ``decode_dtype``), which its fast settings take, too."""
        return replace(self, **precisions, fast=self.fast and replace(self.fast, **precisions))


@dataclass(frozen=True)
class ReadPrompt:
    """How a model reads a prompt."""

    read_as: str
    """What its text encoder is given: the prompt itself, or the same in words that the model knows."""
    refusal: str | None = None
    """Why the model cannot follow it, and what to say instead, in one line; None if it can."""
    warning: str | None = None
    """What the model leaves out or chooses itself, in one line; None if that is nothing."""
    can_be_sampled: bool = True
    """Whether it can be sampled although it is refused."""


def as_they_are(prompts: Sequence[str], negative: bool) -> list[ReadPrompt]:
    """``Facts.read_prompts`` of a model that takes any text."""
    return [ReadPrompt(prompt) for prompt in prompts]


def any_prompts(prompts: Sequence[str]) -> None:
    """The check of a model that can be given every prompt: it refuses nothing."""


def one_for_each(frames: int) -> int:
    """``Facts.latent_frames`` of an autoencoder that encodes every frame by itself."""
    return frames


@dataclass(frozen=True)
class Facts:
    """What is known of a model before its weights are read. Settings are checked against it."""

    latent_shape: tuple[int, ...]
    """(C, T, H, W) or (C, H, W) of the size that the model is for."""
    patch: tuple[int, ...]
    """Latent pixels of a token, along each axis of ``latent_shape`` but the first: a size is a multiple of it."""
    downsampling: int
    """Pixels of a latent pixel, along one side."""
    timesteps: int
    """Steps of the diffusion that it was trained for; a run takes no more."""
    bench: str
    """The bench (``guidon.metrics.bench``) that its videos are measured on."""
    check_prompts: Callable[[Sequence[str]], None] = any_prompts
    """Raises an InputError for prompts that the model cannot be given, the negative one included. Where the model
    ``rewrites`` prompts, these are what its text encoder is given."""
    read_prompts: Callable[[Sequence[str], bool], list[ReadPrompt]] = as_they_are
    """How the model reads each prompt. The flag says whether they are negative prompts."""
    rewrites: bool = False
    """Whether ``read_prompts`` adds to prompts that the model can follow."""
    path: PathName = "diffusion"
    """The path from data to noise that it was trained on. Each has its own samplers (``samplers.SAMPLERS``)."""
    blocks: int | None = None
    """Transformer blocks of its network, which the rule "stg" names by number; None where they are not known."""
    has_weak: bool = False
    """Whether a weaker model comes with it, for the rule "autoguidance"."""
    latent_frames: Callable[[int], int] = one_for_each
    """Frames of a video -> frames of its latents."""
    latents_together: int = 1
    """Latent frames that the autoencoder encodes and decodes together, apart from the others."""
    distilled: tuple[int, ...] = ()
    """The timesteps of the model's distilled network, falling; empty where it has none."""
    knows_given_frames: bool = False
    """Whether the network is told which frames are given. It can then also be asked without them, for "three-way"."""
    clip: tuple[int, int, int] | None = None
    """(frames, height, width) of the clips of a model for any size, where nobody chooses. A size is then cut to whole
    latent pixels, and the network is told the size that was asked for. None: ``latent_shape`` says it, and sizes are
    multiples of ``patch``."""

    @property
    def channels(self) -> int:
        """Latent channels."""
        return self.latent_shape[0]


@dataclass(frozen=True)
class Checkpoint:
    """A file that a family recognised as its own."""

    file: TensorFile
    tensors: Mapping[str, Tensor]
    """Its tensors, under the names of the family's network."""
    remarks: tuple[str, ...] = ()
    """What is unusual about it, for people."""


@dataclass(frozen=True)
class Description:
    """The description of a checkpoint for ``inspect_checkpoint``."""

    architecture: str
    config: Mapping[str, Any]
    """The configuration of its network; empty if it cannot be found out."""
    parameters: int
    """Number of parameters, without tensors that follow from the configuration."""
    learned_variance: bool
    """Whether the network predicts 2C channels."""
    remarks: tuple[str, ...] = ()
    """What is unusual about it, for people."""


class Reader(ABC):
    """Recognises, describes and loads the checkpoints of a family."""

    @abstractmethod
    def recognise(self, file: TensorFile) -> Checkpoint | None:
        """The checkpoint in a file; None where the file is not of this family.

        Raises:
            InputError: it is of this family, but incomplete.
        """

    @abstractmethod
    def describe(self, checkpoint: Checkpoint, known: Mapping[str, Any]) -> Description:
        """Describe a checkpoint. Tensors that do not fit become remarks, not errors.

        Args:
            checkpoint: what ``recognise`` found.
            known: configuration values that the file does not give.
        """

    @abstractmethod
    def load(
        self, checkpoint: Checkpoint, known: Mapping[str, Any], assumed: Mapping[str, Any], dtype: torch.dtype
    ) -> nn.Module:
        """The network in a checkpoint, on the CPU. The module is a ``Network``.

        Args:
            checkpoint: what ``recognise`` found.
            known: configuration values that win over those in the file.
            assumed: configuration values that are used if neither the file nor ``known`` gives them.
            dtype: what the network computes in.

        Raises:
            InputError: the configuration cannot be found out, or tensors are missing, unexpected, mis-shaped or broken.
        """

    def inflate(
        self,
        checkpoint: Checkpoint,
        frames: int,
        known: Mapping[str, Any],
        assumed: Mapping[str, Any],
        dtype: torch.dtype,
    ) -> nn.Module:
        """A video network with ``frames`` latent frames, from an image network's weights. See ``load`` for the rest.

        Raises:
            InputError: these weights cannot be inflated.
        """
        raise InputError(f"{checkpoint.file.path} cannot be inflated to video: its family has no video network for it")

    def explain(self, file: TensorFile) -> str | None:
        """What an unrecognised file is, if it is of a relative that this family knows; else None. Used in the error."""
        return None


class Family(ABC):
    """A family of models. The rest of Guidon uses it only through its object in ``registry.FAMILIES``."""

    name: ClassVar[str]
    """The family's name. ``inspect_checkpoint`` shows it, and ``load_checkpoint(architecture=...)`` asks for it."""
    reads: ClassVar[tuple[str, ...]]
    """The kinds of checkpoints that it recognises, as text for users."""
    folder: ClassVar[str] = ""
    """The files in a folder that ``adopt`` accepts, as text for users; empty if it accepts no folder."""
    presets: ClassVar[tuple[Preset[Any], ...]] = ()
    """Its models that have a name."""
    replays: ClassVar[Mapping[str, Exact]] = {}
    """The original implementations that the setting ``exact`` can replay with its models, by name."""

    @abstractmethod
    def reader(self) -> Reader:
        """How its checkpoints are read."""

    @abstractmethod
    def facts(self, preset: Preset[Any], sources: Sources) -> Facts:
        """What is known of one of its models before its weights are read. It needs no torch, and downloads nothing.

        Raises:
            InputError: files are missing (all of them, and where to get them), or are not what the preset needs.
        """

    @abstractmethod
    def find_model(self, preset: Preset[Any], sources: Sources, device: torch.device) -> Model:
        """The stages of one of its models. Small files are read now, large ones when they are first used.

        Raises:
            InputError: files are missing (which, and where to get them), or are not what the preset needs.
        """

    def files(self, folder: Path) -> list[Path]:
        """The files of weights in a folder that ``adopt`` accepts; empty where the folder is not of this family."""
        return []

    def adopt(self, folder: Path) -> Preset[Any] | None:
        """The preset of a folder of weights; None where the folder is not of this family."""
        return None

    def reads_captions(self, preset: Preset[Any]) -> bool:
        """Whether a folder that ``adopt`` accepts takes T5 or features of T5 from the user, which it does not hold."""
        return False

    def describe_words(self, preset: Preset[Any]) -> dict[str, str]:
        """What the prompts of one of its models may say, by kind of word; empty where they may say anything.

        Raises:
            InputError: a file of the model is missing or damaged.
        """
        return {}
