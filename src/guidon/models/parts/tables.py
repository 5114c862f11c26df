"""What a network computes once and keeps for later steps: of its weights and a condition, or of a size."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Kept:
    """A value, and the weights that it was computed from."""

    weights: tuple[Any, ...]
    """Where each weight lies, its type, and how often it was changed."""
    value: Any
    """What was computed."""


def kept(store: dict[str, Kept], name: str, weights: Iterable[Tensor], make: Callable[[], Any]) -> Any:
    """A value that is computed anew whenever a weight has changed, moved or been replaced.

    A change through ``weight.data`` is not seen: prepare the condition again after it.

    Args:
        store: where values are kept: that of a condition.
        name: of the value; each network that reads the condition replaces that of another.
        weights: what the value depends on beside the condition.
        make: computes it.
    """
    state = tuple((each.data_ptr(), each.dtype, 0 if each.is_inference() else each._version) for each in weights)
    found = store.get(name)
    if found is None or found.weights != state:
        store[name] = found = Kept(state, make())
    return found.value


class Last:
    """The value that was computed last, for the next call that asks for the same."""

    def __init__(self) -> None:
        self._kept: tuple[Any, Any] | None = None

    def of(self, key: Any, make: Callable[[], Any]) -> Any:
        """The value of a key, computed by ``make`` unless it was the last one."""
        found = self._kept  # read once: another thread may replace it
        if found is None or found[0] != key:
            self._kept = found = key, make()
        return found[1]


def is_compiled(network: nn.Module) -> bool:
    """Whether a part of a network is compiled. It is then compiled again for every shape."""
    return any(module._compiled_call_impl is not None or "forward" in vars(module) for module in network.modules())
