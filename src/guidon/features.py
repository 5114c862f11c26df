"""Caption features kept on disk: the text encoder runs once, and need not be there when videos are made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .atomic import atomic_path
from .errors import InputError

FORMAT = "guidon captions"


class CaptionFeatures:
    """Features of known prompts, behind the protocol ``TextEncoder``.

    Attributes:
        prompts: in the order of the rows.
        features, mask: (P, L, F) and (P, L).
        encoder: what made them: length, cleaning, precision.
    """

    def __init__(
        self, path: Path, prompts: Sequence[str], features: Tensor, mask: Tensor, encoder: dict[str, Any]
    ) -> None:
        self.path, self.prompts, self.features, self.mask, self.encoder = path, list(prompts), features, mask, encoder

    def encode(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Features (B, L, F) and mask (B, L) of prompts that are in the file."""
        missing = [prompt for prompt in prompts if prompt not in self.prompts]
        if missing:
            raise InputError(
                f"{self.path} holds no features of {missing[0]!r}: add them with "
                f"`guidon encode PROMPT --text-encoder DIR --out {self.path}`"
            )
        rows = [self.prompts.index(prompt) for prompt in prompts]
        return self.features[rows], self.mask[rows]


def load_features(path: str | Path) -> CaptionFeatures:
    """Read a file that ``save_features`` wrote.

    Raises:
        InputError: it is not there, damaged, or something else.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is not there: make it with `guidon encode PROMPT --text-encoder DIR --out {path}`")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise InputError(f"{path} is a safetensors file, but holds no caption features")
            features, mask = file.get_tensor("features"), file.get_tensor("mask")
            prompts, encoder = json.loads(header["prompts"]), json.loads(header["encoder"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not a readable file of caption features (truncated or damaged): {error}") from None
    if len(prompts) != len(features) or mask.shape != features.shape[:2] or not torch.isfinite(features).all():
        raise InputError(f"{path} is damaged: its prompts, features and mask do not belong together")
    return CaptionFeatures(path, prompts, features, mask, encoder)


def save_features(
    path: str | Path, prompts: Sequence[str], features: Tensor, mask: Tensor, *, encoder: dict[str, Any]
) -> Path:
    """Write features (P, L, F) and mask (P, L) of prompts; an existing file of the same encoder keeps its own.

    Raises:
        InputError: the file is of another encoder, or something else.
    """
    path = Path(path)
    rows = {prompt: (features[k].cpu(), mask[k].cpu()) for k, prompt in enumerate(prompts)}
    if path.exists():
        old = load_features(path)
        if old.encoder != encoder:
            raise InputError(f"{path} was made by another encoder ({old.encoder}): write to a new file")
        rows = {prompt: (old.features[k], old.mask[k]) for k, prompt in enumerate(old.prompts)} | rows
    header = {"format": FORMAT, "prompts": json.dumps(list(rows)), "encoder": json.dumps(encoder)}
    tensors = {
        "features": torch.stack([part for part, _ in rows.values()]).contiguous(),
        "mask": torch.stack([part for _, part in rows.values()]).contiguous(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(tensors, metadata=header))
    return path
