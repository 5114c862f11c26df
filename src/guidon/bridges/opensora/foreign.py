"""Other people's models as guidance and samplers call networks.

They are called as ``model(x, t, **keywords)``. Their output is a tensor, a dict that holds it under ``"x"``, or a pair
of it and something else.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...core.broadcasting import whole_rows
from ...core.progress import OnStep, progress
from ...diffusion import NoiseLevel

Model = Callable[..., Any]


@dataclass(frozen=True)
class Keywords:
    """A model's keyword arguments as a condition: tensors with one row per sample are concatenated."""

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


class ForeignNetwork:
    """A model as guidance calls networks. Frames that move are named to it as ``x_mask``, (B, T).

    Args:
        model: the model.
        whole: tell it whole timesteps, long; else fp32.
    """

    def __init__(self, model: Model, whole: bool = True) -> None:
        self.model, self.whole = model, whole

    def __call__(self, x: Tensor, level: NoiseLevel, cond: Keywords, /) -> Tensor:
        t = level.timesteps(x)
        return call(self.model, x, t.long() if self.whole else t, cond.values, level.noisy)


def call(model: Model, x: Tensor, t: Tensor, keywords: dict[str, Any], noisy: Tensor | None = None) -> Tensor:
    """The prediction of a model at timesteps t (B,).

    ``noisy`` (rows, T) says which frames move; the model is told as ``x_mask``, for the rows of every branch.
    """
    told = {} if noisy is None else {"x_mask": whole_rows(noisy, len(x), "x_mask")}
    return called(model, x, t, keywords | told)[0]


def called(model: Model, x: Tensor, t: Tensor, keywords: dict[str, Any]) -> tuple[Tensor, Any]:
    """The prediction of a model, and what it gave beside it, or None."""
    out, extra = model(x, t, **keywords), None
    if isinstance(out, tuple):
        out, extra = out
    return (out["x"] if isinstance(out, dict) else out), extra


def device_of(model: Any) -> torch.device:
    """Where a model's weights are; the CPU for what has none."""
    first = next(model.parameters(), None) if isinstance(model, torch.nn.Module) else None
    return torch.device("cpu") if first is None else first.device


def bar(shown: bool) -> AbstractContextManager[OnStep | None]:
    """Shows the steps on stderr, if asked for."""
    return progress("sampling", "steps") if shown else nullcontext()
