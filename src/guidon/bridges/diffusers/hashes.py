"""What identifies the parts of a pipeline that is loaded: a hash of each, of samples of every tensor.

A hash of all bytes of a large model takes minutes. Every tensor gives ``SAMPLES`` evenly spaced values here, so that a
fine-tuned or a merged checkpoint is noticed, while gigabytes take seconds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...core.errors import InputError
from ...core.hashing import hash_settings

SAMPLES = 1024
"""Values of a tensor that count, beside its name, precision and shape."""
_ASIDE = ("transformers_version", "architectures", "dtype", "torch_dtype")
"""Keys of a configuration that do not decide what a part computes, beside those that begin with "_"."""


def hash_pipeline(pipe: Any) -> dict[str, str]:
    """The hash of every part of a pipeline: of its class, configuration and weights.

    Raises:
        InputError: weights are not in memory.
    """
    return {name: _hash_part(name, part) for name, part in sorted(pipe.components.items()) if part is not None}


def _hash_part(name: str, part: Any) -> str:
    digest = hashlib.sha256(f"{type(part).__name__} {hash_settings(_settings(part))}".encode())
    if isinstance(part, nn.Module):
        for key, tensor in sorted({**dict(part.named_parameters()), **dict(part.named_buffers())}.items()):
            if tensor.is_meta:
                raise InputError(
                    f"the weights of {name} are not in memory (sequential offload): wrap the pipeline first, then "
                    "enable the offload"
                )
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)} ".encode())
            digest.update(_sampled(tensor.detach()))
    return digest.hexdigest()


def _sampled(tensor: Tensor) -> bytes:
    """The bytes of evenly spaced values of a tensor."""
    flat = tensor.flatten()
    if flat.numel() > SAMPLES:
        flat = flat[torch.linspace(0, flat.numel() - 1, SAMPLES, dtype=torch.float64).long().to(flat.device)]
    return flat.cpu().contiguous().view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def _settings(part: Any) -> Any:
    """The configuration of a part, as plain data: of a model, a scheduler, a tokenizer."""
    if hasattr(part, "get_vocab"):
        return part.get_vocab()
    config: Any = getattr(part, "config", None)
    if hasattr(config, "to_dict"):
        config = config.to_dict()
    if not isinstance(config, Mapping):
        return None
    kept = {str(name): value for name, value in config.items() if name not in _ASIDE and not str(name).startswith("_")}
    return json.loads(json.dumps(kept, default=str))
