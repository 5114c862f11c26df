"""Reads an MMDiT from a checkpoint: its shape from the tensors, and its weights strictly."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import torch
from torch import Tensor

from ...checkpoints import TensorFile, make_config, on_meta, refuse_broken, refuse_misfit, refuse_numbers
from ...checkpoints.finding import AGAIN
from ...core.errors import InputError, nearest
from ...core.limits import require_memory
from ..family import Checkpoint, Description, Reader
from ..parts.reading import count
from . import NAME
from .config import MMDiTConfig
from .network import MMDiT

USE = (
    "Guidon has its network (guidon.models.MMDiT), its schedule and its guidance (guidon.rflow.sample_mmdit); its "
    "autoencoder and its text encoders are not read, so it has no preset"
)
NO_IMAGE = "it is given no image, as FLUX's networks are"
NEEDED = ("img_in.weight", "txt_in.weight", "vector_in.in_layer.weight")
AXES = {128: (16, 56, 56)}  # how the released heads are shared out, by their width


class MMDiTReader(Reader):
    """Reads files with the names of Open_Sora_v2.safetensors, which are those of FLUX too."""

    def recognise(self, file: TensorFile) -> Checkpoint | None:
        blocks = any(name.startswith(("double_blocks.", "single_blocks.")) for name in file.tensors)
        if not blocks or "img_in.weight" not in file.tensors:
            return None
        for name in NEEDED:
            if name not in file.tensors or file.tensors[name].ndim != 2 or 0 in file.tensors[name].shape:
                raise InputError(f"this {NAME} is incomplete or damaged: {name} is missing, or no matrix; {AGAIN}")
        return Checkpoint(file, file.tensors)

    def describe(self, checkpoint: Checkpoint, known: Mapping[str, Any]) -> Description:
        config: dict[str, Any] = {}
        remarks = [USE]
        try:
            shape = _config(checkpoint.tensors, known)
            config = asdict(shape)
            _made(checkpoint, shape)
        except InputError as error:
            remarks.append(str(error))
        if "cond_in.weight" not in checkpoint.tensors:
            remarks.append(NO_IMAGE)
        return Description(NAME, config, count(checkpoint.tensors), False, tuple(remarks))

    def load(
        self, checkpoint: Checkpoint, known: Mapping[str, Any], assumed: Mapping[str, Any], dtype: torch.dtype
    ) -> MMDiT:
        path, tensors = checkpoint.file.path, checkpoint.tensors
        refuse_broken(tensors, path)
        refuse_numbers(tensors, path)
        copied = sum(value.numel() for value in tensors.values() if value.dtype != dtype) * dtype.itemsize
        require_memory(f"the weights in {path}", copied)
        network = _made(checkpoint, _config(tensors, {**assumed, **known}))
        network.load_state_dict({name: value.to(dtype) for name, value in tensors.items()}, assign=True)
        return network


READER = MMDiTReader()


def _made(checkpoint: Checkpoint, config: MMDiTConfig) -> MMDiT:
    """The network without memory, which the tensors fit."""
    with on_meta(len(checkpoint.tensors)):
        network = MMDiT(config)
    refuse_misfit(network.state_dict(), checkpoint.tensors, f"{checkpoint.file.path} does not fit {NAME}")
    return network


def _config(tensors: Mapping[str, Tensor], known: Mapping[str, Any]) -> MMDiTConfig:
    """The shape of the network: from the tensors, where they tell it."""
    valid = [field.name for field in fields(MMDiTConfig)]
    for name in known:
        if name not in valid:
            raise InputError(f"{name!r} is no setting of {NAME}{nearest(name, valid)}")
    hidden, channels = tensors["img_in.weight"].shape
    head = _length(tensors, "norm.query_norm.scale")
    if not head:
        raise InputError(f"this {NAME} is incomplete: no norm of queries tells the width of its heads; {AGAIN}")
    axes = known.get("axes_dim", AXES.get(head))
    if axes is None:
        raise InputError(f"this {NAME} has heads of {head} values: give axes_dim, how many of them each axis rotates")
    mlp = _length(tensors, "img_mlp.0.weight") or _length(tensors, "linear2.weight", 1) - hidden
    extra = tensors["cond_in.weight"].shape[-1] - channels if "cond_in.weight" in tensors else 4
    values: dict[str, Any] = {
        "in_channels": channels,
        "vec_in_dim": tensors["vector_in.in_layer.weight"].shape[1],
        "context_in_dim": tensors["txt_in.weight"].shape[1],
        "hidden_size": hidden,
        "mlp_ratio": mlp / hidden,
        "num_heads": hidden // head,
        "depth": _blocks(tensors, "double"),
        "depth_single_blocks": _blocks(tensors, "single"),
        "axes_dim": axes,
        "qkv_bias": _length(tensors, "_attn.qkv.bias") + _length(tensors, "_attn.q_proj.bias") > 0,
        "guidance_embed": "guidance_in.in_layer.weight" in tensors,
        "cond_embed": "cond_in.weight" in tensors,
        "fused_qkv": _length(tensors, "img_attn.qkv.weight") + _length(tensors, "linear1.weight") > 0,
        "patch_size": {1: 1, 4: 2, 16: 4}.get(extra, 2),  # the image's mask has one channel
    }
    return make_config(MMDiTConfig, values | dict(known), f"this {NAME} cannot be configured")


def _length(tensors: Mapping[str, Tensor], end: str, axis: int = 0) -> int:
    """The length of the first tensor whose name ends so; 0 where there is none."""
    return next((value.shape[axis] for name, value in tensors.items() if name.endswith(end) and value.ndim > axis), 0)


def _blocks(tensors: Mapping[str, Tensor], kind: str) -> int:
    """How many blocks of a kind there are."""
    found = [int(match[1]) for name in tensors if (match := re.match(rf"{kind}_blocks\.(\d{{1,4}})\.", name))]
    return 1 + max(found, default=-1)
