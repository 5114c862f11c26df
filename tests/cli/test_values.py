import pytest

from guidon.cli.values import parse_scale, parse_size, parse_timing
from guidon.core.errors import InputError


def test_a_scale_is_one_number_or_one_per_channel():
    assert parse_scale(None) is None
    assert parse_scale("4") == 4
    assert parse_scale("4,4,4,1.5") == (4, 4, 4, 1.5)


def test_a_size_is_given_whole():
    assert parse_size(None, None, None) is None
    assert parse_size("768x1344", None, None) == (768, 1344)
    assert parse_size("48X80", None, None) == (48, 80)
    assert parse_size(None, 48, 80) == (48, 80)


def test_when_to_guide():
    assert parse_timing(None) is None
    assert parse_timing("0,0.5") == "interval:0,0.5"
    assert parse_timing(None, "cosine") == "cosine"
    assert parse_timing(None, "exponential:0.7") == "exponential:0.7"
    assert parse_timing(None, None, 10) == "oscillation:10"


@pytest.mark.parametrize(
    ("parse", "values", "message"),
    [
        (parse_scale, ["big"], "cfg_scale 'big' is not a number"),
        (parse_scale, ["4,"], "nor one number per channel such as 4,4,4,1"),
        (parse_size, ["768", None, None], "size '768' is not a size: give HEIGHTxWIDTH"),
        (parse_size, ["-1x2", None, None], "is not a size"),
        (parse_size, [None, 48, None], "height and width belong together, and width was not given"),
        (parse_size, [None, None, 80], "height was not given: give both"),
        (parse_size, ["48x80", 48, None], "size says the same as height and width: give one or the other"),
        (parse_timing, ["0,1", "linear", None], "all say when to guide: choose one"),
        (parse_timing, [None, "lineal", None], "ramp 'lineal' does not exist .did you mean 'linear'"),
    ],
)
def test_what_cannot_be_read_is_refused(parse, values, message):
    with pytest.raises(InputError, match=message):
        parse(*values)
