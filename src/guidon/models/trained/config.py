"""``config.json`` of a model folder that a run on a user's clips wrote. It is read without torch.

The file is in the Hub's form. Its top level is the network's configuration, by the names of its configuration class.
The key "guidon" holds the rest of what generating needs.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, PositiveFloat, PositiveInt, field_validator

from ...checkpoints.config import make_config
from ...core.errors import InputError, quoted
from ...core.reading import read_object
from ...core.settings import Settings, validated
from ...guidance import parse_timing
from ...samplers import PathName, SamplerName
from ..dit.config import DiTConfig
from ..pixart.config import PixArtConfig
from ..stdit.config import STDiTConfig
from ..stdit2.config import STDiT2Config
from ..stdit3.config import STDiT3Config

CONFIG, KEY = "config.json", "guidon"
CHECKPOINT = "model.safetensors"  # the network, under the names of its released checkpoints
FEATURES = "features.safetensors"  # caption features, for a folder whose text encoder is such a file
CARD, PICTURE = "README.md", "samples.png"
WHAT = "the configuration of a model folder"

NetworkName = Literal["stdit", "stdit2", "stdit3", "dit", "pixart"]
Prediction = Literal["eps", "x0", "v", "flow"]
NetworkConfig = STDiTConfig | STDiT2Config | STDiT3Config | DiTConfig | PixArtConfig
CONFIGS: dict[NetworkName, type[NetworkConfig]] = {
    "stdit": STDiTConfig,
    "stdit2": STDiT2Config,
    "stdit3": STDiT3Config,
    "dit": DiTConfig,
    "pixart": PixArtConfig,
}
"""The configuration of each network that can be trained, by the name that recipes give it."""
FAMILIES: dict[NetworkName, str] = {
    "stdit": "STDiT", "stdit2": "STDiT2", "stdit3": "STDiT3", "dit": "DiT", "pixart": "PixArt",
}  # fmt: skip
"""The family of each of them in ``registry.FAMILIES``."""
IMAGES = ("dit", "pixart")
"""Networks that make images."""
ANY_SIZE = ("stdit2", "stdit3")
"""Networks that take any size, and are told the clip's."""


class SamplingSettings(Settings):
    """How a model is sampled where a call does not choose it."""

    sampler: SamplerName | None = None
    """The sampler; None for "ddpm", or for "euler" of a rectified flow."""
    steps: PositiveInt | None = None
    """Denoising steps; None for 50, or for 30 of a rectified flow."""
    cfg_scale: Annotated[FiniteFloat, Field(ge=0)] = 3.0
    """Guidance scale."""
    cfg_channels: str = "all"
    """Guided latent channels."""
    timing: str = "constant"
    """When guidance acts."""

    @field_validator("timing")
    @classmethod
    def _known_timing(cls, value: str) -> str:
        return parse_timing(value).text

    def for_preset(self, path: PathName) -> dict[str, Any]:
        """The fields of a ``Preset`` for a model of this path from data to noise."""
        sampler, steps = ("euler", 30) if path == "flow" else ("ddpm", 50)
        own = {"sampler": self.sampler or sampler, "steps": self.steps or steps, "timing": self.timing}
        return own | {"cfg_scale": self.cfg_scale, "cfg_channels": self.cfg_channels}


class TextSource(Settings):
    """What reads the prompts of a model."""

    kind: Literal["words", "t5", "features", "classes"]
    """"words" is the small encoder in text.safetensors, "features" a file of ``guidon encode`` in the folder."""
    folder: Path | None = None
    """Of "t5": where T5 was when the model was trained; the hub's cache is asked if it is not there any more."""
    tokens: PositiveInt | None = None
    """Tokens of a caption, for "t5" and "features"."""
    classes: tuple[str, ...] = ()
    """The names of the classes, in the order of their numbers."""
    scored: bool = False
    """Whether prompts end in an aesthetic score, as those of Open-Sora 1.2 do."""


class ClipFormat(Settings):
    """The clips that a model makes where nobody chooses."""

    height: PositiveInt
    """In pixels."""
    width: PositiveInt
    """In pixels."""
    frames: PositiveInt
    """1 for an image."""
    fps: PositiveFloat
    """Frames per second of the clips that it was trained on."""
    played: PositiveFloat | None = None
    """Frames per second of the files that it makes; None for those of ``fps``."""


class ModelConfig(Settings):
    """The key "guidon" of a model folder's config.json."""

    version: Literal[1] = 1
    """Of this format."""
    network: NetworkName
    """The network, by the name that recipes give it."""
    layout: Literal["components", "released"]
    """"released": the network is in model.safetensors. "components": it is in denoiser.safetensors, which says by
    itself what the network needs, and so are text.safetensors and vae.safetensors."""
    noise_schedule: str
    """The noise schedule; "flow" for a rectified flow."""
    diffusion_steps: PositiveInt
    """Timesteps."""
    prediction: Prediction
    """What the network predicts."""
    by_size: bool = False
    """Whether the timesteps of a rectified flow are shifted by a clip's size, as Open-Sora 1.2 does."""
    text: TextSource
    """What reads prompts."""
    vae: Literal["frames", "hub", "video"]
    """The autoencoder: "frames" is vae.safetensors, "hub" is the folder vae in diffusers' layout, "video" is the folder
    vae with the autoencoder of Open-Sora 1.2."""
    downsampling: PositiveInt
    """Pixels of a latent pixel, along one side."""
    clip: ClipFormat
    """The clips that it makes."""
    sampling: SamplingSettings = SamplingSettings()
    """How it is sampled."""
    seed: Annotated[int, Field(ge=0)] = 0
    """The seed of the noise where a call does not choose it."""
    knows_given_frames: bool = False
    """Whether the network was trained to be told which frames are given."""
    shown: tuple[str, ...] = ()
    """Prompts of the pictures of the card."""

    @property
    def reads_captions(self) -> bool:
        """Whether prompts are read by T5, or as features of T5."""
        return self.text.kind in ("t5", "features")

    @property
    def path(self) -> PathName:
        """The path from data to noise."""
        return "flow" if self.noise_schedule == "flow" else "diffusion"


def read_model_config(folder: Path) -> ModelConfig | None:
    """What config.json in a folder says; None where there is none of ours.

    Raises:
        InputError: it is damaged, or says what does not exist.
    """
    found = _read(folder)
    if found is None:
        return None
    return validated(ModelConfig, found[KEY], f"{folder / CONFIG}")


def read_network_config(folder: Path, network: NetworkName) -> NetworkConfig:
    """The network's configuration in config.json.

    Raises:
        InputError: a value is not valid.
    """
    values, of = _read(folder) or {}, CONFIGS[network]
    names = {each.name for each in fields(of)}
    own = {name: value for name, value in values.items() if name in names}
    return make_config(of, own, f"{folder / CONFIG}: it does not fit this version of Guidon")


def _read(folder: Path) -> dict[str, Any] | None:
    """The content of config.json, if it is one of ours."""
    path = folder / CONFIG
    if not path.is_file():
        return None
    values = read_object(path, WHAT)
    if KEY not in values:
        return None
    if not isinstance(values[KEY], dict):
        raise InputError(f"{path}: guidon is {quoted(values[KEY])}, expected an object; train or copy it again")
    return values
