"""A pipeline that diffusers' ``save_pretrained`` wrote, as far as its small files tell.

It needs neither torch nor diffusers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...checkpoints.finding import stored_types
from ...core.devices import DtypeName
from ...core.errors import InputError, quoted
from ...core.reading import read_object
from .families import FAMILIES, Family

INDEX = "model_index.json"
_DTYPES: dict[str, DtypeName] = {"F32": "fp32", "F64": "fp32", "BF16": "bf16", "F16": "fp16"}
"""How safetensors calls precisions."""
_KNOWN: dict[str, Family] = {pipeline: family for family in FAMILIES for pipeline in family.pipelines}


@dataclass(frozen=True)
class PipelineFolder:
    """A folder of a pipeline whose guidance is known."""

    path: Path
    pipeline: str
    """The class that it was saved from."""
    family: Family
    channels: int
    """Latent channels: those of its autoencoder."""
    dtype: DtypeName
    """The precision in which the weights of its denoiser are stored."""
    classes: Mapping[str, int]
    """Class numbers by name, of a pipeline that is given classes and names them."""
    guider_scale: float | None = None
    """The scale of its guider, where the family guides by one."""


def read_folder(path: Path) -> PipelineFolder:
    """What a folder says of its pipeline.

    Raises:
        InputError: it is no folder, holds no pipeline or one that ``guidon.apply`` does not know, or a part is missing
            or damaged.
    """
    if not path.is_dir():
        raise InputError(f"{path} is no folder: give one that save_pretrained of a diffusers pipeline wrote")
    if not (path / INDEX).exists():
        raise InputError(
            f"{path} holds no {INDEX}: give a folder that save_pretrained of a diffusers pipeline wrote, or that the "
            "hub downloaded"
        )
    index = read_object(path / INDEX, "the index of a pipeline")
    pipeline = index.get("_class_name")
    if isinstance(pipeline, list):  # [module, class] of the user's own
        pipeline = pipeline[-1] if pipeline else None
    if pipeline is None:
        raise InputError(f"{path / INDEX} names no pipeline, as _class_name: download or save it whole")
    family = _KNOWN.get(pipeline) if isinstance(pipeline, str) else None
    if family is None:
        raise InputError(
            f"{path} holds a {quoted(pipeline)}, whose guidance Guidon does not know: give one of the pipelines in "
            "docs/diffusers-support.md"
        )
    for name, found in index.items():
        used = isinstance(found, list) and len(found) == 2 and all(isinstance(part, str) for part in found)
        if used and not name.startswith("_") and not (path / name).is_dir():
            raise InputError(f"{path} misses the folder {name} that its {INDEX} names: download or save it whole")
    network = next((name for name in family.networks if (path / name).is_dir()), None)
    if network is None:
        raise InputError(f"{path} has no {' or '.join(family.networks)}: download or save it whole")
    guider = _guider_scale(path) if "." in family.argument else None
    return PipelineFolder(path, str(pipeline), family, _channels(path), _stored_dtype(path / network),
                          _classes(index), guider)  # fmt: skip


def variant_of(path: Path, family: Family) -> str | None:
    """The variant whose weights alone a folder holds, such as "fp16"; None where it holds the usual ones."""
    found = [file.name for name in family.networks for file in (path / name).glob("*.safetensors")]
    matched = [
        re.fullmatch(r"(?:diffusion_pytorch_)?model(?:\.(\w+))?(?:-\d+-of-\d+)?\.safetensors", name) for name in found
    ]
    variants = {match[1] for match in matched if match is not None}
    return None if None in variants else min(variants, default=None)


def latent_channels(config: Mapping[str, Any]) -> int | None:
    """The latent channels in the configuration of an autoencoder; None where it does not say them."""
    found = config.get("latent_channels", config.get("z_dim"))
    return found if isinstance(found, int) and found > 0 else None


def class_numbers(names: Any) -> dict[str, int]:
    """Class numbers by name, from ``id2label``, in which a comma separates the names of one class."""
    if not isinstance(names, Mapping):
        return {}
    return {
        name.strip(): int(number) for number, label in names.items() for name in str(label).split(",") if name.strip()
    }


def _channels(path: Path) -> int:
    config = path / "vae" / "config.json"
    found = latent_channels(read_object(config, "the configuration of an autoencoder"))
    if found is None:
        raise InputError(f"{config} names no latent_channels and no z_dim: it is no autoencoder that Guidon knows")
    return found


def _classes(index: Mapping[str, Any]) -> dict[str, int]:
    try:
        return class_numbers(index.get("id2label"))
    except ValueError:
        return {}


def _guider_scale(path: Path) -> float | None:
    for config in sorted((path / "guider").glob("*.json")):
        scale = read_object(config, "the configuration of a guider").get("guidance_scale")
        if isinstance(scale, int | float):
            return float(scale)
    return None


def _stored_dtype(folder: Path) -> DtypeName:
    """The precision of most tensors in a component's safetensors; single precision where there are none."""
    # The usual weights come before those of a variant, whose name has one more dot. The parts of a network share one.
    files = sorted(folder.glob("*.safetensors"), key=lambda path: (path.name.count("."), path.name))
    types: list[DtypeName] = [_DTYPES[name] for path in files[:1] for name in stored_types(path) if name in _DTYPES]
    return max(dict.fromkeys(types), key=types.count) if types else "fp32"
