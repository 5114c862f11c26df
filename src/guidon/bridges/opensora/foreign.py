"""Foreign models and their keyword arguments, as the schedulers of this package call them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...core.progress import OnStep, progress

Model = Callable[..., Any]
"""Called as ``model(x, t, **keywords)``. It gives a tensor, or a dict that holds it under "x"."""


@dataclass(frozen=True)
class Keywords:
    """A foreign model's keyword arguments as a condition: tensors with one row per sample are concatenated."""

    rows: int
    """How many samples there are."""
    values: dict[str, Any]
    """The arguments by name."""

    def cat(self, other: Keywords, /) -> Keywords:
        """The rows of both, these first."""
        joined = dict(self.values)
        for name, value in self.values.items():
            theirs = other.values.get(name)
            if isinstance(value, Tensor) and isinstance(theirs, Tensor) and value.ndim and len(value) == self.rows:
                joined[name] = torch.cat([value, theirs])
        return Keywords(self.rows + other.rows, joined)


def call(model: Model, x: Tensor, t: Tensor, keywords: dict[str, Any], noisy: Tensor | None = None) -> Tensor:
    """The output of a foreign model at timesteps t (B,).

    ``noisy`` (rows, T) says which frames move; the model is told as ``x_mask``, for the rows of every branch.
    """
    told = {} if noisy is None else {"x_mask": noisy.repeat(len(x) // len(noisy), 1)}
    out = model(x, t, **(keywords | told))
    return out["x"] if isinstance(out, dict) else out


def device_of(model: Any) -> torch.device:
    """Where a model's weights are; the CPU for what has none."""
    first = next(model.parameters(), None) if isinstance(model, torch.nn.Module) else None
    return torch.device("cpu") if first is None else first.device


def bar(shown: bool) -> AbstractContextManager[OnStep | None]:
    """Shows the steps on stderr, if asked for."""
    return progress("sampling", "steps") if shown else nullcontext()
