"""How a pipeline guides, read from the source code of its ``__call__``.

The reader knows one form: two branches of the same networks, joined by uncond + s (cond - uncond) or
cond + s (cond - uncond). It refuses a code that does anything else with their predictions, because that may mix
channels, or add a third branch. A branch is unconditional if its variable says so in its name.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

Order = Literal["uncond, cond", "cond, uncond", "two calls"]

_NEGATIVE = ("uncond", "neg")
_NETWORKS = ("transformer", "transformer_2", "unet")
_HARMLESS = (
    "cat", "chunk", "flatten", "float", "isinstance", "len", "permute", "reshape", "size", "split", "squeeze", "stack",
    "step", "to", "type", "unsqueeze", "view",
    "rescale_noise_cfg",  # the hook looks at guidance_rescale when the pipeline runs
)  # fmt: skip
"""Functions and methods that neither mix channels nor branches."""


@dataclass(frozen=True)
class Loop:
    """What a pipeline's code says."""

    order: Order
    networks: tuple[str, ...]
    argument: str
    """The argument that holds the scale."""


def read_loop(call: Callable[..., Any]) -> Loop | str:
    """The loop of a pipeline's ``__call__``, or why it cannot be told."""
    tree = _tree(call)
    if tree is None:
        return "its source code cannot be read"
    code = _Code(tree)
    if len(code.joined) != 1:
        return "its code does not show that it joins two branches by uncond + s (cond - uncond)"
    order = code.order
    if order is None:
        return "its code does not show which branch comes first"
    if (also := code.also) is not None:
        return f"its code also does {also!r} with a prediction"
    return Loop(order, code.networks, code.argument)


def only_calls_its_parent(call: Callable[..., Any]) -> bool:
    """Whether a ``__call__`` has no loop of its own and calls ``super().__call__``."""
    tree = _tree(call)
    if tree is None:
        return False
    handed_on = any(
        isinstance(node, ast.Attribute) and node.attr == "__call__" and ast.unparse(node.value) == "super()"
        for node in ast.walk(tree)
    )
    return handed_on and not any(isinstance(node, ast.For | ast.While) for node in ast.walk(tree))


def _tree(call: Callable[..., Any]) -> ast.AST | None:
    """The syntax tree of a function; None if its source code cannot be read."""
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(call))))
    except (OSError, TypeError, SyntaxError):
        return None


class _Code:
    """The network calls of a code, and what becomes of their predictions."""

    def __init__(self, tree: ast.AST) -> None:
        self.nodes = list(ast.walk(tree))
        self.networks = tuple(part for part in _NETWORKS if f"'{part}'" in ast.dump(tree))
        bound = (pair for node in self.nodes for pair in _bound(node))
        self.assigned = sorted(bound, key=lambda pair: pair[1].lineno)
        self.aliases = {
            target
            for target, node in self.assigned
            if isinstance(node.value, ast.Attribute) and node.value.attr in self.networks
        }
        found = ((node, _joined(node)) for node in self.nodes)
        self.joins = {node: names for node, names in found if names is not None}
        self.within = {part for node in self.joins for part in ast.walk(node)}
        self.predicted = self._predicted()

    @property
    def joined(self) -> set[tuple[str, str]]:
        """The names (cond, uncond) of all formulas."""
        return set(self.joins.values())

    @property
    def order(self) -> Order | None:
        """The order of the branches, where there is one formula."""
        ((cond, uncond),) = self.joined
        calls = [node for node in self.nodes if self._is_network(node)]
        targets = [target for target, node in self.assigned for part in ast.walk(node.value) if self._is_network(part)]
        if len(targets) != len(calls):  # a call whose output has no name of its own
            return None
        if targets == [cond, uncond]:
            return "two calls"
        halves = {names for node in self.nodes if set(names := self._halves(node)) == {cond, uncond}}
        if len(set(targets)) != 1 or len(halves) != 1:
            return None
        return "cond, uncond" if halves == {(cond, uncond)} else "uncond, cond"

    @property
    def argument(self) -> str:
        """The argument that the formula takes its scale from."""
        named = {part.id for part in self.within if isinstance(part, ast.Name)}
        return "true_cfg_scale" if "true_cfg_scale" in named else "guidance_scale"

    @property
    def also(self) -> str | None:
        """The first thing that is done with a prediction, beside the formula, that may mix channels or branches."""
        for node in self.nodes:
            match node:
                case ast.Call(func=ast.Name(id=called) | ast.Attribute(attr=called)):
                    # what a branch is given may not depend on a prediction
                    allowed = called in _HARMLESS and not self._is_network(node)
                    if not allowed and any(self._units(part) for part in ast.iter_child_nodes(node)):
                        return ast.unparse(node.func)
                case ast.BinOp() if node not in self.within and len(self._units(node)) > 1:
                    return ast.unparse(node)
                case ast.BinOp(op=ast.MatMult()) if self._units(node):
                    return ast.unparse(node)
                case (
                    ast.AugAssign(target=changed, value=value)
                    | ast.Assign(targets=[ast.Subscript() as changed], value=value)
                ) if len(self._units(changed) | self._units(value)) > 1:
                    return ast.unparse(node)
                case ast.For(iter=source) | ast.comprehension(iter=source) if self._units(source):
                    return ast.unparse(source)
                case _:
                    pass
        return None

    def _units(self, node: ast.AST) -> set[str]:
        """The predictions in a piece of code. A formula counts as one."""
        if node in self.joins:
            return {ast.unparse(node)}
        if self._is_network(node):
            return {ast.unparse(node)}
        if isinstance(node, ast.Attribute) and node.attr in ("shape", "dtype", "device", "ndim"):
            return set()
        if isinstance(node, ast.Name):
            return {node.id} & self.predicted
        return {unit for part in ast.iter_child_nodes(node) for unit in self._units(part)}

    def _predicted(self) -> set[str]:
        """The variables that hold a prediction, or what was made of one. A scheduler's step gives latents again."""
        found: set[str] = set()
        while True:
            self.predicted = found
            more = {
                target
                for target, node in self.assigned
                if self._units(node.value) and not any(_calls(part, "step") for part in ast.walk(node.value))
            }
            if more <= found:
                return found
            found = found | more

    def _halves(self, node: ast.AST) -> tuple[str, ...]:
        """The names that ``a, b = prediction.chunk(2)`` and its like bind."""
        match node:
            case ast.Assign(
                targets=[ast.Tuple(elts=[ast.Name(id=first), ast.Name(id=second)])],
                value=ast.Call(func=ast.Attribute(attr="chunk" | "split"), keywords=keywords) as value,
            ) if self._units(value):
                along = [ast.unparse(keyword.value) for keyword in keywords if keyword.arg == "dim"]
                return (first, second) if along in ([], ["0"]) else ()
        return ()

    def _is_network(self, node: ast.AST) -> bool:
        """Whether a node is a call of one of the networks."""
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="self"), attr=called)):
                return called in self.networks
            case ast.Call(func=ast.Name(id=called)):
                return called in self.aliases
        return False


def _bound(node: ast.AST) -> Iterator[tuple[str, Any]]:
    """The names that an assignment binds, each with the assignment."""
    if isinstance(node, ast.Assign):
        for target in node.targets:
            for part in target.elts if isinstance(target, ast.Tuple) else [target]:
                if isinstance(part, ast.Name) and part.id != "_":
                    yield part.id, node


def _joined(node: ast.AST) -> tuple[str, str] | None:
    """The names (cond, uncond) of the formula that a node is; None for other code."""
    match node:
        case ast.BinOp(
            left=ast.Name(id=base),
            op=ast.Add(),
            right=ast.BinOp(
                left=scale,
                op=ast.Mult(),
                right=ast.BinOp(left=ast.Name(id=cond), op=ast.Sub(), right=ast.Name(id=uncond)),
            ),
        ):
            named = {part.id for part in ast.walk(scale) if isinstance(part, ast.Name)}
            told = _is_negative(uncond) and not _is_negative(cond) and base in (cond, uncond)
            return (cond, uncond) if told and not named & {cond, uncond} else None
        case _:
            return None


def _is_negative(name: str) -> bool:
    return any(word in name.lower() for word in _NEGATIVE)


def _calls(node: ast.AST, method: str) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == method
