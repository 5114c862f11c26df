"""What the code calls the axes of a tensor: in comments, annotations and where it unpacks a shape."""

from __future__ import annotations

import ast
import re

from .module import statements_in
from .values import Shape, Thing, Value, text_of

_SHAPE_COMMENT = re.compile(r"[\[(]\s*([\w .*/^+-]+(?:,\s*[\w .*/^+-]+){1,5}),?\s*[\])]")
_CHANNELS = re.compile(
    r"\d*c\d*|c_?(in|out)|ch|chans?|channels?|(in|out|latent|num)_(channels|dim|chans)", re.IGNORECASE
)
_TOKENS = re.compile(
    r"[snltkfhw]|hw|thw|h ?\*? ?w|seq(_?len|uence)?|(num_)?(tokens?|patch(es)?|frames?)|len(gth)?|time|height|width",
    re.IGNORECASE,
)
PACKED = "packed features"
"""The last axis of tokens, each of which holds the channels of several latent pixels."""


class Axes:
    """The names of axes in one function, by variable."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines
        self.names: dict[str, tuple[str, ...]] = {}
        self.unpacks = False
        """Whether the function unpacks latents, so that its network works on packed ones."""

    def from_comments(self, node: ast.AST) -> None:
        """``eps = ...  # (B, S, C)`` names the axes of eps."""
        for statement in statements_in(node):
            if not isinstance(statement, ast.Assign):
                continue
            last = statement.end_lineno or statement.lineno
            for number in {statement.lineno, last}:
                line = self.lines[number - 1] if number <= len(self.lines) else ""
                comment = line.partition("#")[2]
                shapes = _SHAPE_COMMENT.findall(comment) if comment else []
                if not shapes or (len(shapes) > 1 and "->" not in comment):
                    continue
                axes = _split(shapes[-1])
                for target in statement.targets:
                    for name in target.elts if isinstance(target, ast.Tuple) else [target]:
                        if isinstance(name, ast.Name) and axes:
                            self.names.setdefault(name.id, axes)

    def from_text(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        """``x: tokens (B, S, C)`` in the docstring or in a comment of its own, and annotations of parameters."""
        documented = (ast.get_docstring(node, clean=False) or "").splitlines()
        text = self.lines[node.lineno - 1 : node.end_lineno]
        self.unpacks = any("unpack_latents(" in line for line in text)
        comments = [line.strip()[1:] for line in text if line.strip().startswith("#")]
        for line in (*documented, *comments):
            shapes = _SHAPE_COMMENT.findall(line)
            named = re.match(r"\s*(\w+)`*\s*(?:\([^()]*\))?\s*:", line)
            if named and len(shapes) == 1 and (axes := _split(shapes[0])):
                self.names.setdefault(named[1], axes)
        for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
            if argument.annotation is not None:
                self.annotate(argument.arg, argument.annotation)

    def annotate(self, name: str, annotation: ast.expr) -> None:
        """``Float[Tensor, "b s c"]``"""
        for part in ast.walk(annotation):
            if isinstance(part, ast.Constant) and isinstance(part.value, str) and len(part.value.split()) >= 3:
                self.names[name] = tuple(part.value.split())

    def from_annotation(self, node: ast.AnnAssign) -> None:
        """``eps: Float[Tensor, "b s c"] = ...``"""
        if isinstance(node.target, ast.Name):
            self.annotate(node.target.id, node.annotation)

    def from_shape(self, target: ast.Tuple | ast.List, things: list[Thing], node: ast.AST) -> None:
        """``b, s, c = eps.shape``"""
        value = getattr(node, "value", None)
        axes = tuple(text_of(element) for element in target.elts)
        if len(axes) < 3 or not any(isinstance(t, Shape) and t.first == 0 for t in things):
            return
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute):
            value = value.func
        if isinstance(value, ast.Attribute):
            self.names[text_of(value.value)] = axes

    def name(self, variables: list[str], base: Value, axis: int) -> str | None:
        """What the code calls an axis of one of the variables; tokens and packed features where latents were packed."""
        axes = next((self.names[variable] for variable in variables if variable in self.names), None)
        if axes is not None and -len(axes) <= axis < len(axes):
            last = axis in (2, -1) and len(axes) == 3
            packed = last and is_tokens(axes[1]) and not _CHANNELS.fullmatch(axes[2])
            return PACKED if packed else axes[axis]
        if base.tokens:
            return {1: "tokens", -2: "tokens", 2: PACKED, -1: PACKED}.get(axis)
        return None


def _split(shape: str) -> tuple[str, ...]:
    """The axes of a shape in a comment; empty if there are fewer than three."""
    axes = tuple(part.strip() for part in shape.split(","))
    return axes if len(axes) >= 3 else ()


def is_tokens(name: str) -> bool:
    """Whether an axis of this name counts tokens, frames or pixels, not channels."""
    return bool(_TOKENS.fullmatch(name.strip())) and not _CHANNELS.fullmatch(name.strip())
