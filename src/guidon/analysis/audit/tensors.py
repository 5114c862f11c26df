"""What tensor functions do to values: torch, numpy, jax, tensorflow, paddle, mindspore, mlx and einops."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from . import algebra, arithmetic, cutting, joining, stores, unpacking
from .calls import Call, normal
from .indexing import Kind
from .values import Bound, Cut, Function, Many, Mask, Root, Shape, Span, Thing, Value, packs, text_of, unique

if TYPE_CHECKING:
    from .flow import Flow, Names

Handler = Callable[[Call], "list[Thing] | None"]

SAME_ATTRIBUTES = {"data", "real", "sample", "prev_sample", "T", "mT", "value", "values"}
_SAME = {
    "to", "float", "half", "bfloat16", "double", "type", "type_as", "astype", "cast", "clone", "contiguous",
    "detach", "cpu", "cuda", "numpy", "item", "clamp", "clip", "nan_to_num", "asarray", "array", "as_tensor",
    "stop_gradient", "device_put", "copy", "ensure_contiguous", "requires_grad_", "expand", "expand_as",
    "squeeze", "squeeze_", "permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims",
    "block_until_ready", "astensor", "get_tensor", "convert_to_tensor", "identity", "checkpoint_name",
    "with_sharding_constraint", "pin_memory", "tuple", "list", "tile", "repeat", "broadcast_to",
    "ascontiguousarray", "div_no_nan", "unsqueeze", "expand_dims", "all_gather", "flatten",
}  # fmt: skip
"""Functions whose result is what they are given, as far as channels go."""
_REDUCES = re.compile(r"norm|std|var|mean|sum|abs|max|min|dot|square|loss|print|log|len|append", re.IGNORECASE)
MOST_STATEMENTS = 80
"""A longer function of the module is not followed."""


def call(flow: Flow, node: ast.Call, names: Names) -> list[Thing]:
    """The alternatives of what a call returns."""
    func = node.func
    # x.at[:, :3].set(value), of jax
    if isinstance(func, ast.Attribute) and isinstance(func.value, ast.Subscript):
        at = func.value
        if isinstance(at.value, ast.Attribute) and at.value.attr == "at":
            return joining.at(flow, node, at, at.value.value, func.attr, names)
    # a function of the module
    if (function := _own_function(flow, func, names)) is not None and not any(
        isinstance(a, ast.Starred) for a in node.args
    ):
        arguments = [flow.alternatives(argument, names) for argument in node.args]
        keywords = {k.arg: flow.alternatives(k.value, names) for k in node.keywords if k.arg}
        if found := flow.call(function, arguments, keywords, node):
            return found
    # a function of a library
    made = normal(flow, node, names)
    if made is not None and (found := _library_function(made)):
        return found
    return _unknown_call(flow, node, names)


def _own_function(flow: Flow, func: ast.expr, names: Names) -> Function | None:
    """The function of the module that is called, if it can and should be followed."""
    match func:
        case ast.Name(id=name) if name in names or name in flow.globals:
            pass
        case ast.Attribute(value=ast.Name(id=base)) if base in ("self", "cls") or base in flow.module.classes:
            pass
        case ast.Lambda():
            pass
        case _:
            return None
    functions = [thing for thing in flow.alternatives(func, names) if isinstance(thing, Function)]
    if not functions or not flow.may_follow(functions[-1]):
        return None
    body = functions[-1].node
    if not isinstance(body, ast.Lambda) and (len(body.body) > MOST_STATEMENTS or not worth_following(body)):
        return None
    return functions[-1]


def worth_following(node: ast.AST) -> bool:
    """Whether a function computes with what it is given, so that guidance could be in it."""
    return any(
        isinstance(inner, ast.Subscript | ast.BinOp)
        or (isinstance(inner, ast.Attribute) and inner.attr in ("lerp", "chunk", "split", "cat", "narrow"))
        for inner in ast.walk(node)
    )


def _library_function(c: Call) -> list[Thing] | None:
    """What a function of a tensor library returns; None if its name is not known."""
    in_place = c.is_method and c.name.endswith("_") and not c.name.startswith("_") and c.name != "copy_"
    handler = _HANDLERS.get(c.name) or _HANDLERS.get(c.name.removesuffix("_"))
    if handler is None:
        return None
    found = handler(c)
    if found and in_place:
        _write_back(c, found)
    return found


def _write_back(c: Call, found: list[Thing]) -> None:
    """``eps.mul_(s)`` changes eps."""
    target = c.operands[0]
    while isinstance(target, ast.Call) and isinstance(target.func, ast.Attribute) and target.func.attr.endswith("_"):
        target = target.func.value
    if isinstance(target, ast.Name):
        c.names[target.id] = found
        c.flow.combinations.label(target.id, found)
    elif isinstance(target, ast.Subscript):
        stores.store(c.flow, target, found, c.names, c.node)


def _unknown_call(flow: Flow, node: ast.Call, names: Names) -> list[Thing]:
    """A call of something that is not known: a network, or a function that changes what it is given."""
    func, text = node.func, text_of(node.func)
    arguments = [flow.alternatives(a.value if isinstance(a, ast.Starred) else a, names) for a in node.args]
    keywords = [flow.alternatives(k.value, names) for k in node.keywords]
    values = [v for things in (*arguments, *keywords) for v in things if isinstance(v, Value)]
    if isinstance(func, ast.Attribute) and not isinstance(func.value, ast.Name):
        values += [v for v in flow.alternatives(func.value, names) if isinstance(v, Value)]
    # A function of one difference, such as a projection, is taken as the difference itself.
    if len(values) == 1 and node.args and algebra.difference(values[0].terms) and not _REDUCES.search(text):
        return [values[0]]
    packed = packs(text)
    tokens = packed if packed is not None else flow.axes.unpacks or any(value.tokens for value in values)
    key = f"{flow.frame}@call{node.lineno}:{node.col_offset}"
    root = Root(key, "call", node, function=text, call=node, tokens=bool(tokens))
    return [flow.alone(root)]


# computing


def _same(c: Call) -> list[Thing]:
    return c.things(c.operand(0, "input", "x", "a", "tensor"))


def _transposed(c: Call) -> list[Thing]:
    """``x.flatten(2).transpose(1, 2)`` makes tokens of a grid."""
    inner = c.operands[0] if c.operands else None
    flat = isinstance(inner, ast.Call) and isinstance(inner.func, ast.Attribute) and inner.func.attr == "flatten"
    axes = [c.integer(node) for node in c.operands[1:]]
    if not flat or axes not in ([1, 2], [2, 1], [0, 2, 1], [-2, -1], [-1, -2]):
        return _same(c)
    root = Root(f"{c.flow.frame}@tokens{c.node.lineno}:{c.node.col_offset}", "other", c.node, tokens=True)
    return [c.flow.alone(root)]


def _append(c: Call) -> list[Thing] | None:
    """``parts.append(x)`` makes a list longer."""
    target = c.operands[0]
    if not isinstance(target, ast.Name) or len(c.operands) != 2:
        return None
    things = c.things(c.operands[1])
    longer: list[Thing] = [
        Many((*known.items, things)) for known in c.things(target) if isinstance(known, Many) and len(known.items) < 64
    ]
    if longer:
        c.names[target.id] = longer
    return None


def _elementwise(c: Call) -> list[Thing] | None:
    """torch.add(a, b, alpha=s) and its relatives."""
    name = c.name.removesuffix("_")
    a = c.values(c.operand(0, "input", "x", "x1"))
    if name in ("neg", "negative"):
        return [replace(value, terms=algebra.add({}, value.terms, -1.0)) for value in a]
    second = c.operand(1, "other", "y", "x2")
    if second is None:
        return None
    b = c.values(second)
    alpha = c.operand(2, "alpha") if name in ("add", "sub", "subtract") else None
    if alpha is not None:
        b = [arithmetic.combine(c.flow, ast.Mult(), v, s, c.node) for v in b for s in c.values(alpha)]
    op: ast.operator = ast.Add()
    if name in ("sub", "subtract"):
        op = ast.Sub()
    elif name in ("mul", "multiply"):
        op = ast.Mult()
    elif name in ("div", "divide", "true_divide"):
        op = ast.Div()
    return unique([arithmetic.combine(c.flow, op, x, y, c.node) for x in a[:4] for y in b[:4]])


def _lerp(c: Call) -> list[Thing]:
    """lerp(a, b, w) = a + w (b - a)"""
    found: list[Thing] = []
    starts, ends = c.values(c.operand(0, "input", "start")), c.values(c.operand(1, "end"))
    weights = c.values(c.operand(2, "weight"))
    for a, b, w in [(a, b, w) for a in starts for b in ends for w in weights][:6]:
        step = arithmetic.combine(c.flow, ast.Mult(), w, arithmetic.combine(c.flow, ast.Sub(), b, a, c.node), c.node)
        found.append(arithmetic.combine(c.flow, ast.Add(), a, step, c.node))
    return unique(found)


def _addcmul(c: Call) -> list[Thing]:
    """addcmul(a, b, c, value=v) = a + v b c"""
    found: list[Thing] = []
    first, second = c.values(c.operand(1, "tensor1")), c.values(c.operand(2, "tensor2"))
    factors = c.values(c.operand(3, "value")) or [Value(algebra.number(1))]
    for a in c.values(c.operand(0, "input")):
        for x, y, v in [(x, y, v) for x in first for y in second for v in factors][:6]:
            step = arithmetic.combine(
                c.flow, ast.Mult(), arithmetic.combine(c.flow, ast.Mult(), x, y, c.node), v, c.node
            )
            found.append(arithmetic.combine(c.flow, ast.Add(), a, step, c.node))
    return unique(found)


# making


def _fresh(c: Call) -> list[Thing]:
    for argument in (*c.node.args, *(k.value for k in c.node.keywords)):
        c.things(argument)
    root = Root(f"{c.flow.frame}@new{c.node.lineno}:{c.node.col_offset}", "fresh", c.node)
    return [c.flow.alone(root)]


def _arange(c: Call) -> list[Thing]:
    """range(n) and arange(n) from 0; other ranges are not followed."""
    if not c.operands:
        return [c.flow.unknown(c.node)]
    limits = [c.integer(c.operand(i)) for i in range(min(len(c.operands), 2))]
    if len(c.operands) == 2 and None not in limits:
        items: list[list[Thing]] = [[Value(algebra.number(i))] for i in range(limits[0] or 0, limits[1] or 0)]
        known: list[Thing] = [Many(tuple(items))]
        return known if 0 < len(items) <= 64 else [c.flow.unknown(c.node)]
    if len(c.operands) > 1:
        return [c.flow.unknown(c.node)]
    root = Root(f"{c.flow.frame}@range{c.node.lineno}:{c.node.col_offset}", "range", c.operand(0))
    found: list[Thing] = [c.flow.alone(root)]
    return found


def _tensor(c: Call) -> list[Thing]:
    """tensor([1, 1, 1, 0]): a list of indices, or a mask or scale per channel."""
    found: list[Thing] = []
    for thing in c.things(c.operand(0, "data", "object", "value")):
        if isinstance(thing, Many) and len(thing.items) >= 2:
            found.append(_per_channel(c, thing))
        else:
            found.append(thing)
    return found or [c.flow.unknown(c.node)]


def _per_channel(c: Call, many: Many) -> Thing:
    """A list whose last values are 0 or 1 and whose first are something else is a mask or a scale per channel."""
    keys = [item[0].key if item else "" for item in many.items]
    numbers = [item[0].number if item and isinstance(item[0], Value) else None for item in many.items]
    ends = [n for n in numbers if n in (0.0, 1.0)]
    different = [i for i, key in enumerate(keys) if key != keys[-1]]
    is_indices = all(n is not None for n in numbers) and numbers == sorted({n for n in numbers if n is not None})
    if is_indices or numbers[-1] not in (0.0, 1.0) or not ends or not different:
        return many
    if any(n is not None and n not in (0.0, 1.0) and n < 1 for n in numbers):
        return many
    items = tuple(different)
    kind: Kind = "range" if items == tuple(range(len(items))) else "items"
    high = Bound(str(len(items)), "number", len(items)) if kind == "range" else None
    cut = Cut(1, kind, None, high, () if kind == "range" else items, line=c.node.lineno, source=text_of(c.node))
    root = Root(f"{c.flow.frame}@new{c.node.lineno}:{c.node.col_offset}", "fresh", c.node)
    value = c.flow.alone(root)
    first = many.items[0][0]
    inside = "1" if isinstance(first, Value) and first.number == 1 else cutting.text_of_item(first, c.operands[0], 0)
    return replace(value, mask=Mask(cut, next(iter(value.atoms)), inside))


def _slice(c: Call) -> list[Thing]:
    """slice(3), slice(0, 3), slice(None)"""
    ends = [c.operand(0), c.operand(1)] if len(c.operands) > 1 else [None, c.operand(0)]
    base = Value({})
    low, high = (
        None if e is None or (isinstance(e, ast.Constant) and e.value is None) else c.bound(e, base) for e in ends
    )
    if low is not None and low.number == 0:
        low = None
    return [Span(low, high, stepped=len(c.operands) > 2)]


def _size(c: Call) -> list[Thing] | None:
    if not c.is_method:
        return None
    axis = c.integer(c.operand(1, "dim"))
    found: list[Thing] = []
    for value in c.values(c.operands[0]):
        shape = Shape(value, c.node)
        found.append(
            shape if axis is None else unpacking.size(c.flow, replace(shape, node=c.operands[0]), axis, c.node)
        )
    return found


def _partial(c: Call) -> list[Thing] | None:
    functions = [thing for thing in c.things(c.operands[0]) if isinstance(thing, Function)]
    arguments = tuple(c.things(a) for a in c.operands[1:])
    keywords = {k.arg: c.things(k.value) for k in c.node.keywords if k.arg}
    return [replace(f, given=(arguments, keywords)) for f in functions] or None


def _shape(c: Call) -> list[Thing] | None:
    return None if c.is_method else [Shape(value, c.node.args[0]) for value in c.values(c.operand(0))]


def _zip(c: Call) -> list[Thing] | None:
    """zip of tensors: a loop's names hold an item of each."""
    items: list[list[Thing]] = []
    if any(isinstance(operand, ast.Starred) for operand in c.operands):
        return None
    for operand in c.operands:
        items.append(unpacking.items_of(c.flow, c.things(operand), operand))
    return [Many(([Many(tuple(items))],))]


def _map(c: Call) -> list[Thing] | None:
    functions = [thing for thing in c.things(c.operands[0]) if isinstance(thing, Function)]
    sources = c.things(c.operands[1])
    if not functions or not sources:
        return None
    items = unpacking.known_items(c.flow, sources[0])
    if not items:
        return None
    return [Many(tuple(c.flow.call(functions[0], [item], {}, c.node) for item in items))]


def _per_name(handler: Handler, *names: str) -> dict[str, Handler]:
    return dict.fromkeys(names, handler)


_HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(_SAME, _same),
    **_per_name(_transposed, "transpose", "permute", "swapaxes"),
    **_per_name(_append, "append"),
    **_per_name(cutting.reshape, "view", "reshape", "unflatten", "view_as", "reshape_as"),
    **_per_name(cutting.split, "split", "chunk", "tensor_split", "array_split", "hsplit", "split_with_sizes"),
    **_per_name(cutting.unbind, "unbind"),
    **_per_name(cutting.narrow, "narrow", "slice_in_dim", "dynamic_slice_in_dim"),
    **_per_name(cutting.select, "index_select", "take", "gather", "select", "index_in_dim"),
    **_per_name(cutting.rearrange, "rearrange"),
    **_per_name(joining.join, "cat", "concat", "concatenate", "hstack", "vstack", "dstack", "column_stack", "stack"),
    **_per_name(joining.scatter, "slice_scatter", "index_copy", "select_scatter", "dynamic_update_slice_in_dim"),
    **_per_name(joining.where, "where"),
    **_per_name(joining.copy, "copy_"),
    **_per_name(_elementwise, "add", "sub", "subtract", "mul", "multiply", "div", "divide", "true_divide"),
    **_per_name(_elementwise, "neg", "negative"),
    **_per_name(_lerp, "lerp"),
    **_per_name(_addcmul, "addcmul"),
    **_per_name(_fresh, "zeros", "ones", "empty", "full", "zeros_like", "ones_like", "empty_like", "full_like"),
    **_per_name(_fresh, "new_zeros", "new_ones", "new_empty"),
    **_per_name(_arange, "arange", "range", "iota"),
    **_per_name(_tensor, "tensor", "LongTensor", "FloatTensor", "IntTensor", "constant", "from_numpy", "int", "float"),
    **_per_name(_slice, "slice"),
    **_per_name(_size, "size"),
    **_per_name(_shape, "shape"),
    **_per_name(_partial, "partial"),
    **_per_name(_zip, "zip"),
    **_per_name(_map, "map"),
    **_per_name(_same, "getattr"),
}
