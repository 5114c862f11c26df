"""The originals' checkpoints: what a file is (``inspect_checkpoint``), and the model in it (``load_checkpoint``)."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoints.component import DIFFUSION, FORMAT, load_component, refuse_broken, refuse_misfit
from ..checkpoints.files import TensorFile, read_tensors, sha256_of
from ..core.errors import InputError
from . import STDiT, STDiTConfig
from .registry import ARCHITECTURES, Architecture, Tensors, infer_config, learns_variance, recognise

POSITIONS = ("pos_embed", "pos_embed_temporal")  # recomputed, never read
NULL_CAPTION = "y_embedder.y_embedding"


@dataclass(frozen=True)
class Report:
    """What a checkpoint is, for people; ``remarks`` names all that is unusual about it."""

    path: Path
    format: str
    wrapping: tuple[str, ...]
    architecture: str
    config: dict[str, Any]
    parameters: int
    dtypes: dict[str, int]
    learned_variance: bool
    sha256: str
    remarks: tuple[str, ...]

    def __str__(self) -> str:
        config = ", ".join(f"{name} {value}" for name, value in self.config.items())
        dtypes = ", ".join(f"{count} tensors of {dtype}" for dtype, count in self.dtypes.items())
        lines = [
            f"file              {self.path} ({self.format})",
            f"wrapped in        {', '.join(self.wrapping) or 'nothing'}",
            f"architecture      {self.architecture}, {self.parameters:,} parameters",
            f"configuration     {config}",
            f"learned variance  {'yes' if self.learned_variance else 'no'}",
            f"stored as         {dtypes}",
            f"sha256            {self.sha256}",
        ]
        return "\n".join(lines + [f"note              {remark}" for remark in self.remarks])


def inspect_checkpoint(path: str | Path, **known: Any) -> Report:
    """Say what a file is, strictly: what does not fit is a remark, what is no checkpoint an InputError.

    Args:
        path: a file, or a folder in hub layout.
        known: configuration values that shapes do not tell, such as ``num_heads``.
    """
    file = read_tensors(path)
    dtypes = Counter(str(value.dtype).removeprefix("torch.") for value in file.tensors.values())
    remarks: list[str] = []
    if file.metadata.get("format") == FORMAT:
        name, tensors = f"Guidon's own {file.metadata.get('kind')}", file.tensors
        values = json.loads(file.metadata["config"])
        learned = bool(values.get("learn_sigma", False))
    else:
        architecture, tensors, remarks = recognise(file.tensors)
        name, values, learned = architecture.name, {}, learns_variance(tensors)
        try:
            config = infer_config(architecture, tensors, file.config, known, {})
            values, learned = dataclasses.asdict(config), config.learn_sigma
            _assemble(architecture, config, tensors, f"{file.path}")
        except InputError as error:
            remarks.append(str(error))
        if tensors["x_embedder.proj.weight"].ndim == 4:
            remarks.append("its patch kernel is 2D: an image model")
        if name != "DiT" and NULL_CAPTION not in tensors:
            remarks.append("it has no null caption: guidance needs the encoded empty prompt instead")
    try:
        refuse_broken(tensors, file.path)
    except InputError as error:
        remarks.append(str(error))
    if len(dtypes) > 1:
        remarks.append("it mixes precisions")
    return Report(
        file.path,
        file.format,
        file.wrapping,
        name,
        values,
        sum(math.prod(value.shape) for key, value in tensors.items() if key not in POSITIONS),
        dict(dtypes),
        learned,
        _sha256(file.path),
        tuple(remarks),
    )


def load_checkpoint(
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    architecture: str | None = None,
    inflate: int | None = None,
    assumed: Mapping[str, Any] | None = None,
    **known: Any,
) -> Any:
    """The model in a released checkpoint: ``STDiT``, ``PixArt`` or ``DiT``, ready to sample with.

    Weights are memory-mapped: a file already in ``dtype`` is not copied. Positions are recomputed at the scale found.

    Args:
        path: a ``.pt``, ``.pth`` or safetensors file, an index of shards, or a folder in hub layout.
        dtype: what the network computes in.
        device: where it goes.
        architecture: refuse a file of any other: "STDiT", "PixArt" or "DiT".
        inflate: make an STDiT of that many latent frames from an image model's weights: its kernel becomes 3D and its
            temporal attention starts as nothing, so that every frame is the image model's.
        assumed: configuration values for what neither the file nor ``known`` tells, where it lacks positions.
        known: configuration values over those that shapes tell: ``num_heads``, ``input_size``, ``space_scale``, ...

    Raises:
        InputError: the file is not one, is damaged, is of another architecture, or lacks, adds or mis-shapes tensors.
    """
    file = read_tensors(path)
    if file.metadata.get("format") == FORMAT:
        own = load_component(file.path, "denoiser").build(STDiT, STDiTConfig, *DIFFUSION)
        return own.to(device, dtype).eval().requires_grad_(False)
    kind, tensors, _ = recognise(file.tensors)
    if architecture is not None and kind.name != architecture:
        raise InputError(f"{file.path} holds a {kind.name}, expected a {architecture}")
    if inflate is not None:
        model = _inflated(file, kind, tensors, inflate, known, assumed or {}, dtype)
    else:
        config = infer_config(kind, tensors, file.config, known, assumed or {})
        refuse_broken(tensors, file.path)
        model = _assemble(kind, config, tensors, str(file.path), dtype)
    return model.to(device).eval().requires_grad_(False)


def _assemble(kind: Architecture, config: Any, tensors: Tensors, where: str, dtype: torch.dtype | None = None) -> Any:
    """The model around the tensors themselves; without a dtype it only checks that they fit."""
    with torch.device("meta"):
        model = kind.model(config)
    expected = {name: value for name, value in model.state_dict().items() if name not in POSITIONS}
    given = {name: value for name, value in tensors.items() if name not in POSITIONS}
    if kind.name != "DiT" and NULL_CAPTION not in given:
        null = expected[NULL_CAPTION]
        given[NULL_CAPTION] = torch.full(null.shape, float("nan"))  # never to be read by mistake
    refuse_misfit(expected, given, f"{where} does not fit {kind.name}")
    if dtype is None:
        return model
    filled = {name: value.to(dtype) for name, value in given.items()}
    keep = dtype if kind.name == "DiT" else torch.float32  # buffers stay precise, DiT's positions are a parameter
    positions = {name: table.to(keep) for name, table in model.position_tables().items()}
    model.load_state_dict(filled | positions, assign=True)
    return model


def _inflated(
    file: TensorFile,
    kind: Architecture,
    tensors: Tensors,
    frames: int,
    known: dict[str, Any],
    assumed: Mapping[str, Any],
    dtype: torch.dtype,
) -> nn.Module:
    if kind.name != "PixArt":
        raise InputError(f"{file.path} holds a {kind.name}: only PixArt's weights can be inflated to an STDiT")
    if "csize_embedder.mlp.0.weight" in tensors:
        raise InputError(f"{file.path} is the multi-scale PixArt: STDiT has no size embedders to put its own into")
    image = infer_config(kind, tensors, file.config, {k: v for k, v in known.items() if k != "time_scale"}, assumed)
    patch, side = image.patch_size, image.input_size
    shared = ("in_channels", "hidden_size", "depth", "num_heads", "mlp_ratio", "caption_channels", "model_max_length")
    config = STDiTConfig(
        input_size=(frames, side, side),
        patch_size=(1, patch, patch),
        learn_sigma=image.learn_sigma,
        space_scale=image.lewei_scale,
        time_scale=known.get("time_scale", 1.0),
        **{name: getattr(image, name) for name in shared},
    )
    refuse_broken(tensors, file.path)
    given = dict(tensors) | {"x_embedder.proj.weight": tensors["x_embedder.proj.weight"].unsqueeze(2)}
    for block in range(config.depth):
        size = config.hidden_size
        fresh = nn.Linear(size, 3 * size), nn.Linear(size, size)
        nn.init.xavier_uniform_(fresh[0].weight)
        nn.init.zeros_(fresh[0].bias)
        nn.init.zeros_(fresh[1].weight)
        nn.init.zeros_(fresh[1].bias)
        for name, layer in zip(("qkv", "proj"), fresh, strict=True):
            for leaf, value in layer.state_dict().items():
                given[f"blocks.{block}.attn_temp.{name}.{leaf}"] = value
    stdit = next(a for a in ARCHITECTURES if a.name == "STDiT")
    return _assemble(stdit, config, given, str(file.path), dtype)


def _sha256(path: Path) -> str:
    """Of the file; of an index, over it and all its shards in order."""
    names = json.loads(path.read_text())["weight_map"].values() if path.name.endswith(".index.json") else ()
    return sha256_of(path, *(path.parent / name for name in sorted(set(names))))
