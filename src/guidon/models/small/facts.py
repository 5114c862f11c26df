"""What is known of a model folder before its weights are read: the configuration in the headers of its files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, PositiveInt, field_validator, model_validator

from ... import world
from ...checkpoints.config import configured, read_config
from ...core.devices import DecodeDtype, DtypeName
from ...core.errors import InputError, setting
from ...core.reading import read_object
from ...core.settings import Settings, validated
from ...diffusion.spacing import parse_spacing
from ...guidance import parse_timing
from ...samplers import PathName, SamplerName
from ..family import Facts, Fast, Preset, as_they_are
from ..sources import Sources
from ..stdit.config import STDiTConfig
from ..vae.config import FrameVAEConfig
from . import BOUNDARY, DENOISER, DIFFUSION, DISTILLED, FLOW, LOW_NOISE, TEXT, VAE
from .distilled_config import DISTILLED_KIND, DistilledConfig
from .words import Words


class Diffusion(Settings):
    """The keys of a denoiser's configuration besides its shape: what it was trained for."""

    noise_schedule: str
    diffusion_steps: PositiveInt
    prediction: Literal["eps", "x0", "v", "flow"]

    @property
    def path(self) -> PathName:
        """The path from data to noise."""
        return "flow" if self.noise_schedule == FLOW else "diffusion"

    @model_validator(mode="after")
    def _flows_along_a_flow(self) -> Diffusion:
        if self.path == "flow" and self.prediction != "flow":
            raise InputError(
                f"its noise_schedule is flow, its prediction {self.prediction}: a rectified flow predicts flow"
            )
        return self


class FastFile(Settings):
    """The content of a file of fast settings; see ``family.Fast``."""

    sampler: SamplerName
    steps: PositiveInt
    measured: str
    spacing: str = "uniform"
    timing: str = "constant"
    cfg_scale: Annotated[FiniteFloat, Field(ge=0)] | None = None
    adaptive: float | None = None
    reuse: PositiveInt | None = None
    dtype: DtypeName = "fp32"
    decode_dtype: DecodeDtype = "fp32"
    distilled: bool = False

    @field_validator("spacing")
    @classmethod
    def _known_spacing(cls, value: str) -> str:
        return parse_spacing(value).text if value != "uniform" else value

    @field_validator("timing")
    @classmethod
    def _known_timing(cls, value: str) -> str:
        return parse_timing(value).text


def read_fast(path: Path) -> Fast:
    """The fast settings of a model folder, from their file.

    Raises:
        InputError: the file is damaged, or a setting does not exist.
    """
    return Fast(**validated(FastFile, read_object(path, "fast settings"), str(path)).model_dump())


def read_facts(preset: Preset[Path], sources: Sources) -> Facts:
    """See ``Family.facts``."""
    refuse_sources(preset, sources)
    folder = preset.weights
    refuse_incomplete(folder)
    configs = (read_config(folder / f"{kind}.safetensors", kind) for kind in ("denoiser", "text", "vae"))
    return facts_of(preset, *configs)


def path_of(denoiser: Path) -> PathName:
    """The path from data to noise that a model folder's denoiser was trained on.

    Raises:
        InputError: the file's header is damaged.
    """
    return "flow" if read_config(denoiser, "denoiser").get("noise_schedule") == FLOW else "diffusion"


def read_words(preset: Preset[Path]) -> Words | None:
    """The words that a model folder's text encoder knows; None if its configuration does not say them.

    Raises:
        InputError: files are missing, or the file's header is damaged.
    """
    refuse_incomplete(preset.weights)
    return Words.of(read_config(preset.weights / TEXT, "text"))


def facts_of(
    preset: Preset[Path], denoiser: Mapping[str, Any], text: Mapping[str, Any], vae: Mapping[str, Any]
) -> Facts:
    """What the configurations of a model folder's denoiser, text encoder and autoencoder say.

    Raises:
        InputError: a configuration is not valid.
    """
    path = preset.weights / DENOISER
    diffusion = read_diffusion(path, denoiser)
    shape = configured(path, STDiTConfig, {name: denoiser[name] for name in denoiser if name not in DIFFUSION})
    if not all((shape.in_channels, *shape.input_size, *shape.patch_size)):
        raise InputError(f"{path}: its configuration has a size of 0: train or export it again")
    downsampling = configured(preset.weights / VAE, FrameVAEConfig, vae).downsampling
    pixels = tuple(side * downsampling for side in shape.input_size[1:])
    words = Words.of(text)
    return Facts(
        latent_shape=(shape.in_channels, *shape.input_size),
        patch=shape.patch_size,
        downsampling=downsampling,
        timesteps=diffusion.diffusion_steps,
        path=diffusion.path,
        blocks=shape.depth,
        distilled=read_distilled(preset.weights / DISTILLED),
        # the bench "world" measures clips of one size only, and of no other world
        bench="video" if pixels != (world.SIZE, world.SIZE) or (words is not None and words.own) else preset.bench,
        read_prompts=as_they_are if words is None else words.read_prompts,
    )


def read_distilled(path: Path) -> tuple[int, ...]:
    """The timesteps of a distilled network, from its file's header; empty where there is no file.

    Raises:
        InputError: the header is damaged, or says no timesteps.
    """
    if not path.is_file():
        return ()
    return configured(path, DistilledConfig, read_config(path, DISTILLED_KIND)).timesteps


def distilled_fast(path: Path) -> Fast:
    """The fast settings of a model folder that holds a distilled network.

    Raises:
        InputError: see ``read_distilled``.
    """
    timesteps = read_distilled(path)
    return Fast(
        sampler="consistency",
        steps=len(timesteps),
        spacing="at:" + ",".join(map(str, timesteps)),
        distilled=True,
        measured="nothing yet",
    )


def refuse_sources(preset: Preset[Path], sources: Sources) -> None:
    """Raise an InputError if the user names files for a model that brings its own."""
    changed = [
        name for name, value in sources if name != "offload" and value != type(sources).model_fields[name].default
    ]
    if changed:
        raise InputError(f"model {preset.name!r} brings its own weights: leave out {setting(changed[0])}")


def refuse_incomplete(folder: Path) -> None:
    """Raise an InputError if a file of a model folder is missing. It names all of them."""
    missing = [name for name in (DENOISER, TEXT, VAE) if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{folder} holds no {', '.join(missing)}: a model folder has {DENOISER}, {TEXT} and {VAE}")


def read_diffusion(path: Path, config: Mapping[str, Any]) -> Diffusion:
    """What a denoiser was trained for, from its configuration.

    Raises:
        InputError: a key is missing or not valid, or the file is an expert for low noise.
    """
    if BOUNDARY in config:
        raise InputError(f"{path} is an expert for low noise: it belongs beside a denoiser, as {LOW_NOISE}")
    unsaid = [name for name in DIFFUSION if name not in config]
    if unsaid:
        raise InputError(f"{path}: its configuration lacks {', '.join(unsaid)}: train or export it again")
    return validated(Diffusion, {name: config[name] for name in DIFFUSION}, f"{path}")
