"""Settings and numbers in words."""

import math

import pytest

from guidon.metrics.statistics import Interval
from guidon.studies.words import (
    list_choices,
    spell_channels,
    spell_count,
    spell_settings,
    spell_timing,
    tell_apart,
    write_change,
    write_interval,
    write_p,
    write_value,
)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("1", "first channel"),
        ("3", "first 3 channels"),
        ("only:1", "channel 1 alone"),
        ("all", "all channels"),
        ("none", "no channel"),
        ("0,2", "channels 0 and 2"),
        ("0,1,2,3", "channels 0 to 3"),
        ("0,1,3", "channels 0, 1 and 3"),
    ],
)
def test_channels_in_words(given, words):
    assert spell_channels(given) == words


def names(**channels):
    settings = {name: {"cfg_channels": chosen} for name, chosen in channels.items()}
    return list(spell_settings(settings).values())


def test_a_count_and_an_index_are_not_confused():
    given = {"scale 2, channels 1": "1", "scale 2, channels only:1": "only:1", "channels 2": "only:2"}
    assert names(**given) == ["scale 2, first channel", "scale 2, channel 1 alone", "channel 2 alone"]
    assert names(**{"only: scale 2, channels only:0": "only:0"}) == ["only: scale 2, channel 0 alone"]


def test_a_name_that_a_user_chose_stays():
    for name in ("three channels best", "channels 2", "channels of mine", "no guidance", ""):
        assert names(**{name: "all"}) == [name]
    assert names(**{"channels 3": "3", "first 3 channels": "3"}) == ["channels 3", "first 3 channels"]


def test_names_are_told_apart_by_what_they_do_not_share():
    assert tell_apart(["scale 2", "all channels"], ["scale 2", "first channel"]) == ("all channels", "first channel")
    assert tell_apart(["all"], ["all", "strong"]) == ("all", "all, strong")


@pytest.mark.parametrize(
    ("a", "b", "told"),
    [
        (
            ("scale 2, channels 0,1,3", {"cfg_channels": "0,1,3"}),
            ("scale 2, channels 0,2,3", {"cfg_channels": "0,2,3"}),
            ("channels 0, 1 and 3", "channels 0, 2 and 3"),
        ),
        (  # as the studio writes it
            ("scale 2 on channels 0, 1 and 3, ddim", {"cfg_channels": "0,1,3"}),
            ("scale 2 on channels 0, 2 and 3, ddim", {"cfg_channels": "0,2,3"}),
            ("scale 2 on channels 0, 1 and 3", "scale 2 on channels 0, 2 and 3"),
        ),
        (
            ("scales 3, 3, 3, 1, 25 steps", {"cfg_scale": [3.0, 3.0, 3.0, 1.0]}),
            ("scales 3, 3, 3, 5, 25 steps", {"cfg_scale": [3.0, 3.0, 3.0, 5.0]}),
            ("scales 3, 3, 3, 1", "scales 3, 3, 3, 5"),
        ),
        (
            ("scale 3, negative blurry, red", {"negative_prompt": "blurry, red"}),
            ("scale 3, negative sharp, red", {"negative_prompt": "sharp, red"}),
            ("negative blurry, red", "negative sharp, red"),
        ),
        (
            (f"ddim, not “a, {'b' * 37}”", {"negative_prompt": f"a, {'b' * 50}"}),
            (f"ddim, not “c, {'b' * 37}”", {"negative_prompt": f"c, {'b' * 50}"}),
            (f"not “a, {'b' * 37}”", f"not “c, {'b' * 37}”"),
        ),
        (
            ("energy of scale 2, ddim, channels 1", {"energy_of": "scale 2, ddim", "cfg_channels": "1"}),
            ("energy of scale 3, ddim, channels 1", {"energy_of": "scale 3, ddim", "cfg_channels": "1"}),
            ("energy of scale 2, ddim", "energy of scale 3, ddim"),
        ),
    ],
)
def test_a_comma_within_one_choice_divides_no_name(a, b, told):
    choices = list_choices(dict([a, b]))
    assert tell_apart(*choices.values()) == told


def test_timings_in_words():
    said = [spell_timing(timing) for timing in ("constant", "interval:0,0.5", "oscillation:10")]
    assert said == ["guided at every step", "guided from 0% to 50% of sampling", "timing oscillation:10"]


def test_numbers_in_words():
    assert [spell_count(n, "prompt") for n in (1, 12, 13)] == ["One prompt", "Twelve prompts", "13 prompts"]
    assert [write_value(v, "share") for v in (0.0156, 0.916, 1, 0, 0.0001)] == [
        "1.6%",
        "92%",
        "100%",
        "0%",
        "under 0.1%",
    ]
    assert [write_value(v, "px") for v in (0.0156, 9.4e-15, 1e308, math.nan, 0)] == [
        "0.0156", "about 0", "1e+308", "undefined", "0",
    ]  # fmt: skip
    assert write_interval(Interval(0.0156, -0.031, 0.0629), "share") == "+1.6 points [-3.1, +6.3]"
    assert write_interval(Interval(-0.25, -0.5, 0), "px") == "-0.25 px [-0.5, 0]"
    assert write_interval(Interval(-0.333, -0.5834, 0.083), "share") == "-33 points [-58, +8]"
    assert write_interval(Interval(2e-9, -9.42e-5, 9.46e-5), "px") == "0 px [-0.0000942, +0.0000946]"
    assert write_interval(Interval(1e308, -1e300, math.nan), "px") == "+1e+308 px [-1e+300, undefined]"
    assert [write_change(v, "share") for v in (-0.916, 0.0156, 0.0003, 0)] == ["-92", "+1.6", "+0.03", "0"]
    assert [write_p(p) for p in (0.0312, 0.0004, 1)] == ["p = 0.031", "p < 0.001", "p = 1"]
