"""Reads the autoencoder of Open-Sora 1.2 from its released file, which holds both of its parts.

The spatial part has the names of diffusers' ``AutoencoderKL`` behind ``spatial_vae.module.``. Shapes tell everything
but the groups of the normalisations: 32, unless the config.json beside the file has other ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...checkpoints import TensorFile, make_config, on_meta, read_tensors, refuse_broken, refuse_misfit, refuse_numbers
from ...checkpoints.finding import AGAIN, WHAT
from ...core.errors import InputError
from ...core.limits import require_memory
from ...core.reading import reading
from .config import TemporalVAEConfig
from .temporal import TemporalVAE

if TYPE_CHECKING:
    from .video import VideoVAE

SPATIAL = "spatial_vae.module."
TEMPORAL = "temporal_vae."
REPOSITORY = "hpcai-tech/OpenSora-VAE-v1.2"
_NEEDED = {
    TEMPORAL: ("encoder.conv_in.conv.weight", "encoder.conv2.conv.weight", "quant_conv.conv.weight"),
    SPATIAL: ("encoder.conv_in.weight", "post_quant_conv.weight"),
}
"""Tensors that every such file has, and from which its shape is read."""
_AXES = {TEMPORAL: 5, SPATIAL: 4}  # of a convolution's weight


def is_video_vae(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a file holds a part of this autoencoder."""
    return any(name.startswith((SPATIAL, TEMPORAL)) for name in tensors)


def describe_video_vae(file: TensorFile) -> tuple[dict[str, Any], list[str]]:
    """The configuration of the temporal part, and what is unusual about a file; see ``load_video_vae``."""
    config: dict[str, Any] = {}
    try:
        with reading(file.path, WHAT, AGAIN):
            shape = _temporal_config(refuse_incomplete(file), file)
            config = asdict(shape)
            _made(file, shape)
    except InputError as error:
        return config, [str(error)]
    return config, []


def load_video_vae(path: str | Path, dtype: torch.dtype = torch.float32) -> VideoVAE:
    """The autoencoder in a released file, or in the folder that holds it. It encodes to means.

    Raises:
        InputError: there is no such file, it is damaged or incomplete, or it holds something else.
    """
    file = read_tensors(path)
    with reading(file.path, WHAT, AGAIN):
        tensors = refuse_incomplete(file)
        refuse_broken(tensors, file.path)
        refuse_numbers(tensors, file.path)
        copied = sum(value.numel() for value in tensors.values() if value.dtype != dtype) * dtype.itemsize
        require_memory(f"the weights in {file.path}", copied)
        vae = _made(file, _temporal_config(tensors, file))
        vae.load_state_dict({name: value.to(dtype) for name, value in tensors.items()}, assign=True)
    return vae.eval().requires_grad_(False)


def _made(file: TensorFile, config: TemporalVAEConfig) -> VideoVAE:
    """The autoencoder without memory, which the file's tensors fit."""
    from .frames import autoencoder_kl
    from .video import VideoVAE

    tensors, of_space = file.tensors, _spatial_config(file)
    stretches = {name: tensors[name] for name in ("shift", "scale")}
    for name, value in stretches.items():
        if value.shape not in ((), (1, config.embed_dim, 1, 1, 1)):
            raise InputError(f"{file.path}: {name} has the shape {tuple(value.shape)}, expected one value or one each")
    size: Any = file.config.get("micro_frame_size", 17)
    if size is not None and (isinstance(size, bool) or not isinstance(size, int)):
        raise InputError(f"{file.path}: its config.json has micro_frame_size {size!r:.40}, expected a whole number")
    kind = autoencoder_kl()  # imported with real memory, before the block without it
    with on_meta(len(tensors)):
        vae = VideoVAE(kind(**of_space), TemporalVAE(config), micro_frame_size=size, posterior="mean")
        for name, value in stretches.items():
            vae.register_buffer(name, torch.empty(value.shape))
    refuse_misfit(vae.state_dict(), tensors, f"{file.path} does not fit the autoencoder of Open-Sora 1.2")
    return vae


def refuse_incomplete(file: TensorFile) -> dict[str, Tensor]:
    """The tensors of a file that holds the whole autoencoder."""
    tensors = file.tensors
    if not is_video_vae(tensors):
        raise InputError(
            f"{file.path} holds no autoencoder of Open-Sora 1.2, its first names are {sorted(tensors)[:3]}: give "
            f"{REPOSITORY}"
        )
    needed = [prefix + name for prefix, names in _NEEDED.items() for name in names] + ["shift", "scale"]
    if missing := [name for name in needed if name not in tensors]:
        raise InputError(
            f"{file.path} is incomplete: the autoencoder of Open-Sora 1.2 has a spatial and a temporal part, shift and "
            f"scale, and {missing[0]} is not there; download {REPOSITORY} again"
        )
    for prefix, names in _NEEDED.items():
        for name in names:
            shape = tuple(tensors[prefix + name].shape)
            if len(shape) != _AXES[prefix] or 0 in shape:
                raise InputError(f"{file.path} is damaged: {prefix}{name} has the shape {shape}; {AGAIN}")
    return tensors


def _temporal_config(tensors: Mapping[str, Tensor], file: TensorFile) -> TemporalVAEConfig:
    """The shape of the temporal part."""
    shapes = {name.removeprefix(TEMPORAL): value.shape for name, value in tensors.items() if name.startswith(TEMPORAL)}
    filters, channels = shapes["encoder.conv_in.conv.weight"][:2]
    levels = _count(shapes, r"encoder\.block_res_blocks\.(\d+)\.")
    widths = [shapes[f"encoder.block_res_blocks.{level}.0.conv2.conv.weight"][0] for level in range(levels)]
    values = {
        "filters": filters,
        "num_res_blocks": _count(shapes, r"encoder\.block_res_blocks\.0\.(\d+)\."),
        "channel_multipliers": [width // filters for width in widths],
        "temporal_downsample": [f"encoder.conv_blocks.{k}.conv.weight" in shapes for k in range(levels - 1)],
        "in_out_channels": channels,
        "latent_embed_dim": shapes["encoder.conv2.conv.weight"][0] // 2,
        "embed_dim": shapes["quant_conv.conv.weight"][0] // 2,
        "num_groups": _of_part(file, "vae_temporal", "num_groups"),
    }
    return make_config(TemporalVAEConfig, values, f"{file.path} cannot be read as an autoencoder")


def _spatial_config(file: TensorFile) -> dict[str, Any]:
    """The arguments of ``AutoencoderKL`` for the spatial part."""
    shapes = {name.removeprefix(SPATIAL): v.shape for name, v in file.tensors.items() if name.startswith(SPATIAL)}
    levels = _count(shapes, r"encoder\.down_blocks\.(\d+)\.")
    return {
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": tuple(
            shapes[f"encoder.down_blocks.{level}.resnets.0.conv1.weight"][0] for level in range(levels)
        ),
        "layers_per_block": _count(shapes, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        "latent_channels": shapes["post_quant_conv.weight"][0],
        "norm_num_groups": _of_part(file, "vae_2d", "norm_num_groups"),
        "mid_block_add_attention": any(name.startswith("encoder.mid_block.attentions.") for name in shapes),
    }


def _count(names: Mapping[str, Any], pattern: str) -> int:
    """One more than the largest number that stands at the group of the pattern; numbers beyond all sense are none."""
    found = [int(match[1]) for name in names if (match := re.match(pattern, name)) and len(match[1]) < 4]
    return 1 + max(found, default=-1)


def _of_part(file: TensorFile, part: str, name: str) -> Any:
    """A setting of a part in config.json, where it is there; else 32, as in the released weights."""
    settings = file.config.get(part)
    return settings.get(name, 32) if isinstance(settings, dict) else 32
