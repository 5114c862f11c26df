"""Collects guidance combinations, and where their results are joined with channels that are not guided."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from . import algebra
from .values import Atom, Cut, Mask, Root, Taint, Thing, Value, text_of

_GUIDANCE = re.compile(r"cfg|guid|classifier.?free", re.IGNORECASE)
_UNCOND = re.compile(r"unc(?!e)|null|neg(?!l)|empty|blank|without|(^|_)u(_|$|\d)|(^|_)nc(_|$)", re.IGNORECASE)
_LIBRARY_FUNCTIONS = re.compile(r"^(torch|th|np|numpy|jnp|jax|F|math|tf|nn|scipy|cv2)\b")


@dataclass
@dataclass
class Combination:
    """One guidance combination: u + s (c - u) in some spelling."""

    function: str
    line: int
    source: str
    cond: Atom
    others: list[Atom]
    factor: str
    """The factor of the conditional branch, as text: the scale."""
    formula: str
    order: str
    cuts: tuple[Cut, ...]
    """What was cut out of all branches alike, on other axes than the batch."""
    holes: tuple[Cut, ...]
    mask: Mask | None
    names: tuple[str, str]
    """The names of the conditional and the unconditional branch."""
    roots: frozenset[str]
    """Keys of the tensors that the branches were cut from."""
    holders: frozenset[str]
    """The variables that hold what was cut."""
    sure: bool
    """Whether a name or a network says that it is guidance, not only the two halves of a batch."""


@dataclass
@dataclass
class Site:
    """A combination, with what was cut from its result, and where it is joined with channels that are not guided."""

    combination: Combination
    cuts: tuple[Cut, ...]
    joins: list[tuple[int, int | None]] = field(default_factory=list[tuple[int, int | None]])
    """Line and axis of each place where it is joined."""
    complement: bool = False
    """Whether ``cuts`` are the channels that are left out."""


@dataclass(frozen=True)
class Relation:
    """How two branches belong together."""

    order: str
    """Where they come from, and which comes first."""
    sure: bool
    """Whether a name or a network says that it is guidance, not only the two halves of a batch."""


@dataclass(frozen=True)
class Place:
    """Where in a module an expression is read."""

    function: str
    """The name of the function, with those around it."""
    frame: str
    """Differs for every call that is followed."""
    node: ast.AST


class Combinations:
    """The combinations of a module, and the names of what they combine."""

    def __init__(self) -> None:
        self.found: list[Combination] = []
        self.sites: dict[tuple[int, tuple[str, ...], bool], Site] = {}
        self.known: dict[tuple[str, int, int, str], int] = {}
        self.labels: dict[str, set[str]] = {}
        """The variables that hold an atom."""
        self.variables: dict[str, dict[str, None]] = {}
        """The variables that hold a part of a root, in order."""
        self.sums: dict[str, str] = {}
        """A variable that holds a sum, by the sum."""

    def check(self, value: Value, a: Value, b: Value, place: Place) -> Value:
        """Note a value, the sum of a and b, if it is guidance; returns it, marked."""
        for factors in algebra.affine(value.terms):
            mask = value.mask
            if mask is not None and mask.inside == "1" and {(mask.key,): 1.0} in factors.values():
                continue  # a blend of two tensors by a mask
            found = self.branches(factors, value.atoms, place)
            if found is None:
                continue
            number = self.note(found, factors, value, (a, b), place)
            return replace(value, guided=value.guided | {(number, ())})
        return value

    def branches(
        self, factors: Mapping[str, algebra.Sum], atoms: Mapping[str, Atom], place: Place
    ) -> tuple[Atom, list[Atom], Relation] | None:
        """The conditional branch, the others, and how they come to be; None if they are no branches of a network."""
        cond_key = max(factors, key=lambda key: (self.is_scale(factors[key]), growth(factors[key])))
        cond = atoms[cond_key]
        others = [atoms[key] for key in factors if key != cond_key]
        if any(atom.root.kind == "fresh" for atom in (cond, *others)):
            return None
        scale = self.render(factors[cond_key], atoms)
        guides = bool(_GUIDANCE.search(place.function) or _GUIDANCE.search(scale))
        kinds = [self.relation(cond, other, guides) for other in others]
        known = [kind for kind in kinds if kind is not None]
        if len(known) < len(kinds):
            return None
        return cond, others, Relation(known[-1].order, all(kind.sure for kind in known))

    def relation(self, cond: Atom, uncond: Atom, guides: bool) -> Relation | None:
        """How two branches belong together, or None: two halves of one batch, two calls, or two names that say so."""
        first, second = ([c for c in atom.cuts if c.axis == 0] for atom in (cond, uncond))
        rest = [tuple(c for c in atom.cuts if c.axis != 0) for atom in (cond, uncond)]
        if rest[0] != rest[1]:
            return None
        names = [self.names(cond), self.names(uncond)]
        said = guides or named_apart(names[0], names[1])
        if cond.root == uncond.root:
            order = halves(first, second)
            if order is None:
                return None
            sure = said or bool(cond.root.function)
            return Relation(order, sure) if sure or order.startswith("one batch") else None
        if first != second:
            return None
        if two_calls(cond.root, uncond.root):
            early = getattr(cond.root.node, "lineno", 0) <= getattr(uncond.root.node, "lineno", 0)
            return Relation("two calls, cond first" if early else "two calls, uncond first", True)
        return Relation("two tensors", True) if said else None

    def names(self, atom: Atom) -> set[str]:
        """The names that hold a branch, or hold what it was cut from."""
        found = set(self.labels.get(atom.key, ()))
        found |= self.labels.get(atom.root.key, set()) if not atom.cuts or not found else set()
        channel = tuple(cut for cut in atom.cuts if cut.axis == 0)
        found |= self.labels.get(Atom(atom.root, channel).key, set())
        return found | {atom.root.text.rsplit(".", 1)[-1]} if not atom.root.function else found

    def note(
        self,
        found: tuple[Atom, list[Atom], Relation],
        factors: Mapping[str, algebra.Sum],
        value: Value,
        terms: tuple[Value, Value],
        place: Place,
    ) -> int:
        """Note a combination, and where it is sliced already; returns its number."""
        node = place.node
        cond, others, relation = found
        shared = tuple(cut for cut in cond.cuts if cut in others[0].cuts)
        # The first axis is the batch; of one sample, it may be the channels.
        cuts = tuple(cut for cut in shared if cut.axis != 0) or shared
        key = (place.frame, getattr(node, "lineno", 0), getattr(node, "col_offset", 0), f"{cond.key}{value.key}")
        if key in self.known:
            return self.known[key]
        factor = factors[cond.key]
        scale = self.render(factor, value.atoms)
        if value.mask is not None:
            scale = (
                value.mask.inside
                if value.mask.inside != "1"
                else self.render(without(factor, value.mask.key), value.atoms)
            )
        combination = Combination(
            place.function, getattr(node, "lineno", 0), text_of(node), cond, others, scale,
            formula(cond, others, factor, terms), relation.order, cuts, value.holes, value.mask,
            (shortest(self.names(cond)) or "cond", shortest(self.names(others[0])) or "uncond"),
            frozenset(atom.root.key for atom in (cond, *others)),
            frozenset(name for cut in cuts for name in self.labels.get(Atom(cond.root, (cut,)).key, ())),
            relation.sure,
        )  # fmt: skip
        number = self.known[key] = len(self.found)
        self.found.append(combination)
        if cuts:
            self.site(number, ())
        if value.mask is not None:
            self.site(number, (value.mask.cut,)).joins.append((combination.line, None))
        for hole in value.holes:
            site = self.site(number, (hole,), complement=True)
            site.joins.append((hole.line, hole.axis))
        return number

    def site(self, number: int, cuts: tuple[Cut, ...], complement: bool = False) -> Site:
        key = (number, tuple(cut.key for cut in cuts), complement)
        combination = self.found[number]
        if key not in self.sites:
            self.sites[key] = Site(combination, (*combination.cuts, *cuts), complement=complement)
        return self.sites[key]

    def join(self, taint: Taint, line: int, axis: int | None, beside: frozenset[str] | None = None) -> None:
        """A guided tensor is put beside channels that are not guided."""
        number, after = taint
        channel = tuple(cut for cut in after if cut.axis != 0)
        combination = self.found[number]
        if not channel and not combination.cuts:
            return
        if channel and beside is not None and not combination.roots & beside:
            return
        site = self.site(number, channel)
        site.joins.append((line, axis))

    def mark(self, value: Value, mask: Cut, line: int) -> None:
        """A mask of channels chooses where a guided tensor is used."""
        for number, _ in value.guided:
            self.site(number, (mask,)).joins.append((line, None))

    def label(self, name: str, things: list[Thing]) -> None:
        for thing in things:
            if isinstance(thing, Value):
                if (atom := thing.atom) is not None:
                    self.labels.setdefault(atom.key, set()).add(name)
                    self.variables.setdefault(atom.root.key, {})[name] = None
                elif thing.terms and thing.number is None:
                    self.sums[str(sorted(thing.terms.items()))] = name

    def is_scale(self, factor: algebra.Sum) -> bool:
        """Whether a factor is a name, or 1 more than a name, and not what is left of it."""
        for terms in (factor, algebra.add(factor, algebra.number(1), -1.0)):
            if str(sorted(terms.items())) in self.sums:
                return True
            if len(terms) == 1 and min(terms.values()) == 1 and len(next(iter(terms))) == 1:
                return True
        return False

    def render(self, terms: algebra.Sum, atoms: Mapping[str, Atom]) -> str:
        """A factor as Python."""
        name = self.sums.get(str(sorted(terms.items())))
        if name is not None:
            return name
        less = algebra.add(terms, algebra.number(1), -1.0)
        if less and (name := self.sums.get(str(sorted(less.items())))) is not None:
            return f"1 + {name}"
        parts: list[str] = []
        for factors, value in sorted(terms.items(), key=lambda item: (len(item[0]), item[0])):
            shown = [self.text_of_atom(atoms[key]) for key in factors]
            size = f"{abs(value):g}"
            text = " * ".join(shown if size == "1" and shown else [size, *shown])
            parts.append(("- " if value < 0 else "+ ") + text)
        return re.sub("^- ", "-", " ".join(parts).removeprefix("+ ")) or "0"

    def text_of_atom(self, atom: Atom) -> str:
        names = self.labels.get(atom.key) or self.labels.get(atom.root.key, set())
        text = atom.root.text if atom.root.kind == "name" else shortest(names) or atom.root.text
        return text if re.fullmatch(r"[\w.\[\]'\"]+", text) else f"({text})"


def two_calls(a: Root, b: Root) -> bool:
    """Whether a function is called twice, on the same first argument and another condition."""
    if not a.function or a.function != b.function or _LIBRARY_FUNCTIONS.match(a.function):
        return False
    first, second = a.arguments, b.arguments
    return bool(first) and bool(second) and first != second and first[0] == second[0]


def formula(cond: Atom, others: list[Atom], factor: algebra.Sum, terms: tuple[Value, Value]) -> str:
    """The spelling of the combination."""
    alone = [v.atom.key for v in terms if v.atom is not None]
    if len(others) > 1:
        return "uncond + s1 (cond1 - uncond) + s2 (cond2 - uncond)"
    if others[0].key in alone:
        return "uncond + s (cond - uncond)"
    if cond.key in alone:
        single = len(algebra.add(factor, algebra.number(1), -1.0)) == 1
        return "cond + s (cond - uncond)" if single else "cond + (s - 1) (cond - uncond)"
    return "s cond + (1 - s) uncond"


def without(terms: algebra.Sum, key: str) -> algebra.Sum:
    """A sum in which one factor is 1."""
    total: algebra.Sum = {}
    for factors, value in terms.items():
        total = algebra.add(total, {tuple(k for k in factors if k != key): value})
    return total


def growth(factor: algebra.Sum) -> float:
    """Grows with the scale for the conditional branch: the sign of the longest product, or the number itself."""
    if not factor:
        return 0.0
    longest = max(len(product) for product in factor)
    return sum(value for product, value in factor.items() if len(product) == longest)


def halves(first: list[Cut], second: list[Cut]) -> str | None:
    """The order of two parts of one batch, or None if they are not two parts."""
    if len(first) != len(second) or not first:
        return None
    different = [(a, b) for a, b in zip(first, second, strict=True) if a != b]
    if len(different) != 1:
        return None
    a, b = different[0]
    if a.kind == b.kind == "part" and a.items[1:] == b.items[1:]:
        return "one batch, cond first" if a.items[0] < b.items[0] else "one batch, uncond first"
    if a.kind == b.kind == "range":
        if a.low is None and a.high is not None and a.high == b.low:
            return "one batch, cond first"
        if b.low is None and b.high is not None and b.high == a.low:
            return "one batch, uncond first"
        return None
    if a.kind == b.kind == "index":
        if a.items and b.items:
            return "two items, cond first" if a.items < b.items else "two items, uncond first"
        starts = [re.match(r"(\d*):", cut.text) for cut in (a, b)]
        if all(starts):
            numbers = [int(start[1] or 0) for start in starts if start]
            return "one batch, cond first" if numbers[0] < numbers[1] else "one batch, uncond first"
    return None


def named_apart(cond: set[str], uncond: set[str]) -> bool:
    """Whether names say that one branch is unconditional and the other is not."""
    said = [any(_UNCOND.search(name) for name in names) for names in (cond, uncond)]
    return said[0] != said[1]


def shortest(names: Iterable[str]) -> str:
    return min(names, key=lambda name: (len(name), name), default="")
