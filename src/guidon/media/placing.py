"""Where frames of a reference go in a clip, and which text is shown when, in the grammar of Open-Sora.

A strategy is a text such as ``"0,0,0,0,1,0;0,1,0,-1"``: placements joined by ``;``, each up to six numbers. It needs no
torch. Frames are frames of latents, which are frames of the video where an autoencoder does not shorten it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace

from ..core.errors import InputError, nearest, quoted, setting

GRAMMAR = "loop,reference,start in the reference,start in the clip,length,edit"
CONDITION_FRAMES = 4
"""Frames that a clip takes from the one before it, where nobody chooses; more where the autoencoder needs more."""
EDIT_STRENGTH = 0.7
"""How much of the sampling edits a video, where nobody chooses."""
JSON_KEYS = ("reference_path", "mask_strategy")
"""Keys of the JSON that a prompt may end in."""
_DIGITS = 9  # of a whole number; no clip has more frames


@dataclass(frozen=True)
class Placement:
    """Frames of a reference that take the place of noise in a clip."""

    loop: int = 0
    """The clip that they are for: 0 is the first, further ones extend it."""
    reference: int = 0
    """The number of the reference."""
    start: int = 0
    """Their first frame in the reference; a negative number counts from its end."""
    target: int = 0
    """Their first frame in the clip; a negative number counts from its end."""
    length: int = 1
    """How many frames there are. It is cut where the reference or the clip ends."""
    edit: float = 0.0
    """How much of the sampling edits them: 0 keeps them, 1 makes them anew."""

    def __str__(self) -> str:
        return ",".join(f"{value:g}" if isinstance(value, float) else str(value) for value in astuple(self))

    def among(self, references: int) -> Placement:
        """The same placement, with the number of its reference counted from the beginning.

        Args:
            references: how many references there are.

        Raises:
            InputError: its reference is none of them.
        """
        if not -references <= self.reference < references:
            raise InputError(
                f"{setting('mask_strategy')} '{self}' names reference {self.reference}, and "
                f"{numbered('reference', references)}: give another {setting('reference')}"
            )
        return replace(self, reference=self.reference % references)

    def within(self, reference: int, frames: int, align: int | None = None, *, cut: bool = True) -> Placement:
        """The same placement in frames that there are, all of its numbers counted from the beginning.

        Args:
            reference: frames of the reference.
            frames: frames of the clip.
            align: starts are moved to multiples of it: frames that the autoencoder decodes together.
            cut: shorten it to what fits, as Open-Sora 1.2 does. False is 1.1's way: the last frame of a reference is
                repeated if the placement begins there, and other placements must fit.

        Raises:
            InputError: it begins outside the reference or the clip, or is longer than ``cut`` allows.
        """
        found: list[int] = []
        for what, start, have in (
            ("reference", self.start, reference), ("clip", self.target, frames),
        ):  # fmt: skip
            first = start + have if start < 0 else start
            if not 0 <= first < have:
                raise InputError(
                    f"{setting('mask_strategy')} '{self}' begins at frame {start} of a {what} of {have}: give "
                    f"{-have} to {have - 1}"
                )
            found.append(first if align is None else nearest_multiple(first, align, have))
        start, target = found
        # what Python's slices of both hold; they must be equally long, unless they are cut to be
        in_reference, in_clip = min(self.length, reference - start), min(self.length, frames - target)
        if not cut and in_reference == 1:  # 1.1 repeats a picture
            return Placement(self.loop, self.reference, start, target, in_clip, self.edit)
        if not cut and in_reference != in_clip:
            raise InputError(
                f"{setting('mask_strategy')} '{self}' asks for {in_clip} frames, the reference has {in_reference} from "
                f"there: give that length"
            )
        return Placement(self.loop, self.reference, start, target, min(in_reference, in_clip), self.edit)


def numbered(what: str, count: int) -> str:
    """Which numbers there are of things that are counted from 0."""
    if count == 1:
        return f"there is only {what} 0"
    return f"{what}s are numbered 0 to {count - 1}" if count else f"there is no {what}"


def parse_placements(strategy: str) -> tuple[Placement, ...]:
    """The placements of a strategy; an empty text holds none. Numbers that are left out are those of ``Placement()``.

    Raises:
        InputError: a placement has no number or more than six, or one of them is none or out of its range.
    """
    if not isinstance(strategy, str):
        raise InputError(f"{setting('mask_strategy')} is {quoted(strategy)}: give a text such as '0,0,0,0,1,0'")
    return tuple(_parse(part, strategy) for part in strategy.split(";")) if strategy.strip() else ()


def _parse(text: str, strategy: str) -> Placement:
    name = setting("mask_strategy")
    within = "" if text == strategy else f" in {quoted(strategy)}"
    parts = text.split(",")
    if not text.strip() or len(parts) > 6:
        count = f"{len(parts)} numbers" if text.strip() else "no number"
        raise InputError(f"{name} {quoted(text)}{within} has {count}: give one to six: {GRAMMAR}")
    whole = [_read_whole(part, text, within) for part in parts[:5]]
    if whole[0] < 0:
        raise InputError(f"{name} {quoted(text)}{within} is for loop {whole[0]}: the first loop is 0")
    if len(whole) == 5 and whole[4] < 1:
        raise InputError(f"{name} {quoted(text)}{within} has the length {whole[4]}: give at least 1")
    return Placement(*whole, *(_read_edit(part, text, within) for part in parts[5:]))


def _read_whole(part: str, text: str, within: str) -> int:
    digits = part.strip().removeprefix("-")
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= _DIGITS):
        raise InputError(
            f"{setting('mask_strategy')} {quoted(text)}{within} holds {quoted(part)}: give whole numbers, and only for "
            f"the edit one from 0 to 1: {GRAMMAR}"
        )
    return int(part)


def _read_edit(part: str, text: str, within: str) -> float:
    try:
        edit = float(part)
    except ValueError:
        edit = math.nan
    if not 0 <= edit <= 1:
        raise InputError(
            f"{setting('mask_strategy')} {quoted(text)}{within} has the edit {quoted(part)}: give a number from 0, "
            "which keeps the frames, to 1, which makes them anew"
        )
    return edit


def place_all(
    placements: Sequence[Placement], loop: int, references: Sequence[int], frames: int, align: int | None = None,
    *, cut: bool = True,
) -> list[Placement]:  # fmt: skip
    """The placements of one loop, in frames that there are; see ``Placement.within``.

    Args:
        placements: those of all loops.
        loop: which clip.
        references: how many frames each reference has.
        frames: frames of the clip.
        align, cut: as in ``Placement.within``.

    Raises:
        InputError: one names a reference that does not exist, or does not fit.
    """
    found: list[Placement] = []
    for each in placements:
        if each.loop != loop:
            continue
        own = each.among(len(references))
        found.append(own.within(references[own.reference], frames, align, cut=cut))
    return found


def nearest_multiple(value: int, unit: int, end: int) -> int:
    """The multiple of ``unit`` that is nearest to ``value``, of those at which a whole unit begins before ``end``.

    A value in the middle goes down. Past the last whole unit, every value goes down.
    """
    count = value // unit
    if value % unit > unit / 2 and count < end // unit - 1:
        count += 1
    return count * unit


def texts_of_loops(prompt: str) -> tuple[tuple[int, str], ...]:
    """The texts of a prompt such as ``"|0|a cat|2|a dog"``, each with its first loop; of other prompts, the prompt.

    Raises:
        InputError: the numbers between the bars are none, or do not grow.
    """
    if not prompt.startswith("|0|"):
        return ((0, prompt),)
    numbers, texts = (prompt.split("|")[first::2] for first in (1, 2))
    if len(numbers) != len(texts) or not all(number.strip().isdecimal() and len(number) < 10 for number in numbers):
        raise InputError(
            f"the prompt {quoted(prompt)} does not give loops and texts in turn: write |0|a cat|2|a dog, and no other |"
        )
    starts = [int(number) for number in numbers]
    if starts != sorted(set(starts)):
        raise InputError(f"the loops of the prompt {quoted(prompt)} do not grow: begin each text at a later loop")
    return tuple(zip(starts, texts, strict=True))


def check_texts(prompt: str, loops: int) -> None:
    """Refuse a prompt by loop of which a text would never be shown.

    Raises:
        InputError: its first text is not for loop 0, or its last one begins after the last loop.
    """
    if found := re.match(r"\|(\d{1,9})\|", prompt):
        if int(found[1]):
            raise InputError(f"the prompt {quoted(prompt)} begins with loop {found[1]}: begin with |0|")
        last = texts_of_loops(prompt)[-1][0]
        if last >= loops:
            raise InputError(
                f"the prompt {quoted(prompt)} has a text for loop {last}, and {numbered('loop', loops)}: raise "
                f"{setting('loop')}"
            )


def text_of_loop(prompt: str, loop: int) -> str:
    """The text of a prompt in one loop; see ``texts_of_loops``."""
    return [text for start, text in texts_of_loops(prompt) if start <= loop][-1]


def split_json(prompt: str) -> tuple[str, Mapping[str, str]]:
    """A prompt without the JSON that it ends in, and what the JSON says: ``a cat{"reference_path": "a.png"}``.

    Raises:
        InputError: the JSON cannot be read, holds other keys than ``JSON_KEYS``, or values that are no text.
    """
    text, brace, rest = prompt.partition("{")
    if not brace:
        return text, {}
    hint = 'write it as {"reference_path": "a.png", "mask_strategy": "0"}, or without braces'
    try:
        values = json.loads(brace + rest)
    except (ValueError, RecursionError):
        raise InputError(f"the prompt {quoted(prompt)} does not end in JSON: {hint}") from None
    for key, value in values.items():
        if key not in JSON_KEYS:
            raise InputError(f"the JSON of the prompt {quoted(text)} has the key {key!r}{nearest(key, JSON_KEYS)}")
        if not isinstance(value, str):
            raise InputError(f"the JSON of the prompt {quoted(text)} has {key} {quoted(value)}: give a text")
    return text, values
