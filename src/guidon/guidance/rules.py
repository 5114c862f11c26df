"""Guidance rules: pure functions (cond, uncond, scale) -> guided, told only of the channels that are guided.

cond and uncond are (B, C_guided, ...); scale is a float, or a tensor (C_guided, 1, ...) when channels differ.
"""

from collections.abc import Callable

from torch import Tensor

Rule = Callable[[Tensor, Tensor, float | Tensor], Tensor]


def cfg(cond: Tensor, uncond: Tensor, scale: float | Tensor) -> Tensor:
    """Classifier-free guidance, uncond + scale (cond - uncond) (Ho & Salimans 2207.12598, eq. 6 with scale = 1 + w)."""
    return uncond + scale * (cond - uncond)


RULES: dict[str, Rule] = {"cfg": cfg}
