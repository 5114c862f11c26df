"""``guidon train``: a recipe to weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .outputs import say

EXAMPLE = "guidon train recipes/small.yaml"


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="A recipe; recipes/ has some.")],
    export: Annotated[bool, typer.Option("--export", help="Export the last checkpoint and train no further.")] = False,
) -> None:
    """Train a model from a YAML recipe.

    Stop it at any time: the same command resumes.
    """
    from ..analysis.evaluate import look_during_training
    from ..training import run_recipe

    result = run_recipe(recipe, export_only=export, look=look_during_training)
    if result is None:
        say("stopped; the checkpoint is saved: the same command resumes from it")
        raise typer.Exit(130)
    print(result)
