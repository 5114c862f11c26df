from hypothesis import given
from hypothesis import strategies as st

from guidon import world
from guidon.world.prompts.spelling import edits, intended

KNOWN = [word for word in world.vocabulary() if len(word) > 2]


def test_slips_are_read_as_what_was_meant():
    slips = "cirlce backgroung sqaure sqare tirangle trianlge traingle yelow purpel bluuue redd rde gren whtie blakc"
    meant = "circle background square square triangle triangle triangle yellow purple blue red red green white black"
    assert [intended(slip, KNOWN) for slip in slips.split()] == meant.split()


def test_words_of_their_own_are_no_slips():
    words = "tear tell bell bill leaf done read more purpose trial blocking download results boss robot lock"
    assert {intended(word, KNOWN) for word in words.split()} == {None}


@given(st.text("abcd", max_size=7), st.text("abcd", max_size=7))
def test_edits_are_a_distance_and_a_swap_is_one(first, second):
    assert edits(first, second) == edits(second, first) >= abs(len(first) - len(second))
    assert (edits(first, second) == 0) == (first == second)
    assert edits("ab" + first, "ba" + first) == 1
    assert edits(first + "x", first) == 1
