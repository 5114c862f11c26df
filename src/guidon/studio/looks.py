"""The jobs that look closer: what the decoder shows of a setting's guidance, and a study of a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import yaml

from ..analysis.spectrum import ASPECTS, check_spectrum, spectrum
from ..core.atomic import write_bytes
from ..core.errors import InputError
from ..core.extras import require
from ..core.settings import validated
from ..guidance import Guidance
from ..metrics.bench import find_bench, open_bench
from ..studies.answer import answer
from ..studies.planning import check_study, make_plan
from ..studies.report import write_report
from ..studies.results import results, write_csv
from ..studies.run import run_study
from ..studies.study import Study
from .asked import LETTERS, AskedStudy, Comparison
from .carry import OF_CALL, study_of, words_of
from .jobs import Job
from .outputs import Outputs

if TYPE_CHECKING:
    from ..pipeline.contract import ModelPipeline, ModelPlanner
    from ..request import Request

LOOKS = 4  # steps at which the effect on pixels is measured


def look_inside(comparison: Comparison, number: int, pipe: ModelPipeline, job: Job) -> None:
    """The spectrum of one setting: the share of each channel in guidance, and what the decoder shows of it.

    Raises:
        Cancelled: the job was cancelled.
        InputError: the setting guides nothing.
    """
    request, choices = comparison.requests[number], dict(comparison.choices[number])
    check_spectrum(request, pipe.channels, LOOKS)
    if request.distilled:
        raise InputError("the fast settings run one branch, so there is no difference of two to look at: choose others")
    job.message = "sampling once more"
    asked = comparison.asked
    found = spectrum(pipe, asked.prompt, looks=LOOKS, on_step=job.step, force=asked.force, **cast("Any", choices))
    influence = 1000 * found.influence.mean((0, 1))  # (C, A)
    job.result |= {
        "share": _plain(found.energy_share),
        "cosine": [float(one) for one in found.cosine.mean((0, 1, 3))],
        "aspects": [{"name": name, "words": words} for name, words in ASPECTS.items()],
        "influence": [_plain(row) for row in influence],
        "timestep": found.timestep[found.looked_at].tolist(),
    }


def _plain(values: np.ndarray) -> list[float | None]:
    """Numbers as JSON: None where undefined."""
    return [float(one) if np.isfinite(one) else None for one in values]


def yaml_of(asked: AskedStudy, comparison: Comparison, planner: ModelPlanner, parts: Mapping[str, Any]) -> str:
    """The study of a comparison as YAML.

    Args:
        asked: what of it is asked for.
        comparison: what is compared.
        planner: that of the model.
        parts: how the model is loaded.

    Raises:
        InputError: there is one setting only, or two that are the same.
    """
    if len(comparison.choices) < 2:
        raise InputError("a study compares at least two settings: add one")
    made = [_as_made(request) for request in comparison.requests]
    for number, request in enumerate(made):
        if (first := made.index(request)) != number:
            raise InputError(f"{LETTERS[first]} and {LETTERS[number]} are the same: change one of them, or remove it")
    settings: dict[str, dict[str, Any]] = {}
    for letter, choices, request in zip(LETTERS, comparison.choices, comparison.requests, strict=False):
        words = words_of(choices, request.guidance, planner.channels)
        name = words if words not in settings else f"{words} ({letter})"
        settings[name] = {key: value for key, value in choices.items() if key not in OF_CALL}
    own = comparison.asked
    if all(request.guidance.rule.weak != "model" for request in comparison.requests):  # a study refuses it then
        parts = {name: value for name, value in parts.items() if name != "weak"}
    metric = find_bench(planner.bench).primary_for(planner.is_image)
    return study_of(own.model, asked.prompts, asked.seeds, settings, metric, asked.title, own.seed, parts)


def _as_made(request: Request) -> Request:
    """A request without guidance in one form, whatever scale, channels, rule and timing say so."""
    if not request.guidance.is_conditional:
        return request
    return request.model_copy(update={"guidance": Guidance(1.0)})


def read_study(text: str, planner: Any) -> Study:
    """The study of a text of ``yaml_of``.

    The limits of a file do not hold: what a browser sent is as long as a request may be.

    Raises:
        InputError: it is not valid for the model.
    """
    study = validated(Study, yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)), None)
    check_study(study, planner)
    return study


def run(study: Study, text: str, folder: Path, pipe: ModelPipeline, outputs: Outputs, job: Job) -> None:
    """Run a study into a folder, with its YAML beside the results, and write its report.

    It goes on where an earlier run of the folder was stopped.

    Raises:
        Cancelled: the job was cancelled; what is done is kept.
        InputError: as ``guidon study run``.
    """
    require("matplotlib", "a report", "study")
    job.message = "planning"
    plan = make_plan(study, pipe)
    bench = open_bench(study.bench, pipe.planner.bench, device=pipe.device, keep=pipe.keeps_parts)
    job.result |= {"folder": folder.name, "cells": plan.cells, "title": study.title}
    write_bytes(folder / "study.yaml", text.encode())
    job.message = "sampling clips"
    out = folder / "results"
    lines: list[str] = []
    run_study(plan, pipe, out, bench=bench, on_cell=job.step, on_solve=job.step, say=lines.append)
    job.message = "writing the report"
    found = results(plan, out)
    write_csv(plan, found, out / "results.csv")
    page, table, *_ = write_report(out, videos=False)
    job.check()
    report = outputs.add_file(page, "text/html", "report.html", job.session)
    csv = outputs.add_file(out / "results.csv", "text/csv", "results.csv", job.session)
    job.outputs += [report, csv]
    job.result |= {"answer": str(answer(plan, found)), "report": report, "csv": csv, "summary": table.name}
