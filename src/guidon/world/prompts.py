"""Reads the prompts that people write: what they ask for, in which words a model reads them, and what it cannot follow.

``captions.read_caption`` reads captions of one object, which are written in the world's words. A user's prompt may be
anything. ``PromptReader`` understands plurals, common synonyms and contractions, and finds what the model has no word
for, what contradicts itself, negations, second objects and attributes that are missing.

The words of a prompt are divided into noun phrases ("a small red circle", "on a white background") and the words
between them. Attributes are read from the phrases, directions and negations from the words between.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from . import lexicon
from .captions import SYNONYMS, Wanted, direction, vocabulary
from .lexicon import Attribute
from .scene import AREAS, BACKGROUNDS, COLOURS, SHAPES, SPEEDS, STILL, UNSEEN_SPEED
from .spelling import intended

ATTRIBUTES: tuple[Attribute, ...] = ("shape", "colour", "motion", "background", "size", "speed")
ALWAYS_SAID: tuple[Attribute, ...] = ATTRIBUTES[:4]  # every caption that a model was trained on says these
SHOWN = 60  # letters of a prompt or a word that a message repeats
REMEMBERED = 10_000  # words of earlier prompts to keep
NAMED = 5  # unknown words that a message names
SIDES, HEIGHTS = ("left", "right"), ("up", "down")
EXAMPLE = "a small red circle moves left slowly on a white background"  # says all that a caption may say
_EXAMPLES = {
    "shape": "a circle",
    "colour": "red",
    "motion": "moves left",
    "background": "on a white background",
}

# What a word is for the reader. The kinds of known words are named after the world's attributes.
_CANONICAL = (
    dict.fromkeys(SHAPES, "shape")
    | dict.fromkeys((*COLOURS, *BACKGROUNDS), "colour")
    | dict.fromkeys(AREAS, "size")
    | dict.fromkeys((*SPEEDS, *UNSEEN_SPEED), "speed")
    | dict.fromkeys((*SIDES, *HEIGHTS), "direction")
    | dict.fromkeys(("a", "an", "the"), "article")
    | dict.fromkeys(("on", "in", "to", "against", "with", "of", "over", "toward"), "preposition")
    | {"moves": "moves", "stays": "stays", STILL: STILL, "background": "background", "not": "negation", "and": "and"}
)
_ATTRIBUTE_OF: dict[str, Attribute] = {
    "shape": "shape", "colour": "colour", "size": "size", "speed": "speed", "background": "background",
    "moves": "motion", "stays": "motion", STILL: "motion", "direction": "motion",
}  # fmt: skip
_NOUNS = ("shape", "background", "object", "thing", "scenery")
_ADJECTIVES = ("colour", "size", "modifier", "unknown", "number", "filler")
_ON = ("on", "over", "against", "in", "with")  # before a background
Kind = Literal[
    "empty", "long", "unknown", "missing", "two values", "unavailable", "second object", "number", "negation",
    "sequence", "place", "plural",
]  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """Something in a prompt that the model does not follow."""

    kind: Kind
    said: tuple[str, ...] = ()
    """The user's words, or the two values that exclude each other."""
    attribute: Attribute | None = None
    """What it is about, where that is known."""
    nearest: tuple[str, ...] = ()
    """The world's nearest words, best first."""
    serious: bool = True
    """Whether the model cannot follow the prompt at all."""


@dataclass(frozen=True)
class Prompt:
    """A prompt as a model of the world reads it."""

    text: str
    asks: Wanted
    """What it asks for, as far as it was understood."""
    read_as: str
    """Its words in the model's vocabulary."""
    faults: tuple[Fault, ...]
    """What is not followed; empty for a prompt that the model follows wholly."""
    known: Mapping[Attribute, tuple[str, ...]]
    """What the model knows of each attribute."""

    @property
    def can_be_sampled(self) -> bool:
        """Whether there is anything for the model to read."""
        return bool(self.read_as) and all(fault.kind != "long" for fault in self.faults)

    @property
    def refusal(self) -> str | None:
        """Why the model cannot follow it, and what can be said in its place, in one line; None if it can."""
        if not any(fault.serious for fault in self.faults):
            return None
        if self.faults[0].kind in ("empty", "long"):
            return _explained(self.faults[0], self.text)
        # Unknown words are all named, of the rest what alone is a reason to refuse.
        shown = [fault for fault in self.faults if fault.serious or fault.kind == "unknown"]
        if any(fault.kind == "unknown" for fault in shown):
            shown = [fault for fault in shown if fault.kind != "missing"]
        problems = "; ".join(_sentences(shown))
        return f"the prompt {cut(self.text)!r} cannot be followed: {problems}. {self._offer()}"

    @property
    def warning(self) -> str | None:
        """What the model leaves out or chooses itself, in one line; None if it is nothing."""
        if not self.faults or not self.can_be_sampled:
            return None
        return f"the prompt {cut(self.text)!r} is followed in part: {'; '.join(_sentences(self.faults))}"

    def _offer(self) -> str:
        """What can be said: the attributes that are at fault; all of them where that is not clear."""
        serious = [fault for fault in self.faults if fault.serious and fault.kind != "long"]
        if any(fault.kind in ("second object", "number", "negation", "sequence") for fault in serious):
            return f"Say what one object looks like and does: {EXAMPLE!r}"
        concerned: list[Attribute] = [fault.attribute for fault in serious if fault.attribute is not None]
        whole = len(concerned) < len(serious) or set(ALWAYS_SAID[:2]) <= set(concerned)
        chosen = list(dict.fromkeys((*concerned, *(ATTRIBUTES if whole else ()))))
        near = {name: [word for f in self.faults if f.attribute == name for word in f.nearest] for name in chosen}
        return "It knows " + "; ".join(offered(self.known, name, near[name]) for name in chosen)


def cut(text: str) -> str:
    """The beginning of a text, as messages repeat it."""
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def offered(known: Mapping[Attribute, tuple[str, ...]], attribute: Attribute, nearest: Sequence[str] = ()) -> str:
    """The words of an attribute as one says them, the nearest first: "shapes: square, circle, triangle, cross"."""
    words = [*dict.fromkeys([*(word for word in nearest if word in known[attribute]), *known[attribute]])]
    if attribute != "motion":
        return f"{attribute}s: {', '.join(words)}"
    near = [word for word in nearest if " " in word]  # two directions together
    ways = ", ".join([*near, *(word for word in words if word != STILL)])
    moves = [f"moves {ways}, or two of these as in 'up left'"] if len(words) > 1 else []
    still = ["stays still"] if STILL in words else []
    return "motions: " + "; ".join(still + moves if words and words[0] == STILL else moves + still)


def _sentences(faults: Sequence[Fault]) -> list[str]:
    """The faults in words. Unknown words are in one sentence, missing attributes in another."""
    unknown = [fault for fault in faults if fault.kind == "unknown"]
    missing = [fault.attribute or "" for fault in faults if fault.kind == "missing"]
    found: list[str] = []
    if unknown:
        named = ", ".join(_named(fault) for fault in unknown[:NAMED])
        more = f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else ""
        found.append(f"unknown word{'s' * (len(unknown) > 1)} {named}{more}")
    found += [_explained(fault, "") for fault in faults if fault.kind not in ("unknown", "missing")]
    if missing and any(fault.serious for fault in faults):
        found.append(f"it names no {_listed(missing)}")
    elif missing:
        samples = ", ".join(repr(_EXAMPLES[name]) for name in missing)
        found.append(f"it says no {_listed(missing)}, so the model chooses; add for example {samples}")
    return found


def _listed(names: Sequence[str]) -> str:
    """Several names after "no": "shape, motion or background"."""
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _named(fault: Fault) -> str:
    """An unknown word, with the nearest known ones."""
    word = repr(cut(fault.said[0]))
    return f"{word} (nearest: {', '.join(fault.nearest)})" if fault.nearest else word


def _explained(fault: Fault, text: str) -> str:
    """A fault in words, but for unknown words and missing attributes."""
    said = " and ".join(fault.said)
    quoted = repr(cut(said))
    near = f" (nearest: {', '.join(fault.nearest)})" if fault.nearest else ""
    match fault.kind:
        case "empty":
            return f"the prompt {cut(text)!r} is empty: describe a scene, e.g. {EXAMPLE!r}"
        case "long" if not text:
            return f"it has {fault.said[0]} known words, and the model reads {fault.said[1]}"
        case "long":
            return (
                f"the prompt has {fault.said[0]} known words, this model reads {fault.said[1]}: shorten {cut(text)!r}"
            )
        case "two values":
            return f"{said} exclude each other"
        case "unavailable":
            what = "a background" if fault.attribute == "background" else "an object"
            return f"{what} cannot be {said}{near}"
        case "second object":
            return f"{quoted} is a second object, and the model draws one"
        case "number":
            return f"{quoted} asks for another number of objects, and the model draws one"
        case "negation":
            return f"{quoted} is a negation: say what to show, not what to leave out"
        case "sequence":
            return f"{quoted} asks for one motion after another, and a clip has one"
        case "place":
            return f"{quoted} is a place, which cannot be chosen"
        case "plural":
            return f"{quoted} is read as one object"
        case _:
            return f"{fault.kind} {quoted}"


@dataclass(frozen=True, eq=False)
class _Word:
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
class _Phrase:
    """A noun phrase: a range of words, and the noun at its end if there is one."""

    start: int
    stop: int
    head: _Word | None
    """The noun; None for adjectives alone, as in "the circle is red"."""
    before: str
    """The preposition or "and" that it follows; empty if it follows another word."""
    article: str = ""
    words: list[_Word] = field(default_factory=list["_Word"])

    def all(self, kind: str) -> list[_Word]:
        """Its words of a kind, without the noun."""
        return [word for word in self.words if word.kind == kind and word is not self.head]


class PromptReader:
    """Reads prompts for a model.

    Args:
        words: every spelling that the model knows, and the word that it is read as; the world's if left out. A model
            that knows fewer words offers only those.
        most_words: how many known words the model reads.
    """

    def __init__(self, words: Mapping[str, str] | None = None, most_words: int = 20) -> None:
        self.words, self.most_words = dict(vocabulary() if words is None else words), most_words
        canonical = set(self.words.values())
        ways = tuple(way for way in (*SIDES, *HEIGHTS) if way in canonical)
        of_attribute: dict[Attribute, tuple[str, ...]] = {
            "shape": SHAPES, "colour": tuple(COLOURS), "background": tuple(BACKGROUNDS), "size": tuple(AREAS),
            "speed": tuple(SPEEDS),
        }  # fmt: skip
        self.known: dict[Attribute, tuple[str, ...]] = {
            name: tuple(word for word in values if word in canonical) for name, values in of_attribute.items()
        }
        self.known["motion"] = (*ways, *((STILL,) if STILL in canonical else ()))
        self._seen: dict[str, list[_Word]] = {}
        self._near, self._world = lexicon.nearest_meanings(), vocabulary()
        self._also = {word: text for word, text in lexicon.meanings().items() if set(text.split()) <= self.words.keys()}
        spelled = (*self.words, *self._also)
        nouns = {word for word in spelled if _CANONICAL.get(self._canonical(word)) in ("shape", "background")}
        self._plurals = {plural: noun for noun in nouns for plural in lexicon.plurals(noun) if plural not in spelled}
        self._guessable = [word for word in (*self.words, *self._plurals) if len(word) > 2]

    def _canonical(self, word: str) -> str:
        """The canonical word of a known spelling."""
        return self.words[self._also.get(word, word).split()[0]]

    def __call__(self, text: str) -> Prompt:
        """Read a prompt. Nothing is raised: what is wrong is in ``Prompt.faults``."""
        spelled, rewritten = _split(text)
        words = self._looked_up(spelled)
        phrases = _phrases(words)
        asks, faults = _Reading(words, phrases, self.known).result()
        # A prompt of known words alone is left as it is, so that it gives what it always gave. Others are said again as
        # a caption; where that cannot be done, their known words are left.
        read_as = text
        tokens = _tokens(text)
        if rewritten or not tokens or not all(word in self.words for word in tokens):
            clear = not any(fault.serious for fault in faults)
            read_as = self._said_again(asks) if clear else _known_words(words)
        length = sum(word in self.words for word in _tokens(read_as))
        if not words:
            faults = [Fault("empty")]
        elif length > self.most_words:  # named first, unless there is more to mend
            long, others = Fault("long", (str(length), str(self.most_words))), [f for f in faults if f.serious]
            faults = [*faults, long] if others else [long]
        return Prompt(text, asks, read_as, tuple(faults), self.known)

    def negative(self, text: str) -> Prompt:
        """Read a negative prompt, which may name anything in any number: only unknown words are faults."""
        read = self(text)
        read_as = text if read.read_as == text else _known_words(self._looked_up(_split(text)[0]))
        faults = [
            replace(fault, serious=not read_as) if fault.kind == "unknown" else fault
            for fault in read.faults
            if fault.kind in ("unknown", "empty", "long")
        ]
        return replace(read, read_as=read_as, faults=tuple(faults))

    def describe(self) -> dict[str, str]:
        """What a prompt may say, by attribute, each word with the others that are read as it."""
        also: dict[str, list[str]] = {}
        for word in itertools.chain(*SYNONYMS.values(), *lexicon.ALSO.values()):
            if word not in self.words and word not in self._also:
                continue
            canonical = self._canonical(word)
            verb = canonical == "moves" and not word.endswith("s")  # other forms of a verb that is listed
            if word != canonical and not verb and not word.endswith(("ing", "ward")):
                also.setdefault(canonical, []).append(word)

        def listed(words: Sequence[str]) -> str:
            return "; ".join(f"{word} ({', '.join(also[word])})" if word in also else word for word in words)

        found = {f"{name}s": listed(self.known[name]) for name in ("size", "colour", "shape") if self.known[name]}
        if self.known["motion"]:
            ways = [word for word in self.known["motion"] if word != STILL]
            verbs = [word for word in ("moves", *also.get("moves", ()), "flies", "runs", "rolls") if ways]
            rest = f"stays still; {listed([STILL])}" if STILL in self.known["motion"] else ""
            found["motions"] = "; ".join(part for part in (", ".join(verbs), rest) if part)
            found["directions"] = f"{listed(ways)}; two together, such as up and to the left"
        found |= {f"{name}s": listed(self.known[name]) for name in ("speed", "background") if self.known[name]}
        return found

    def _said_again(self, asks: Wanted) -> str:
        """What a prompt asks for, as the plainest caption says it, in words that the model knows."""
        noun = [word for word in (asks.size, asks.colour, asks.shape) if word]
        words = ["a", *noun] if noun else []
        if asks.motion:
            words += ["stays", STILL] if asks.motion == STILL else ["moves", *direction(asks.motion).split()]
        words += [asks.speed] if asks.speed else []
        words += ["on", "a", asks.background, "background"] if asks.background else []
        return " ".join(word for word in words if word in self.words)

    def _looked_up(self, spelled: Sequence[str]) -> list[_Word]:
        """What every word is; "crosses" after a shape is a verb."""
        found: list[_Word] = []
        for word in spelled:
            if word == "crosses" and found and found[-1].kind == "shape" and "moves" in self.words:
                found.append(_Word(word, "moves", "moves", "moves"))
            else:
                found += self._look_up(word)
        return found

    def _look_up(self, word: str) -> list[_Word]:
        """What a word is, kept for the next prompt. The words are new, because a reading tells them apart."""
        if word not in self._seen:
            if len(self._seen) > REMEMBERED:
                self._seen.clear()
            self._seen[word] = self._classify(word)
        return [replace(found) for found in self._seen[word]]

    def _classify(self, word: str) -> list[_Word]:
        """What a word is. A word that stands for two, such as "falls" for "moves down", becomes two."""
        noun = self._plurals.get(word, word)
        text = noun if noun in self.words else self._also.get(noun)
        if word == "1" and "a" in self.words:
            text = "a"
        if text:
            parts = [(self.words[part], part) for part in text.split()]
            return [
                _Word(word, _CANONICAL.get(value, "plain"), part, value, plural=word in self._plurals)
                for value, part in parts
            ]
        if word in lexicon.NEGATIONS:
            return [_Word(word, "negation")]
        if word in lexicon.NUMBERS or (word.isdecimal() and word.isascii()):
            return [_Word(word, "number")]
        for kind, names in (
            ("sequence", lexicon.SEQUENCES), ("place", lexicon.PLACES), ("object", lexicon.THINGS),
            ("filler", lexicon.FILLER), ("modifier", lexicon.MODIFIERS), ("scenery", lexicon.SCENERY),
            ("preposition", lexicon.PREPOSITIONS),
        ):  # fmt: skip
            if word in names:
                return [_Word(word, kind, value=word)]
        if word in self._near:
            attribute, near = self._near[word]
            kind = "motion" if attribute == "motion" else "thing" if attribute == "shape" else "unknown"
            return [_Word(lexicon.SAID.get(word, word), kind, attribute=attribute, near=near)]
        if word in self._world:  # the model knows fewer words than the world has
            return [_unknown(word, self._world[word])]
        if word in lexicon.SAID:
            return [_Word(lexicon.SAID[word], "unknown")]
        return [self._misspelt(word)]

    def _misspelt(self, word: str) -> _Word:
        """An unknown word, and the known one that it may be a slip of."""
        meant = intended(word, self._guessable)
        if meant is None:
            return _Word(word, "unknown")
        value = self._canonical(self._plurals.get(meant, meant))
        return _unknown(word, value, near=(value,))


def _unknown(word: str, canonical: str, near: tuple[str, ...] = ()) -> _Word:
    """An unknown word that stands where a word of the world could."""
    attribute = _ATTRIBUTE_OF.get(_CANONICAL.get(canonical, "plain"))
    kind = {"shape": "thing", "motion": "motion", "background": "scenery"}.get(attribute or "", "unknown")
    return _Word(word, kind, attribute=attribute, near=near if attribute else ())


def _known_words(words: Sequence[_Word]) -> str:
    """The known words of a prompt, in their order."""
    return " ".join(word.reads for word in words if word.reads)


def _tokens(text: str) -> list[str]:
    """Words as the model's tokenizer splits them."""
    return re.findall(r"[^\W_]+", text.lower())


_PHRASES = [(re.compile(rf"(?<!\S)(?:{phrase})(?!\S)"), meaning) for phrase, meaning in lexicon.PHRASES]


def _split(text: str) -> tuple[list[str], bool]:
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


def _phrases(words: Sequence[_Word]) -> list[_Phrase]:
    """The noun phrases of a prompt, from left to right."""
    found: list[_Phrase] = []
    current: _Phrase | None = None

    def close(stop: int, head: _Word | None) -> None:
        nonlocal current
        if current is not None:
            current.stop, current.head = stop, head
            found.append(current)
        current = None

    for k, word in enumerate(words):
        following = words[k + 1].kind if k + 1 < len(words) else ""
        if word.kind == "article":
            close(k, _last_unknown(current))
            current = _Phrase(k, k, None, _before(words, k), word.value, [word])
        elif word.kind in _ADJECTIVES:
            if current is None:
                current = _Phrase(k, k, None, _before(words, k))
            current.words.append(word)
        elif word.kind in _NOUNS:
            if current is None:
                current = _Phrase(k, k, None, _before(words, k))
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


def _before(words: Sequence[_Word], k: int) -> str:
    """The preposition or "and" in front of a phrase that begins at word k."""
    while k and words[k - 1].kind == "filler":
        k -= 1
    return words[k - 1].value or words[k - 1].said if k and words[k - 1].kind in ("preposition", "and") else ""


def _last_unknown(phrase: _Phrase | None) -> _Word | None:
    """The noun of a phrase without a known noun: an unknown word at its end, if the phrase shows that it is one."""
    if phrase is None or not phrase.words:
        return None
    last = phrase.words[-1]
    described = phrase.article or any(word.kind in ("colour", "size", "number") for word in phrase.words)
    return last if described and last.kind == "unknown" and last.attribute is None else None


class _Reading:
    """What the words and phrases of one prompt ask for, and their faults."""

    def __init__(
        self, words: Sequence[_Word], phrases: Sequence[_Phrase], known: Mapping[Attribute, tuple[str, ...]]
    ) -> None:
        self.words, self.phrases, self.known = words, phrases, known
        self.faults: list[Fault] = []
        self.explained: set[int] = set()
        """Words, by id, that need no more explanation."""
        self.does_not_move = False

    def result(self) -> tuple[Wanted, list[Fault]]:
        """What the prompt asks for, and its faults, serious ones first."""
        self._negations()
        self._numbers()
        shape = self._objects()
        colour, background = self._colours()
        motion = self._motion()
        size = self._one_of("size", [word.value for word in self.words if word.kind == "size"])
        speed = self._one_of("speed", [word.value for word in self.words if word.kind == "speed"])
        if motion == STILL and speed:
            self._add(Fault("two values", ("still", speed), "motion"))
        asks = Wanted(shape, colour, size, motion, speed, background)
        self._unknown_words(asks)
        kinds = {fault.kind for fault in self.faults}
        if kinds & {"second object", "number"}:  # two objects have two of everything
            self.faults = [fault for fault in self.faults if fault.kind not in ("two values", "unavailable", "plural")]
        if not any(fault.serious and fault.kind != "unknown" for fault in self.faults):
            self._missing(asks)
        return asks, sorted(self.faults, key=lambda fault: not fault.serious)

    def _add(self, fault: Fault, words: Sequence[_Word] = ()) -> None:
        if fault not in self.faults:
            self.faults.append(fault)
        self.explained |= {id(word) for word in words}

    def _one_of(self, attribute: Attribute, values: Sequence[str]) -> str | None:
        """The one value of an attribute; several are a fault."""
        different = tuple(dict.fromkeys(values))
        if len(different) > 1:
            self._add(Fault("two values", different, attribute))
        return different[0] if different else None

    def _negations(self) -> None:
        """ "does not move" is a motion of the world: stillness. Every other negation is a fault."""
        for k, word in enumerate(self.words):
            if word.kind != "negation" or id(word) in self.explained:
                continue
            verb = self._skip(k + 1, ("filler", "plain"))
            if word.said == "not" and self._kind(verb) == "moves":
                way = self._skip(verb + 1, ("filler", "plain", "article"), ("to", "toward"))
                if self._kind(way) not in ("direction", "speed", "motion"):
                    self.explained.add(id(word))
                    self.does_not_move = True
                    continue
                stop = way + 1
            else:
                stop = k + 1
                while stop < min(k + 6, len(self.words)) and not self._ends(stop):
                    stop += 1
                stop = min(stop + 1, len(self.words))
            start = k
            while start and self.words[start - 1].value in ("does", "is"):
                start -= 1
            span = self.words[start:stop]
            self._add(Fault("negation", (" ".join(other.said for other in span),)), span)

    def _kind(self, k: int) -> str:
        """The kind of word k; empty after the last one."""
        return self.words[k].kind if k < len(self.words) else ""

    def _skip(self, k: int, kinds: Sequence[str], values: Sequence[str] = ()) -> int:
        """The first word from k on that is of none of these kinds and values."""
        while k < len(self.words) and (self.words[k].kind in kinds or self.words[k].value in values):
            k += 1
        return k

    def _ends(self, k: int) -> bool:
        """Whether what is negated ends with word k: with a noun, or with an adjective that no noun follows."""
        if self._kind(k) in ("colour", "size", "modifier", "unknown", "number"):
            return self._kind(k + 1) not in (*_ADJECTIVES, *_NOUNS)
        return self._kind(k) in (*_NOUNS, "direction", "speed", "motion", STILL, "negation")

    def _numbers(self) -> None:
        """A number of objects other than one."""
        for k, word in enumerate(self.words):
            if word.kind != "number":
                continue
            rest = [other for other in self.words[k + 1 : k + 7] if other.kind != "filler"]
            if rest and rest[0].said in lexicon.UNITS:
                self.explained |= {id(other) for other in rest[:1]}
                self._add(Fault("unknown", (f"{word.said} {rest[0].said}",), serious=False), (word,))
                continue
            noun = next((other for other in rest if other.kind in ("shape", "thing", "object")), None)
            between = rest[: rest.index(noun)] if noun else rest
            if noun and all(other.kind in (*_ADJECTIVES, "preposition", "article") for other in between):
                span = self.words[k : self.words.index(noun) + 1]
                self._add(Fault("number", (" ".join(other.said for other in span),)), (word,))
            elif word.said in ("another", "other", "others"):
                self._add(Fault("second object", (word.said,)), (word,))
            elif word.said.isdecimal():
                self._add(Fault("unknown", (word.said,), serious=False), (word,))
            self.explained.add(id(word))

    def _objects(self) -> str | None:
        """The shape of the object. Another object is a fault."""
        first: _Phrase | None = None  # with the object as its noun
        shape: str | None = None
        for phrase in self.phrases:
            head = phrase.head
            if head is None or id(head) in self.explained or head.kind not in ("shape", "thing", "unknown"):
                continue
            described = bool(phrase.article or phrase.all("colour") or phrase.all("size") or phrase.all("number"))
            text = " ".join(word.said for word in phrase.words)
            if first is None and not (head.kind != "shape" and phrase.before in _SCENIC):
                first = phrase
                shape = head.value if head.kind == "shape" else None
                self._plural(head)
            elif head.kind != "shape":
                if phrase.before == "and":
                    self._add(Fault("second object", (text,)), phrase.words)
            elif first is not None and first.head is not None and first.head.kind != "shape":
                # The noun before is unknown: "a sketch of a circle" is of a circle, "a cat and a circle" are two.
                if phrase.before == "of":
                    first = phrase
                else:
                    self._add(Fault("second object", (text,)), phrase.words)
                shape = shape or head.value
            elif head.value == shape and _names_again(phrase, first):
                continue
            elif described or phrase.before:
                self._add(Fault("second object", (text,)), phrase.words)
            else:
                self._add(Fault("two values", (shape or "", head.value), "shape"))
        return shape

    def _plural(self, head: _Word) -> None:
        """Several objects without a number are read as one."""
        if head.plural and all(fault.kind != "number" for fault in self.faults):
            self._add(Fault("plural", (head.said,), serious=False))

    def _colours(self) -> tuple[str | None, str | None]:
        """The colours of the object and of the background."""
        own: list[str] = []
        behind: list[str] = []
        last: str = ""  # the kind of the noun before
        for phrase in self.phrases:
            kind = phrase.head.kind if phrase.head is not None else ""
            for word in phrase.all("colour"):
                if id(word) in self.explained:
                    continue
                if kind == "background" or (kind in ("scenery", "unknown", "thing") and phrase.before in _SCENIC):
                    behind.append(word.value)
                elif kind in ("shape", "object", "thing", "unknown", "scenery"):
                    own.append(word.value)
                elif phrase.before in ("on", "over", "against") or last == "background":
                    behind.append(word.value)
                else:  # "the circle is red"; white can only be meant of the background where nothing else is said
                    (own if word.value in COLOURS or behind else behind).append(word.value)
            last = kind or last
        self._unavailable("colour", own, COLOURS)
        self._unavailable("background", behind, BACKGROUNDS)
        colour = self._one_of("colour", [value for value in own if value in COLOURS])
        return colour, self._one_of("background", [value for value in behind if value in BACKGROUNDS])

    def _unavailable(self, attribute: Attribute, values: Sequence[str], valid: Collection[str]) -> None:
        """A colour of objects for a background, or the other way round."""
        for value in dict.fromkeys(values):
            if value not in valid:
                near = tuple(word for word in lexicon.OTHER_COLOURS.get(value, ()) if word in self.known[attribute])
                self._add(Fault("unavailable", (value,), attribute, near))

    def _motion(self) -> str | None:
        """The direction, or stillness."""
        ways: list[str] = []
        for k, word in enumerate(self.words):
            if id(word) in self.explained:
                continue
            if word.kind == "place" or (word.kind == "direction" and self._is_place(k)):
                self._add(Fault("place", (self._placed(k),), serious=False), (word,))
            elif word.kind == "direction":
                ways.append(word.value)
            elif word.kind == "sequence":
                self._add(Fault("sequence", (self._with_next(k),)), (word,))
        side = self._one_of("motion", [way for way in ways if way in SIDES])
        height = self._one_of("motion", [way for way in ways if way in HEIGHTS])
        motion = " ".join(way for way in (height, side) if way) or None
        if self._is_still(motion):
            if motion:
                self._add(Fault("two values", ("still", f"moves {motion}"), "motion"))
            return STILL
        return motion

    def _is_still(self, motion: str | None) -> bool:
        """Whether the words ask for stillness: "still", "does not move", or "stays" without a direction."""
        kinds = [word.kind for word in self.words if id(word) not in self.explained]
        return STILL in kinds or self.does_not_move or ("stays" in kinds and motion is None and "moves" not in kinds)

    def _is_place(self, k: int) -> bool:
        """Whether a direction at word k is a place: "on the left", not "to the left" or "in the left direction"."""
        start = k
        while start and self.words[start - 1].kind in ("article", "filler"):
            start -= 1
        following = self.words[k + 1].said if k + 1 < len(self.words) else ""
        before = self.words[start - 1] if start else None
        if start == k and following not in ("side", "half", "corner", "edge"):
            return False
        return before is not None and before.value in ("on", "in") and following not in ("direction", "way")

    def _placed(self, k: int) -> str:
        """A place with the words before it: "on the left"."""
        start = k
        while start and self.words[start - 1].kind in ("article", "filler", "preposition", "direction", "place"):
            start -= 1
        return " ".join(word.said for word in self.words[start : k + 1])

    def _with_next(self, k: int) -> str:
        rest = itertools.takewhile(lambda word: word.kind not in ("preposition", "article"), self.words[k : k + 3])
        return " ".join(word.said for word in rest)

    def _unknown_words(self, asks: Wanted) -> None:
        """Words that the model does not know. One that says what to show is serious where nothing else says it."""
        heads = {id(phrase.head): phrase for phrase in self.phrases if phrase.head is not None}
        unknown = [
            word
            for word in self.words
            if word.kind in ("unknown", "thing", "motion", "modifier", "scenery") and id(word) not in self.explained
        ]
        content = [word for word in self.words if word.kind in _CONTENT]
        many = len(unknown) > len(content)
        for word in unknown:
            attribute, phrase = word.attribute, heads.get(id(word))
            near = word.near
            if attribute == "colour":  # of a background, if it stands before one
                of_background = any(
                    word in other.words
                    and (_is_background(other) or (other.head is None and other.before in ("on", "over", "against")))
                    for other in self.phrases
                )
                attribute = "background" if of_background else attribute
                near = tuple(colour for colour in near if colour in self.known[attribute])
            if phrase is not None and word.kind == "unknown" and asks.shape is None and phrase.before not in _SCENIC:
                attribute = "shape"
            near = tuple(value for value in near if attribute is None or self._is_known(attribute, value))
            said = None if attribute is None else getattr(asks, attribute)
            scenic = word.kind == "scenery" or (phrase is not None and phrase.before in _SCENIC)
            needed = attribute in ALWAYS_SAID and not (scenic and asks.shape is not None)
            conflict = attribute in ("colour", "motion", "background") and bool(near) and said not in near
            self._add(Fault("unknown", (word.said,), attribute, near, many or (needed and (said is None or conflict))))

    def _is_known(self, attribute: Attribute, value: str) -> bool:
        return all(part in self.known[attribute] for part in value.split()) or value in ("moves", "stays", "background")

    def _missing(self, asks: Wanted) -> None:
        """Attributes that every caption says and the prompt does not."""
        concerned = {fault.attribute for fault in self.faults if fault.kind in ("unknown", "unavailable", "two values")}
        unsaid: list[Attribute] = [
            name for name in ALWAYS_SAID if getattr(asks, name) is None and self.known[name] and name not in concerned
        ]
        unknown = any(fault.kind == "unknown" for fault in self.faults)
        nothing = asks.shape is None and asks.colour is None
        for name in unsaid:
            # Without a shape, an unknown word may be what to show.
            serious = (name in ("shape", "colour") and nothing) or (name == "shape" and unknown)
            self._add(Fault("missing", (), name, (), serious))


_SCENIC = ("on", "over", "against", "in", "to", "toward", *sorted(lexicon.PREPOSITIONS))  # before a place
_CONTENT = ("shape", "colour", "size", "direction", "speed", "moves", "stays", STILL, "background", "object")


def _names_again(phrase: _Phrase, first: _Phrase | None) -> bool:
    """Whether a phrase with the shape of the first one names the same object: "the circle", or "circle" beside it."""
    own, before = ({word.value for word in each.all("colour")} if each else set[str]() for each in (phrase, first))
    if phrase.article == "the":
        return own <= before
    return not (phrase.words[:-1] or phrase.before == "and")


def _is_background(phrase: _Phrase) -> bool:
    head = phrase.head
    return head is not None and (head.kind in ("background", "scenery") and phrase.before in (*_ON, *_SCENIC, ""))
