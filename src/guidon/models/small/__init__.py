"""Guidon's own models: folders of weights that ``guidon train`` writes, and ``guidon-small``, which is one of them.

``facts`` reads the configuration of such a folder, ``folder`` its weights too. ``words`` says how it reads prompts.
``experts`` joins two networks that divide the noise levels between them. The network itself is STDiT, with a refiner or
without.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..family import Facts, Family, Fast, Preset, Reader

if TYPE_CHECKING:
    import torch

    from ..model import Model
    from ..sources import Sources

NAME = "Guidon"
DENOISER, LOW_NOISE, TEXT, VAE = (f"{name}.safetensors" for name in ("denoiser", "denoiser-low", "text", "vae"))
FAST = f"{NAME}.fast.json"  # fast settings that `guidon calibrate-fast` found for the folder's model
DISTILLED = "denoiser-fast.safetensors"
DIFFUSION = ("noise_schedule", "diffusion_steps", "prediction")  # keys of a denoiser's config besides its shape
FLOW = "flow"  # the noise schedule in the config of a rectified flow, which has none
BOUNDARY = "boundary"  # key in the config of a denoiser for low noise: the first timestep that it does not cover
SMALL = Preset(
    name="guidon-small",
    family=NAME,
    summary="one object moving over a plain background, 64x64, 16 frames, ships in the package",
    weights=Path(__file__).parents[2] / "weights" / "guidon-small",
    sampler="ddpm",
    steps=50,
    cfg_scale=3.0,
    cfg_channels="3",
    timing="interval:0,0.5",
    source="the chain of runs in docs/LOG.md, then `finished`, `faithful` and `sized` of recipes/guidon-small.yaml",
    bench="world",
    sizes=("size", "frames"),
    measured="200 L0 prompts x 4: all attributes right 99.3%, each of them 99% or more (outlines within 0.25 px)",
    fast=Fast(
        sampler="consistency",
        steps=8,
        spacing="at:999,780,650,540,450,385,349,60",
        distilled=True,
        dtype="bf16",
        measured="20x less CPU time of denoising; 600 L0 prompts, against the 50 steps: all attributes right 99.8% "
        "(98.7%), as steady, as close to a clean scene",
    ),
)


class SmallFamily(Family):
    """See ``Family``."""

    name = NAME
    reads = ("the files of a Guidon model folder",)
    folder = f"{DENOISER}, {TEXT} and {VAE}"
    presets = (SMALL,)

    def reader(self) -> Reader:
        from .folder import ComponentReader

        return ComponentReader()

    def facts(self, preset: Preset[Path], sources: Sources) -> Facts:
        from .facts import read_facts

        return read_facts(preset, sources)

    def find_model(self, preset: Preset[Path], sources: Sources, device: torch.device) -> Model:
        from .folder import find_model

        return find_model(preset, sources, device)

    def files(self, folder: Path) -> list[Path]:
        return [folder / name for name in (DENOISER, LOW_NOISE, DISTILLED, TEXT, VAE) if (folder / name).is_file()]

    def describe_words(self, preset: Preset[Path]) -> dict[str, str]:
        from .facts import read_words

        words = read_words(preset)
        return {} if words is None else words.describe()

    def adopt(self, folder: Path) -> Preset[Path] | None:
        if not any((folder / name).is_file() for name in (DENOISER, TEXT, VAE)):
            return None
        from ..trained.config import read_model_config

        clips = read_model_config(folder)  # of a user's clips
        if clips is not None and clips.layout == "released":
            return None
        own = {"name": str(folder), "summary": "a model folder", "weights": folder, "source": str(folder)}
        preset = replace(SMALL, **own, measured="", fast=None)
        if (folder / FAST).is_file():
            from .facts import read_fast

            preset = replace(preset, fast=read_fast(folder / FAST))
        elif (folder / DISTILLED).is_file():
            from .facts import distilled_fast

            preset = replace(preset, fast=distilled_fast(folder / DISTILLED))
        if (folder / DENOISER).is_file():
            from .facts import path_of

            path = path_of(folder / DENOISER)
            if clips is not None:
                played = {"fps": clips.clip.fps, "source_fps": clips.clip.fps, "bench": "video"}
                return replace(preset, **played, **clips.sampling.for_preset(path))
            if path == "flow":
                return replace(preset, sampler="euler", steps=30)
        return preset


FAMILY = SmallFamily()
