import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guidon.core.errors import InputError
from guidon.guidance import UNSET, ChannelChoice, ChannelScale, Guidance, cfg_channels_from, parse_channels

FORMS = [
    (3, (0, 1, 2), "3"), ("3", (0, 1, 2), "3"), (1, (0,), "1"), (4, (0, 1, 2, 3), "all"), ("all", (0, 1, 2, 3), "all"),
    (None, (0, 1, 2, 3), "all"), ("none", (), "none"), ([0, 2], (0, 2), "0,2"), ("0,2", (0, 2), "0,2"), ("0-2", (0, 1, 2), "3"),
    ("1-3", (1, 2, 3), "1,2,3"), ("only:3", (3,), "only:3"), ([3], (3,), "only:3"), ((2, 0), (0, 2), "0,2"), ("0,2-3", (0, 2, 3), "0,2,3"),
    (" ALL ", (0, 1, 2, 3), "all"),
]  # fmt: skip


@pytest.mark.parametrize(("given_", "guided", "text"), FORMS)
def test_every_form_of_a_choice_of_channels(given_, guided, text):
    scale = ChannelScale.parse(5.0, given_, channels=4)
    assert scale.guided == guided
    assert scale.text == text
    assert scale.scales == tuple(5.0 if c in guided else 1.0 for c in range(4))
    assert ChannelScale.parse(5.0, scale.text, channels=4) == scale


@pytest.mark.parametrize(("given_", "guided", "text"), FORMS)
def test_a_choice_is_read_before_it_is_known_how_many_channels_there_are(given_, guided, text):
    choice = ChannelChoice.parse(given_)
    assert choice.indices_for(4) == guided
    assert ChannelChoice.parse(choice.text) == choice
    assert ChannelChoice.parse(choice) is choice
    assert ChannelScale.parse(5.0, choice, channels=4).text == text
    assert parse_channels(choice, 4) == parse_channels(given_, 4) == guided


@pytest.mark.parametrize(
    ("given_", "text"),
    [
        (3, "3"), ("3", "3"), (16, "16"), ("all", "all"), (None, "all"), ("none", "none"), ([2, 0], "0,2"), ("0-2", "0,1,2"),
        ([3], "only:3"), ("only:3", "only:3"), (np.int64(2), "2"), (range(2), "0,1"), (np.array([1, 3]), "1,3"),
    ],
)  # fmt: skip
def test_the_text_of_a_choice(given_, text):
    assert ChannelChoice.parse(given_).text == text


@given(
    st.integers(1, 70) | st.sets(st.integers(0, 65535), min_size=1).map(sorted) | st.sampled_from(["all", "none", None])
)
def test_the_text_of_any_choice_is_read_back(given_):
    choice = ChannelChoice.parse(given_)
    assert ChannelChoice.parse(choice.text) == choice


@given(st.sets(st.integers(0, 15), min_size=1), st.integers(16, 20))
def test_a_choice_means_the_same_channels_of_every_model_that_has_them(indices, channels):
    assert ChannelChoice.parse(sorted(indices)).indices_for(channels) == tuple(sorted(indices))
    assert ChannelChoice.parse("all").indices_for(channels) == tuple(range(channels))
    assert ChannelChoice.parse(3).indices_for(channels) == (0, 1, 2)
    assert ChannelChoice.parse("none").indices_for(channels) == ()


BAD_FORMS = [0, -1, "0", "0,0", [1, 1], "4-2", "x", "", "0,", "only:x", [-1], [], "3.0", 3.0, True, [True], [0.5], "only:"]  # fmt: skip


@pytest.mark.parametrize("bad", [*BAD_FORMS, 5, "5", "only:4", [4], "0-4"])
def test_bad_choices_say_what_was_given_what_there_is_and_what_would_do(bad):
    with pytest.raises(InputError) as error:
        parse_channels(bad, 4)
    message = str(error.value)
    assert repr(bad) in message
    assert "4 latent channels" in message
    assert "'all'" in message
    assert "\n" not in message


@pytest.mark.parametrize("bad", BAD_FORMS)
def test_bad_choices_are_refused_before_it_is_known_how_many_channels_there_are(bad):
    for name, read in (("cfg_channels", ChannelChoice.parse), ("channels", lambda bad: Guidance(3, bad))):
        with pytest.raises(InputError) as error:
            read(bad)
        message = str(error.value)
        assert message.startswith(f"{name} {bad!r} ")
        assert "give a count such as 3, 'all', 'none', indices such as '0,2' or '0-2', or 'only:3'" in message
        assert "\n" not in message


@pytest.mark.parametrize(("given_", "shown", "why"), [
    (5, "5", "asks for more channels than the model has"), ("only:4", "only:4", "names channel 4, but they are numbered 0 to 3"),
    ("0,2-5", "0,2,3,4,5", "names channel 4, but they are numbered 0 to 3"),
])  # fmt: skip
def test_channels_that_a_model_does_not_have_are_refused_once_it_is_known(given_, shown, why):
    choice = ChannelChoice.parse(given_)
    guidance = Guidance(3, given_)
    for name, read in (
        ("cfg_channels", choice.indices_for), ("channels", guidance.scales_for), ("channels", guidance.resolved),
    ):  # fmt: skip
        with pytest.raises(InputError) as error:
            read(4)
        message = str(error.value)
        assert message.startswith(f"{name} {shown!r} {why}")
        assert "this model has 4 latent channels: give a count from 1 to 4, 'all', 'none'" in message


@pytest.mark.parametrize(
    "huge",
    ["0-99999999999", "0-65536", "5," * 3 + "0-4000000000", f"only:{10**12}", f"0-{'9' * 5000}", "9" * 5000, f"only:{'9' * 5000}"],
)  # fmt: skip
def test_huge_numbers_are_refused_before_they_are_listed(huge):
    """The indices of 65,537 channels take 5 MB."""
    tracemalloc.start()
    try:
        with pytest.raises(InputError):
            parse_channels(huge, 4)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 500_000


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
        [1, 2, 3, True],
    ],
)
def test_bad_scales_are_refused(bad):
    with pytest.raises(InputError, match="cfg_scale"):
        ChannelScale.parse(bad, "all", channels=4)


def test_two_scales_may_be_a_decimal_comma():
    with pytest.raises(InputError, match=r"give one number or 4 \(one and a half is written 1\.5\)$"):
        ChannelScale.parse([1, 5], channels=4)
    with pytest.raises(InputError, match=r"give one number or 4$"):
        ChannelScale.parse([1, 5, 5], channels=4)


def test_the_default_is_three_channels_or_all_of_fewer():
    assert ChannelScale.parse(4.0, channels=4).text == "3"
    assert ChannelScale.parse(4.0, channels=2).text == "all"
    assert ChannelScale.parse(4.0, channels=16).guided == (0, 1, 2)


def test_scales_per_channel_choose_their_channels():
    assert ChannelScale.parse([4, 3, 1, 2], channels=4).scales == (4, 3, 1, 2)
    assert ChannelScale.parse([4, 3, 2, 1], 3, channels=4).scales == (4, 3, 2, 1)
    for scale in (2, 0.5):
        with pytest.raises(InputError, match=f"channel 3 the scale {scale}"):
            ChannelScale.parse([4, 3, 1, scale], 3, channels=4)


def test_both_spellings_are_one_setting():
    assert cfg_channels_from({"cfg_channel": 2}) == 2
    assert cfg_channels_from({"cfg_channels": "all", "cfg_channel": "all"}) == "all"
    assert cfg_channels_from({}) is UNSET
    assert cfg_channels_from({"cfg_channel": None}) is None
    assert ChannelScale.parse(2.0, cfg_channels_from({}), channels=4).text == "3"
    with pytest.raises(InputError, match="one setting"):
        cfg_channels_from({"cfg_channels": 3, "cfg_channel": 4})


@given(st.sets(st.integers(0, 7)), st.floats(0, 20))
def test_text_round_trips_and_unguided_channels_have_scale_one(chosen, scale):
    parsed = ChannelScale.parse(scale, sorted(chosen) or "none", channels=8)
    assert ChannelScale.parse(scale, parsed.text, channels=8) == parsed
    assert all(parsed.scales[c] == 1 for c in range(8) if c not in chosen)
    assert parsed.is_identity == (not chosen or scale == 1)
    assert parsed.active() == (() if scale == 1 else tuple(sorted(chosen)))


def test_weighting_moves_scales_between_one_and_full():
    scale = ChannelScale.parse(5.0, 3, channels=4)
    assert scale.weighted(0).is_identity
    assert scale.weighted(0.5).scales == (3, 3, 3, 1)
    assert scale.weighted(1) is scale


def test_numbers_of_numpy_are_numbers():
    scale = ChannelScale.parse(np.float32(2), np.int64(3), channels=4)
    assert scale.scales == (2, 2, 2, 1)
    assert ChannelScale.parse(2.0, [np.int64(1)], channels=4).guided == (1,)
