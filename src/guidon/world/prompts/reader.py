"""Reads prompts for a model: what they ask for, in which of its words, and what it does not follow."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..captions import SYNONYMS, Wanted, direction, vocabulary
from ..scene import AREAS, BACKGROUNDS, COLOURS, SHAPES, SPEEDS, STILL
from . import lexicon
from .faults import Fault, Prompt
from .lexicon import Attribute
from .meaning import Reading
from .phrases import HEIGHTS, KIND_OF, SIDES, Word, phrases_of, split, tokens_of
from .spelling import intended

REMEMBERED = 10_000  # words of earlier prompts to keep
_ATTRIBUTE_OF: dict[str, Attribute] = {
    "shape": "shape", "colour": "colour", "size": "size", "speed": "speed", "background": "background",
    "moves": "motion", "stays": "motion", STILL: "motion", "direction": "motion",
}  # fmt: skip


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
        self._seen: dict[str, list[Word]] = {}
        self._near, self._world = lexicon.nearest_meanings(), vocabulary()
        self._also = {word: text for word, text in lexicon.meanings().items() if set(text.split()) <= self.words.keys()}
        spelled = (*self.words, *self._also)
        nouns = {word for word in spelled if KIND_OF.get(self._canonical(word)) in ("shape", "background")}
        self._plurals = {plural: noun for noun in nouns for plural in lexicon.plurals(noun) if plural not in spelled}
        self._guessable = [word for word in (*self.words, *self._plurals) if len(word) > 2]

    def _canonical(self, word: str) -> str:
        """The canonical word of a known spelling."""
        return self.words[self._also.get(word, word).split()[0]]

    def __call__(self, text: str) -> Prompt:
        """Read a prompt. Nothing is raised: what is wrong is in ``Prompt.faults``."""
        spelled, rewritten = split(text)
        words = self._looked_up(spelled)
        phrases = phrases_of(words)
        asks, faults = Reading(words, phrases, self.known).result()
        # A prompt of known words alone is left as it is, so that it gives what it always gave. Others are said again as
        # a caption; where that cannot be done, their known words are left.
        read_as = text
        tokens = tokens_of(text)
        if rewritten or not tokens or not all(word in self.words for word in tokens):
            clear = not any(fault.serious for fault in faults)
            read_as = self._said_again(asks) if clear else _known_words(words)
        length = sum(word in self.words for word in tokens_of(read_as))
        if not words:
            faults = [Fault("empty")]
        elif length > self.most_words:  # named first, unless there is more to mend
            long, others = Fault("long", (str(length), str(self.most_words))), [f for f in faults if f.serious]
            faults = [*faults, long] if others else [long]
        return Prompt(text, asks, read_as, tuple(faults), self.known)

    def negative(self, text: str) -> Prompt:
        """Read a negative prompt, which may name anything in any number: only unknown words are faults."""
        read = self(text)
        read_as = text if read.read_as == text else _known_words(self._looked_up(split(text)[0]))
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

    def _looked_up(self, spelled: Sequence[str]) -> list[Word]:
        """What every word is; "crosses" after a shape is a verb."""
        found: list[Word] = []
        for word in spelled:
            if word == "crosses" and found and found[-1].kind == "shape" and "moves" in self.words:
                found.append(Word(word, "moves", "moves", "moves"))
            else:
                found += self._look_up(word)
        return found

    def _look_up(self, word: str) -> list[Word]:
        """What a word is, kept for the next prompt. The words are new, because a reading tells them apart."""
        if word not in self._seen:
            if len(self._seen) > REMEMBERED:
                self._seen.clear()
            self._seen[word] = self._classify(word)
        return [replace(found) for found in self._seen[word]]

    def _classify(self, word: str) -> list[Word]:
        """What a word is. A word that stands for two, such as "falls" for "moves down", becomes two."""
        noun = self._plurals.get(word, word)
        text = noun if noun in self.words else self._also.get(noun)
        if word == "1" and "a" in self.words:
            text = "a"
        if text:
            parts = [(self.words[part], part) for part in text.split()]
            return [
                Word(word, KIND_OF.get(value, "plain"), part, value, plural=word in self._plurals)
                for value, part in parts
            ]
        if word in lexicon.NEGATIONS:
            return [Word(word, "negation")]
        if word in lexicon.NUMBERS or (word.isdecimal() and word.isascii()):
            return [Word(word, "number")]
        for kind, names in (
            ("sequence", lexicon.SEQUENCES), ("place", lexicon.PLACES), ("object", lexicon.THINGS),
            ("filler", lexicon.FILLER), ("modifier", lexicon.MODIFIERS), ("scenery", lexicon.SCENERY),
            ("preposition", lexicon.PREPOSITIONS),
        ):  # fmt: skip
            if word in names:
                return [Word(word, kind, value=word)]
        if word in self._near:
            attribute, near = self._near[word]
            kind = "motion" if attribute == "motion" else "thing" if attribute == "shape" else "unknown"
            return [Word(lexicon.SAID.get(word, word), kind, attribute=attribute, near=near)]
        if word in self._world:  # the model knows fewer words than the world has
            return [_unknown(word, self._world[word])]
        if word in lexicon.SAID:
            return [Word(lexicon.SAID[word], "unknown")]
        return [self._misspelt(word)]

    def _misspelt(self, word: str) -> Word:
        """An unknown word, and the known one that it may be a slip of."""
        meant = intended(word, self._guessable)
        if meant is None:
            return Word(word, "unknown")
        value = self._canonical(self._plurals.get(meant, meant))
        return _unknown(word, value, near=(value,))


def _unknown(word: str, canonical: str, near: tuple[str, ...] = ()) -> Word:
    """An unknown word that stands where a word of the world could."""
    attribute = _ATTRIBUTE_OF.get(KIND_OF.get(canonical, "plain"))
    kind = {"shape": "thing", "motion": "motion", "background": "scenery"}.get(attribute or "", "unknown")
    return Word(word, kind, attribute=attribute, near=near if attribute else ())


def _known_words(words: Sequence[Word]) -> str:
    """The known words of a prompt, in their order."""
    return " ".join(word.reads for word in words if word.reads)
