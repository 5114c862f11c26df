import pytest

from guidon.core.errors import InputError
from guidon.guidance import constant, cosine_ramp, linear_ramp, parse_timing


def test_timings_by_name():
    assert parse_timing("constant") is constant
    assert parse_timing("linear") is linear_ramp
    assert parse_timing("cosine") is cosine_ramp
    within = parse_timing("interval:0.2,0.8")
    alternating = parse_timing("oscillation:3")
    assert [alternating(0.5, number) for number in range(7)] == [1, 1, 1, 0, 1, 0, 1]
    assert [within(p) for p in (0.0, 0.2, 0.5, 0.8, 1.0)] == [0, 1, 1, 1, 0]


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
    ],
)
def test_bad_timings_are_refused_in_one_line(bad):
    with pytest.raises(InputError) as error:
        parse_timing(bad)
    assert "\n" not in str(error.value)
