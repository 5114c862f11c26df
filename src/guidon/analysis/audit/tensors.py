"""What tensor functions do to values: torch, numpy, jax, tensorflow, paddle, mindspore, mlx and einops."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol

from . import algebra
from .values import Bound, Cut, Function, Many, Mask, Parts, Root, Shape, Span, Thing, Value, packs, text_of, unique

if TYPE_CHECKING:
    from .flow import Flow, Names

Kind = Literal["range", "items", "index", "part"]


class MakeCut(Protocol):
    """Makes a cut of one axis of an expression."""

    def __call__(
        self,
        kind: Kind,
        low: Bound | None = None,
        high: Bound | None = None,
        *,
        items: tuple[int, ...] = (),
        text: str = "",
    ) -> Cut: ...


SAME_ATTRIBUTES = {"data", "real", "sample", "prev_sample", "T", "mT", "value", "values"}
_SAME = set(
    "to float half bfloat16 double type type_as astype cast clone contiguous detach cpu cuda numpy item clamp clip "
    "nan_to_num asarray array as_tensor stop_gradient device_put copy ensure_contiguous requires_grad_ expand "
    "expand_as squeeze squeeze_ permute transpose movedim moveaxis swapaxes swapdims block_until_ready astensor "
    "get_tensor convert_to_tensor identity checkpoint_name with_sharding_constraint pin_memory tuple list tile "
    "repeat broadcast_to ascontiguousarray div_no_nan unsqueeze expand_dims all_gather flatten".split()
)
_FRESH = set("zeros ones empty full zeros_like ones_like empty_like full_like new_zeros new_ones new_empty".split())
_JOIN = {"cat", "concat", "concatenate", "hstack", "vstack", "dstack", "column_stack", "concatenate_v2"}
_SPLIT = {"split", "chunk", "tensor_split", "array_split", "hsplit", "split_with_sizes", "unsafe_split", "unsafe_chunk"}
_FUNCTIONS_OF_TORCH = re.compile(r"^(torch|th|ops|mint|F|functional|pt|mindspore)\b")
_NUMPY = re.compile(r"^(numpy|jax|cupy|mlx)\b")
_NUMPY_NAMES = {"np", "numpy", "jnp", "jax", "cp", "cupy", "mx", "onp", "xp"}
_TENSORFLOW_NAMES = {"tf", "tensorflow", "paddle"}
_MODULES = {"torch", "th", "F", "ops", "mint", "lax", "einops", "nn", "functional", "jax", "math", "pt", "ms"}


@dataclass(frozen=True)
class Call:
    """A call, spelled as a method or as a function of a library."""

    flow: Flow
    node: ast.Call
    names: Names
    name: str
    library: Literal["torch", "numpy", "tensorflow"]
    operands: tuple[ast.expr, ...]
    """The arguments, the object of a method first."""
    is_method: bool

    def operand(self, position: int, *keywords: str) -> ast.expr | None:
        """The argument at a position, or under one of its names."""
        for keyword in self.node.keywords:
            if keyword.arg in keywords:
                return keyword.value
        found = self.operands[position] if position < len(self.operands) else None
        return None if isinstance(found, ast.Starred) else found

    def things(self, node: ast.expr | None) -> list[Thing]:
        return self.flow.alternatives(node, self.names)

    def values(self, node: ast.expr | None) -> list[Value]:
        return [thing for thing in self.things(node) if isinstance(thing, Value)]

    def integer(self, node: ast.expr | None, default: int | None = None) -> int | None:
        """The number that an argument is, where it is known."""
        if node is None:
            return default
        return next((int(v.number) for v in self.values(node) if v.number is not None), default)

    def bound(self, node: ast.expr | None, base: Value) -> Bound | None:
        if node is None:
            return None
        return next(iter(self.flow.bounds(node, self.names, base)), None)


def call(flow: Flow, node: ast.Call, names: Names) -> list[Thing]:
    """The alternatives of what a call returns."""
    # A function of the module: follow it.
    own = _own_function(flow, node, names)
    if own is not None:
        return own
    made = _normal(flow, node, names)
    if made is not None:
        found = _tensor_function(made)
        if found is not None:
            return found
    return _unknown_call(flow, node, names)


def _own_function(flow: Flow, node: ast.Call, names: Names) -> list[Thing] | None:
    if isinstance(node.func, ast.Name) and node.func.id not in names and node.func.id not in flow.globals:
        return None
    if not isinstance(node.func, ast.Name | ast.Attribute | ast.Lambda):
        return None
    if isinstance(node.func, ast.Attribute) and not _is_own(node.func, flow, names):
        return None
    functions = [thing for thing in flow.alternatives(node.func, names) if isinstance(thing, Function)]
    from .flow import MOST_CALLS

    if (
        not functions
        or flow.depth >= MOST_CALLS
        or flow.calls_left <= 0
        or any(isinstance(a, ast.Starred) for a in node.args)
    ):
        return None
    function = functions[-1]
    body = function.node
    if body in flow.stack:
        return None
    if not isinstance(body, ast.Lambda) and (len(body.body) > 80 or not worth_following(body)):
        return None
    arguments = [flow.alternatives(argument, names) for argument in node.args]
    keywords = {k.arg: flow.alternatives(k.value, names) for k in node.keywords if k.arg}
    return flow.call(function, arguments, keywords, node) or None


def _is_own(func: ast.Attribute, flow: Flow, names: Names) -> bool:
    base = func.value
    return isinstance(base, ast.Name) and (
        base.id in ("self", "cls") or (flow.scope is not None and base.id == flow.scope.name)
    )


def worth_following(node: ast.AST) -> bool:
    """Whether a function computes with what it is given, so that guidance could be in it."""
    return any(
        isinstance(inner, ast.Subscript | ast.BinOp)
        or (isinstance(inner, ast.Attribute) and inner.attr in ("lerp", "chunk", "split", "cat", "narrow"))
        for inner in ast.walk(node)
    )


def _normal(flow: Flow, node: ast.Call, names: Names) -> Call | None:
    """The call in its normal form; None if it is no call of a named function."""
    func = node.func
    if isinstance(func, ast.Name):
        full = flow.module.libraries.get(func.id, "")
        name = full.rsplit(".", 1)[-1] if full else func.id
        return Call(flow, node, names, name, _library(full), tuple(node.args), False)
    if not isinstance(func, ast.Attribute):
        return None
    base = text_of(func.value)
    first = base.split(".")[0]
    full = flow.module.libraries.get(first, first)
    is_module = (
        first in flow.module.libraries or first in _MODULES or first in _NUMPY_NAMES or first in _TENSORFLOW_NAMES
    ) and first not in names
    if is_module and re.fullmatch(r"[\w.]+", base):
        return Call(flow, node, names, func.attr, _library(full, first), tuple(node.args), False)
    return Call(flow, node, names, func.attr, "torch", (func.value, *node.args), True)


def _library(full: str, first: str = "") -> Literal["torch", "numpy", "tensorflow"]:
    if first in _NUMPY_NAMES or _NUMPY.match(full):
        return "numpy"
    if first in _TENSORFLOW_NAMES or full.startswith(("tensorflow", "paddle")):
        return "tensorflow"
    return "torch"


def _tensor_function(c: Call) -> list[Thing] | None:
    """What a tensor function returns; None if its name is not known."""
    name = c.name.removesuffix("_") if c.name not in _SAME else c.name
    in_place = c.is_method and c.name.endswith("_") and not c.name.startswith("_")
    found: list[Thing] | None = None
    if name in _SAME or (name in ("rename", "refine_names") and c.is_method):
        found = c.things(c.operand(0, "input", "x", "a", "tensor"))
        return _more(found, c)
    if name in ("view", "reshape", "unflatten", "view_as", "reshape_as"):
        return _more(_reshape(c), c)
    if name in _SPLIT:
        found = _split(c, name)
    elif name == "unbind":
        found = [_parts(c, value, c.integer(c.operand(1, "dim", "axis"), 0) or 0) for value in c.values(c.operand(0))]
    elif name in ("narrow", "slice_in_dim", "dynamic_slice_in_dim"):
        found = _narrow(c, name)
    elif name in ("index_select", "take", "gather", "select", "index_in_dim") and len(c.operands) >= 2:
        found = _select(c, name)
    elif name in _JOIN:
        found = _join(c)
    elif name in ("slice_scatter", "index_copy", "select_scatter", "dynamic_update_slice_in_dim"):
        found = _scatter(c)
    elif name == "where" and len(c.operands) == 3:
        found = _where(c)
    elif name in ("add", "sub", "subtract", "mul", "multiply", "div", "divide", "true_divide", "neg", "negative"):
        found = _elementwise(c, name)
    elif name == "lerp":
        found = _lerp(c)
    elif name == "addcmul":
        found = _addcmul(c)
    elif name in ("rearrange", "einops_rearrange"):
        found = _rearrange(c)
    elif name in _FRESH:
        _evaluate_arguments(c)
        return [_fresh(c)]
    elif name in ("arange", "range", "iota") and c.operands:
        return _arange(c)
    elif name in ("tensor", "LongTensor", "FloatTensor", "IntTensor", "constant", "from_numpy", "int", "float"):
        return _tensor(c)
    elif name == "slice":
        return [_slice(c)]
    elif name == "size" and c.is_method:
        return _size(c)
    elif name == "shape" and not c.is_method:
        return [Shape(value, c.operands[0]) for value in c.values(c.operand(0))]
    elif name == "copy" and c.name == "copy_":
        return _copy(c)
    elif name == "partial" and c.operands:
        return _partial(c)
    elif name == "zip" and not c.is_method:
        return _zip(c)
    elif name == "map" and not c.is_method and len(c.operands) == 2:
        return _map(c)
    elif name in ("set", "add", "multiply", "mul") and c.is_method:
        found = None
    elif name == "getattr" and len(c.operands) >= 2:
        return c.things(c.operands[0])
    else:
        return None
    if found is not None and in_place:
        _write_back(c, found)
    return found


def _more(found: list[Thing], c: Call) -> list[Thing] | None:
    return found or None


def _write_back(c: Call, found: list[Thing]) -> None:
    """``eps.mul_(s)`` changes eps."""
    target = c.operands[0]
    while isinstance(target, ast.Call) and isinstance(target.func, ast.Attribute) and target.func.attr.endswith("_"):
        target = target.func.value
    if isinstance(target, ast.Name):
        c.names[target.id] = found
        c.flow.label(target.id, found)
    elif isinstance(target, ast.Subscript):
        c.flow.store(target, found, c.names, c.node)


def _evaluate_arguments(c: Call) -> None:
    for argument in (*c.node.args, *(k.value for k in c.node.keywords)):
        c.flow.alternatives(argument, c.names)


def _unknown_call(flow: Flow, node: ast.Call, names: Names) -> list[Thing]:
    """A call of something that is not known: a network, or a function that changes what it is given."""
    func = node.func
    # x.at[:, :3].set(value), of jax
    if isinstance(func, ast.Attribute) and func.attr in ("set", "add", "multiply", "mul", "apply"):
        at = func.value
        if isinstance(at, ast.Subscript) and isinstance(at.value, ast.Attribute) and at.value.attr == "at":
            return _at(flow, node, at, at.value.value, func.attr, names)
    arguments = [flow.alternatives(a.value if isinstance(a, ast.Starred) else a, names) for a in node.args]
    keywords = [flow.alternatives(k.value, names) for k in node.keywords]
    values = [v for things in (*arguments, *keywords) for v in things if isinstance(v, Value)]
    if isinstance(func, ast.Attribute) and not isinstance(func.value, ast.Name):
        values += [v for v in flow.alternatives(func.value, names) if isinstance(v, Value)]
    # A function of one difference, such as a projection, is taken as the difference itself.
    if len(values) == 1 and not keywords and algebra.difference(values[0].terms):
        return [values[0]]
    text = text_of(func)
    packed = packs(text)
    tokens = packed if packed is not None else any(value.tokens for value in values)
    # torch.matmul of two tensors of tokens is still one; a reduction would not be, but then it is not cut by channel
    key = f"{flow.frame}@call{node.lineno}:{node.col_offset}"
    root = Root(key, "call", node, function=text, call=node, tokens=bool(tokens))
    return [flow.alone(root)]


def _at(flow: Flow, node: ast.Call, at: ast.Subscript, base: ast.expr, how: str, names: Names) -> list[Thing]:
    found: list[Thing] = []
    given = flow.alternatives(node.args[0], names) if node.args else []
    for thing in flow.alternatives(base, names):
        if not isinstance(thing, Value):
            continue
        for cuts in flow.cuts(at.slice, thing, at, names):
            for value in given:
                if not isinstance(value, Value):
                    continue
                if how in ("add", "multiply", "mul"):
                    part = thing
                    for cut in cuts:
                        part = part.cut(cut)
                    op = ast.Add() if how == "add" else ast.Mult()
                    value = flow.combine(op, part, value, node)
                found.append(flow.stored(thing, cuts, value, node))
    return unique(found) or [flow.unknown(node)]


# cutting


def _axis(c: Call, position: int, default: int) -> int:
    value = c.integer(c.operand(position, "dim", "axis"), default)
    return default if value is None else value


def _where_cut(c: Call, value: Value, axis: int) -> MakeCut:
    return c.flow.where(c.operands[0] if c.operands else c.node, value, axis, c.node)


def _parts(
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


def _split(c: Call, name: str) -> list[Thing]:
    """split, chunk and their relatives. torch gives sizes; numpy and jax give indices, or a count."""
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
                bounds = [c.flow.bound(item[0], _text(item[0], how, i), value) for i, item in enumerate(thing.items)]
                found.append(_parts(c, value, axis, ranges=_ranges(bounds, indices)))
            elif counts:
                number = c.integer(how)
                found.append(_parts(c, value, axis, count=number))
            else:
                size = None if how is None else c.bound(how, value)
                found.append(_parts(c, value, axis, size=size))
    return unique(found)


def _text(thing: Thing, how: ast.expr | None, index: int) -> str:
    if isinstance(how, ast.List | ast.Tuple) and index < len(how.elts):
        return text_of(how.elts[index])
    if isinstance(thing, Value):
        if thing.number is not None:
            return f"{thing.number:g}"
        return thing.atom.root.text if thing.atom else "n"
    return "n"


def _ranges(bounds: list[Bound], indices: bool) -> tuple[tuple[Bound | None, Bound | None], ...]:
    """The range of each part, from its ends (numpy) or from the sizes of all parts (torch)."""
    if indices:
        ends: list[Bound | None] = [None, *bounds, None]
        return tuple((ends[i], ends[i + 1]) for i in range(len(ends) - 1))
    numbers = [bound.number if bound.role == "number" else None for bound in bounds]
    if len(bounds) == 2 and numbers[0] is not None and numbers[0] == numbers[1] and numbers[0] > 3:
        half = Bound(bounds[0].text, "half", numbers[0])
        return ((None, half), (half, None))
    result: list[tuple[Bound | None, Bound | None]] = []
    start: Bound | None = None
    position: int | None = 0
    for bound, number in zip(bounds, numbers, strict=True):
        position = None if position is None or number is None else position + number
        if start is None and not result:
            end: Bound | None = bound
        else:
            end = None if position is None else Bound(str(position), "number", position)
        result.append((start, None if len(result) == len(bounds) - 1 else end))
        start = end
    return tuple(result)


def _narrow(c: Call, name: str) -> list[Thing]:
    """torch.narrow(x, dim, start, length); lax.slice_in_dim(x, start, limit, axis=)."""
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


def _select(c: Call, name: str) -> list[Thing] | None:
    """index_select(x, dim, index), take(x, indices, axis), select(x, dim, i)."""
    torch_like = name in ("index_select", "select")
    axis = c.integer(c.operand(1, "dim", "axis") if torch_like else c.operand(2, "axis", "dim"))
    index = c.operand(2, "index") if torch_like else c.operand(1, "indices", "index", "ids")
    if axis is None or index is None:
        return None
    found: list[Thing] = []
    subscript = ast.Subscript(value=c.operands[0], slice=index)
    ast.copy_location(subscript, c.node)
    for value in c.values(c.operands[0]):
        for cut in c.flow.element(index, axis, value, subscript, c.names):
            found.append(value if cut is None else value.cut(replace(cut, source=text_of(c.node))))
    return unique(found)


def _rearrange(c: Call) -> list[Thing]:
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
            found.append(_parts(c, thing, where, count=number or 2))
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


def _reshape(c: Call) -> list[Thing]:
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


# joining


def _join(c: Call) -> list[Thing]:
    """cat: joins guided channels with others, or doubles a batch."""
    flow, line = c.flow, c.node.lineno
    axis_node = c.operand(1, "dim", "axis")
    axis = c.integer(axis_node, 0 if axis_node is None else None)
    if c.name in ("hstack", "column_stack"):
        axis = 1
    parts: list[list[Thing]] = []
    for thing in c.things(c.operand(0, "tensors", "arrays", "values", "x", "input")):
        if isinstance(thing, Many):
            parts += thing.items
        elif isinstance(thing, Parts):
            parts += flow.known_items(thing)
    values = [[thing for thing in part if isinstance(thing, Value)] for part in parts]
    flat = [value for part in values for value in part]
    guided = frozenset(taint for value in flat for taint in value.guided)
    if axis == 0 and flat:
        # The batch is doubled: the first part stands for all, cut along the channels as they are.
        chosen = next((v for v in flat if v.guided), None)
        if chosen is not None:
            same = [replace(v, guided=v.guided | guided) for v in values[0] if v.guided] or [chosen]
            if _channels_joined(flow, values, line, axis):
                return [replace(flow.unknown(c.node), guided=guided)]
            return list(same)
    elif guided:
        _channels_joined(flow, values, line, axis)
    tokens = any(value.tokens for value in flat)
    root = Root(f"{flow.frame}@cat{line}:{c.node.col_offset}", "other", c.node, tokens=tokens)
    return [replace(flow.alone(root), guided=frozenset(t for t in guided if not t[1]))]


def _channels_joined(flow: Flow, values: list[list[Value]], line: int, axis: int | None) -> bool:
    """Note guided channels that are put beside channels that are not guided."""
    others = [v for part in values for v in part if not v.guided]
    if not others:
        return False
    roots = frozenset(atom.root.key for value in others for atom in value.atoms.values())
    joined = False
    for value in (v for part in values for v in part):
        for taint in value.guided:
            own = flow.combinations[taint[0]].cuts
            if axis == 0 and not any(cut.axis == 0 for cut in own):
                continue
            flow.join(taint, line, axis, beside=roots)
            joined = True
    return joined


def _scatter(c: Call) -> list[Thing]:
    """slice_scatter(x, guided, dim, start, end): guided channels are written into x."""
    base = c.values(c.operand(0, "input", "operand"))
    axis_at = 1 if c.name.startswith("index_copy") else 2
    axis = c.integer(c.operand(axis_at, "dim", "axis"), 0)
    source = c.operand(3 if axis_at == 1 else 1, "source", "src", "tensor", "update")
    guided: frozenset = frozenset()
    for value in c.values(source):
        guided |= value.guided
        for taint in value.guided:
            c.flow.join(taint, c.node.lineno, axis)
    return [replace(value, guided=value.guided | guided) for value in base]


def _copy(c: Call) -> list[Thing]:
    """``out[:, :3].copy_(value)`` is a store."""
    things = c.things(c.operand(1, "src"))
    target = c.operands[0]
    if isinstance(target, ast.Subscript):
        c.flow.store(target, things, c.names, c.node)
    elif isinstance(target, ast.Name):
        c.names[target.id] = things
    return things


def _where(c: Call) -> list[Thing]:
    """where(mask, a, b): either; by a mask of channels, some of each."""
    masks = [value.mask.cut for value in c.values(c.operands[0]) if value.mask is not None]
    found = [thing for node in c.operands[1:] for thing in c.things(node)]
    for mask in masks[:1]:
        for thing in found:
            if isinstance(thing, Value):
                c.flow.mark(thing, mask, c.node.lineno)
    return unique(found)


# computing


def _elementwise(c: Call, name: str) -> list[Thing] | None:
    """torch.add(a, b, alpha=s) and its relatives."""
    a = c.values(c.operand(0, "input", "x", "x1"))
    if name in ("neg", "negative"):
        return [replace(value, terms=algebra.add({}, value.terms, -1.0)) for value in a]
    second = c.operand(1, "other", "y", "x2")
    if second is None:
        return None
    b = c.values(second)
    alpha = c.operand(2, "alpha") if name in ("add", "sub", "subtract") else None
    if alpha is not None:
        b = [c.flow.combine(ast.Mult(), v, s, c.node) for v in b for s in c.values(alpha)]
    op: ast.operator = ast.Add()
    if name in ("sub", "subtract"):
        op = ast.Sub()
    elif name in ("mul", "multiply"):
        op = ast.Mult()
    elif name in ("div", "divide", "true_divide"):
        op = ast.Div()
    return unique([c.flow.combine(op, x, y, c.node) for x in a[:4] for y in b[:4]])


def _lerp(c: Call) -> list[Thing]:
    """lerp(a, b, w) = a + w (b - a)"""
    found: list[Thing] = []
    starts, ends = c.values(c.operand(0, "input", "start")), c.values(c.operand(1, "end"))
    weights = c.values(c.operand(2, "weight"))
    for a, b, w in [(a, b, w) for a in starts for b in ends for w in weights][:6]:
        step = c.flow.combine(ast.Mult(), w, c.flow.combine(ast.Sub(), b, a, c.node), c.node)
        found.append(c.flow.combine(ast.Add(), a, step, c.node))
    return unique(found)


def _addcmul(c: Call) -> list[Thing]:
    """addcmul(a, b, c, value=v) = a + v b c"""
    found: list[Thing] = []
    first, second = c.values(c.operand(1, "tensor1")), c.values(c.operand(2, "tensor2"))
    factors = c.values(c.operand(3, "value")) or [Value(algebra.number(1))]
    for a in c.values(c.operand(0, "input")):
        for x, y, v in [(x, y, v) for x in first for y in second for v in factors][:6]:
            step = c.flow.combine(ast.Mult(), c.flow.combine(ast.Mult(), x, y, c.node), v, c.node)
            found.append(c.flow.combine(ast.Add(), a, step, c.node))
    return unique(found)


# making


def _fresh(c: Call) -> Value:
    root = Root(f"{c.flow.frame}@new{c.node.lineno}:{c.node.col_offset}", "fresh", c.node)
    return c.flow.alone(root)


def _arange(c: Call) -> list[Thing]:
    """range(n) and arange(n) from 0; other ranges are not followed."""
    limits = [c.integer(c.operand(i)) for i in range(min(len(c.operands), 2))]
    if len(c.operands) == 2 and None not in limits:
        items = [[Value(algebra.number(i))] for i in range(limits[0] or 0, limits[1] or 0)]
        return [Many(tuple(items))] if 0 < len(items) <= 64 else [c.flow.unknown(c.node)]
    if len(c.operands) > 1:
        return [c.flow.unknown(c.node)]
    root = Root(f"{c.flow.frame}@range{c.node.lineno}:{c.node.col_offset}", "range", c.operands[0])
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
    inside = "1" if isinstance(first, Value) and first.number == 1 else _text(first, c.operands[0], 0)
    return replace(value, mask=Mask(cut, next(iter(value.atoms)), inside))


def _slice(c: Call) -> Span:
    """slice(3), slice(0, 3), slice(None)"""
    ends = [c.operand(0), c.operand(1)] if len(c.operands) > 1 else [None, c.operand(0)]
    base = Value({})
    low, high = (
        None if e is None or (isinstance(e, ast.Constant) and e.value is None) else c.bound(e, base) for e in ends
    )
    if low is not None and low.number == 0:
        low = None
    return Span(low, high, stepped=len(c.operands) > 2)


def _size(c: Call) -> list[Thing]:
    axis = c.integer(c.operand(1, "dim"))
    found: list[Thing] = []
    for value in c.values(c.operands[0]):
        shape = Shape(value, c.node)
        found.append(shape if axis is None else c.flow.size(replace(shape, node=c.operands[0]), axis, c.node))
    return found


def _partial(c: Call) -> list[Thing] | None:
    functions = [thing for thing in c.things(c.operands[0]) if isinstance(thing, Function)]
    arguments = tuple(c.things(a) for a in c.operands[1:])
    keywords = {k.arg: c.things(k.value) for k in c.node.keywords if k.arg}
    return [replace(f, given=(arguments, keywords)) for f in functions] or None


def _zip(c: Call) -> list[Thing] | None:
    """zip of tensors: a loop's names hold an item of each."""
    items: list[list[Thing]] = []
    if any(isinstance(operand, ast.Starred) for operand in c.operands):
        return None
    for operand in c.operands:
        items.append(c.flow.items_of(c.things(operand), operand))
    return [Many((list([Many(tuple(items))]),))]


def _map(c: Call) -> list[Thing] | None:
    functions = [thing for thing in c.things(c.operands[0]) if isinstance(thing, Function)]
    sources = c.things(c.operands[1])
    if not functions or not sources:
        return None
    items = c.flow.known_items(sources[0])
    if not items:
        return None
    return [Many(tuple(c.flow.call(functions[0], [item], {}, c.node) for item in items))]
