import math

import numpy as np
import pytest

from guidon.analysis.speed import paired_ratio
from guidon.analysis.speed.ratios import noise_of
from guidon.core.errors import InputError
from guidon.metrics.statistics import Interval


def drawn(rounds, ratio, seed, noise=0.05):
    """Times of a base and of an arm that is ``ratio`` times faster, on a machine whose speed differs by round."""
    draw = np.random.default_rng(seed)
    weather = np.exp(draw.normal(0, 0.5, rounds))  # it slows both
    base, arm = (weather * np.exp(draw.normal(0, noise, rounds)) for _ in range(2))
    return base, arm / ratio


def test_a_planted_ratio_is_found_though_the_machine_is_far_more_uneven():
    found = paired_ratio(*drawn(15, 1.3, seed=3))
    assert found.value == pytest.approx(1.3, rel=0.05)
    assert 1.15 < found.low <= found.value <= found.high < 1.45


@pytest.mark.parametrize("ratio", [1.0, 2.0])
def test_the_interval_covers_the_truth_as_often_as_it_says(ratio):
    runs = [paired_ratio(*drawn(15, ratio, seed)) for seed in range(100)]
    covered = np.mean([run.low <= ratio <= run.high for run in runs])
    assert 0.88 <= covered <= 1.0  # 95% by name; the bootstrap of a median of 15 is a little off


def test_one_round_gives_no_interval():
    found = paired_ratio([2.0], [1.0])
    assert found.value == 2.0
    assert math.isnan(found.low)
    assert "6 rounds" in noise_of(found, 1)


@pytest.mark.parametrize(("base", "arm"), [([1, 2], [1]), ([], []), ([0.0], [1.0]), ([math.nan], [1.0])])
def test_times_that_do_not_pair_are_refused(base, arm):
    with pytest.raises(InputError):
        paired_ratio(base, arm)


@pytest.mark.parametrize(
    ("twin", "reason"),
    [
        (Interval(1.0, 0.99, 1.01), ""),
        (Interval(1.1, 1.05, 1.15), "misses 1"),
        (Interval(1.0, 0.9, 1.1), "wider than 3%"),
    ],
)
def test_a_noisy_run_is_named(twin, reason):
    found = noise_of(twin, 15)
    assert (reason in found) if reason else not found
