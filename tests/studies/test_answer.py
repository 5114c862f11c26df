"""The answer in words: the same result as the numbers, and what could have been seen."""

import math

import numpy as np
import pytest

from guidon.metrics.world import METRICS
from guidon.studies.answer import NO_DIFFERENCE, NOT_CERTAIN, Pairing, answer

ZEROS = np.zeros(12)


def pairing(metric, a, b):
    return Pairing.of(METRICS[metric], np.asarray(a, float)[:, None], np.asarray(b, float)[:, None])


def answered(plan, metric, a, b):
    primary = plan.primary.model_copy(update={"metric": metric})
    plan = plan.model_copy(update={"captions": tuple(map(str, range(len(a)))), "primary": primary})
    values = {
        plan.primary.baseline: {metric: np.array(a)[:, None]},
        plan.primary.against: {metric: np.array(b)[:, None]},
    }
    return answer(plan, values)


def test_no_difference_is_said_with_both_values_and_with_what_could_be_seen(plan):
    right = np.array([0.0] + [1.0] * 11)
    found = answered(plan, "joint", right, right)
    assert found.headline == (
        "No difference found between first 3 channels and all channels: 92% and 92% of clips show all that was asked. "
        "No prompt differs. With 12 prompts, the true difference may still be up to about 25 points (3/12, the rule of three)."
    )
    assert found.numbers == (
        "Difference in all as asked (joint): no prompt differs (0 of 12), so the interval cannot be estimated. scale 3, all channels against scale 3, first 3 channels: better on 0, worse on 0, equal on 12 of 12 prompts."
    )


def test_a_difference_says_which_is_better_and_by_how_much(plan):
    low, high = np.zeros(10), 1 + 0.01 * np.arange(10)
    found = answered(plan, "law_residual", low, high)
    assert found.headline == "Worse with all channels than with first 3 channels: unsteady path (px) 1.04 against 0."
    assert "+1.04 px [" in found.numbers
    assert "p = 0.002, d_z = " in found.numbers
    assert found.numbers.endswith(": better on 0, worse on 10, equal on 0 of 10 prompts.")
    assert answered(plan, "law_residual", high, low).headline.startswith("Better with all channels than")
    speed = answered(plan, "speed", low, high).headline
    assert speed.startswith("Higher with all channels than")
    assert speed.endswith("(neither way is better by itself).")


def test_an_interval_without_zero_is_not_called_no_difference_where_the_corrected_p_is_large():
    found = pairing("joint", [1.0] * 12, [1.0] * 6 + [0.0] * 6)
    assert found.comparison.difference.high < 0
    assert found.comparison.p == 2 / 2**6
    assert found.verdict(1.0) == NOT_CERTAIN
    assert found.sentence(("three", "none"), 1.0, 64) == (
        "Worse here with none than with three, but not certain: 50% against 100% of clips show all that was asked. "
        "With 64 comparisons, twelve prompts cannot rule out chance (p = 0.031 before the correction, p = 1 after it)."
    )
    assert found.sentence(("three", "none"), 0.06).endswith("Twelve prompts cannot rule out chance (p = 0.06).")
    assert found.sentence(("three", "none"), 0.03).startswith("Worse with none than with three: 50% against")
    around = pairing("joint", [1.0] * 12, [1.0] * 11 + [0.0])
    assert around.verdict(around.comparison.p) == NO_DIFFERENCE


def test_no_interval_is_given_where_no_prompt_differs():
    same = pairing("joint", np.ones(30), np.ones(30))
    assert same.change() == "no prompt differs (0 of 30)"
    assert same.power().endswith("may still be up to about 10 points (3/30, the rule of three).")
    assert pairing("speed", ZEROS, ZEROS).numbers().endswith("so the interval cannot be estimated.")


def test_too_few_prompts_and_undefined_values_are_said(plan):
    low, high = np.zeros(10), 1 + 0.01 * np.arange(10)
    assert (
        "Four prompts are too few: they cannot detect any difference."
        in answered(plan, "speed", low[:4], high[:4]).headline
    )
    assert "The two settings have the same value on all 10 prompts." in answered(plan, "speed", low, low).headline
    half = np.where(np.arange(10) < 2, math.nan, high)
    assert "Two prompts left out" in answered(plan, "speed", low, half).numbers
    # what is a large difference depends on the mean
    wobble = 4 * (-1.0) ** np.arange(40)
    assert "40 prompts can detect differences of about" in pairing("speed", [100] * 40, 100 + wobble).power()
    assert "40 prompts can only detect large differences" in pairing("speed", [1] * 40, 1 + wobble).power()
    nothing = answered(plan, "speed", low, np.full(10, math.nan))
    assert "cannot be compared" in nothing.headline
    assert "fewer than two prompts have a value of speed in both" in nothing.headline


@pytest.mark.parametrize("prompts", [8, 12, 40, 96])
def test_the_difference_that_can_be_detected_is_detected_four_times_in_five(prompts):
    """Settings that differ by it on random prompts, all in one direction, are told apart in about 80% of studies."""
    found = pairing("joint", np.zeros(prompts), np.zeros(prompts))
    rng = np.random.default_rng(0)
    changed = rng.random((4000, prompts)) < found.detectable
    told_apart = (2.0 ** (1 - changed.sum(1)) < 0.05).mean()  # sign flips of k changes: p = 2 / 2^k
    assert told_apart == pytest.approx(0.8, abs=0.03)


def test_means_and_counts_are_of_the_prompts_that_both_have():
    found = pairing("joint", [1, 1, 0, math.nan, 1, 0, 0], [1, 0, 1, 1, 1, math.nan, 1])
    assert found.means == (3 / 5, 4 / 5)
    assert (found.higher, found.lower, found.equal) == (2, 1, 2)
    assert found.means[1] - found.means[0] == pytest.approx(found.comparison.difference.value)
    assert pairing("speed", [1, math.nan], [math.nan, 1]) is None
