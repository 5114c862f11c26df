"""What the words and phrases of a prompt ask for, and what a model does not follow."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence

from ..captions import Wanted
from ..scene import BACKGROUNDS, COLOURS, STILL
from . import lexicon
from .faults import ALWAYS_SAID, Fault
from .lexicon import Attribute
from .phrases import ADJECTIVES, HEIGHTS, NOUNS, SIDES, Phrase, Word

_ON = ("on", "over", "against", "in", "with")  # before a background
_SCENIC = ("on", "over", "against", "in", "to", "toward", *sorted(lexicon.PREPOSITIONS))  # before a place
# kinds of words that say what to show
_CONTENT = ("shape", "colour", "size", "direction", "speed", "moves", "stays", STILL, "background", "object")


class Reading:
    """What the words and phrases of one prompt ask for, and their faults."""

    def __init__(
        self, words: Sequence[Word], phrases: Sequence[Phrase], known: Mapping[Attribute, tuple[str, ...]]
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

    def _add(self, fault: Fault, words: Sequence[Word] = ()) -> None:
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
            return self._kind(k + 1) not in (*ADJECTIVES, *NOUNS)
        return self._kind(k) in (*NOUNS, "direction", "speed", "motion", STILL, "negation")

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
            if noun and all(other.kind in (*ADJECTIVES, "preposition", "article") for other in between):
                span = self.words[k : self.words.index(noun) + 1]
                self._add(Fault("number", (" ".join(other.said for other in span),)), (word,))
            elif word.said in ("another", "other", "others"):
                self._add(Fault("second object", (word.said,)), (word,))
            elif word.said.isdecimal():
                self._add(Fault("unknown", (word.said,), serious=False), (word,))
            self.explained.add(id(word))

    def _objects(self) -> str | None:
        """The shape of the object. Another object is a fault."""
        first: Phrase | None = None  # with the object as its noun
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

    def _plural(self, head: Word) -> None:
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
            vague = {word.said for word in self.words if word.value == "diagonally"} if name == "motion" else ()
            self._add(Fault("missing", tuple(vague), name, (), serious))


def _names_again(phrase: Phrase, first: Phrase | None) -> bool:
    """Whether a phrase with the shape of the first one names the same object: "the circle", or "circle" beside it."""
    own, before = ({word.value for word in each.all("colour")} if each else set[str]() for each in (phrase, first))
    if phrase.article == "the":
        return own <= before
    return not (phrase.words[:-1] or phrase.before == "and")


def _is_background(phrase: Phrase) -> bool:
    head = phrase.head
    return head is not None and (head.kind in ("background", "scenery") and phrase.before in (*_ON, *_SCENIC, ""))
