import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from guidon.core.errors import InputError
from guidon.metrics import statistics
from guidon.metrics.statistics import (
    by_prompt,
    change_interval,
    compare,
    holm,
    mean_interval,
    metric_interval,
    paired_power,
    pairs_needed,
    pareto,
    share_interval,
    sign_flips,
    smallest_effect,
)


def test_the_prompt_is_the_unit():
    values = np.array([[1.0, 3.0], [math.nan, 4.0], [math.nan, math.nan]])
    assert np.allclose(by_prompt(values), [2, 4, math.nan], equal_nan=True)
    assert mean_interval(values).value == 3


def test_the_permutation_test_is_scipys():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 10))
    theirs = stats.permutation_test(
        (b, a), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=math.inf
    )
    assert compare(a, b).p == pytest.approx(theirs.pvalue, abs=1e-12)
    many = rng.normal(0.2, 1, size=(2, 60))
    theirs = stats.permutation_test((many[1], many[0]), lambda x, y: np.mean(x - y), permutation_type="samples", rng=0)
    assert compare(*many).p == pytest.approx(theirs.pvalue, abs=0.02)


def test_a_difference_that_cancels_is_reached_by_every_flip():
    three = np.array([[0, 0, 1], [0, 0, 0], [0, 0, 1], [1, 0, 1], [1, 1, 0]]) * 1.0
    for seeds, lost in ((three, np.roll(three, 2, axis=0)), (three / 7, np.roll(three, 1, axis=0) / 7)):
        found = compare(lost, seeds)
        assert (found.difference.value, found.p) == (pytest.approx(0, abs=1e-15), 1)
    many = np.resize([-1 / 3, -1 / 6, 1 / 6, 1 / 3, 0], 20)
    assert compare(np.zeros(20), many).p == 1


def test_a_share_that_changes_on_no_prompt_has_the_rule_of_threes_bound():
    found = change_interval(np.array([0.0] * 100 + [math.nan]), share=True)
    assert (found.value, found.low) == (0, -found.high)
    assert found.high == pytest.approx(3 / 100, rel=0.02)
    assert change_interval(np.zeros(100), share=False) == mean_interval(np.zeros(100))
    assert math.isnan(change_interval(np.zeros(1), share=True).high)
    some = np.array([0.0] * 9 + [1.0])
    assert change_interval(some, share=True, confidence=0.9) == mean_interval(some, confidence=0.9)


def test_all_sign_flips_are_there_once():
    flips = sign_flips(4)
    assert len({tuple(row) for row in flips.tolist()}) == 16
    assert set(np.unique(flips)) == {-1, 1}


def test_intervals_cover_what_they_claim():
    rng = np.random.default_rng(2)
    covered = 0
    for k in range(120):
        interval = mean_interval(rng.exponential(size=40), seed=k)
        covered += interval.low <= 1 <= interval.high
    assert 0.86 <= covered / 120 <= 0.99


@pytest.fixture
def fewer_draws(monkeypatch):
    """A p value of 1,999 flips is as often below 0.05 as one of 19,999; hundreds of them are computed."""
    monkeypatch.setattr("guidon.metrics.statistics.FLIPS", 1_999)
    monkeypatch.setattr("guidon.metrics.statistics.RESAMPLES", 99)  # of intervals, which are not looked at


@pytest.mark.usefixtures("fewer_draws")
def test_seeds_of_one_prompt_are_not_independent_evidence():
    rng = np.random.default_rng(3)
    rejected = 0
    for _ in range(200):  # no true difference: prompts differ, and their seeds follow them
        effect = rng.normal(size=(20, 1))
        rejected += compare(np.zeros((20, 8)), effect + 0.1 * rng.normal(size=(20, 8))).p < 0.05
    low, high = stats.binomtest(rejected, 200).proportion_ci()
    assert low <= 0.05 <= high


@pytest.mark.usefixtures("fewer_draws")
@pytest.mark.parametrize("kind", ["share", "px"])
def test_two_equal_settings_are_told_apart_one_time_in_twenty(kind):
    """A/A: both settings are samples of one, prompts differ a lot, and shares have ties."""
    rng = np.random.default_rng(5)
    rejected = 0
    for _ in range(200):
        prompts = rng.beta(6, 1, size=(88, 1))
        draws = rng.random((2, 88, 2)) < prompts if kind == "share" else prompts * rng.gamma(2, 0.1, (2, 88, 2))
        rejected += compare(*draws.astype(float)).p < 0.05
    low, high = stats.binomtest(rejected, 200).proportion_ci()
    assert low <= 0.05 <= high


@pytest.mark.usefixtures("fewer_draws")
def test_a_planted_effect_is_found_at_the_stated_power():
    rng = np.random.default_rng(4)
    n, d_z = 30, 0.55
    found = sum(compare(np.zeros(n), rng.normal(d_z, 1, n), seed=k).p < 0.05 for k in range(150))
    low, high = stats.binomtest(found, 150).proportion_ci(0.99)
    assert low <= paired_power(d_z, n) <= high


def test_direction_ties_and_undefined_pairs_are_told():
    a, b = np.array([1.0, 2.0, 3.0, 4.0, math.nan]), np.array([2.0, 2.0, 1.0, 5.0, 1.0])
    up, down = compare(a, b), compare(a, b, better="lower")
    assert up.improves.value == pytest.approx(2.5 / 4)
    assert down.improves.value == pytest.approx(1.5 / 4)
    assert (up.pairs, up.undefined) == (4, 1)
    assert up.difference.value == pytest.approx(0)
    same = compare(a[:4], a[:4])
    assert (same.p, same.difference.note) == (1, "no variation")
    assert math.isnan(same.d_z)


def test_effect_sizes_and_what_could_have_been_seen():
    b = np.array([1.0, 2.0, 3.0, 2.0])
    assert compare(np.zeros(4), b).d_z == pytest.approx(2 / b.std(ddof=1))
    assert smallest_effect(5) == math.inf
    assert pairs_needed(0.3) == 90
    assert smallest_effect(90) == pytest.approx(0.3, abs=0.003)
    assert paired_power(0, 50) == pytest.approx(0.05)


def test_the_smallest_effect_is_detected_with_exactly_the_asked_power():
    """To 1e-9 against values found by bisection, and by its definition."""
    found = {6: 1.4345447820404011, 24: 0.5971841002912126, 96: 0.28886652716180083, 1000: 0.08867907559426376}
    for pairs, d_z in found.items():
        assert smallest_effect(pairs) == pytest.approx(d_z, abs=1e-9)
    for pairs in (6, 7, 40, 400):
        for power in (0.5, 0.8, 0.95):
            assert paired_power(smallest_effect(pairs, power=power), pairs) == pytest.approx(power, abs=1e-9)


def test_power_is_a_number_for_every_effect():
    assert np.isfinite([paired_power(d_z, n) for n in (6, 40, 1000) for d_z in np.linspace(0, 4, 200)]).all()


def test_wilson_is_scipys():
    for k, n in ((0, 10), (3, 7), (198, 200), (50, 50)):
        theirs = stats.binomtest(k, n).proportion_ci(method="wilson")
        ours = share_interval(k, n)
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    with pytest.raises(InputError, match="11 of 10"):
        share_interval(11, 10)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_orders_as_the_p_values_and_lies_between_them_and_bonferroni(p):
    adjusted = holm(p)
    assert (adjusted >= np.array(p) - 1e-12).all()
    assert (adjusted <= np.minimum(1, np.array(p) * len(p)) + 1e-12).all()
    assert adjusted[np.argmin(p)] == pytest.approx(min(1, min(p) * len(p)))


def test_holm_by_hand_and_with_undefined():
    assert np.allclose(holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    assert np.allclose(holm([0.01, math.nan, 0.03]), [0.02, math.nan, 0.03], equal_nan=True)


def test_the_pareto_front_knows_how_sure_it_is():
    rng = np.random.default_rng(6)
    good, fast, bad = (
        rng.normal((1, 0), 0.1, (40, 2)),
        rng.normal((0, 1), 0.1, (40, 2)),
        rng.normal((-1, -1), 0.1, (40, 2)),
    )
    chance = pareto(
        {k: (v[:, 0], v[:, 1]) for k, v in (("good", good), ("fast", fast), ("bad", bad))}, ("higher", "higher")
    )
    assert chance["good"] > 0.95
    assert chance["fast"] > 0.95
    assert chance["bad"] < 0.05
    twins = pareto({"a": (good[:, 0], good[:, 1]), "b": (good[:, 0], good[:, 1])}, ("higher", "lower"))
    assert twins == {"a": 1.0, "b": 1.0}


def test_what_cannot_be_paired_is_refused():
    with pytest.raises(InputError, match="3 and 4 prompts"):
        compare(np.zeros(3), np.zeros(4))
    three, four = np.zeros(3), np.zeros((4, 2))
    for values in ({"a": (three, three), "b": (four, four)}, {"a": (three, four)}):
        with pytest.raises(InputError, match="values of 3 and 4 prompts: give the same prompts for each"):
            pareto(values, ("higher", "lower"))
    with pytest.raises(InputError, match="values of no prompts"):
        pareto({}, ("higher", "lower"))
    assert compare(np.zeros(1), np.ones(1)).difference.note == "fewer than two pairs"


def test_a_seed_that_one_side_leaves_undefined_is_left_out_of_both():
    a, b = np.array([[1.0, math.nan]] * 6), np.array([[1.0, 5.0]] * 6)
    assert compare(a, b).difference.value == 0
    assert compare(a, b).p == 1


def test_an_interval_of_a_share_counts_the_prompts_that_have_one():
    values = np.full((50, 1), math.nan)
    values[:5] = 1.0
    assert metric_interval(values, share=True).low == pytest.approx(share_interval(5, 5).low)


@pytest.mark.parametrize("count", [30, 257])
def test_an_interval_is_scipys_bit_for_bit(count):
    values = np.random.default_rng(8).exponential(size=count)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=9_999, method="BCa", rng=0, batch=500).confidence_interval
    assert (mean_interval(values).low, mean_interval(values).high) == (theirs.low, theirs.high)


def test_comparisons_of_so_many_prompts_share_their_draws(monkeypatch):
    made, original = [], np.random.default_rng
    values = original(9).normal(size=(6, 40))
    monkeypatch.setattr(np.random, "default_rng", lambda seed: made.append(seed) or original(seed))
    monkeypatch.setattr(statistics, "_kept", statistics._Kept())
    kept = [compare(values[0], other) for other in values[1:]]
    assert len(made) == 2  # of the resamples and of the flips
    monkeypatch.setattr(statistics, "KEPT", 1)
    assert [compare(values[0], other) for other in values[1:]] == kept


def test_draws_are_kept_up_to_a_size(monkeypatch):
    kept, made = statistics._Kept(), []
    monkeypatch.setattr(statistics, "KEPT", 100)
    for key in (1, 2, 1, 3, 1, 2):
        kept.get((key,), lambda key=key: made.append(key) or [np.zeros(50, np.uint8)])
        assert sum(part.nbytes for parts in kept.found.values() for part in parts) <= 100
    assert made == [1, 2, 3, 2]


@settings(max_examples=60, deadline=None)
@given(arrays(float, st.tuples(st.just(2), st.integers(1, 7), st.just(2)), elements=st.sampled_from(
    [0.0, 1.0, 2.0, 3.0, math.nan, math.inf, -math.inf])))  # fmt: skip
def test_the_front_is_what_no_other_point_beats(points):
    others, own = points[..., :, None, :], points[..., None, :, :]
    beaten = ((others >= own).all(-1) & (others > own).any(-1)).any(-2)
    assert np.array_equal(statistics._on_front(points), ~beaten & np.isfinite(points).all(-1))
