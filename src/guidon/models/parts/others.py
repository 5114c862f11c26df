"""Says what a file of tensors is where it holds no denoiser that a family reads: an autoencoder, a text encoder."""

from __future__ import annotations

import re

from torch import Tensor

from ...checkpoints import TensorFile
from ..family import Description
from ..vae.checkpoint import describe_video_vae, is_video_vae
from .reading import count

_VIDEO = "autoencoder of Open-Sora 1.2 (VideoVAE)", "Open-Sora 1.2 takes its folder as its autoencoder"
# What a file is: the end of the name of a tensor that it alone has -> its kind, and what it is good for here.
_SIGNS = {
    "encoder.conv_in.weight": ("autoencoder (AutoencoderKL)", "a released model takes its folder as its autoencoder"),
    "SelfAttention.q.weight": ("T5 text encoder", "a released model takes its folder as its text encoder"),
    "text_model.embeddings.token_embedding.weight": (
        "CLIP text encoder",
        "Guidon's models read text with T5; it serves pipelines of diffusers",
    ),
    "down_blocks.0.resnets.0.conv1.weight": (
        "U-Net of diffusers",
        "Guidon guides it inside its pipeline: guidon.apply(pipe, guidance)",
    ),
}


def describe_part(file: TensorFile) -> Description | None:
    """What a file is, if it is a part of a model or a network that no family here reads; else None."""
    if is_video_vae(file.tensors):
        config, remarks = describe_video_vae(file)
        kind, use = _VIDEO
        return Description(kind, config, count(file.tensors), False, (use, *remarks))
    for end, (kind, use) in _SIGNS.items():
        found = [name for name in file.tensors if name.endswith(end)]
        if found and file.tensors[found[0]].ndim > 1:
            return Description(kind, _configuration(file.tensors, end), count(file.tensors), False, (use,))
    return None


def _configuration(tensors: dict[str, Tensor], sign: str) -> dict[str, int]:
    """What the shapes tell."""
    by_end = {name.rpartition("coder.")[2]: tensor.shape for name, tensor in tensors.items() if "decoder." in name}
    if sign.startswith("encoder") and "conv_in.weight" in by_end:
        return {"latent_channels": by_end["conv_in.weight"][1]}
    if sign.startswith("SelfAttention"):
        blocks = [int(found[1]) for name in tensors if (found := re.search(r"\bblock\.(\d+)\.", name))]
        width = next(tensor.shape[1] for name, tensor in tensors.items() if name.endswith(sign))
        return {"layers": 1 + max(blocks), "d_model": width}
    return {}
