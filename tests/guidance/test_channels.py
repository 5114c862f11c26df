import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guidon.core.errors import InputError
from guidon.guidance import ChannelScale, cfg_channels_from, parse_channels


@pytest.mark.parametrize(
    ("given_", "guided", "text"),
    [
        (3, (0, 1, 2), "3"), ("3", (0, 1, 2), "3"), (1, (0,), "1"), (4, (0, 1, 2, 3), "all"), ("all", (0, 1, 2, 3), "all"),
        (None, (0, 1, 2, 3), "all"), ("none", (), "none"), ([0, 2], (0, 2), "0,2"), ("0,2", (0, 2), "0,2"), ("0-2", (0, 1, 2), "3"),
        ("1-3", (1, 2, 3), "1,2,3"), ("only:3", (3,), "only:3"), ([3], (3,), "only:3"), ((2, 0), (0, 2), "0,2"), ("0,2-3", (0, 2, 3), "0,2,3"),
        (" ALL ", (0, 1, 2, 3), "all"),
    ],
)  # fmt: skip
def test_every_form_of_a_choice_of_channels(given_, guided, text):
    scale = ChannelScale.parse(5.0, given_, channels=4)
    assert scale.guided == guided
    assert scale.text == text
    assert scale.scales == tuple(5.0 if c in guided else 1.0 for c in range(4))
    assert ChannelScale.parse(5.0, scale.text, channels=4) == scale


@pytest.mark.parametrize(
    "bad",
    [
        5,
        0,
        -1,
        "5",
        "0",
        "0,0",
        [1, 1],
        "4-2",
        "x",
        "",
        "0,",
        "only:4",
        "only:x",
        [4],
        [-1],
        [],
        "0-4",
        "3.0",
        3.0,
        True,
        [True],
        [0.5],
        "only:",
    ],
)
def test_bad_choices_say_what_was_given_what_there_is_and_what_would_do(bad):
    with pytest.raises(InputError) as error:
        parse_channels(bad, 4)
    message = str(error.value)
    assert repr(bad) in message
    assert "4 latent channels" in message
    assert "'all'" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "bad",
    [
        math.nan,
        math.inf,
        -math.inf,
        -0.5,
        "4",
        True,
        None,
        [1, 2],
        [1, 2, 3, 4, 5],
        [1, 2, 3, math.nan],
        [1, 2, 3, "4"],
    ],
)
def test_bad_scales_are_refused(bad):
    with pytest.raises(InputError, match="cfg_scale"):
        ChannelScale.parse(bad, "all", channels=4)


def test_the_default_is_three_channels_or_all_of_fewer():
    assert ChannelScale.parse(4.0, channels=4).text == "3"
    assert ChannelScale.parse(4.0, channels=2).text == "all"
    assert ChannelScale.parse(4.0, channels=16).guided == (0, 1, 2)


def test_scales_per_channel_choose_their_channels():
    assert ChannelScale.parse([4, 3, 1, 2], channels=4).scales == (4, 3, 1, 2)
    assert ChannelScale.parse([4, 3, 2, 1], 3, channels=4).scales == (4, 3, 2, 1)
    with pytest.raises(InputError, match="channel 3 the scale 2"):
        ChannelScale.parse([4, 3, 1, 2], 3, channels=4)


def test_both_spellings_are_one_setting():
    assert cfg_channels_from({"cfg_channel": 2}) == 2
    assert cfg_channels_from({"cfg_channels": "all", "cfg_channel": "all"}) == "all"
    assert ChannelScale.parse(2.0, cfg_channels_from({}), channels=4).text == "3"
    with pytest.raises(InputError, match="one setting"):
        cfg_channels_from({"cfg_channels": 3, "cfg_channel": 4})


@given(st.sets(st.integers(0, 7)), st.floats(0, 20))
def test_text_round_trips_and_unguided_channels_have_scale_one(chosen, scale):
    parsed = ChannelScale.parse(scale, sorted(chosen) or "none", channels=8)
    assert ChannelScale.parse(scale, parsed.text, channels=8) == parsed
    assert all(parsed.scales[c] == 1 for c in range(8) if c not in chosen)
    assert parsed.is_identity == (not chosen or scale == 1)


def test_weighting_moves_scales_between_one_and_full():
    scale = ChannelScale.parse(5.0, 3, channels=4)
    assert scale.weighted(0).is_identity
    assert scale.weighted(0.5).scales == (3, 3, 3, 1)
    assert scale.weighted(1) is scale


def test_numbers_of_numpy_are_numbers():
    import numpy as np

    scale = ChannelScale.parse(np.float32(2), np.int64(3), channels=4)
    assert scale.scales == (2, 2, 2, 1)
    assert ChannelScale.parse(2.0, [np.int64(1)], channels=4).guided == (1,)
