"""What the audit knows of a value in the code it reads: which tensor it comes from, and what was cut out of it."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from . import algebra
from .algebra import Sum

Role = Literal["number", "count", "half", "choice", "packed", "less", "name"]

_CHOICE = re.compile(r"cfg|guid", re.IGNORECASE)
_COUNT = re.compile(
    r"(^|_)(in_?)?(channels?|chans?|chns?|ch|nc|dim)(_latents?)?$|^[cd]$|^c_(in|out|latent)$|channels_latents$|^z_dim$",
    re.IGNORECASE,
)
_INPUT = re.compile(r"(^|_)(in|latents?|input|model|noise|z)(_|$)", re.IGNORECASE)
_TOKENS = re.compile(r"(^|_)(packed|tokens?|patches|seq|sequence)(_|$|\d)", re.IGNORECASE)
_PACK = re.compile(r"(?<!un)(pack_latents|patchify|(^|_)pack$)", re.IGNORECASE)
_UNPACK = re.compile(r"unpack|unpatch|depatch", re.IGNORECASE)


def text_of(node: ast.AST) -> str:
    """The source of a node; quickly, for a name or an attribute."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return f"{node.value.id}.{node.attr}"
    try:
        return ast.unparse(node)
    except (RecursionError, ValueError, AttributeError):
        return "..."


@dataclass(frozen=True)
class Bound:
    """One end of a range of channels, such as ``3`` or ``self.in_channels``."""

    text: str
    """How it is written in the source."""
    role: Role
    number: int | None = None
    """The number, where it is known; the number of channels before packing for ``packed``; what is left out for
    ``less``."""
    default: str | None = field(default=None, compare=False)
    """The value that a function's argument has if the caller does not give it."""


@dataclass(frozen=True)
class Cut:
    """One part of one axis of a tensor."""

    axis: int
    """Counted from the end if negative."""
    kind: Literal["range", "items", "index", "part"]
    low: Bound | None = None
    high: Bound | None = None
    items: tuple[int, ...] = ()
    """The indices of ``items`` and ``index``; number and count of a ``part``."""
    text: str = ""
    """Names an index that is not known; ``each`` where a loop takes one index after the other."""
    line: int = field(default=0, compare=False)
    source: str = field(default="", compare=False)
    """The expression that cuts."""
    axis_name: str | None = field(default=None, compare=False)
    """What the code calls this axis, if it says so."""
    of: str = field(default="", compare=False)
    """The expression that is cut."""

    @property
    def key(self) -> str:
        low, high = (f"{b.role} {b.number} {b.text}" if b else "" for b in (self.low, self.high))
        return f"[{self.axis}:{self.kind}:{low}:{high}:{self.items}:{self.text}]"


@dataclass(frozen=True)
class Mask:
    """A mask of channels, or a tensor of scales: one value for some channels, 0 or 1 for the others."""

    cut: Cut
    """The channels."""
    key: str
    """The key of the atom."""
    inside: str
    """The value for these channels, as text; 1 for a mask."""


@dataclass(frozen=True)
class Root:
    """Where a value comes from: a name, a call, or an expression that is not followed."""

    key: str
    """Equal keys are equal values."""
    kind: Literal["name", "call", "shape", "half", "range", "fresh", "other"]
    node: ast.AST | None = field(default=None, compare=False)
    label: str = field(default="", compare=False)
    function: str = field(default="", compare=False)
    """The function of a call."""
    call: ast.Call | None = field(default=None, compare=False)
    of: str = field(default="", compare=False)
    """The key of the tensor whose shape it is."""
    default: str | None = field(default=None, compare=False)
    """The default of a parameter, as text."""
    tokens: bool = field(default=False, compare=False)
    """Whether it is a sequence of tokens (B, S, features) rather than a grid of channels."""

    @cached_property
    def text(self) -> str:
        return self.label or (text_of(self.node) if self.node is not None else self.key)

    @cached_property
    def arguments(self) -> tuple[str, ...]:
        """The arguments of a call, as text."""
        call = self.call
        if call is None:
            return ()
        return (*map(text_of, call.args), *(f"{k.arg}={text_of(k.value)}" for k in call.keywords))


@dataclass(frozen=True)
class Atom:
    """A root with parts cut out of it."""

    root: Root
    cuts: tuple[Cut, ...] = ()

    @cached_property
    def key(self) -> str:
        return self.root.key + "".join(cut.key for cut in self.cuts)

    def cut(self, cut: Cut) -> Atom:
        return Atom(self.root, tuple(sorted((*self.cuts, cut), key=lambda cut: cut.axis)))


Taint = tuple[int, tuple[Cut, ...]]
"""The number of a combination, and what was cut from its result since."""


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor or a number: a sum of products of atoms."""

    terms: Sum
    atoms: Mapping[str, Atom] = field(default_factory=dict[str, Atom])
    """The atoms in ``terms``, by key."""
    guided: frozenset[Taint] = frozenset()
    """The guidance combinations inside."""
    holes: tuple[Cut, ...] = ()
    """Channels that were overwritten by another branch or by zero."""
    mask: Mask | None = None
    """The mask of channels in it."""
    stacked: bool = False
    """Whether a reshape has put the branches on an axis of their own, before all others."""
    line: int = 0

    @property
    def key(self) -> str:
        terms = sorted((product, round(value, 9)) for product, value in self.terms.items())
        if not (self.guided or self.holes or self.mask or self.stacked):
            return str(terms)
        return f"{terms}{sorted(map(str, self.guided))}{self.holes}{self.mask}{self.stacked}"

    @property
    def atom(self) -> Atom | None:
        """The atom, if the value is one and nothing else."""
        if len(self.terms) == 1:
            (product, factor), *_ = self.terms.items()
            if len(product) == 1 and factor == 1:
                return self.atoms[product[0]]
        return None

    @property
    def number(self) -> float | None:
        return algebra.as_number(self.terms)

    @property
    def tokens(self) -> bool:
        return any(atom.root.tokens for atom in self.atoms.values())

    def cut(self, cut: Cut) -> Value:
        """The same part of every atom: cutting a sum is summing what was cut."""
        new = {key: atom.cut(cut) for key, atom in self.atoms.items()}
        terms: dict[algebra.Product, float] = {}
        for product, value in self.terms.items():
            renamed = tuple(sorted(new[key].key for key in product))
            terms[renamed] = terms.get(renamed, 0.0) + value
        guided = frozenset((number, (*cuts, cut)) for number, cuts in self.guided)
        return replace(self, terms=terms, atoms={atom.key: atom for atom in new.values()}, guided=guided)


@dataclass(frozen=True, eq=False)
class Many:
    """A tuple or list whose items are known; each item is a list of alternatives."""

    items: tuple[list[Thing], ...]

    @property
    def key(self) -> str:
        return "(" + ",".join("|".join(thing.key for thing in item) for item in self.items) + ")"


@dataclass(frozen=True, eq=False)
class Parts:
    """What ``chunk`` or ``split`` returns, before it is unpacked."""

    value: Value
    axis: int
    count: int | None
    """How many equal parts; None for parts of a given size."""
    size: Bound | None
    """The size of every part."""
    ranges: tuple[tuple[Bound | None, Bound | None], ...] | None
    """The range of each part, if they differ."""
    line: int
    source: str
    of: str
    axis_name: str | None

    @property
    def key(self) -> str:
        return f"{self.value.key}/{self.axis}/{self.source}"

    def part(self, index: int, unpacked: int | None) -> Value:
        """One part. ``unpacked``: into how many names the parts are assigned, if that is known."""
        count = self.count or unpacked
        if index < 0 and count:
            index += count
        if self.axis == 0 and not self.ranges:
            return replace(self.value.cut(self._cut("part", items=(index, count or 2))), stacked=False)
        if self.ranges:
            if not 0 <= index < len(self.ranges):
                return self.value.cut(self._cut("index", text=f"part {index}"))
            low, high = self.ranges[index]
            return self.value.cut(self._cut("range", low=low, high=high))
        if self.size is not None:
            size = self.size
            if index == 0:
                # Two parts of one size are usually the prediction and its variance. Three and the rest is DiT's cut.
                even = unpacked == 2 and size.role == "number" and (size.number or 0) > 3
                cut = self._cut("part", items=(0, 2)) if even else self._cut("range", high=size)
                return self.value.cut(cut)
            if index == 1 and unpacked == 2:
                return self.value.cut(self._cut("range", low=size))
        return self.value.cut(self._cut("part", items=(index, count or 0)))

    def _cut(
        self,
        kind: Literal["range", "index", "part"],
        low: Bound | None = None,
        high: Bound | None = None,
        items: tuple[int, ...] = (),
        text: str = "",
    ) -> Cut:
        return Cut(self.axis, kind, low, high, items, text, self.line, self.source, self.axis_name, self.of)


@dataclass(frozen=True, eq=False)
class Span:
    """A slice object."""

    low: Bound | None
    high: Bound | None
    stepped: bool = False

    @property
    def key(self) -> str:
        return f"slice({self.low},{self.high},{self.stepped})"


@dataclass(frozen=True, eq=False)
class Shape:
    """The shape of a tensor, or a part of it that begins at axis ``first``."""

    value: Value
    node: ast.AST
    first: int = 0

    @property
    def key(self) -> str:
        return f"shape({self.value.key})+{self.first}"


@dataclass(frozen=True, eq=False)
class Table:
    """A dictionary with text as keys."""

    items: Mapping[str, list[Thing]]

    @property
    def key(self) -> str:
        return f"table({sorted(self.items)})"


@dataclass(frozen=True, eq=False)
class Function:
    """A function of the module that is read."""

    node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
    names: Mapping[str, list[Thing]]
    """The names of the functions around it."""
    method: bool = False
    given: tuple[tuple[list[Thing], ...], Mapping[str, list[Thing]]] = ((), {})
    """Arguments that ``functools.partial`` has bound."""

    @property
    def key(self) -> str:
        return f"function@{self.node.lineno}:{self.node.col_offset}"


Thing = Value | Many | Parts | Span | Shape | Table | Function


def role_of(text: str) -> Role:
    """What the name of a bound says that it counts."""
    last = re.split(r"[.\[]", text.rstrip("])'\""))[-1].strip("'\"")
    if _CHOICE.search(last):
        return "choice"
    if _COUNT.search(last):
        return "count"
    return "name"


def counts_latents(text: str) -> bool:
    """Whether a name says that it counts the channels of latents, not those of a network's output."""
    last = re.split(r"[.\[]", text.rstrip("])'\""))[-1].strip("'\"")
    return bool(_INPUT.search(last))


def names_tokens(text: str) -> bool:
    return bool(_TOKENS.search(text))


def packs(function: str) -> bool | None:
    """Whether a function packs latents into tokens (True) or unpacks them (False); None if its name says neither."""
    name = function.rsplit(".", 1)[-1]
    if _UNPACK.search(name):
        return False
    return True if _PACK.search(name) else None


def unique(things: Sequence[Thing], most: int = 6) -> list[Thing]:
    """Alternatives without repetition; the latest ones if there are too many."""
    found: dict[str, Thing] = {}
    for thing in things:
        found.setdefault(thing.key, thing)
    return list(found.values())[-most:]
