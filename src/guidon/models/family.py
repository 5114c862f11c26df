"""The contract of a model family, and the plain data that a family offers: presets and exact replays.

All that is particular to a family is in its own folder, ``models/<family>/``: network, recognition of its checkpoints,
configuration, presets, replays, and where the stages of its models come from. ``registry.FAMILIES`` lists the families.

Listing presets must stay quick: this module and the ``__init__`` of every family do not import torch. The methods of a
family import what they need.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

from ..core.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ..checkpoints import TensorFile
    from ..samplers import SamplerName
    from .model import Model
    from .sources import Sources

W = TypeVar("W")


@dataclass(frozen=True)
class Exact:
    """How one of the originals samples, where it differs from Guidon. Noise is always drawn as the original does."""

    source: str
    """Where the original's code is."""
    single_precision: bool = False
    """The schedule's tables are in float32."""
    noise_in_dtype: bool = False
    """The initial noise is rounded to the network's dtype."""


@dataclass(frozen=True)
class Released:
    """Weights that the package does not hold: what they are, and where their authors keep them."""

    repository: str
    """Hub repository of the checkpoint."""
    file: str
    """The checkpoint in it; it may be a folder in diffusers' layout."""
    latent_shape: tuple[int, ...]
    """(C, T, H, W) or (C, H, W) of the size that the preset is for."""
    config: Mapping[str, float] = field(default_factory=dict[str, float])
    """Settings of the network that its size decides. A checkpoint that says otherwise is refused."""
    vae: str = "stabilityai/sd-vae-ft-ema"
    """Hub repository of the autoencoder."""


@dataclass(frozen=True)
class Preset(Generic[W]):
    """A named model, and what it does unless told otherwise."""

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
    seed: int = 0
    """Seed of the noise."""
    sizes: tuple[Literal["size", "frames"], ...] = ()
    """What of its videos' shape may be chosen."""
    originals: tuple[str, ...] = ()
    """Names of the exact replays (``Family.replays``) that belong to it."""
    is_image: bool = False
    """Whether it makes images."""
    measured: str = ""
    """What these settings reached, and on what."""


@dataclass(frozen=True)
class Checkpoint:
    """A file that a family recognised as its own."""

    file: TensorFile
    tensors: Mapping[str, Tensor]
    """Its tensors, under the names that the family's network has for them."""
    remarks: tuple[str, ...] = ()
    """What is unusual about it, for people."""


@dataclass(frozen=True)
class Description:
    """What a checkpoint is, for ``inspect_checkpoint``."""

    architecture: str
    config: Mapping[str, Any]
    """The configuration of its network; empty where it cannot be told."""
    parameters: int
    """How many numbers it holds, without what follows from the configuration."""
    learned_variance: bool
    """Whether the network predicts 2C channels."""
    remarks: tuple[str, ...] = ()
    """What is unusual about it, for people."""


class Reader(ABC):
    """How the checkpoints of a family are read."""

    @abstractmethod
    def recognise(self, file: TensorFile) -> Checkpoint | None:
        """The checkpoint in a file; None where the file is not of this family.

        Raises:
            InputError: it is of this family, but incomplete.
        """

    @abstractmethod
    def describe(self, checkpoint: Checkpoint, known: Mapping[str, Any]) -> Description:
        """What a checkpoint is. What does not fit is a remark.

        Args:
            checkpoint: what ``recognise`` found.
            known: configuration values that the file does not tell.
        """

    @abstractmethod
    def load(
        self, checkpoint: Checkpoint, known: Mapping[str, Any], assumed: Mapping[str, Any], dtype: torch.dtype
    ) -> nn.Module:
        """The network in a checkpoint, on the CPU. The module is a ``Network``.

        Args:
            checkpoint: what ``recognise`` found.
            known: configuration values that win over those that the file tells.
            assumed: configuration values for what neither the file nor ``known`` tells.
            dtype: what the network computes in.

        Raises:
            InputError: the configuration cannot be told, or tensors are missing, unexpected, mis-shaped or broken.
        """

    def inflate(
        self,
        checkpoint: Checkpoint,
        frames: int,
        known: Mapping[str, Any],
        assumed: Mapping[str, Any],
        dtype: torch.dtype,
    ) -> nn.Module:
        """A video network of so many latent frames, made of an image network's weights; the rest as in ``load``.

        Raises:
            InputError: these weights cannot be inflated.
        """
        raise InputError(f"{checkpoint.file.path} cannot be inflated to video: its family has no video network for it")

    def explain(self, file: TensorFile) -> str | None:
        """What a file is that no family recognised, where this family knows its relatives; else None."""
        return None


class Family(ABC):
    """A family of models. Its object in ``registry.FAMILIES`` is all that the rest of Guidon knows of it."""

    name: ClassVar[str]
    """The family's name. ``inspect_checkpoint`` shows it, and ``load_checkpoint(architecture=...)`` asks for it."""
    reads: ClassVar[tuple[str, ...]]
    """The kinds of checkpoints that it recognises, for people."""
    folder: ClassVar[str] = ""
    """The files of a folder that ``adopt`` takes, for people; empty where it takes none."""
    presets: ClassVar[tuple[Preset[Any], ...]] = ()
    """Its models that have a name."""
    replays: ClassVar[Mapping[str, Exact]] = {}
    """The originals that ``exact`` can replay with its models, by name."""

    @abstractmethod
    def reader(self) -> Reader:
        """How its checkpoints are read."""

    @abstractmethod
    def find_model(self, preset: Preset[Any], sources: Sources, device: torch.device) -> Model:
        """The stages of one of its models. What is small is read now, what is large when it is used.

        Raises:
            InputError: files are missing (which, and where to get them), or are not what the preset needs.
        """

    def adopt(self, folder: Path) -> Preset[Any] | None:
        """The preset of a folder of weights; None where the folder is not of this family."""
        return None
