"""What a piece of work does, in numbers that are the same on every machine: FLOPs, operators, bytes.

FLOPs are those of matrix products, convolutions and attention, two for each multiply-add. They are counted by torch's
``FlopCounterMode``, which misses fused attention on the CPU and products in place; their formulas are added here.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

Shape = Sequence[int]


@dataclass(frozen=True)
class Counts:
    """What one piece of work does."""

    flops: int
    """Of matrix products, convolutions and attention."""
    operators: int
    """Operators that compute or copy. Views are not counted."""
    allocated: int
    """Bytes of all results of operators, without the memory inside an operator."""
    peak: int
    """The most bytes of such results that exist at once."""


def count(work: Callable[[], object]) -> Counts:
    """Do a piece of work once, and count what it does. It must not be compiled."""
    operators = _Operators()
    # The mode that is entered last sees an operator first: composite ones reach the other mode in their parts.
    with operators, FlopCounterMode(display=False, custom_mapping=_formulas()) as flops:
        work()
    return Counts(flops.get_total_flops(), operators.count, operators.allocated, operators.peak)


class _Operators(TorchDispatchMode):
    """Counts operators and the memory of their results."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.allocated = self.live = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = {_storage(leaf) for leaf in tree_leaves((args, kwargs)) if _has_memory(leaf)}
        out = func(*args, **kwargs)
        results = [leaf for leaf in tree_leaves(out) if _has_memory(leaf)]
        made = {_storage(result): result for result in results if _storage(result) not in given}
        if made or _writes(func):
            self.count += 1
        for result in made.values():
            self._note(result.untyped_storage())
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        self.allocated += size
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, size).atexit = False

    def _free(self, size: int) -> None:
        self.live -= size


def _has_memory(leaf: object) -> bool:
    """Whether it is a tensor whose memory torch knows: weights that oneDNN has arranged are not."""
    return isinstance(leaf, Tensor) and leaf.layout is torch.strided


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _writes(func: Any) -> bool:
    """Whether an operator writes to one of its arguments."""
    schema = getattr(func, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def _formulas() -> dict[Any, Any]:
    """FLOPs of the operators that torch's counter does not know."""
    aten = torch.ops.aten
    return {
        aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward_flops,
        aten.addmm_: _product_flops,
        aten.baddbmm_: _product_flops,
    }


def attention_flops(query: Shape, key: Shape, value: Shape, *others: Any, out_shape: Any = None, **named: Any) -> int:
    """Scores and weighted values of attention: query (B, H, N, D), key (B, H, L, D), value (B, H, L, V)."""
    batch, heads, rows, width = query
    return 2 * batch * heads * rows * key[2] * (width + value[3])


def _backward_flops(grad: Shape, query: Shape, key: Shape, value: Shape, *others: Any, **named: Any) -> int:
    """Scores again, then the gradients of weights, values, queries and keys: five products for the forward's two."""
    batch, heads, rows, width = query
    return 2 * batch * heads * rows * key[2] * (3 * width + 2 * value[3])


def _product_flops(added: Shape, a: Shape, b: Shape, *others: Any, **named: Any) -> int:
    """A product (..., M, K) x (..., K, N) that is added in place."""
    flops = 2 * a[-2] * a[-1] * b[-1]
    return flops * a[0] if len(a) == 3 else flops
