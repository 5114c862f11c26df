"""Exponential moving average of a module's state."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .parallel import local


class EMA:
    """Averaged weights. The decay is at most (1 + n) / (10 + n) at step n, to forget the first weights soon."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move the average towards the module's state after step ``step``, counted from 0."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        # What is not trained is its own average.
        state = {name: value for name, value in module.state_dict(keep_vars=True).items() if not _is_frozen(value)}
        averaged = [name for name, value in state.items() if value.is_floating_point()]
        # all of them by one operator, which a GPU is given in a few launches
        ours, theirs = [local(self.weights[name]) for name in averaged], [local(state[name]) for name in averaged]
        torch._foreach_lerp_(ours, theirs, share)  # pyright: ignore[reportPrivateImportUsage]
        for name in state.keys() - averaged:
            self.weights[name].copy_(state[name])

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights, by name."""
        return self.weights

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Replace the averaged weights. Every tensor is moved to the device of the one that it replaces."""
        self.weights = {name: value.to(self.weights[name].device) for name, value in state.items()}


def _is_frozen(value: Tensor) -> bool:
    """Whether it is a parameter that is not trained."""
    return isinstance(value, nn.Parameter) and not value.requires_grad
