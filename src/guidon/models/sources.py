"""The files that a user may name for a model whose weights do not come with the package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import field_validator

from ..core.errors import InputError, quoted, setting
from ..core.settings import Settings
from ..guidance import Guidance
from .adapters.files import AdapterSource

WEAK = "weak-"
"""How the names of the weak model's parts begin in a manifest."""
READERS = ("text_encoder", "features", "text_dtype")
"""The sources of what reads captions."""
DISTILLED = "denoiser-fast"
"""The name of the distilled network in a manifest."""


class Sources(Settings):
    """Where to find the parts of a model that do not come with the package, and when to keep them in memory."""

    checkpoint: Path | None = None
    """The network's weights. A part that is None is taken from the hub's local cache, or downloaded if allowed."""
    text_encoder: Path | None = None
    """The text encoder, a folder in hub layout."""
    vae: Path | None = None
    """The autoencoder, a folder in hub layout."""
    features: Path | None = None
    """Caption features that ``guidon encode`` wrote; they replace the text encoder."""
    lora: tuple[AdapterSource, ...] = ()
    """Adapters of low rank that are merged into the network's weights."""
    weak: Path | None = None
    """A weaker model of the same latents and diffusion, for the rule "autoguidance": a model folder, or a checkpoint
    file for a model whose weights do not come with the package."""
    text_dtype: Literal["fp32", "bf16", "fp16", "int8"] = "fp32"
    """What the text encoder computes in."""
    download: bool = False
    """Fetch what is missing from the hub."""
    offload: Literal["none", "stages", "blocks"] | None = None
    """"stages" drops each stage after use, "none" keeps all; None is the family's choice. "blocks" is "stages", and the
    network's blocks stay in the CPU's memory, two of them at a time on the device."""

    @field_validator("lora", mode="before")
    @classmethod
    def _adapters(cls, given: object) -> object:
        """Adapters as callers write them: a path or ``PATH=0.8``, several of them, or paths with their scales."""
        if isinstance(given, Mapping):
            return tuple({"path": path, "scale": scale} for path, scale in given.items())
        several = given if isinstance(given, list | tuple) else (given,)
        for each in several:
            if not isinstance(each, str | Path | Mapping | AdapterSource):
                raise InputError(f"{setting('lora')} is {quoted(each)}: give a folder, FOLDER=0.8, or a list of them")
        return tuple(AdapterSource.parse(str(each)) if isinstance(each, str | Path) else each for each in several)


class NetworkOnly(Sources):
    """The sources of a released model of which the network alone is used, from ``checkpoint``: text encoder and
    autoencoder may be missing. Captions are then random features."""


def weights_for(hashes: Mapping[str, str], guidance: Guidance, distilled: bool) -> dict[str, str]:
    """The hashes of the weights that decide a clip, out of all of a model: the weak ones and the distilled network's
    only where they are asked."""
    weak = guidance.rule.weak == "model" and guidance.needs_weak
    return {
        name: value
        for name, value in hashes.items()
        if (weak or not name.startswith(WEAK)) and (distilled or name != DISTILLED)
    }
