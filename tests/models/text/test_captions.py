import warnings

import pytest
import torch

from guidon import world
from guidon.core.errors import InputError
from guidon.models.text.captions import CaptionEncoder, CaptionEncoderConfig, WordTokenizer

TOKENS = WordTokenizer(world.vocabulary(), 20)


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return CaptionEncoder(CaptionEncoderConfig(world.vocabulary(), features=16, layers=2, heads=2)).eval()


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("a red circle moves left", "A  crimson BALL, drifts leftwards!"),
        ("the cross is up-left", "the plus is up left"),
        ("gray", "grey"),
    ],
)
def test_synonyms_case_and_punctuation_do_not_matter(a, b):
    assert TOKENS(a) == TOKENS(b)


def test_different_words_and_orders_are_different():
    assert TOKENS("a red circle") != TOKENS("a blue circle")
    assert TOKENS("red circle and blue square") != TOKENS("blue circle and red square")


def test_every_caption_of_the_world_is_known_and_fits():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for split in world.SPLITS:
            for index in range(300):
                for held_out in (False, True):
                    assert TOKENS(world.clip(split, 0, index, held_out_templates=held_out).caption)


def test_unknown_words_are_left_out_and_named():
    with pytest.warns(UserWarning, match="left out of 'a red cirle elephant': 'cirle', 'elephant'"):
        assert TOKENS("a red cirle elephant") == TOKENS("a red")


@pytest.mark.parametrize(
    ("prompt", "message"), [("", "is empty"), ("  !? ", "is empty"), ("xyzzy", "no word"), ("red " * 30, "reads 20")]
)
def test_prompts_that_cannot_be_read_are_refused(prompt, message):
    with pytest.raises(InputError, match=message):
        TOKENS(prompt)


def test_features_and_masks_have_the_protocols_shape_and_ignore_batch_mates(encoder):
    features, mask = encoder.encode(["a red circle", "a blue square moves up on a black background"])
    assert features.shape == (2, 20, 16)
    assert mask.sum(1).tolist() == [3, 9]
    assert features[0, 3:].abs().max() == 0
    assert torch.equal(encoder.encode(["a red circle"])[0], features[:1])


def test_words_are_read_in_context(encoder):
    one, _ = encoder.encode(["red circle and blue square"])
    two, _ = encoder.encode(["blue circle and red square"])
    assert not torch.allclose(one[0, 1], two[0, 1], atol=1e-4)
