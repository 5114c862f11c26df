"""What a model does not follow in a prompt, and how that is said in one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ..captions import Wanted
from ..scene import STILL
from .lexicon import Attribute

ATTRIBUTES: tuple[Attribute, ...] = ("shape", "colour", "motion", "background", "size", "speed")
ALWAYS_SAID: tuple[Attribute, ...] = ATTRIBUTES[:4]  # every caption that a model was trained on says these
SHOWN = 60  # letters of a prompt or a word that a message repeats
NAMED = 5  # unknown words that a message names
EXAMPLE = "a small red circle moves left slowly on a white background"  # says all that a caption may say
_EXAMPLES = {
    "shape": "a circle",
    "colour": "red",
    "motion": "moves left",
    "background": "on a white background",
}
Kind = Literal[
    "empty", "long", "unknown", "missing", "two values", "unavailable", "second object", "number", "negation",
    "sequence", "place", "plural",
]  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """Something in a prompt that the model does not follow."""

    kind: Kind
    said: tuple[str, ...] = ()
    """The user's words, or the two values that exclude each other; of what is missing, words that say it in part."""
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
    missing = [fault.attribute or "" for fault in faults if fault.kind == "missing" and not fault.said]
    found: list[str] = []
    if unknown:
        named = ", ".join(_named(fault) for fault in unknown[:NAMED])
        more = f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else ""
        found.append(f"unknown word{'s' * (len(unknown) > 1)} {named}{more}")
    found += [_explained(fault, "") for fault in faults if fault.kind not in ("unknown", "missing")]
    found += [
        f"it says {fault.said[0]!r}, but not which way: say for example 'moves up and to the left'"
        for fault in faults
        if fault.kind == "missing" and fault.said
    ]
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
