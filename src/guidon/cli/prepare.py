"""``guidon prepare``: check and encode a user's own videos."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLE = "guidon prepare mine.yaml --dry-run"


def prepare(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="A recipe with a data section.")],
    stage: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Last stage to prepare, of a recipe with stages; those that it needs come first.",
            show_default="all stages",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the files, name everything that is wrong, and encode nothing.")
    ] = False,
) -> None:
    """Check your own videos for training, and encode them once.

    Stop it at any time: the same command goes on. Several processes share the work. guidon train does the same first.
    """
    from ..training.recipe import check_recipe

    check_recipe(recipe, stage)  # before torch is imported

    from ..training.preparation import prepare_recipe

    prepare_recipe(recipe, stage=stage, dry_run=dry_run, say=lambda line: print(line, flush=True))
