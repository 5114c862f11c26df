import dataclasses
import json

import numpy as np
import pytest

import guidon
from guidon.analysis import tuning
from guidon.analysis.tuning import Judgement, Tuned, tune
from guidon.core.errors import InputError
from guidon.metrics.bench import BENCHES
from guidon.metrics.metric import EVALUATION_SEED, FORGIVEN, MARGIN, TUNING_SEED
from guidon.metrics.statistics import compare, mean_interval
from guidon.world import clip


@pytest.fixture
def pipe(tiny_model):
    return guidon.load(str(tiny_model))


def landscape(monkeypatch, joint=lambda s: 1.0, wander=0.02):
    """Oversaturation that is least where channels have the scales 1.5, 2, 2.5 and 3, and what it was asked for."""
    asked = []

    def measured(pipe, goal, captions, scales, choices):
        asked.append((tuple(captions), tuple(scales)))
        assert choices["seed_per_prompt"]
        noise = np.random.default_rng(len(captions[0])).normal(0, wander, len(captions))
        bowl = 0.1 + sum((s - best) ** 2 for s, best in zip(scales, (1.5, 2, 2.5, 3), strict=True))
        rows = np.ones(len(captions))
        steady = {"colour_drift": 0.1 * rows, "outline_error": 0.2 * rows}
        return {"joint": joint(scales) * rows, "oversaturation": bowl + noise, **steady}

    monkeypatch.setattr(tuning, "_measured", measured)
    return asked


def test_scales_are_found_and_verified_on_other_prompts(pipe, monkeypatch):
    asked = landscape(monkeypatch)
    found = tune(pipe, 4.0, prompts=6, held_out=60, evaluations=150)
    assert found.scales == pytest.approx((1.5, 2, 2.5, 3), abs=0.15)
    assert found.verified
    assert found.evaluations <= 150
    chose, judged = ({caption for prompts, _ in part for caption in prompts} for part in (asked[:-2], asked[-2:]))
    assert chose == {clip("L0", TUNING_SEED, index).caption for index in range(6)}
    assert judged == {clip("L0", EVALUATION_SEED, index).caption for index in range(60)}
    assert [scales for _, scales in asked[-2:]] == [(4, 4, 4, 4), found.scales]
    assert str(found).startswith("cfg_scale " + ",".join(f"{s:g}" for s in found.scales))


def test_alignment_is_held(pipe, monkeypatch):
    """Alignment falls below what it was where channel 3 is guided by less than 3.5; a smaller fall is forgiven."""
    landscape(
        monkeypatch, joint=lambda scales: 0.9 - 2 * FORGIVEN * (scales[3] < 3.5) - 0.5 * FORGIVEN * (scales[0] < 3)
    )
    found = tune(pipe, 4.0, prompts=4, held_out=4, evaluations=120)
    assert found.scales[3] >= 3.5
    assert found.scales[0] == pytest.approx(1.5, abs=0.3)


def test_alignment_that_is_undefined_cannot_be_held(pipe, monkeypatch):
    """As of CLIP, where a prompt is the number of a class."""
    landscape(monkeypatch, joint=lambda scales: np.nan)
    with pytest.raises(InputError, match=r"joint is undefined for some of the prompts .*: give other prompts"):
        tune(pipe, 4.0, prompts=4, held_out=4, evaluations=20)


def test_what_held_out_prompts_do_not_show_is_not_verified(pipe, monkeypatch):
    landscape(monkeypatch)
    real = tuning._measured
    calls = []

    def fooled(pipe, goal, captions, scales, choices):
        calls.append(scales)
        return real(pipe, goal, captions, scales if len(captions) == 4 else (4, 4, 4, 4), choices)

    monkeypatch.setattr(tuning, "_measured", fooled)
    found = tune(pipe, 4.0, prompts=4, held_out=6, evaluations=30)
    assert not found.verified
    assert "not verified" in str(found)


def test_a_search_that_was_cut_off_goes_on(pipe, monkeypatch, tmp_path):
    asked = landscape(monkeypatch)
    whole = tune(pipe, 3.0, prompts=4, held_out=4, evaluations=20, journal=tmp_path / "a.json")
    journal = json.loads((tmp_path / "a.json").read_text())
    journal = {"search": journal["search"], "measured": journal["measured"][:9]}  # as written without a digest
    (tmp_path / "a.json").write_text(json.dumps(journal))
    asked.clear()
    again = tune(pipe, 3.0, prompts=4, held_out=4, evaluations=20, journal=tmp_path / "a.json")
    assert repr(again) == repr(whole)  # some numbers are NaN, which equals nothing
    assert len(asked) == whole.evaluations - 9 + 2
    with pytest.raises(InputError, match="is of another search"):
        tune(pipe, 2.0, prompts=4, held_out=4, evaluations=20, journal=tmp_path / "a.json")
    journal = json.loads((tmp_path / "a.json").read_text())
    journal["measured"][0]["values"]["joint"][0] = 0.5
    (tmp_path / "a.json").write_text(json.dumps(journal))
    with pytest.raises(InputError, match="its content is not what was written"):
        tune(pipe, 3.0, prompts=4, held_out=4, evaluations=20, journal=tmp_path / "a.json")


def test_an_unguided_channel_may_be_taken_up(pipe, monkeypatch):
    landscape(monkeypatch)
    found = tune(pipe, 2.5, "3", prompts=4, held_out=4, evaluations=150)
    assert found.baseline == (2.5, 2.5, 2.5, 1)
    assert found.scales[3] == pytest.approx(3, abs=0.2)


@pytest.mark.parametrize(
    ("scale", "options", "message"),
    [
        (1.0, {}, "scale 1 guides nothing"),
        (2.0, {"evaluations": 5}, "evaluations 5 cannot tune 4 scales: give at least 6"),
        (2.0, {"sampler": "euler"}, "euler"),
    ],
)
def test_what_cannot_be_tuned_is_refused(pipe, scale, options, message):
    with pytest.raises(InputError, match=message):
        tune(pipe, scale, prompts=2, held_out=2, **options)


def test_a_bench_without_captions_or_without_a_goal_is_refused(pipe, monkeypatch):
    other = type(pipe)(
        pipe.preset,
        dataclasses.replace(pipe.model, facts=dataclasses.replace(pipe.model.facts, bench="video")),
        pipe.device,
    )
    with pytest.raises(InputError, match="'video' has no captions"):
        tune(other, 2.0, prompts=2, held_out=2)
    monkeypatch.setitem(BENCHES, "world", dataclasses.replace(BENCHES["world"], goal=None))
    with pytest.raises(InputError, match="does not say what good scales are"):
        tune(pipe, 2.0, prompts=2, held_out=2)


def test_verified_needs_a_p_and_excludes_a_loss(pipe, monkeypatch):
    landscape(monkeypatch, wander=0.0)
    assert not tune(pipe, 4.0, prompts=4, held_out=4, evaluations=20).verified  # p is 1 in 8 at best
    few = tune(pipe, 4.0, prompts=4, held_out=12, evaluations=20)
    assert not few.verified  # alignment is the same on 12 prompts, which bound its loss by about 3 in 12
    assert few.held_out["joint"].comparison.difference.low == pytest.approx(-0.22, abs=0.01)
    assert few.held_out["oversaturation"].comparison.p < 0.05
    landscape(monkeypatch, joint=lambda scales: 1.0 if min(scales) >= 4 else 1.0 - MARGIN - 0.001)
    assert not tune(pipe, 4.0, prompts=4, held_out=12, evaluations=20).verified


def test_verified_is_a_fall_that_is_no_chance_no_rise_and_no_loss_that_may_be_large():
    still, up, wide = np.zeros(12), 0.1 + 0.01 * np.arange(12), 0.5 * (-1.0) ** np.arange(12)

    def verified(kept, *lowered):
        changes = {"joint": kept} | {str(number): change for number, change in enumerate(lowered)}
        found = {
            name: Judgement(mean_interval(still), mean_interval(change), compare(still, change))
            for name, change in changes.items()
        }
        return Tuned((2.0,), (3.0,), 9, "joint", MARGIN, found).verified

    assert verified(still, -up)
    assert verified(up, -up, still, wide)  # what may be chance does not matter
    assert not verified(still, still)
    assert not verified(still, wide - 0.01)
    assert not verified(still, -up, up)
    assert not verified(-up, -up)
    assert not verified(wide, -up)  # no loss on average, but a large one is not excluded


def test_prompts_of_a_user_choose_or_verify():
    assert tuning.split_prompts(["a", "b", "c", "d", "e"]) == (("a", "c", "e"), ("b", "d"))
    for prompts, message in ((["a", "b", "c"], "give at least 4"), (["a", "b", "c", "a"], "'a' is given twice")):
        with pytest.raises(InputError, match=message):
            tuning.split_prompts(prompts)
