"""The files that a user may name for a model whose weights do not come with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ..core.settings import Settings


class Sources(Settings):
    """Where the parts of a model are that the package does not hold, and how they are kept."""

    checkpoint: Path | None = None
    """The network's weights. What is None is looked for in the hub's local cache, or downloaded if that is allowed."""
    text_encoder: Path | None = None
    """The text encoder, a folder in hub layout."""
    vae: Path | None = None
    """The autoencoder, a folder in hub layout."""
    features: Path | None = None
    """Caption features that ``guidon encode`` kept, in place of the text encoder."""
    text_dtype: Literal["fp32", "bf16", "fp16", "int8"] = "fp32"
    """What the text encoder computes in."""
    download: bool = False
    """Fetch what is missing from the hub."""
    offload: Literal["none", "stages"] | None = None
    """"stages" drops each stage after use, "none" keeps all; None is the family's choice."""
