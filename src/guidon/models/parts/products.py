"""Products of tokens and weights, by the library that is fastest on this processor.

On x86 torch multiplies fp32 matrices by MKL, which on processors of AMD uses half of the vector units. oneDNN, which
torch brings along, uses all of them: a product of 2048 x 384 by 384 x 1536 took 27 ms in place of 35. It also applies
a GELU to the product before that reaches memory. It sums in another order, so results differ in their last bits; each
row of the result is the same in every batch.
"""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.utils import flop_counter

from ...core.devices import processor

Activation = Literal["none", "gelu"]
LEAST_ROWS = 64
"""With fewer rows, oneDNN takes longer to arrange the weights than to multiply."""
MOST_ROWS = 4096
"""With more rows, arranging the weights is too small a share to keep them so."""
MOST_ARRANGED = 1 << 28
"""Bytes of arranged weights that a network keeps at most."""
LEAST_WIDTH = 256
"""Of the input and of the output. Narrow products gain less, and those of ``guidon-small`` keep every bit."""


def product(x: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation = "none") -> Tensor:
    """x (..., K) times the weight (N, K), plus the bias (N,), then the activation: (..., N).

    "gelu" is the approximation by tanh.
    """
    if torch.compiler.is_compiling():
        if _fits(x, weight):
            return torch.ops.guidon.product(x, weight, bias, activation)
    elif _fits(x, weight) and _is_plain():
        how = "tanh" if activation == "gelu" else ""
        arranged: Arranged | None = getattr(_IN_USE, "arranged", None)
        if arranged is not None:
            weight = arranged.of(weight, x.numel() // x.shape[-1])
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], how)
    found = F.linear(x, weight, bias)
    return F.gelu(found, approximate="tanh") if activation == "gelu" else found


class Arranged:
    """Weights as oneDNN arranges them for its products, kept from one call of a network to the next.

    To arrange them anew takes 3 to 6% of a product of 2,048 rows. The results are the same, bit for bit.
    """

    def __init__(self) -> None:
        self._kept: dict[int, tuple[nn.Parameter, object, Tensor]] = {}
        self._bytes = 0

    def __reduce__(self) -> tuple[type[Arranged], tuple[()]]:
        return Arranged, ()  # a copy of a network arranges its own

    def forget(self) -> None:
        """Arrange all weights anew: a change through ``weight.data`` is not seen."""
        self._kept, self._bytes = {}, 0

    @contextmanager
    def in_use(self) -> Generator[None]:
        """A block in whose products the weights are kept."""
        before = getattr(_IN_USE, "arranged", None)
        _IN_USE.arranged = self
        try:
            yield
        finally:
            _IN_USE.arranged = before

    def of(self, weight: Tensor, rows: int) -> Tensor:
        """The weight (N, K), arranged for a product of so many rows; itself where it is not kept."""
        if rows > MOST_ROWS or not isinstance(weight, nn.Parameter):  # others may be made anew for every product
            return weight
        state = weight.data_ptr(), weight.dtype, 0 if weight.is_inference() else weight._version
        found = self._kept.get(id(weight))
        if found is not None and found[1] == state:
            return found[2]
        if found is None:
            if self._bytes + weight.nbytes > MOST_ARRANGED:
                return weight
            self._bytes += weight.nbytes
        made = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)
        self._kept[id(weight)] = weight, state, made
        return made


_IN_USE = threading.local()
"""Where a thread keeps arranged weights now."""


class Linear(nn.Linear):
    """torch's own layer, which computes by ``product``."""

    def forward(self, input: Tensor) -> Tensor:
        return product(input, self.weight, self.bias)


def gelu_of(layer: nn.Module, x: Tensor) -> Tensor:
    """The GELU of what a layer makes of x. A layer that somebody has replaced or hooked is called as it is."""
    if type(layer) is Linear and not layer._forward_hooks and not layer._forward_pre_hooks:
        return product(x, layer.weight, layer.bias, "gelu")
    return F.gelu(layer(x), approximate="tanh")


def _fits(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN is faster for a product: of large matrices on such a processor, without gradients."""
    return (
        x.device.type == "cpu"
        and FASTER.get(x.dtype, False)
        and x.dtype == weight.dtype
        and min(weight.shape) >= LEAST_WIDTH
        and x.numel() >= LEAST_ROWS * x.shape[-1]
        and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
    )


def _is_plain() -> bool:
    """Whether nothing is asked of torch that oneDNN's own operator does not know."""
    enabled = torch.backends.mkldnn.enabled and not torch.is_autocast_enabled("cpu")
    return enabled and forward_ad._current_level < 0


def _is_faster(dtype: torch.dtype) -> bool:
    """Whether oneDNN's product is faster on this processor than the one that torch would take."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if dtype == torch.float32:
        name, flags = processor()
        return torch.backends.mkl.is_available() and name.startswith("AMD") and "avx512f" in flags
    # torch takes oneDNN, too, but without the GELU
    return dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()


FASTER = {dtype: _is_faster(dtype) for dtype in (torch.float32, torch.bfloat16)}
"""In which precisions oneDNN's product is taken."""


def _shape(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _flops(x: list[int], weight: list[int], *others: object, out_shape: object = None, **named: object) -> int:
    """For torch's counter of FLOPs, which does not know the product of oneDNN."""
    rows = 1
    for length in x[:-1]:
        rows *= length
    return 2 * rows * weight[0] * weight[1]


def _register() -> torch.library.Library:
    """``product`` as one operator of torch, which compiled code calls as it is."""
    library = torch.library.Library("guidon", "DEF")
    library.define("product(Tensor x, Tensor weight, Tensor? bias, str activation) -> Tensor")
    library.impl("product", product, "CPU")
    torch.library.register_fake("guidon::product", _shape, lib=library)
    flop_counter.register_flop_formula(torch.ops.guidon.product)(_flops)
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        flop_counter.register_flop_formula(torch.ops.mkldnn._linear_pointwise)(_flops)
    return library


_LIBRARY = None if hasattr(torch.ops.guidon, "product") else _register()
"""Torch's registry outlives this module, should it be imported anew. The operator goes with this object."""
