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
                axes = tuple(part.strip() for part in shapes[-1].split(","))
                for target in statement.targets:
                    for name in target.elts if isinstance(target, ast.Tuple) else [target]:
                        if isinstance(name, ast.Name) and len(axes) >= 3:
                            self.names.setdefault(name.id, axes)

    def from_annotation(self, node: ast.AnnAssign) -> None:
        """``eps: Float[Tensor, "b s c"]``"""
        for part in ast.walk(node.annotation):
            if isinstance(part, ast.Constant) and isinstance(part.value, str) and isinstance(node.target, ast.Name):
                axes = tuple(part.value.split())
                if len(axes) >= 3:
                    self.names[node.target.id] = axes

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


def is_tokens(name: str) -> bool:
    """Whether an axis of this name counts tokens, frames or pixels, not channels."""
    return bool(_TOKENS.fullmatch(name.strip())) and not _CHANNELS.fullmatch(name.strip())
