"""What a state dict is: which architecture by its names, which configuration by its shapes.

diffusers' names for DiT and PixArt are translated to the released ones by the tables below.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from ..core.errors import InputError, nearest, setting
from . import DiT, DiTConfig, PixArt, PixArtConfig, STDiT, STDiTConfig, dit, pixart, stdit
from .family import Exact

Tensors = dict[str, Tensor]
Patch = tuple[int, ...]
HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}  # DiT-S, B, L and XL by hidden size; shapes do not tell

_STEM = {
    "pos_embed.proj": "x_embedder.proj",
    "adaln_single.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "adaln_single.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "adaln_single.emb.resolution_embedder.linear_1": "csize_embedder.mlp.0",
    "adaln_single.emb.resolution_embedder.linear_2": "csize_embedder.mlp.2",
    "adaln_single.emb.aspect_ratio_embedder.linear_1": "ar_embedder.mlp.0",
    "adaln_single.emb.aspect_ratio_embedder.linear_2": "ar_embedder.mlp.2",
    "adaln_single.linear": "t_block.1",
    "caption_projection.linear_1": "y_embedder.y_proj.fc1",
    "caption_projection.linear_2": "y_embedder.y_proj.fc2",
    "caption_projection.y_embedding": "y_embedder.y_embedding",
    "proj_out": "final_layer.linear",
    "scale_shift_table": "final_layer.scale_shift_table",
    "transformer_blocks.0.norm1.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "transformer_blocks.0.norm1.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "transformer_blocks.0.norm1.emb.class_embedder.embedding_table": "y_embedder.embedding_table",
    "proj_out_1": "final_layer.adaLN_modulation.1",
    "proj_out_2": "final_layer.linear",
}
_BLOCK = {
    "scale_shift_table": "scale_shift_table",
    "norm1.linear": "adaLN_modulation.1",
    "attn1.to_out.0": "attn.proj",
    "attn2.to_q": "cross_attn.q_linear",
    "attn2.to_out.0": "cross_attn.proj",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
}
_JOINED = {  # several of diffusers' layers are one of the originals', in this order
    "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "cross_attn.kv_linear": ("attn2.to_k", "attn2.to_v"),
}


@dataclass(frozen=True)
class Architecture:
    """A kind of model: how its state dict is told from others, and how its configuration is read off."""

    name: str
    model: Callable[[Any], Any]
    config: type[Any]
    marks: tuple[str, ...]
    lacks: tuple[str, ...]
    needed: tuple[str, ...]  # what its configuration is read off

    def is_that_of(self, names: Mapping[str, Tensor]) -> bool:
        return all(mark in names for mark in self.marks) and not any(name in names for name in self.lacks)


_NEEDED = ("x_embedder.proj.weight", "final_layer.linear.weight", "blocks.0.mlp.fc1.weight")
_CAPTION = "y_embedder.y_proj.fc1.weight"
ARCHITECTURES = (
    Architecture(
        "STDiT", STDiT, STDiTConfig, ("blocks.0.attn_temp.qkv.weight", "t_block.1.weight"), (), (*_NEEDED, _CAPTION),
    ),
    Architecture(
        "PixArt", PixArt, PixArtConfig, ("blocks.0.cross_attn.q_linear.weight", "t_block.1.weight"),
        ("blocks.0.attn_temp.qkv.weight",), (*_NEEDED, _CAPTION),
    ),
    Architecture(
        "DiT", DiT, DiTConfig, ("blocks.0.adaLN_modulation.1.weight", "y_embedder.embedding_table.weight"), (),
        _NEEDED,
    ),
)  # fmt: skip


def replays() -> dict[str, Exact]:
    """Every original whose draws and precisions can be replayed, by the name that ``exact`` gives."""
    return {name: exact for room in (stdit, pixart, dit) for name, exact in room.REPLAYS.items()}


def find_replay(name: str) -> Exact:
    """The replay of that name.

    Raises:
        InputError: there is none of that name.
    """
    known = replays()
    if name not in known:
        raise InputError(f"{setting('exact')} {name!r} does not exist{nearest(name, known)}")
    return known[name]


def recognise(tensors: Tensors) -> tuple[Architecture, Tensors, list[str]]:
    """The architecture, its tensors under the released names, and remarks.

    Raises:
        InputError: the names are of no architecture known here.
    """
    remarks: list[str] = []
    if "transformer_blocks.0.attn1.to_q.weight" in tensors:
        tensors, remarks = _from_diffusers(tensors)
    for architecture in ARCHITECTURES:
        if architecture.is_that_of(tensors):
            missing = [name for name in architecture.needed if name not in tensors]
            if missing:
                raise InputError(f"this {architecture.name} is incomplete: it lacks {', '.join(missing)}")
            return architecture, tensors, remarks
    if "blocks.0.attn.q_norm.weight" in tensors or "spatial_blocks.0.attn.qkv.weight" in tensors:
        what = "STDiT2 or later (Open-Sora 1.1 and up), whose network Guidon does not have"
    else:
        what = f"an unknown architecture, its first names are {sorted(tensors)[:3]}"
    raise InputError(
        f"this is {what}; known are {', '.join(a.name for a in ARCHITECTURES)}, and diffusers' DiT, PixArt"
    )


def _from_diffusers(tensors: Tensors) -> tuple[Tensors, list[str]]:
    """diffusers' names to the released ones; what has no counterpart keeps its name and is refused later."""
    out: Tensors = {}
    parts: dict[str, dict[str, Tensor]] = {}
    copies: list[str] = []
    for name, value in tensors.items():
        stem, _, leaf = name.rpartition(".")
        if not stem:
            stem, leaf = name, ""
        block = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", stem if leaf in ("weight", "bias") else name)
        if stem in _STEM and leaf in ("weight", "bias"):
            out[f"{_STEM[stem]}.{leaf}"] = value
        elif name in _STEM:
            out[_STEM[name]] = value
        elif name == "pos_embed.pos_embed":
            out["pos_embed"] = value
        elif block and block[2].startswith("norm1.emb.") and block[1] != "0":
            copies.append(name)
        elif block and block[2] in _BLOCK:
            target = f"blocks.{block[1]}.{_BLOCK[block[2]]}"
            out[f"{target}.{leaf}" if leaf in ("weight", "bias") else target] = value
        elif block and any(block[2] in group for group in _JOINED.values()):
            parts.setdefault(f"{block[1]} {leaf}", {})[block[2]] = value
        else:
            out[name] = value
    for key, found in parts.items():
        number, leaf = key.split()
        for target, sources in _JOINED.items():
            if all(source in found for source in sources):
                out[f"blocks.{number}.{target}.{leaf}"] = torch.cat([found[source] for source in sources])
    remarks = ["diffusers' layout, translated to the released names"]
    for name in copies:
        first = re.sub(r"transformer_blocks\.\d+", "transformer_blocks.0", name)
        if first not in tensors or not torch.equal(tensors[first], tensors[name]):
            raise InputError(f"{name} differs from the first block's copy: it is not a DiT that diffusers converted")
    if copies:
        remarks.append(f"{len(copies)} copies of the timestep and class embedders, all equal, left out")
    return out, remarks


def infer_config(
    architecture: Architecture,
    tensors: Tensors,
    hub: Mapping[str, Any],
    given: Mapping[str, Any],
    assumed: Mapping[str, Any],
) -> Any:
    """The configuration that shapes tell, with ``given`` values over them.

    Args:
        hub: diffusers' ``config.json``, or {}.
        given: settings that the caller knows better, by their names in the configuration.
        assumed: settings for what neither the file nor the caller tells.

    Raises:
        InputError: something that shapes do not tell was not given; or a given name does not exist.
    """
    kernel = tensors["x_embedder.proj.weight"]
    hidden, in_channels, patch = kernel.shape[0], kernel.shape[1], tuple(kernel.shape[2:])
    numbers = (re.match(r"blocks\.(\d+)\.", name) for name in tensors)
    values: dict[str, Any] = {
        "hidden_size": hidden,
        "in_channels": in_channels,
        "depth": 1 + max(int(found[1]) for found in numbers if found),
        "mlp_ratio": tensors["blocks.0.mlp.fc1.weight"].shape[0] / hidden,
        "learn_sigma": learns_variance(tensors),
    }
    heads = given.get("num_heads", hub.get("num_attention_heads", HEADS.get(hidden)))
    if heads is None:
        raise InputError(f"a hidden size of {hidden} does not tell the number of attention heads: give num_heads")
    if heads < 1 or hidden % heads:
        raise InputError(f"{heads} attention heads do not divide a hidden size of {hidden}")
    values["num_heads"] = heads
    values |= {"STDiT": _stdit, "PixArt": _pixart, "DiT": _dit}[architecture.name](tensors, patch, hub)
    valid = [field.name for field in dataclasses.fields(architecture.config)]
    for name in given:
        if name not in valid:
            raise InputError(f"{name!r} is no setting of {architecture.name}{nearest(name, valid)}")
    values = {**assumed, **values, **given}
    if "input_size" not in values:
        size = "(frames, height, width)" if architecture.name == "STDiT" else "the latent's side"
        raise InputError(f"it has no table of positions, so its size is unknown: give input_size, {size}")
    return architecture.config(**values)


def learns_variance(tensors: Tensors) -> bool:
    """Whether the head gives two values for each latent value of a patch."""
    return tensors["final_layer.linear.weight"].shape[0] == 2 * math.prod(tensors["x_embedder.proj.weight"].shape[1:])


def _captions(tensors: Tensors) -> dict[str, Any]:
    values: dict[str, Any] = {"caption_channels": tensors["y_embedder.y_proj.fc1.weight"].shape[1]}
    if "y_embedder.y_embedding" in tensors:
        values["model_max_length"] = tensors["y_embedder.y_embedding"].shape[0]
    return values


def _stdit(tensors: Tensors, patch: Patch, hub: Mapping[str, Any]) -> dict[str, Any]:
    if len(patch) == 2:
        raise InputError("its patch kernel is 2D: it is an image model; inflate it to frames (inflate=16)")
    values = _captions(tensors) | {"patch_size": patch}
    if "pos_embed" in tensors and "pos_embed_temporal" in tensors:
        rows, columns = grid(tensors["pos_embed"])
        frames = tensors["pos_embed_temporal"].shape[1]
        values["input_size"] = (frames * patch[0], rows * patch[1], columns * patch[2])
        values["space_scale"] = position_scale(tensors["pos_embed"])
        values["time_scale"] = position_scale(tensors["pos_embed_temporal"], axes=1)
    return values


def _pixart(tensors: Tensors, patch: Patch, hub: Mapping[str, Any]) -> dict[str, Any]:
    values = _captions(tensors) | {"patch_size": patch[0], "micro_condition": "csize_embedder.mlp.0.weight" in tensors}
    if "pos_embed" in tensors:
        values["input_size"] = _side(tensors) * patch[0]
        values["lewei_scale"] = position_scale(tensors["pos_embed"])
    elif "sample_size" in hub:
        values["input_size"] = hub["sample_size"]
        values["lewei_scale"] = hub.get("interpolation_scale") or max(hub["sample_size"] // 64, 1)
    return values


def _dit(tensors: Tensors, patch: Patch, hub: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {
        "patch_size": patch[0],
        "num_classes": tensors["y_embedder.embedding_table.weight"].shape[0] - 1,
    }
    if "pos_embed" in tensors:
        values["input_size"] = _side(tensors) * patch[0]
    elif "sample_size" in hub:
        values["input_size"] = hub["sample_size"]
    return values


def grid(table: Tensor) -> tuple[int, int]:
    """Rows and columns of a position table (1, S, D): its first half, the x part, starts again with every row."""
    across = table[0, :, : table.shape[2] // 2]
    columns = next((k for k in range(1, len(across)) if torch.equal(across[k], across[0])), len(across))
    return len(across) // columns, columns


def _side(tensors: Tensors) -> int:
    rows, columns = grid(tensors["pos_embed"])
    if rows != columns:
        raise InputError(f"its position table is of {rows} x {columns} tokens, expected a square: give input_size")
    return rows


def position_scale(table: Tensor, axes: int = 2) -> float:
    """What positions were divided by, read off the sinusoids of position 1 in a table (1, P, D)."""
    if table.shape[1] < 2:
        return 1.0
    row = table[0, 1].double()
    waves = row.shape[0] // (2 * axes)  # sines, then cosines, of each axis
    index = waves // 4
    omega = 10000.0 ** (-index / waves)
    angle = math.atan2(row[index].item(), row[waves + index].item())
    scale = omega / angle if angle > 0 else 1.0
    simple = float(Fraction(scale).limit_denominator(8))
    rounding = {torch.bfloat16: 1e-2, torch.float16: 1e-3}.get(table.dtype, 1e-5)
    return simple if abs(scale - simple) < rounding * scale else round(scale, 4)
