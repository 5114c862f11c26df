"""Writes a trained model as a folder in the Hub's form: config.json, safetensors, and a card with pictures."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...checkpoints import refuse_broken
from ...checkpoints.writing import safetensors_bytes
from ...core.atomic import atomic_folder, write_bytes, write_json
from ..adapters.files import ADAPTER
from ..parts.reading import POSITIONS
from ..small import DENOISER, DISTILLED, FAST, LOW_NOISE, TEXT, VAE
from .config import CARD, CHECKPOINT, CONFIG, FAMILIES, FEATURES, IMAGES, KEY, PICTURE, ModelConfig, NetworkConfig

COMPONENTS = (DENOISER, LOW_NOISE, DISTILLED, TEXT, VAE)
"""The files of a folder of components."""
HUB = (*COMPONENTS, CONFIG, CARD, PICTURE, CHECKPOINT, FEATURES, FAST, "vae", *ADAPTER)
"""All files and folders of a model folder in the Hub's form, or of a folder of adapters."""


@contextmanager
def hub_folder(target: Path) -> Iterator[Path]:
    """A new folder for a model in the Hub's form, or for adapters; see ``folder_with_others``."""
    with folder_with_others(target, HUB) as folder:
        yield folder


@contextmanager
def folder_with_others(target: Path, own: tuple[str, ...]) -> Iterator[Path]:
    """A new folder in place of ``target``, to which files of it are copied that are not named in ``own``."""
    with atomic_folder(target) as folder:
        yield folder
        others = [path for path in target.iterdir() if path.name not in own] if target.is_dir() else []
        for path in others:
            if path.is_dir() and not path.is_symlink():
                shutil.copytree(path, folder / path.name, symlinks=True)
            else:
                shutil.copy2(path, folder / path.name, follow_symlinks=False)


def write_config(folder: Path, config: ModelConfig, network: NetworkConfig) -> None:
    """Write config.json."""
    own = config.model_dump(mode="json", exclude_defaults=True)
    own |= {name: getattr(config, name) for name in ("version", "network", "layout")}
    values = {"model_type": FAMILIES[config.network], **dataclasses.asdict(network), KEY: own}
    write_json(folder / CONFIG, values)


def write_network(
    folder: Path, weights: Mapping[str, Tensor], record: Mapping[str, Any], dtype: torch.dtype = torch.float16
) -> None:
    """Write a network's weights under the released names. Positions, which follow from config.json, are left out.

    Raises:
        InputError: a weight holds NaN or infinity, or does in that dtype.
    """
    kept = {name: value for name, value in weights.items() if name not in POSITIONS}
    stored = {name: value.to(dtype).cpu().contiguous() for name, value in kept.items()}
    refuse_broken(stored, folder / CHECKPOINT)
    metadata = {"format": "pt", "record": json.dumps(dict(record), sort_keys=True)}
    write_bytes(folder / CHECKPOINT, safetensors_bytes(stored, metadata))


def write_card(folder: Path, config: ModelConfig, picture: Path | None, record: Mapping[str, Any]) -> None:
    """Write the card, README.md, and copy its picture.

    Args:
        folder: the model folder.
        config: what config.json says.
        picture: a sheet of samples; None for a card without one.
        record: how the model was trained.
    """
    if picture is not None:
        shutil.copyfile(picture, folder / PICTURE)
    write_bytes(folder / CARD, card(config, picture is not None, record).encode())


def card(config: ModelConfig, has_picture: bool, record: Mapping[str, Any]) -> str:
    """The text of a card."""
    clip, image = config.clip, config.network in IMAGES
    kind = "text-to-image" if image else "text-to-video"
    if config.text.kind == "classes":
        kind = "unconditional-image-generation"
    what = f"{clip.width}x{clip.height} pixels" + (
        "" if image else f", {clip.frames} frames at {clip.fps:g} per second"
    )
    prompt = config.shown[0] if config.shown else "a caption"
    lines = [
        "---", "library_name: guidon", f"pipeline_tag: {kind}", "---", "",
        f"# A {FAMILIES[config.network]} trained with Guidon", "",
        f"It makes {'images' if image else 'videos'} of {what}.", "",
    ]  # fmt: skip
    if has_picture:
        lines += [f"![samples]({PICTURE})", ""]
    lines += [
        "```python", "import guidon", "", 'pipe = guidon.from_pretrained("this folder, or user/repository")',
        f"pipe({json.dumps(prompt)}, seed=0).save(\"{'image.png' if image else 'clip.mp4'}\")", "```", "",
        "| | |", "|---|---|",
    ]  # fmt: skip
    sampling = config.sampling.for_preset(config.path)
    told = {
        "network": FAMILIES[config.network],
        "prediction": config.prediction,
        "prompts are read by": {"words": "a small encoder", "t5": "T5", "features": "stored features of T5"}.get(
            config.text.kind, f"{len(config.text.classes)} classes"
        ),
        "sampling": f"{sampling['sampler']}, {sampling['steps']} steps, cfg_scale {sampling['cfg_scale']:g}",
        **{name: value for name, value in record.items() if name in ("steps", "batch_size")},
    }
    lines += [f"| {name} | {value} |" for name, value in told.items()]
    return "\n".join(lines) + "\n"
