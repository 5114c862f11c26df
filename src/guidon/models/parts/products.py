"""Products of tokens and weights, by the library that is fastest on this processor.

On x86 torch multiplies fp32 matrices by MKL, which on processors of AMD uses half of the vector units. oneDNN, which
torch brings along, uses all of them: a product of 2048 x 384 by 384 x 1536 took 27 ms in place of 35. It also applies
a GELU to the product before that reaches memory. It sums in another order, so results differ in their last bits; each
row of the result is the same in every batch.
"""

from __future__ import annotations

from functools import lru_cache
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
LEAST_WIDTH = 256
"""Of the input and of the output. Narrow products gain less, and those of ``guidon-small`` keep every bit."""


def product(x: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation = "none") -> Tensor:
    """x (..., K) times the weight (N, K), plus the bias (N,), then the activation: (..., N).

    "gelu" is the approximation by tanh.
    """
    if _by_onednn(x, weight):
        how = "tanh" if activation == "gelu" else ""
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], how)
    found = F.linear(x, weight, bias)
    return F.gelu(found, approximate="tanh") if activation == "gelu" else found


class Linear(nn.Linear):
    """torch's own layer, which computes by ``product``."""

    def forward(self, input: Tensor) -> Tensor:
        return product(input, self.weight, self.bias)


def gelu_of(layer: nn.Module, x: Tensor) -> Tensor:
    """The GELU of what a layer makes of x. A layer that somebody has replaced or hooked is called as it is."""
    if type(layer) is Linear and not layer._forward_hooks and not layer._forward_pre_hooks:
        return product(x, layer.weight, layer.bias, "gelu")
    return F.gelu(layer(x), approximate="tanh")


def _by_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN computes a product: of large matrices on such a processor, without gradients, not compiled."""
    return (
        not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and x.dtype == weight.dtype
        and min(weight.shape) >= LEAST_WIDTH
        and x.numel() >= LEAST_ROWS * x.shape[-1]
        and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
        and _is_faster(x.dtype)
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
        and forward_ad._current_level < 0
    )


@lru_cache(maxsize=4)
def _is_faster(dtype: torch.dtype) -> bool:
    """Whether oneDNN's product is faster on this processor than the one that torch would take."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if dtype == torch.float32:
        name, flags = processor()
        return torch.backends.mkl.is_available() and name.startswith("AMD") and "avx512f" in flags
    # torch takes oneDNN, too, but without the GELU
    return dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _flops(x: list[int], weight: list[int], *others: object, out_shape: object = None, **named: object) -> int:
    """For torch's counter of FLOPs, which does not know the product of oneDNN."""
    rows = 1
    for length in x[:-1]:
        rows *= length
    return 2 * rows * weight[0] * weight[1]


if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
    flop_counter.register_flop_formula(torch.ops.mkldnn._linear_pointwise)(_flops)
