"""``guidon study run`` and ``guidon study report``: settings compared on the same prompts and noise."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.errors import InputError, nearest, setting
from ..core.extras import require
from ..core.ranks import own_rank
from . import options
from .options import given, option
from .outputs import prepare_folder, say, stopped
from .planning import find_any_planner

if TYPE_CHECKING:
    from ..pipeline.contract import ModelPlanner
    from ..studies.plan import Plan
    from ..studies.study import Study

ENGINES = ("processes", "ray")
EXAMPLE_RUN = "guidon study run studies/quick.yaml --out results"
EXAMPLE_REPORT = "guidon study report results"


def run(
    file: Annotated[
        Path,
        typer.Argument(metavar="STUDY.yaml", help="Model, prompts, settings and primary contrast; studies/ has some."),
    ],
    out: Annotated[
        Path, option("Output", "FOLDER", "Folder for results; an interrupted study resumes in it.", *options.OUT)
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan, its cost and the effects that it can detect, and stop.")
    ] = False,
    dtype: options.Dtype = None,
    decode_dtype: options.DecodeDtype = None,
    compile: options.Compile = False,
    device: options.Device = "auto",
    engine: Annotated[
        str,
        option(
            "Model and weights",
            "ENGINE",
            "Who samples: processes (this one, and others that run the same study) or ray (a Ray cluster).",
            values=ENGINES,
        ),
    ] = "processes",
) -> None:
    """Sample and measure every setting of a study.

    Stop it at any time: the same command resumes. Ctrl-C finishes the clips in work first; pressed again, it stops at
    once and loses them. The same study always gives the same bytes.
    """
    # Check everything before torch is imported.
    from ..studies.outline import outline
    from ..studies.planning import check_study, make_plan
    from ..studies.study import load_study, with_arithmetic

    if engine not in ENGINES:
        raise InputError(f"{setting('engine')} {engine!r} does not exist{nearest(engine, ENGINES)}")
    study = with_arithmetic(load_study(file), given(dtype=dtype, decode_dtype=decode_dtype, compile=compile or None))
    planner = find_any_planner(study.model_name, device, study.parts)
    check_study(study, planner)
    if not dry_run:
        prepare_folder(out)
    if engine == "ray":
        run_by_ray(study, planner, out, dry_run, device)
        return

    from ..core.progress import progress
    from ..metrics.bench import open_bench
    from ..pipeline import load
    from ..studies.cells import as_begun, threads_of
    from ..studies.run import run_study, seconds_per_cell

    study = as_begun(study, out)
    pipe = load(study.model_name, device=device, **study.parts)
    plan = make_plan(study, pipe, threads=threads_of(out))
    if dry_run:
        print(outline(plan, seconds_per_cell(plan, pipe)))
        return
    bench = open_bench(study.bench, pipe.planner.bench, device=pipe.device, keep=pipe.keeps_parts)
    kept = f"the clips that are done are kept in {out}: the same command goes on"
    with stopped(kept), progress(f"study of {plan.cells} cells") as bar:
        run_study(plan, pipe, out, bench=bench, on_cell=bar, on_solve=bar, say=say)

    if own_rank():  # under torchrun, the first rank prints the answer
        return
    print_answer(plan, out)


def run_by_ray(study: Study, planner: ModelPlanner, out: Path, dry_run: bool, device: str) -> None:
    """``run`` on a Ray cluster."""
    from ..pipeline.precision import refuse_auto

    refuse_auto(study.parts, "is chosen by one machine, and a cluster may have several kinds")
    require("ray", "the engine ray", "ray")
    from ..core.progress import progress
    from ..studies.cells import threads_of
    from ..studies.outline import outline
    from ..studies.ray_engine import Cluster, plan_study

    with Cluster.connected(study, device) as cluster:
        plan = plan_study(cluster, study, planner, threads_of(out))
        if dry_run:
            print(outline(plan, cluster.seconds_per_cell(plan)))
            return
        kept = f"blocks of {plan.block} clips that are done are kept in {out}: the same command goes on"
        with stopped(kept), progress(f"study of {plan.cells} cells") as bar:
            cluster.run(plan, out, on_cell=bar, say=say)
    print_answer(plan, out)


def print_answer(plan: Plan, out: Path) -> None:
    """Write results.csv, and print the answer to the study's primary contrast."""
    from ..studies.answer import answer
    from ..studies.results import results, write_csv

    found = results(plan, out)
    write_csv(plan, found, out / "results.csv")
    print(out / "results.csv")
    print(answer(plan, found))


def report(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Results of `guidon study run`.")],
    out: Annotated[
        Path | None, option("Output", "FILE", "The page to write.", *options.OUT, default="FOLDER/report.html")
    ] = None,
    max_mb: Annotated[
        float,
        option("Output", "MB", "Largest size of the page; clips beyond it are small ones.", min=0.1),
    ] = 14,
    videos: Annotated[
        bool | None,
        option(
            "Output",
            None,
            "Also write MP4s, into the folder: of all clips, or of none.",
            "--videos/--no-videos",
            default="of at most 1000 clips",
        ),
    ] = None,
) -> None:
    """Make one HTML page of a study.

    It holds the answer, figures, all clips side by side and a blind vote, and works offline.
    """
    from ..studies.cells import read_plan

    read_plan(folder)  # it is a study's

    from ..core.progress import progress
    from ..studies.report import write_report

    with stopped("what was written whole is kept"), progress("report", "MP4s") as on_cell:
        paths = write_report(folder, out, max_mb=max_mb, videos=videos, on_cell=on_cell, say=print)
    for path in paths:
        print(path)
