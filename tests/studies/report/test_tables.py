"""The numbers of a report: those of the statistics."""

import csv
import math

import numpy as np
import pytest

from guidon.metrics.statistics import compare, holm, mean_interval
from guidon.metrics.world import METRICS
from guidon.studies.answer import answer
from guidon.studies.cells import read_plan
from guidon.studies.report import write_report
from guidon.studies.report.tables import extremes, summarise
from guidon.studies.results import results
from studies.written import SETTINGS


def test_the_figures_are_those_of_the_statistics(study):
    write_report(study)
    plan = read_plan(study)
    found = results(plan, study)
    rows = {(row["setting"], row["metric"]): row for row in csv.DictReader((study / "summary.csv").open())}
    assert len(rows) == len(SETTINGS) * len(METRICS)
    drift = mean_interval(found["all"]["colour_drift"])
    row = rows["all", "colour_drift"]
    assert [float(row[k]) for k in ("mean", "low", "high")] == pytest.approx(
        [drift.value, drift.low, drift.high], rel=1e-5
    )
    raw = {
        (s, m): compare(found["three"][m], found[s][m], better=METRICS[m].better).p
        for s in list(SETTINGS)[1:] for m in METRICS if m != "law_residual"
    }  # fmt: skip
    assert float(rows["all", "joint"]["p_corrected"]) == pytest.approx(
        raw["all", "joint"], rel=1e-5
    )  # primary: as it is
    assert rows["all", "joint"]["primary"] == "1"
    assert float(rows["all", "joint"]["mean"]) == pytest.approx(4 / 6, rel=1e-5)
    others = [key for key in raw if key != ("all", "joint")]
    for key, p in zip(others, holm([raw[key] for key in others]), strict=True):
        assert float(rows[key]["p_corrected"]) == pytest.approx(p, rel=1e-5)
        assert float(rows[key]["p_uncorrected"]) == pytest.approx(raw[key], rel=1e-5)
    assert rows["all", "joint"]["in_words"] == str(answer(plan, found)).splitlines()[0]
    assert rows["all", "colour_drift"]["in_words"].startswith(
        "No difference found between three and all: colour drift "
    )
    assert rows["three", "joint"]["in_words"] == ""
    assert rows["all", "law_residual"]["undefined"] == "1"
    assert rows["all", "law_residual"]["difference"] == ""


def test_a_verdict_needs_a_p_and_a_direction(study):
    plan = read_plan(study)
    found = results(plan, study)
    shifted = {s: {m: v + (0.5 + 0.01 * np.arange(6)[:, None]) * (s == "all") for m, v in values.items()} for s, values in found.items()}  # fmt: skip
    for s in shifted:
        shifted[s]["joint"] = found["three"]["joint"] + (0.1 * (s == "all")) + 0.0
    verdicts = {(r.setting, r.metric.name): r.verdict for r in summarise(plan, shifted)}
    assert verdicts["all", "joint"] == "better"  # 6 prompts, all better: p = 2/64, the primary one
    assert verdicts["all", "area_cv"] == "seen here, but not certain"  # the same p, in a family
    assert verdicts["three", "joint"] == ""


def test_gains_and_losses_are_ordered(study):
    plan = read_plan(study)
    gains, losses = extremes(plan, results(plan, study), count=3)
    assert len(gains) == 3
    assert set(gains) <= {2, 3, 4, 5}
    assert set(losses) == {0, 1}


def test_gains_and_losses_are_of_the_seeds_that_both_settings_have(study):
    plan = read_plan(study)
    found = results(plan, study)
    same = {setting: {name: np.full((6, 2), 0.5) for name in METRICS} for setting in found}
    same["three"]["joint"] = np.array([[1.0, math.nan], [1, 1], [0, 1], *[[1, 1]] * 3])
    same["all"]["joint"] = np.array([[1.0, 0], [1, 1], [math.nan, 0], *[[1, 1]] * 3])
    assert extremes(plan, same) == ([], [2])  # prompt 0 is equal in the seed that both have
