"""Named, frozen recommendations: weights, sampler, steps, guidance, and what they measured."""

from dataclasses import dataclass
from pathlib import Path

from .errors import InputError, nearest


@dataclass(frozen=True)
class Preset:
    """What ``guidon generate --model NAME`` does unless told otherwise.

    ``folder`` holds denoiser, text and vae ``.safetensors``. ``measured`` is what the settings reached and on what.
    """

    name: str
    summary: str
    folder: Path
    sampler: str
    steps: int
    cfg_scale: float
    cfg_channels: str
    fps: float
    source: str
    measured: str


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            name="guidon-small",
            summary="one object moving over a plain background, 64x64, 16 frames, ships in the package",
            folder=Path(__file__).parent / "weights" / "guidon-small",
            sampler="ddpm",
            steps=50,
            cfg_scale=4.0,
            cfg_channels="3",
            fps=8,
            source="recipes/small-vae.yaml, recipes/small.yaml",
            measured="",
        ),
    )
}


def find_preset(name: str) -> Preset:
    """The preset of that name; a folder of weights gets the settings of ``guidon-small``."""
    if name in PRESETS:
        return PRESETS[name]
    folder = Path(name)
    if folder.is_dir():
        base = PRESETS["guidon-small"]
        return Preset(
            **{
                **base.__dict__,
                "name": str(folder),
                "summary": "a model folder",
                "folder": folder,
                "source": str(folder),
                "measured": "",
            }
        )
    raise InputError(f"model {name!r} is neither a preset nor a folder{nearest(name, PRESETS)}")
