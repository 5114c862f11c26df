"""``guidon inspect``: what a checkpoint is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import given

EXAMPLE = "guidon inspect OpenSora-v1-HQ-16x256x256.pth"


def inspect(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="FILE|FOLDER", help="A .pt, .pth or safetensors file, a folder in hub layout, or a model folder."
        ),
    ],
    num_heads: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Number of attention heads, which shapes do not tell.", show_default="by the size"
        ),
    ] = None,
) -> None:
    """Say what a checkpoint is.

    Prints its architecture, size, channels and precision, and what is unusual about it.
    """
    from ..checkpoints.finding import kind_of, locate
    from ..models.catalogue import files_of

    files = files_of(checkpoint)
    for path in files:  # refuse what is no checkpoint before torch is imported
        kind_of(locate(path))
    from ..models.checkpoint import inspect_checkpoint

    print(*(inspect_checkpoint(path, **given(num_heads=num_heads)) for path in files), sep="\n\n")
