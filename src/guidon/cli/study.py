"""``guidon study run`` and ``guidon study report``: settings compared on the same prompts and noise."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from . import options
from .options import option

EXAMPLE_RUN = "guidon study run studies/quick.yaml --out results"
EXAMPLE_REPORT = "guidon study report results"


def run(
    file: Annotated[
        Path,
        typer.Argument(metavar="STUDY.yaml", help="Model, prompts, settings and primary contrast; studies/ has some."),
    ],
    out: Annotated[Path, option("Output", "FOLDER", "Folder for results; an interrupted study resumes in it.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan, its cost and the effects that it can detect, and stop.")
    ] = False,
    device: options.Device = "auto",
) -> None:
    """Sample and measure every setting of a study.

    Stop it at any time: the same command resumes. The same study always gives the same bytes.
    """
    from ..core.progress import progress
    from ..pipeline import load
    from ..studies import plan as planning
    from ..studies import run as running

    wanted = planning.load_study(file)
    pipe = load(wanted.model, device=device, **wanted.sources.model_dump())
    plan = planning.make_plan(wanted, pipe, threads=running.threads_of(out))
    if dry_run:
        print(planning.outline(plan, running.seconds_per_cell(plan, pipe)))
        return
    with progress("study") as on_cell:
        running.run_study(plan, pipe, out, on_cell=on_cell, say=lambda text: print(f"guidon: {text}", file=sys.stderr))

    # Under torchrun the rank that ends last finds every cell, and answers.
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks > 1 and any(cell.damage() for cell in running.cells_of(plan, out)):
        return
    found = running.results(plan, out)
    running.write_csv(plan, found, out / "results.csv")
    print(out / "results.csv")
    print(running.answer(plan, found))


def report(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Results of `guidon study run`.")],
    out: Annotated[Path | None, option("Output", "FILE", "The page to write.", default="FOLDER/report.html")] = None,
    max_mb: Annotated[
        float,
        option("Output", "MB", "Largest size of the page; clips beyond it stay in the folder.", min=0.1),
    ] = 10,
    videos: Annotated[
        bool, option("Output", None, "Also write the clips as MP4, into the folder.", "--videos/--no-videos")
    ] = True,
) -> None:
    """Make one HTML page of a study.

    It holds the answer, figures, all clips side by side and a blind vote, and works offline.
    """
    from ..core.progress import progress
    from ..studies.report import write_report

    with progress("writing MP4s") as on_cell:
        paths = write_report(folder, out, max_mb=max_mb, videos=videos, on_cell=on_cell)
    for path in paths:
        print(path)
