import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guidon.core.errors import InputError
from guidon.diffusion import FlowPath
from guidon.guidance import (
    CONSTANT,
    Constant,
    CosineRamp,
    Exponential,
    Guidance,
    Interval,
    LinearRamp,
    Memory,
    Oscillation,
    Timing,
    parse_timing,
)
from toy_network import SCHEDULE, Network, denoiser, flow_level, latents

INTERVALS = st.tuples(st.floats(0, 1), st.floats(0, 1)).filter(lambda ends: ends[0] < ends[1])
TIMINGS = st.one_of(
    st.sampled_from([CONSTANT, LinearRamp(), CosineRamp()]),
    INTERVALS.map(lambda ends: Interval(*ends)),
    st.builds(Oscillation, st.integers(0, 1000)),
    st.builds(Exponential, st.floats(0, 10)),
)


def test_timings_by_name():
    assert parse_timing("constant") is CONSTANT
    assert parse_timing("constant") == Constant()
    assert parse_timing("linear") == LinearRamp()
    assert parse_timing("cosine") == CosineRamp()
    within = parse_timing("interval:0.2,0.8")
    assert within == Interval(0.2, 0.8)
    alternating = parse_timing("oscillation:3")
    assert alternating == Oscillation(3)
    assert parse_timing("oscillation") == Oscillation(10)
    assert [alternating(0.5, number) for number in range(7)] == [1, 1, 1, 0, 1, 0, 1]
    assert [within(p) for p in (0.0, 0.2, 0.5, 0.8, 1.0)] == [0, 1, 1, 1, 0]


@given(TIMINGS)
def test_a_timing_is_read_back_from_its_text(timing: Timing):
    assert parse_timing(timing.text) == timing


@pytest.mark.parametrize(
    ("timing", "text"),
    [(Interval(0, 1), "interval:0,1"), (Interval(0.0, 0.5), "interval:0,0.5"), (Oscillation(), "oscillation:10"), (LinearRamp(), "linear"),
     (Exponential(1), "exponential:1")],
)  # fmt: skip
def test_the_text_of_a_timing_is_as_short_as_people_write_it(timing, text):
    assert timing.text == text


@pytest.mark.parametrize(
    "bad",
    [
        "interval:-0.1,0.5",
        "interval:0,1.5",
        "interval:0.8,0.2",
        "interval:0.5,0.5",
        "interval:nan,1",
        "interval:a,b",
        "interval:1",
        "interval",
        "liner",
        "oscillation:x",
        "oscillation:-1",
        "exponential:x",
        "exponential:-1",
        "exponential:11",
        "exponential:nan",
    ],
)
def test_bad_timings_are_refused_in_one_line(bad):
    with pytest.raises(InputError, match="timing") as error:
        parse_timing(bad)
    assert "\n" not in str(error.value)


def test_ramps_grow_and_are_one_on_average():
    at = np.linspace(0, 1, 1001)
    for timing in (LinearRamp(), CosineRamp(), CONSTANT):
        weights = np.array([timing(p) for p in at])
        assert weights.mean() == pytest.approx(1, abs=1e-3)
        assert (np.diff(weights) >= 0).all()
        assert timing.ramps == bool(np.ptp(weights))
    assert LinearRamp()(0) == CosineRamp()(0) == 0
    assert LinearRamp()(1) == CosineRamp()(1) == 2


def test_an_interval_calls_the_other_branch_inside_it_only():
    network = Network()
    guided = denoiser(Guidance(4.0, 3, timing="interval:0.25,0.75"), network)
    for level in SCHEDULE.levels:
        guided(latents(), level)
    progress = 1 - SCHEDULE.timestep_map[::-1] / 999
    assert network.rows == [4 if 0.25 <= p <= 0.75 else 2 for p in progress]
    assert guided.memory.calls == 20
    assert guided.memory.guided == sum(0.25 <= p <= 0.75 for p in progress)


@pytest.mark.parametrize("steps", [7, 10, 30])
def test_a_step_on_the_end_of_an_interval_is_guided_whatever_its_rounding(steps):
    levels = FlowPath(steps=steps).levels
    for k in range(1, steps):
        within, after = Interval(0, k / steps), Interval(k / steps, 1)
        assert [within(level.progress) for level in levels] == [1.0] * (k + 1) + [0.0] * (steps - k - 1)
        assert [after(level.progress) for level in levels] == [0.0] * k + [1.0] * (steps - k)
    assert [Interval(0.2, 0.8)(p) for p in (0.19999, 0.80001)] == [0, 0]


def test_an_oscillation_counts_the_calls_of_its_run():
    network = Network()
    guided = denoiser(Guidance(4.0, 3, timing="oscillation:3"), network)
    for level in SCHEDULE.levels[::2]:
        guided(latents(), level)
    assert network.rows == [4, 4, 4, 2, 4, 2, 4, 2, 4, 2]


def test_a_ramp_moves_the_scale_from_1():
    guidance = Guidance(5.0, 3, timing="linear")
    found = [guidance.scale_at(level, Memory(calls=k), 4).scales for k, level in enumerate(SCHEDULE.levels)]
    for scales, level in zip(found, SCHEDULE.levels, strict=True):
        assert scales[3] == 1
        assert scales[:3] == pytest.approx([1 + 2 * level.progress * 4] * 3)


def test_the_exponential_timing_is_the_papers():
    """C2FG's w(t) = w_0 exp(rate (1 - t / t_max)) at rate ln 2: from the scale that is given to twice as much."""
    doubling = parse_timing("exponential")
    assert doubling == Exponential(math.log(2))
    at = {
        p: Guidance([3.0, 1.0, 5.0, 3.0], timing=doubling).scale_at(flow_level(1 - p), Memory(), 4) for p in (0, 0.5, 1)
    }
    for progress, scale in at.items():
        grown = 2**progress
        assert np.allclose(scale.scales, [3 * grown, 1, 5 * grown, 3 * grown])  # scale 1 stays unguided
    assert Guidance(4.0, "only:2", timing=doubling).scale_at(flow_level(0.0), Memory(), 4).scales == (1, 1, 8.0, 1)
    flat = Guidance(3.0, "all", timing=Exponential(0)).scale_at(flow_level(0.3), Memory(), 4)
    assert flat == Guidance(3.0, "all").scale_at(flow_level(0.3), Memory(), 4)
    with pytest.raises(InputError, match=r"cfg\+\+ changes its scale during sampling"):
        Guidance(0.6, "all", "cfg++", doubling)
