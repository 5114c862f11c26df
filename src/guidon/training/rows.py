"""Values whose tensors have one row a sample: batches, and what a network predicts for them.

Such a value is a tensor, or a dataclass or list of such values. Anything else in it belongs to the whole batch, and so
does a scalar tensor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar, cast

from torch import Tensor

V = TypeVar("V")
ALL = slice(None)
"""All rows of a batch."""


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors of a value that have rows, in order."""
    if isinstance(value, Tensor):
        return [value] if value.ndim else []
    parts = _parts(value)
    return [tensor for part in parts for tensor in tensors_of(part)]


def with_tensors(value: V, change: Callable[[Tensor], Tensor]) -> V:
    """The value with every tensor that has rows replaced by what ``change`` makes of it, in order."""
    if isinstance(value, Tensor):
        return cast("V", change(value) if value.ndim else value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        return dataclasses.replace(value, **{name: with_tensors(part, change) for name, part in fields.items()})
    if isinstance(value, list | tuple):
        return cast("Any", type(value))(with_tensors(part, change) for part in cast("list[Any]", value))
    return value


def _parts(value: Any) -> list[Any]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name) for field in dataclasses.fields(value) if field.init]
    return list(cast("list[Any]", value)) if isinstance(value, list | tuple) else []
