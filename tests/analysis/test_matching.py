import csv
import dataclasses
import math

import numpy as np
import pytest

import guidon
from guidon.analysis.matching import (
    check_metrics,
    crossing_scale,
    equivalents,
    matching_study,
    nearest_scale,
    thumb,
    write_matches,
)
from guidon.core.errors import InputError
from guidon.metrics.bench import find_bench
from guidon.metrics.metric import TUNING_SEED
from guidon.metrics.world import METRICS
from guidon.studies.cells import Cell
from guidon.studies.planning import make_plan
from guidon.studies.run import run_study

SCALES = np.linspace(1, 4, 9)


def noisy_prompts(count, spread, seed=0):
    return np.random.default_rng(seed).normal(0, spread, count)


def test_the_rule_of_thumb_is_as_much_guidance_in_sum():
    assert thumb(7, "3", "all", 4) == 1 + 3 / 4 * 6
    assert thumb(7, "all", "only:2", 4) == 25


def test_a_match_is_where_the_curve_has_the_level():
    """A metric that grows as 2 (s - 1) meets the level 3 at s = 2.5, whatever the prompts' own levels are."""
    own = noisy_prompts(30, 5.0)
    match = crossing_scale(SCALES, own + 2 * (SCALES[:, None] - 1), own + 3, near=1.0)
    assert match.scale == pytest.approx(2.5, abs=4e-3)
    assert match.high - match.low < 0.02
    assert match.level == pytest.approx(3 + own.mean())


def test_the_band_is_wide_where_prompts_disagree_and_covers_the_truth():
    widths, covered = [], 0
    for spread in (0.2, 2.0):
        for seed in range(40):
            noise = np.random.default_rng(seed).normal(0, spread, (len(SCALES), 40))
            match = crossing_scale(SCALES, SCALES[:, None] + noise[:1], 2.5 + 0 * noise[0], near=2.5)
            covered += match.low <= 2.5 <= match.high
            widths.append(match.high - match.low)
    assert 69 <= covered <= 80  # of 80, about 76 expected
    assert np.median(widths[40:]) > 5 * np.median(widths[:40])


def test_the_bands_are_those_of_95_per_cent():
    own = noisy_prompts(40, 2.0)
    match = crossing_scale(SCALES, own + SCALES[:, None], np.full(40, 2.5), near=2.5)
    ends = 2.5 - own.mean() + 1.96 * own.std() / math.sqrt(40) * np.array([-1, 1])
    assert [match.low, match.high] == pytest.approx(ends, abs=0.04)
    # the second scale is the nearest in 3 to 4 of 100 resamples: above 2.5, below 5
    further = 1 + 3.49 * (-1.0) ** np.arange(40)
    squares = np.stack([np.full(40, 10.0), 10 + further, np.full(40, 99.0)])
    assert nearest_scale(SCALES[:3], np.sqrt(squares)).high == SCALES[2]


def test_a_metric_that_scale_does_not_change_matches_anything():
    flat = crossing_scale(SCALES, np.ones((9, 20)), np.ones(20), near=2.0)
    assert (flat.low, flat.high) == (-math.inf, math.inf)


def test_a_level_that_is_never_reached_has_no_match():
    assert math.isnan(crossing_scale(SCALES, np.tile(SCALES[:, None], 20), np.full(20, 9.0), near=2.0).scale)


def test_of_several_crossings_it_is_the_nearest_and_undefined_prompts_are_left_out():
    values = np.tile(((SCALES - 2) ** 2)[:, None], 10)
    values[3, 0] = np.nan
    reference = np.array([9.0] + [0.25] * 9)
    for near, expected in ((1.2, 1.5), (2.8, 2.5)):
        match = crossing_scale(SCALES, values, reference, near=near)
        assert match.scale == pytest.approx(expected, abs=0.15)
        assert (match.level, match.prompts) == (0.25, 9)
    assert crossing_scale(SCALES, values, np.where(np.arange(10) == 4, np.nan, reference), near=1.2).prompts == 8


def test_the_nearest_video_is_known_to_the_grids_spacing():
    own = 1 + 0.1 * np.random.default_rng(0).random(20)
    distances = np.sqrt(0.01 + (SCALES[:, None] - 2.2) ** 2 * own)
    match = nearest_scale(SCALES, distances)
    assert (match.scale, match.low, match.high) == (SCALES[3], SCALES[2], SCALES[4])
    assert match.low < 2.2 < match.high
    assert match.level == pytest.approx(np.sqrt((distances**2).mean(1).min()))
    falling = nearest_scale(SCALES, np.tile(SCALES[:, None], 5))
    assert (falling.scale, falling.low, falling.high) == (1, -math.inf, SCALES[1])


@pytest.fixture(scope="module")
def matched(tiny_model, tmp_path_factory):
    """A tiny model's scale 3 on three channels, matched on all four and on the same three in another order."""
    out = tmp_path_factory.mktemp("matched") / "cells"
    pipe = guidon.load(str(tiny_model))
    study = matching_study(pipe.planner, str(tiny_model), [3.0], "3", "all", prompts=2, steps=2, sampler="ddim")
    plan = make_plan(study, pipe, threads=1)
    run_study(plan, pipe, out)
    return plan, out


def test_energy_matches_where_the_traces_say(matched):
    """With sums of squares E_c per channel, x sqrt(E_0 + E_1 + E_2) = x' sqrt(E_0 + E_1 + E_2 + E_3) at the first step."""
    plan, out = matched
    found = {row.metric: row.match for row in equivalents(plan, out, 4, ["energy", "video"])}
    assert 1 < found["energy"].scale <= 3 + 1e-9
    assert found["energy"].low <= found["energy"].scale <= found["energy"].high
    assert found["video"].prompts == 2


@pytest.mark.usefixtures("pictures")
def test_matches_are_written_as_a_table_and_a_picture(matched, tmp_path):
    plan, out = matched
    found = equivalents(plan, out, 4, ["video", "chroma"])
    table, picture = write_matches(found, 4, tmp_path)
    rows = list(csv.DictReader(table.open()))
    assert [row["metric"] for row in rows] == ["video", "chroma"]
    assert float(rows[0]["scale"]) == found[0].match.scale
    assert float(rows[0]["rule_of_thumb"]) == 2.5
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_same_channels_match_themselves(tiny_model, tmp_path):
    """The nearest video is at the same scale, at distance 0."""
    pipe = guidon.load(str(tiny_model))
    study = matching_study(pipe.planner, str(tiny_model), [3.0], "3", "all", prompts=2, steps=2, sampler="ddim")
    same = [arm.model_copy(update={"cfg_channels": "3"}) for arm in study.settings]
    plan = make_plan(study.model_copy(update={"settings": tuple(same)}), pipe, threads=1)
    run_study(plan, pipe, tmp_path / "cells")
    video, energy = (row.match for row in equivalents(plan, tmp_path / "cells", 4, ["video", "energy"]))
    assert energy.scale == pytest.approx(3.0, abs=4e-3)
    assert video.scale == pytest.approx(3.0, abs=0.1)
    assert video.level == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scales": [1.0]}, "cfg_scale 1 guides nothing to match: give numbers above 1"),
        ({"to": "0-2"}, "to 0-2 is the same choice as cfg_channels 3: name another"),
        ({"to": "none"}, "none guides no channel"),
        ({"to": "5"}, "this model has 4 latent channels"),
        ({"prompts": ["a red circle stays still on a white background"]}, "1 prompt gives no band: give at least 2"),
    ],
)
def test_what_cannot_be_matched_is_refused(tiny_model, changes, message):
    values = {"scales": [3.0], "cfg_channels": "3", "to": "all", "prompts": 4} | changes
    with pytest.raises(InputError, match=message):
        matching_study(guidon.load(str(tiny_model)).planner, "tiny", **values)


def test_captions_and_metrics_are_the_benchs(tiny_model):
    pipe = guidon.load(str(tiny_model))
    study = matching_study(pipe.planner, str(tiny_model), [3.0], "3", "all", prompts=3)
    assert study.prompts == find_bench("world").captions(None, TUNING_SEED, 3)
    assert study.primary.metric == "joint"
    other = type(pipe)(
        pipe.preset,
        dataclasses.replace(pipe.model, facts=dataclasses.replace(pipe.model.facts, bench="video")),
        pipe.device,
    )
    with pytest.raises(InputError, match="give prompts"):
        matching_study(other.planner, str(tiny_model), [3.0], "3", "all", prompts=3)
    study = matching_study(other.planner, str(tiny_model), [3.0], "3", "all", prompts=["a red ball", "a cross"])
    assert study.primary.metric == "dynamics"


def test_an_unknown_metric_is_refused_with_the_nearest_name():
    with pytest.raises(InputError, match=r"'vidio' does not exist.*video"):
        check_metrics(["vidio"], METRICS)


def test_a_clip_of_one_frame_is_not_matched_in_metrics_of_several(matched, monkeypatch):
    plan, out = matched
    own = ["video", "energy", *find_bench("world").matched]
    assert [row.metric for row in equivalents(plan, out, 4)] == own
    frames = Cell.frames
    monkeypatch.setattr(Cell, "frames", lambda cell: frames(cell)[:1])
    assert [row.metric for row in equivalents(plan, out, 4)] == ["video", "energy", "joint", "chroma"]
    with pytest.raises(InputError, match="metric law_residual is of several frames, and a clip of this model has one"):
        check_metrics(["law_residual"], METRICS, is_image=True)


def test_where_nothing_is_told_apart_any_scale_matches():
    own = np.ones(24)
    own[0] = 0.0
    assert crossing_scale(SCALES, np.ones((9, 24)), own, near=2.0).high == math.inf


def test_the_grid_holds_the_rule_of_thumb_and_its_ends_are_open(tiny_model):
    pipe = guidon.load(str(tiny_model))
    study = matching_study(pipe.planner, str(tiny_model), [3.0], "all", "only:3", prompts=2)
    scales = [arm.cfg_scale for arm in study.settings[1:]]
    assert min(scales) < thumb(3, "all", "only:3", 4) < max(scales)
    far = nearest_scale(SCALES, np.abs(SCALES[:, None] - 9) + np.zeros(6))
    assert (far.scale, far.high) == (4, math.inf)
