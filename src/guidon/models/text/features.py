"""Caption features on disk. The text encoder runs once, and is not needed later to generate videos.

A file holds the tensors ``features`` and ``mask``. The text fields of its header are the format, the prompts, the
description of the text encoder, and a digest of all this.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...checkpoints import read_safetensors
from ...checkpoints.writing import safetensors_bytes
from ...core.atomic import write_bytes
from ...core.errors import InputError, setting
from ...core.hashing import hash_tensors
from ...core.reading import parse_json, reading
from .headers import CAPTION_FORMATS, CAPTIONS, caption_header, refuse_unstored

FORMAT = CAPTION_FORMATS[0]
AGAIN = "it is truncated or damaged: encode the captions again"


class CaptionFeatures:
    """A ``TextEncoder`` that looks prompts up in a file of features.

    Args:
        path: the file.
        prompts: P prompts, in the order of the rows.
        features: (P, L, F).
        mask: (P, L), nonzero where a token counts.
        encoder: the description of the text encoder that made them: length, cleaning, precision.
    """

    def __init__(
        self, path: Path, prompts: Sequence[str], features: Tensor, mask: Tensor, encoder: dict[str, Any]
    ) -> None:
        self.path, self.prompts, self.features, self.mask, self.encoder = path, list(prompts), features, mask, encoder

    def encode(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Features (B, L, F) and mask (B, L).

        Raises:
            InputError: a prompt is not in the file.
        """
        refuse_unstored(self.path, self.prompts, prompts)
        rows = [self.prompts.index(prompt) for prompt in prompts]
        return self.features[rows], self.mask[rows]


def load_features(path: str | Path, length: int | None = None) -> CaptionFeatures:
    """Read a file that ``save_features`` wrote; ``length`` is how many tokens a caption must have.

    Raises:
        InputError: it is not there, damaged, of another length, or something else.
    """
    path = Path(path)
    caption_header(path)  # it is there, and of the right kind
    tensors, header = read_safetensors(path)
    with reading(path, CAPTIONS, AGAIN):
        if header["format"] == FORMAT and header["digest"] != _digest(header, tensors):
            raise ValueError("its content is not what was written")
        features, mask = tensors["features"], tensors["mask"]
        prompts, encoder = (parse_json(header[name], path, CAPTIONS) for name in ("prompts", "encoder"))
        if not isinstance(encoder, dict):
            raise ValueError(f"its encoder is {encoder!r:.60}, expected a description")
    if fault := _fault(prompts, features, mask):
        raise InputError(f"{path} is damaged: {fault}")
    if length is not None and features.shape[1] != length:
        raise InputError(
            f"{path} holds captions of {features.shape[1]} tokens, the model reads {length}: "
            f"encode them with {setting('max_length')} {length}"
        )
    return CaptionFeatures(path, prompts, features, mask, encoder)


def _fault(prompts: Any, features: Tensor, mask: Tensor) -> str | None:
    """What is wrong with the content of a file, before writing or after reading it; None if nothing is."""
    if isinstance(prompts, str) or not isinstance(prompts, Sequence) or not prompts:
        return f"its prompts are {prompts!r:.60}, expected a list of at least one"
    if not all(isinstance(prompt, str) for prompt in prompts):
        return "its prompts are not all text"
    if not features.is_floating_point() or features.itemsize < 2 or mask.is_floating_point() or mask.is_complex():
        return f"its features are {features.dtype} and its mask is {mask.dtype}, expected 16-bit floats and integers"
    if features.ndim != 3 or len(features) != len(prompts) or mask.shape != features.shape[:2]:
        return (
            f"{len(prompts)} prompts, features of shape {tuple(features.shape)} and a mask of shape "
            f"{tuple(mask.shape)} do not belong together: expected (prompts, tokens, width) and (prompts, tokens)"
        )
    if not torch.isfinite(features).all():
        return "its features are not finite (T5 can overflow in fp16: encode in bf16 or fp32)"
    return None


def save_features(
    path: str | Path, prompts: Sequence[str], features: Tensor, mask: Tensor, *, encoder: dict[str, Any]
) -> Path:
    """Write features (P, L, F) and mask (P, L) of P prompts. They are added to those in an existing file.

    Raises:
        InputError: the file is of another encoder, or something else; or the features are not finite, or do not fit
            the prompts or the features in the file. The file stays as it was.
    """
    path = Path(path)
    if fault := _fault(prompts, features, mask):
        raise InputError(f"nothing is written to {path}: {fault}")
    encoder = json.loads(json.dumps(encoder))  # as it will be read back: tuples become lists
    rows = {prompt: (features[k].cpu(), mask[k].cpu()) for k, prompt in enumerate(prompts)}
    if path.exists():
        old = load_features(path)
        if old.encoder != encoder:
            raise InputError(f"{path} was made by another encoder ({old.encoder}): write to a new file")
        given, kept = ((tuple(part.shape[1:]), part.dtype) for part in (features, old.features))
        if given != kept or mask.dtype != old.mask.dtype:
            raise InputError(
                f"{path} holds features of {kept} with a mask of {old.mask.dtype}, these are {given} with a mask of "
                f"{mask.dtype}: write to a new file"
            )
        rows = {prompt: (old.features[k], old.mask[k]) for k, prompt in enumerate(old.prompts)} | rows
    header = {"format": FORMAT, "prompts": json.dumps(list(rows)), "encoder": json.dumps(encoder)}
    tensors = {
        "features": torch.stack([part for part, _ in rows.values()]).contiguous(),
        "mask": torch.stack([part for _, part in rows.values()]).contiguous(),
    }
    header["digest"] = _digest(header, tensors)
    write_bytes(path, safetensors_bytes(tensors, header))
    return path


def _digest(header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """A hash of the header's other fields and of the tensors."""
    fields = {name: value for name, value in header.items() if name != "digest"}
    return hash_tensors(tensors, json.dumps(fields, sort_keys=True))
