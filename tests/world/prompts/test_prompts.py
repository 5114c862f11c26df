import re
import string
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guidon import world
from guidon.world.prompts import lexicon

READ = world.PromptReader()
WHITE = "on a white background"

# prompt -> what the model is asked for, in the words of a caption
UNDERSTOOD = {
    f"a red circle moves left {WHITE}": None,
    "A small crimson ball drifts leftwards slowly, white background": None,
    "RED CIRCLE, MOVING LEFT, ON A WHITE BACKGROUND!": None,
    "red circle left white": None,
    "red_circle_moves_left_on_a_white_background": None,
    "a red-circle moves-left on a white-background": None,
    "the circle is red and moves left. the background is white.": None,
    "a red circle. The circle moves left. The background is white.": None,
    f"a red circle moves up and to the left {WHITE}": None,
    f"a red circle is not moving {WHITE}": None,
    f"a red circle stays {WHITE}": None,
    f"red red red circle moves left {WHITE}": None,
    f"a red circle moves left {WHITE} {WHITE}": None,
    f"one red circle moves left {WHITE}": f"a red circle moves left {WHITE}",
    f"1 red circle moves left {WHITE}": f"a red circle moves left {WHITE}",
    f"a ｒｅｄ circle moves left {WHITE}": f"a red circle moves left {WHITE}",
    f"a red circle doesn’t move {WHITE}": f"a red circle stays still {WHITE}",
    f"a red circle isn't moving {WHITE}": f"a red circle stays still {WHITE}",
    f"a red circle never moves {WHITE}": f"a red circle stays still {WHITE}",
    f"a red circle without any motion {WHITE}": f"a red circle stays still {WHITE}",
    f"a red circle sits {WHITE}": f"a red circle stays still {WHITE}",
    f"a static red circle {WHITE}": f"a red circle stays still {WHITE}",
    f"a red circle moves from left to right {WHITE}": f"a red circle moves right {WHITE}",
    f"a red circle moves left to right {WHITE}": f"a red circle moves right {WHITE}",
    f"a red circle moves from the top to the bottom {WHITE}": f"a red circle moves down {WHITE}",
    f"a red circle moves to the top left {WHITE}": f"a red circle moves up and to the left {WHITE}",
    f"a red circle comes in from the right {WHITE}": f"a red circle moves left {WHITE}",
    f"a red circle falls from above {WHITE}": f"a red circle moves down {WHITE}",
    f"a red circle crosses the screen to the right {WHITE}": f"a red circle moves right {WHITE}",
    f"a red circle moves in the left direction {WHITE}": f"a red circle moves left {WHITE}",
    "a blue ball flying up on black": "a blue circle moves up on a black background",
    "a red sphere rolls left on white": f"a red circle moves left {WHITE}",
    f"a cube runs quickly to the right, green, {WHITE}": f"a green square moves right quickly {WHITE}",
    f"a round red object moves left {WHITE}": f"a red circle moves left {WHITE}",
    f"a red cross-shaped thing moves left {WHITE}": f"a red cross moves left {WHITE}",
    f"an enormous red circle moves left {WHITE}": f"a large red circle moves left {WHITE}",
    "a red circle rises slowly on a gray wall": "a red circle moves up slowly on a gray background",
    f"a red circle falls down {WHITE}": f"a red circle moves down {WHITE}",
    "please draw a big green triangle which falls on a gray wall": "a large green triangle moves down on a gray background",
    f"a photo of a red circle moving left {WHITE}": f"a red circle moves left {WHITE}",
    "I want to see a red circle moving left on white": f"a red circle moves left {WHITE}",
}

# prompt -> the key phrase of the warning
WARNED = {
    "a red circle": "it says no motion or background, so the model chooses; add for example 'moves left', 'on a white",
    "a red circle moves left": "it says no background",
    "red": "it says no shape, motion or background",
    "circle": "it says no colour, motion or background",
    "something red moves left on white": "it says no shape",
    f"red circles move left {WHITE}": "'circles' is read as one object",
    f"a shiny red circle moves left happily {WHITE}": "unknown words 'shiny', 'happily'",
    f"a dark red circle moves left {WHITE}": "unknown word 'dark'",
    f"a navy blue circle moves left {WHITE}": "unknown word 'navy' (nearest: blue)",
    f"a medium red circle moves left {WHITE}": "unknown word 'medium' (nearest: small, large)",
    f"a red circle moves left {WHITE} for 3 seconds": "unknown word '3 seconds'",
    f"(red:1.5) circle moves left {WHITE}": "unknown word '1.5'",
    f"a 3d red cube moves left {WHITE}": "unknown word '3d'",
    f"a red circle 🐱 moves left {WHITE}": "unknown word '🐱'",
    f"a red circle 猫 moves left {WHITE}": "unknown word '猫'",
    "a red ball on the beach": "unknown word 'beach'; it says no motion or background",
    "a red circle on the left of a white background": "'on the left' is a place, which cannot be chosen; it says no motion",
    f"a red circle at the top moves down {WHITE}": "'at the top' is a place",
    f"a red circle moves diagonally {WHITE}": "it says 'diagonally', but not which way: say for example 'moves up and",
    "a red circle with a diagonal motion": "'diagonal', but not which way: say for example 'moves up and to the left'; it says no b",
    f"a red triangle pointing up moves left {WHITE}": "unknown word 'pointing'",
    f"an upside down red triangle moves left {WHITE}": "unknown word 'upside down'",
    f"a red circle spins and moves left {WHITE}": "unknown word 'spins'",
    f"a red circle jumps up {WHITE}": "unknown word 'jumps' (nearest: up)",
    "a red circle moves left on a white backgroung": "unknown word 'backgroung' (nearest: background)",
    f"a doodle of a red circle moves left {WHITE}": "unknown word 'doodle'",
}

# prompt -> the key phrase of the refusal
REFUSED = {
    "": "the prompt '' is empty: describe a scene",
    "  !? ": "is empty",
    "a cat playing piano": "unknown words 'cat', 'playing', 'piano'. It knows shapes: circle, square, triangle, cross; colours",
    f"a red cat moves left {WHITE}": "unknown word 'cat'. It knows shapes: circle, square, triangle, cross",
    f"a red wombat moves left {WHITE}": "unknown word 'wombat'. It knows shapes: circle",
    "🐱": "unknown word '🐱'. It knows shapes",
    "猫在弹钢琴": "unknown word '猫在弹钢琴'",
    "красный круг": "unknown words 'красный', 'круг'",
    "ein roter Kreis bewegt sich nach links": "'sich' and 2 more",
    f"a pink circle moves left {WHITE}": "unknown word 'pink' (nearest: purple, red). It knows colours: purple, red, green",
    f"an orange circle moves left {WHITE}": "unknown word 'orange' (nearest: red, yellow)",
    f"a red cirlce moves left {WHITE}": "unknown word 'cirlce' (nearest: circle). It knows shapes: circle",
    f"a red rectangle moves left {WHITE}": "unknown word 'rectangle' (nearest: square). It knows shapes: square, circle",
    f"a red star moves left {WHITE}": "unknown word 'star' (nearest: cross)",
    f"a red circle moves northwards {WHITE}": "unknown word 'northwards' (nearest: up). It knows motions: moves up, left",
    f"a red circle stops {WHITE}": "unknown word 'stops' (nearest: still). It knows motions: stays still; moves left",
    f"a red circle bounces {WHITE}": "unknown word 'bounces'. It knows motions",
    f"a red square moves in a circle {WHITE}": "unknown word 'in a circle'. It knows motions",
    "a red circle moves left on a pink background": "unknown word 'pink'. It knows backgrounds: white, black, gray, brown",
    "a white circle moves left on a black background": "an object cannot be white. It knows colours",
    "a red circle moves left on a blue background": "a background cannot be blue. It knows backgrounds",
    "two circles": "'two circles' asks for another number of objects, and the model draws one. Say what one object",
    "3 squares": "'3 squares' asks for another number",
    "a group of red circles": "'group of red circles' asks for another number",
    "a red circle and a blue square": "'a blue square' is a second object",
    "a red circle and a blue circle": "'a blue circle' is a second object",
    "the red circle and the blue circle": "'the blue circle' is a second object",
    "a red circle and circle": "'circle' is a second object",
    "a red circle above a blue square": "'a blue square' is a second object",
    f"a red circle moves left while a blue square moves right {WHITE}": "'a blue square' is a second object",
    "a red circle and a dog": "'a dog' is a second object",
    "a cat and a red circle": "'a red circle' is a second object",
    "a circle moves left, another moves right": "'another' is a second object",
    "a red circle does not move left": "'does not move left' is a negation",
    "a red circle does not move to the left": "'does not move to the left' is a negation",
    f"a red circle is not still {WHITE}": "'is not still' is a negation",
    "no circle": "'no circle' is a negation",
    "a circle that isn't red": "'is not red' is a negation",
    "a red circle without a background": "'without a background' is a negation",
    "a red blue circle square moves left right up": "circle and square exclude each other; red and blue exclude each other; left and right",
    f"a red and blue circle moves left {WHITE}": "red and blue exclude each other",
    "a red circle moves left on a white and black background": "white and black exclude each other",
    f"a red circle moves up and down {WHITE}": "up and down exclude each other",
    f"a still red circle moves left {WHITE}": "still and moves left exclude each other",
    f"a small large red circle moves left {WHITE}": "small and large exclude each other",
    f"a red circle moves slowly and quickly left {WHITE}": "slowly and quickly exclude each other",
    f"a red circle stays still quickly {WHITE}": "still and quickly exclude each other",
    f"a red circle moves left then up {WHITE}": "'then up' asks for one motion after another",
    f"moves left {WHITE}": "it names no shape or colour. It knows shapes",
    "a white background": "it names no shape or colour",
    "a": "it names no shape or colour",
    f"a red circle moves left {WHITE} " * 3: "is a second object, and the model draws one; it has 27 known words, and the model reads 20",
    "a " * 30 + "red circle": "the prompt has 32 known words, this model reads 20: shorten",
}  # fmt: skip


def test_the_table_is_large_enough():
    assert len(UNDERSTOOD) + len(WARNED) + len(REFUSED) > 100


@pytest.mark.parametrize("prompt", UNDERSTOOD)
def test_understood_prompts_are_followed_without_a_word(prompt):
    found, meant = READ(prompt), UNDERSTOOD[prompt]
    assert found.faults == ()
    assert (found.refusal, found.warning) == (None, None)
    assert found.read_as == (meant or prompt)
    if meant:
        assert found.asks == READ(meant).asks == world.read_caption(meant)


@pytest.mark.parametrize("prompt", WARNED)
def test_prompts_followed_in_part_are_warned_of_by_what_is_left_out(prompt):
    found = READ(prompt)
    assert found.refusal is None
    assert WARNED[prompt] in found.warning
    assert found.warning.startswith("the prompt ")
    assert "\n" not in found.warning
    assert READ(found.read_as).read_as == found.read_as  # the model is given what it reads


@pytest.mark.parametrize("prompt", REFUSED)
def test_prompts_that_cannot_be_followed_are_refused_by_what_is_wrong(prompt):
    found = READ(prompt)
    assert REFUSED[prompt] in found.refusal
    assert "\n" not in found.refusal
    assert len(found.refusal) < 550


@pytest.mark.parametrize("split", world.SPLITS)
def test_captions_are_followed_as_they_are(split):
    for index in range(0, 3500, 25):
        seen, held_out = (world.clip(split, 11, index, held_out_templates=held_out) for held_out in (False, True))
        for text in (seen.caption, held_out.caption, world.plain_caption(seen.scene)):
            found = READ(text)
            assert (found.faults, found.read_as) == ((), text), text
            assert found.asks == world.read_caption(text), text


@given(st.lists(st.sampled_from(sorted(world.vocabulary())), min_size=1, max_size=12))
def test_known_words_are_given_to_the_model_as_they_were(words):
    text = " ".join(words)
    rewritten = any(re.search(rf"(?<!\S)(?:{phrase})(?!\S)", text) for phrase, _ in lexicon.PHRASES)
    assert READ(text).read_as == text or rewritten


@given(st.one_of(st.text(max_size=80), st.text(string.ascii_lowercase + " '.-1", max_size=120)))
def test_any_text_is_read_and_what_is_wrong_with_it_is_one_printable_line(text):
    for found in (READ(text), READ.negative(text)):
        for message in (found.refusal, found.warning):
            assert message is None or len(message.splitlines()) == 1
            assert message is None or len(message) < 1000
        assert found.refusal is not None or found.can_be_sampled or found.warning is None
        spelled = re.findall(r"[^\W_]+", found.read_as.lower())
        assert found.read_as == text or all(word in READ.words for word in spelled)


def test_symbols_and_letters_of_any_script_are_words_and_not_empty():
    for text in ("→", "🔴⬅️", "❤️", "م", "हिन्दी", "ñ"):
        found = READ(text)
        assert "is empty" not in found.refusal
        assert not found.can_be_sampled
        assert any(unicodedata.category(letter)[0] in "LNMS" for letter in text)


def test_a_long_prompt_is_repeated_cut():
    refusal = READ("a cat " + "and a very long story about it " * 40).refusal
    assert "'a cat and a very long story about it and a very long story …'" in refusal
    assert "unknown word 'cat'" in refusal
    assert "x" * 100 not in READ("x" * 5000).refusal


def test_negative_prompts_may_name_anything_but_unknown_words():
    for text in ("a circle", "circle, square, red, blue", "not red", "two circles", "left right"):
        assert READ.negative(text).faults == ()
    assert READ.negative("squares, cats").warning.endswith("unknown word 'cats'")
    assert READ.negative("squares, cats").read_as == "square"
    assert "unknown word 'qwerty'" in READ.negative("qwerty").refusal
    assert "is empty" in READ.negative("").refusal


def test_a_model_of_fewer_words_offers_only_its_own():
    few = {word: meaning for word, meaning in world.vocabulary().items() if meaning not in ("purple", "cross", "brown")}
    read = world.PromptReader(few, 8)
    assert "colours: red, green, blue, yellow, cyan;" in read("a cat").refusal
    assert "unknown word 'purple'" in read("a purple circle moves left").refusal
    assert "(nearest: red)" in read("a pink circle moves left").refusal
    assert "this model reads 8" in read("a red circle moves left on the white background in the video").refusal
    no_backgrounds = {word: meaning for word, meaning in few.items() if meaning not in world.BACKGROUNDS}
    assert world.PromptReader(no_backgrounds)("a red circle moves left").faults == ()


def test_what_may_be_said_is_described_with_synonyms():
    found = READ.describe()
    assert list(found) == ["sizes", "colours", "shapes", "motions", "directions", "speeds", "backgrounds"]
    assert found["shapes"].startswith("circle (ball, disk, disc, dot, sphere")
    assert found["backgrounds"] == "white; black; gray (grey); brown"


# word -> its nearest words, in a prompt that is else complete
NEAREST = {
    "a red {} moves left on a white background": dict.fromkeys(
        ("heart", "flower", "butterfly", "robot", "leaf", "cloud", "man", "cat", "bell"), ()
    ) | {"hexagon": ("circle",), "ring": ("circle",), "oval": ("circle",), "diamond": ("square",), "star": ("cross",)},
    "a {} circle moves left on a white background": dict.fromkeys(
        ("transparent", "silver", "striped", "chrome", "rainbow"), ()
    ) | {"gold": ("yellow",), "beige": ("yellow",), "maroon": ("red",), "mustard": ("yellow",), "khaki": ()},
    "a red circle moves left on a {} background": {
        "transparent": (), "gradient": (), "silver": ("gray", "white"), "beige": ("white", "brown"), "pink": (),
    },
    "a red circle {} on a white background": {
        "dives": ("down",), "soars": ("up",), "loops": (), "slows down": (), "sleeps": ("still",), "moves forward": (),
    },
}  # fmt: skip


@pytest.mark.parametrize(("prompt", "word"), [(prompt, word) for prompt, words in NEAREST.items() for word in words])
def test_a_word_that_shows_something_else_is_not_offered_as_near(prompt, word):
    found = READ(prompt.format(word))
    unknown = [fault for fault in found.faults if fault.kind == "unknown"]
    assert found.refusal is not None
    assert [fault.nearest for fault in unknown] == [NEAREST[prompt][word]]


def test_the_lexicon_has_no_word_of_captions_and_every_near_word_exists():
    known = world.vocabulary()
    for word, (attribute, near) in lexicon.nearest_meanings().items():
        assert word not in known, word
        for value in near:
            assert all(part in known for part in value.split()), (word, attribute, value)
    for meaning in lexicon.meanings().values():
        assert all(part in known for part in meaning.split())
