"""Functions that cut tensors into parts: split, chunk, narrow, index_select, rearrange and their relatives."""

from __future__ import annotations

import ast
import re
from dataclasses import replace

from .calls import Call
from .indexing import MakeCut, bound, cuts_of_element, cutter
from .values import Bound, Many, Parts, Thing, Value, text_of, unique


def _axis(c: Call, position: int, default: int) -> int:
    value = c.integer(c.operand(position, "dim", "axis"), default)
    return default if value is None else value


def _where_cut(c: Call, value: Value, axis: int) -> MakeCut:
    return cutter(c.flow, c.operands[0] if c.operands else c.node, value, axis, c.node)


def parts_of(
    c: Call,
    value: Value,
    axis: int,
    count: int | None = None,
    size: Bound | None = None,
    ranges: tuple[tuple[Bound | None, Bound | None], ...] | None = None,
) -> Parts:
    of = text_of(c.operands[0]) if c.operands else ""
    name = c.flow.axis_name(c.operands[0], value, axis) if c.operands else None
    return Parts(value, axis, count, size, ranges, c.node.lineno, text_of(c.node), of, name)


def unbind(c: Call) -> list[Thing]:
    axis = c.integer(c.operand(1, "dim", "axis"), 0) or 0
    return [parts_of(c, value, axis) for value in c.values(c.operand(0, "input"))]


def split(c: Call) -> list[Thing]:
    """split, chunk and their relatives. torch gives sizes; numpy and jax give indices, or a count."""
    name = c.name
    found: list[Thing] = []
    how = c.operand(
        1, "split_size_or_sections", "split_size", "chunks", "indices_or_sections", "num_or_size_splits", "sections",
        "num_or_sections", "tensor_indices_or_sections", "indices",
    )  # fmt: skip
    counts = name in ("chunk", "unsafe_chunk") or c.library != "torch" or name in ("tensor_split", "array_split")
    indices = name in ("tensor_split", "array_split", "hsplit") or (c.library == "numpy" and name == "split")
    axis = 1 if name == "hsplit" else _axis(c, 2, 0)
    for value in c.values(c.operand(0, "input", "tensor", "x", "ary", "value", "self")):
        for thing in c.things(how) if how is not None else [None]:
            if isinstance(thing, Many):
                bounds = [bound(item[0], text_of_item(item[0], how, i), value) for i, item in enumerate(thing.items)]
                found.append(parts_of(c, value, axis, ranges=_ranges(bounds, indices)))
            elif counts:
                number = c.integer(how)
                found.append(parts_of(c, value, axis, count=number))
            else:
                size = None if how is None else c.bound(how, value)
                found.append(parts_of(c, value, axis, size=size))
    return unique(found)


def text_of_item(thing: Thing, how: ast.expr | None, index: int) -> str:
    if isinstance(how, ast.List | ast.Tuple) and index < len(how.elts):
        return text_of(how.elts[index])
    if isinstance(thing, Value):
        if thing.number is not None:
            return f"{thing.number:g}"
        return thing.atom.root.text if thing.atom else "n"
    return "n"


def _ranges(ends: list[Bound], indices: bool) -> tuple[tuple[Bound | None, Bound | None], ...]:
    """The range of each part, from its ends (numpy) or from the sizes of all parts (torch)."""
    if indices:
        marks: list[Bound | None] = [None, *ends, None]
        return tuple((marks[i], marks[i + 1]) for i in range(len(marks) - 1))
    numbers = [bound.number if bound.role == "number" else None for bound in ends]
    if len(ends) == 2 and numbers[0] is not None and numbers[0] == numbers[1] and numbers[0] > 3:
        half = Bound(ends[0].text, "half", numbers[0])
        return ((None, half), (half, None))
    result: list[tuple[Bound | None, Bound | None]] = []
    start: Bound | None = None
    position: int | None = 0
    for size, number in zip(ends, numbers, strict=True):
        position = None if position is None or number is None else position + number
        if start is None and not result:
            end: Bound | None = size
        else:
            end = None if position is None else Bound(str(position), "number", position)
        result.append((start, None if len(result) == len(ends) - 1 else end))
        start = end
    return tuple(result)


def narrow(c: Call) -> list[Thing]:
    """torch.narrow(x, dim, start, length); lax.slice_in_dim(x, start, limit, axis=)."""
    name = c.name
    found: list[Thing] = []
    lax = name != "narrow"
    axis_node = c.operand(4 if name == "slice_in_dim" else 3, "axis") if lax else c.operand(1, "dim", "axis")
    axis = c.integer(axis_node, 0) or 0
    for value in c.values(c.operand(0, "input", "operand")):
        low = c.bound(c.operand(1 if lax else 2, "start", "start_index"), value)
        length = c.bound(c.operand(2 if lax else 3, "length", "limit_index", "slice_size"), value)
        high = length
        if low is not None and not (low.role == "number" and low.number == 0) and name != "slice_in_dim":
            known = low.number is not None and length is not None and length.role == "number"
            number = (low.number or 0) + (length.number or 0) if known and length else None
            high = None if number is None else Bound(str(number), "number", number)
        found.append(value.cut(_where_cut(c, value, axis)("range", low, high)))
    return unique(found)


def select(c: Call) -> list[Thing] | None:
    """index_select(x, dim, index), take(x, indices, axis), select(x, dim, i)."""
    name = c.name
    torch_like = name in ("index_select", "select")
    axis = c.integer(c.operand(1, "dim", "axis") if torch_like else c.operand(2, "axis", "dim"))
    index = c.operand(2, "index") if torch_like else c.operand(1, "indices", "index", "ids")
    if axis is None or index is None:
        return None
    found: list[Thing] = []
    subscript = ast.Subscript(value=c.operands[0], slice=index)
    ast.copy_location(subscript, c.node)
    for value in c.values(c.operands[0]):
        for cut in cuts_of_element(c.flow, index, axis, value, subscript, c.names):
            found.append(value if cut is None else value.cut(replace(cut, source=text_of(c.node))))
    return unique(found)


def rearrange(c: Call) -> list[Thing]:
    """einops: ``(k c) -> k c`` puts parts of an axis on the first axis."""
    pattern = c.operand(1, "pattern")
    base = c.things(c.operand(0, "tensor"))
    if not isinstance(pattern, ast.Constant) or not isinstance(pattern.value, str) or "->" not in pattern.value:
        return base
    left, right = (_axes(side) for side in pattern.value.split("->"))
    counts = {k.arg: c.integer(k.value) for k in c.node.keywords}
    found: list[Thing] = []
    for thing in base:
        if not isinstance(thing, Value):
            continue
        first = right[0][0] if right and len(right[0]) == 1 else None
        where = next((i for i, group in enumerate(left) if len(group) > 1 and group[0] == first), None)
        if where is not None and first is not None:
            number = int(first) if first.isdecimal() else counts.get(first)
            found.append(parts_of(c, thing, where, count=number or 2))
            continue
        tokens = len(right) == 3 and any(len(g) > 1 and {"h", "w"} & {a.lower() for a in g} for g in right[1:2])
        channels = len(right) >= 4
        if tokens or channels:
            atoms = {key: replace(a, root=replace(a.root, tokens=tokens)) for key, a in thing.atoms.items()}
            thing = replace(thing, atoms=atoms)
        found.append(thing)
    return found


def _axes(side: str) -> list[list[str]]:
    return [part.strip("() ").split() for part in re.findall(r"\([^)]*\)|\S+", side)]


def reshape(c: Call) -> list[Thing]:
    """``x.view(2, B, ...)`` puts the branches on an axis of their own; other shapes are not followed."""
    base = c.things(c.operand(0, "input", "a", "x", "tensor"))
    shape = [c.operand(i) for i in range(1, len(c.operands))]
    if len(shape) == 1 and isinstance(shape[0], ast.Tuple | ast.List):
        shape = list(shape[0].elts)
    name = c.name
    if name == "unflatten":
        sizes = c.operand(2, "sizes")
        lead = sizes.elts[0] if isinstance(sizes, ast.Tuple | ast.List) and sizes.elts else None
        stacked = c.integer(c.operand(1, "dim"), 0) == 0 and c.integer(lead) in (2, 3)
    else:
        stacked = bool(shape) and len(shape) >= 3 and c.integer(shape[0]) in (2, 3)
    return [replace(t, stacked=True) if stacked and isinstance(t, Value) else t for t in base]
