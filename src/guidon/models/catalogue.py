"""Named, frozen recommendations: weights, sampler, steps, guidance, sizes, each with its source.

The originals' settings are those of their released inference configurations; ``exact`` names the reproduction that
``--exact`` selects.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ..core.errors import InputError, nearest

OPEN_SORA = "github.com/hpcaitech/Open-Sora"
DIT = "github.com/facebookresearch/DiT"
PIXART = "github.com/PixArt-alpha/PixArt-alpha"
T5, SD_VAE = "DeepFloyd/t5-v1_1-xxl", "stabilityai/sd-vae-ft-ema"


@dataclass(frozen=True)
class Released:
    """Weights that the package does not hold: what they are and where their authors keep them.

    Attributes:
        architecture: of the checkpoint: "STDiT", "DiT" or "PixArt".
        repository, file: of the checkpoint on the hub; the file may be a folder in diffusers' layout.
        config: what the checkpoint's shapes do not tell.
        latent_shape: (C, T, H, W) or (C, H, W) of the size the preset is for.
        text_length: T5 tokens a caption is padded to; None for class labels.
        vae: hub repository of the autoencoder.
        exact: the reproduction that belongs to it.
        multi_scale: whether an image model takes other sizes.
    """

    architecture: Literal["STDiT", "DiT", "PixArt"]
    repository: str
    file: str
    config: dict[str, Any]
    latent_shape: tuple[int, ...]
    text_length: int | None
    exact: str
    vae: str = SD_VAE
    multi_scale: bool = False

    @property
    def input_size(self) -> int | tuple[int, ...]:
        """The size as the architecture's configuration has it."""
        return self.latent_shape[1:] if self.architecture == "STDiT" else self.latent_shape[-1]


@dataclass(frozen=True)
class Preset:
    """What ``guidon generate --model NAME`` does unless told otherwise.

    Either ``folder`` holds denoiser, text and vae ``.safetensors``, and perhaps denoiser-low, or ``released`` says what
    the user must bring. ``timing`` is when to guide; ``measured`` is what these settings reached, and on what.
    """

    name: str
    summary: str
    sampler: str
    steps: int
    cfg_scale: float
    cfg_channels: str
    source: str
    timing: str = "constant"
    fps: float = 8
    seed: int = 0
    measured: str = ""
    folder: Path | None = None
    released: Released | None = field(default=None, repr=False)

    @property
    def sizes(self) -> tuple[str, ...]:
        """Which of "size" and "frames" may be chosen."""
        if self.released is None or self.released.architecture == "STDiT":
            return ("size", "frames")
        return ("size",) if self.released.multi_scale else ()

    @property
    def originals(self) -> tuple[str, ...]:
        """Which reproductions ``exact`` may name."""
        if self.released is None:
            return ()
        return ("open-sora-1.0", "open-sora-1.1") if self.released.architecture == "STDiT" else (self.released.exact,)

    @property
    def is_image(self) -> bool:
        return self.released is not None and len(self.released.latent_shape) == 3


def _open_sora(frames: int, side: int, file: str) -> Preset:
    latent = side // 8
    return Preset(
        name=f"open-sora-1.0-{frames}x{side}x{side}",
        summary=f"Open-Sora 1.0, text to video, {frames} frames of {side}x{side}",
        sampler="ddpm", steps=100, cfg_scale=7.0, cfg_channels="3", fps=8, seed=42,
        source=f"{OPEN_SORA}, v1.0, configs/opensora/inference/{frames}x{side}x{side}.py",
        released=Released(
            "STDiT", "hpcai-tech/Open-Sora", file,
            {"space_scale": side / 512},
            (4, frames, latent, latent), 120, "open-sora-1.0",
        ),
    )  # fmt: skip


def _dit(side: int) -> Preset:
    return Preset(
        name=f"dit-xl-2-{side}",
        summary=f"DiT-XL/2, ImageNet class to image, {side}x{side}",
        sampler="ddpm", steps=250, cfg_scale=4.0, cfg_channels="3",
        source=f"{DIT}, sample.py",
        released=Released(
            "DiT", f"facebook/DiT-XL-2-{side}", "transformer", {}, (4, side // 8, side // 8), None, "dit",
            "stabilityai/sd-vae-ft-mse",
        ),
    )  # fmt: skip


def _pixart(side: int, file: str) -> Preset:
    return Preset(
        name=f"pixart-xl-2-{side}",
        summary=f"PixArt-alpha XL/2, text to image, {side}x{side}",
        sampler="ddpm", steps=100, cfg_scale=4.5, cfg_channels="3",
        source=f"{PIXART}, scripts/inference.py --sampling_algo iddpm",
        released=Released(
            "PixArt", "PixArt-alpha/PixArt-alpha", file, {"lewei_scale": 2.0 if side == 1024 else 1.0},
            (4, side // 8, side // 8), 120, "pixart", multi_scale=side == 1024,
        ),
    )  # fmt: skip


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            name="guidon-small",
            summary="one object moving over a plain background, 64x64, 16 frames, ships in the package",
            folder=Path(__file__).parent.parent / "weights" / "guidon-small",
            sampler="ddpm",
            steps=50,
            cfg_scale=3.0,
            cfg_channels="3",
            timing="interval:0,0.5",
            fps=8,
            source="recipes/: small-vae, small, small-refine, small-vae-alive, small-noisy, small-low, small-high, "
            "small-low-refined, small-high-refined, small-low-steady, small-low-joint",
            measured="200 L0 prompts x 4: all attributes right 97%, each alone 98% or more",
        ),
        _open_sora(16, 256, "OpenSora-v1-HQ-16x256x256.pth"),
        _open_sora(16, 512, "OpenSora-v1-HQ-16x512x512.pth"),
        _dit(256),
        _dit(512),
        _pixart(256, "PixArt-XL-2-256x256.pth"),
        _pixart(512, "PixArt-XL-2-512x512.pth"),
        _pixart(1024, "PixArt-XL-2-1024-MS.pth"),
    )
}


def find_preset(name: str) -> Preset:
    """The preset of that name; a folder of weights gets the settings of ``guidon-small``, of whose kind it is."""
    if name in PRESETS:
        return PRESETS[name]
    folder = Path(name)
    if folder.is_dir():
        base = PRESETS["guidon-small"]
        return replace(base, name=str(folder), summary="a model folder", folder=folder, source=str(folder), measured="")
    raise InputError(f"model {name!r} is neither a preset nor a folder{nearest(name, PRESETS)}")
