"""The tensors of a batch that have one row a sample, and its rows."""

from dataclasses import dataclass, field

import torch

from guidon.training.rows import tensors_of, with_tensors


@dataclass(frozen=True)
class Inner:
    x: torch.Tensor
    scale: torch.Tensor
    name: str = "inner"


@dataclass(frozen=True)
class Outer:
    inner: Inner
    steps: list
    captions: list
    length: int = field(init=False, default=7)


def test_tensors_with_rows_are_found_and_replaced_in_order():
    x, a, b = torch.arange(4), torch.ones(4, 2), torch.zeros(4, 2)
    value = Outer(Inner(x, torch.tensor(2.0)), [a, b], ["one", "two"])
    assert [found is one for found, one in zip(tensors_of(value), (x, a, b), strict=True)] == [True] * 3
    half = with_tensors(value, lambda tensor: tensor[:2])
    assert [len(tensor) for tensor in tensors_of(half)] == [2, 2, 2]
    assert half.inner.scale is value.inner.scale
    assert (half.inner.name, half.captions, half.length) == ("inner", ["one", "two"], 7)
    assert len(value.inner.x) == 4
