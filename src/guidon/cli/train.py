"""``guidon train``: a recipe to weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLE = "guidon train recipes/guidon-small.yaml"


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="A recipe; recipes/ has some.")],
    stage: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Last stage to train, of a recipe with stages; those that it needs come first.",
            show_default="all stages",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print which stages are done and which would be trained, and stop.")
    ] = False,
    export: Annotated[
        bool, typer.Option("--export", help="Export the weights of the last checkpoint, and train no further.")
    ] = False,
) -> None:
    """Train a model from a YAML recipe.

    Stop it at any time: the same command resumes. Stages that are done are not trained again. Several GPUs, or several
    machines, train as one: torchrun --nproc-per-node N -m guidon train RECIPE.yaml
    """
    from ..training.recipe import check_recipe

    check_recipe(recipe, stage)  # before torch is imported

    from ..analysis.evaluate import look_during_training
    from ..core.ranks import Ranks
    from ..training import plan_recipe, run_recipe

    if dry_run:
        print(*plan_recipe(recipe, stage=stage), sep="\n")
        return
    with Ranks.join() as ranks:
        result = run_recipe(recipe, stage=stage, export_only=export, look=look_during_training, ranks=ranks)
    if result is None:
        raise typer.Abort("stopped; the checkpoint is saved: the same command resumes from it")
    print(result)
