"""A prompt in parts: a text to words, and words to noun phrases, such as "a small red circle"."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..scene import AREAS, BACKGROUNDS, COLOURS, SHAPES, SPEEDS, STILL, UNSEEN_SPEED
from . import lexicon
from .lexicon import Attribute

SIDES, HEIGHTS = ("left", "right"), ("up", "down")
# What a word is for the reader. The kinds of known words are named after the world's attributes.
KIND_OF = (
    dict.fromkeys(SHAPES, "shape")
    | dict.fromkeys((*COLOURS, *BACKGROUNDS), "colour")
    | dict.fromkeys(AREAS, "size")
    | dict.fromkeys((*SPEEDS, *UNSEEN_SPEED), "speed")
    | dict.fromkeys((*SIDES, *HEIGHTS), "direction")
    | dict.fromkeys(("a", "an", "the"), "article")
    | dict.fromkeys(("on", "in", "to", "against", "with", "of", "over", "toward"), "preposition")
    | {"moves": "moves", "stays": "stays", STILL: STILL, "background": "background", "not": "negation", "and": "and"}
)
NOUNS = ("shape", "background", "object", "thing", "scenery")
ADJECTIVES = ("colour", "size", "modifier", "unknown", "number", "filler")


@dataclass(frozen=True, eq=False)
class Word:
    """A word of a prompt."""

    said: str
    """As the user wrote it, in lower case."""
    kind: str
    """What it is for the reader, such as "shape" or "unknown"."""
    reads: str = ""
    """The words of the model's vocabulary that stand for it; empty if it is dropped."""
    value: str = ""
    """The world's canonical word."""
    attribute: Attribute | None = None
    """Of an unknown word: what it seems to be about."""
    near: tuple[str, ...] = ()
    """Of an unknown word: the world's nearest words."""
    plural: bool = False


@dataclass
class Phrase:
    """A noun phrase: a range of words, and the noun at its end if there is one."""

    start: int
    stop: int
    head: Word | None
    """The noun; None for adjectives alone, as in "the circle is red"."""
    before: str
    """The preposition or "and" that it follows; empty if it follows another word."""
    article: str = ""
    words: list[Word] = field(default_factory=list["Word"])

    def all(self, kind: str) -> list[Word]:
        """Its words of a kind, without the noun."""
        return [word for word in self.words if word.kind == kind and word is not self.head]


def tokens_of(text: str) -> list[str]:
    """Words as the model's tokenizer splits them."""
    return re.findall(r"[^\W_]+", text.lower())


_PHRASES = [(re.compile(rf"(?<!\S)(?:{phrase})(?!\S)"), meaning) for phrase, meaning in lexicon.PHRASES]


def split(text: str) -> tuple[list[str], bool]:
    """The words of a prompt in lower case, and whether a phrase was replaced.

    Letters and digits of any script make words; so do symbols such as emoji, which are no words but are said.
    """
    plain = unicodedata.normalize("NFKC", text).lower().replace("\u2019", "'")
    plain = re.sub(r"\bcan't\b|\bcannot\b", "can not", plain)
    plain = re.sub(r"\bwon't\b", "will not", plain)
    plain = re.sub(r"n't\b", " not", plain)
    plain = re.sub(r"\b(it|that|there)'s\b", r"\1 is", plain)
    plain = re.sub(r"'(s|re|ll|ve)\b", "", plain)
    points = {found.start() for found in re.finditer(r"(?<=\d)\.(?=\d)", plain)}  # of decimal numbers
    kinds = ["word" if k in points else _class(letter) for k, letter in enumerate(plain)]
    pieces = itertools.groupby(zip(kinds, plain, strict=True), lambda piece: piece[0])
    words = ["".join(letter for _, letter in group) for kind, group in pieces if kind]
    joined = " ".join(words)
    for phrase, meaning in _PHRASES:
        joined = phrase.sub(meaning, joined)
    return joined.split(), joined != " ".join(words)


def _class(letter: str) -> str:
    """ "word" for what words are made of, "symbol" for emoji and the like, empty for what stands between words."""
    kind = unicodedata.category(letter)
    if kind[0] in "LNM" and letter != "_":
        return "symbol" if letter in "\ufe0f\u20e3" else "word"
    return "symbol" if (kind[0] == "S" and not letter.isascii()) or letter == "\u200d" else ""


def phrases_of(words: Sequence[Word]) -> list[Phrase]:
    """The noun phrases of a prompt, from left to right."""
    found: list[Phrase] = []
    current: Phrase | None = None

    def close(stop: int, head: Word | None) -> None:
        nonlocal current
        if current is not None:
            current.stop, current.head = stop, head
            found.append(current)
        current = None

    for k, word in enumerate(words):
        following = words[k + 1].kind if k + 1 < len(words) else ""
        if word.kind == "article":
            close(k, _last_unknown(current))
            current = Phrase(k, k, None, _before(words, k), word.value, [word])
        elif word.kind in ADJECTIVES:
            if current is None:
                current = Phrase(k, k, None, _before(words, k))
            current.words.append(word)
        elif word.kind in NOUNS:
            if current is None:
                current = Phrase(k, k, None, _before(words, k))
            current.words.append(word)
            # "a house shaped circle", "a circle object": the last noun of several is the head
            if following in ("shape", "object", "background") and word.kind != "shape":
                continue
            close(k + 1, word)
        elif word.kind == "and" and current is not None and current.all("colour") and following == "colour":
            current.words.append(word)
        else:
            close(k, _last_unknown(current))
    close(len(words), _last_unknown(current))
    return found


def _before(words: Sequence[Word], k: int) -> str:
    """The preposition or "and" in front of a phrase that begins at word k."""
    while k and words[k - 1].kind == "filler":
        k -= 1
    return words[k - 1].value or words[k - 1].said if k and words[k - 1].kind in ("preposition", "and") else ""


def _last_unknown(phrase: Phrase | None) -> Word | None:
    """The noun of a phrase without a known noun: an unknown word at its end, if the phrase shows that it is one."""
    if phrase is None or not phrase.words:
        return None
    last = phrase.words[-1]
    described = phrase.article or any(word.kind in ("colour", "size", "number") for word in phrase.words)
    return last if described and last.kind == "unknown" and last.attribute is None else None
