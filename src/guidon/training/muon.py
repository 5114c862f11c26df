"""Muon for matrices and kernels of convolutions, whose step several ranks can divide.

All ranks have the same gradients. Muon makes each gradient's matrix orthogonal, by fifteen products of matrices. On one
core these are a sixth of a training step of guidon-small. So each rank does this for its share of the matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from ..core.ranks import Ranks
from .optimisers import STATE


class Muon(torch.optim.Muon):
    """``torch.optim.Muon`` for kernels of convolutions, too: as matrices of a row for each output (Jordan 2024).

    The parameters in its groups are matrices of the same memory as the kernels. So the gradients of the kernels must be
    cleared by the module that has them.

    Args:
        trained: matrices, and kernels (out, in, ...).
        lr: learning rate. A step's size is matched to AdamW's.
        weight_decay: decoupled weight decay.
    """

    def __init__(self, trained: Iterable[nn.Parameter], lr: float, *, weight_decay: float = 0.0) -> None:
        self._trained = list(trained)
        matrices = [p if p.ndim == 2 else nn.Parameter(p.detach().view(len(p), -1)) for p in self._trained]
        super().__init__(matrices, lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Do a step with the gradients of the trained parameters."""
        self._see_gradients()
        found = super().step(closure)
        self._forget_gradients()
        return found

    def divided_step(self, ranks: Ranks, device: torch.device) -> None:
        """Do the step. All ranks must call it, with equal weights, state and gradients.

        Weights and state are those of ``step()`` on one process, bit for bit, on every rank.

        Args:
            ranks: all ranks.
            device: that of the parameters.
        """
        import torch.distributed as dist

        matrices = self._see_gradients()
        owners = divided([tuple(p.shape) for p in matrices], len(ranks))
        for matrix, owner in zip(matrices, owners, strict=True):
            if owner != ranks.index:
                matrix.grad = None  # Muon leaves such a matrix as it is
        super().step()
        self._forget_gradients()
        group, waits = ranks.group_for(device), []
        for matrix, owner in zip(matrices, owners, strict=True):
            state = self.state[matrix]
            for name in STATE["Muon"]:
                if name not in state:  # the first step makes the state of the own matrices alone
                    state[name] = torch.zeros_like(matrix)
            for tensor in (matrix.detach(), *(state[name] for name in STATE["Muon"])):
                waits.append(dist.broadcast(tensor, ranks.members[owner], group=group, async_op=True))
        for wait in waits:
            wait.wait()

    @property
    def _matrices(self) -> list[Tensor]:
        return [matrix for group in self.param_groups for matrix in group["params"]]

    def _see_gradients(self) -> list[Tensor]:
        """Give the matrices the gradients of the trained parameters. Returns those that have one."""
        for matrix, parameter in zip(self._matrices, self._trained, strict=True):
            matrix.grad = None if parameter.grad is None else parameter.grad.flatten(1)
        return [matrix for matrix in self._matrices if matrix.grad is not None]

    def _forget_gradients(self) -> None:
        """Keep no gradient of a kernel, which its module clears before the next backward pass."""
        for matrix, parameter in zip(self._matrices, self._trained, strict=True):
            if matrix is not parameter:
                matrix.grad = None


def divided(shapes: Sequence[tuple[int, ...]], count: int) -> list[int]:
    """For each matrix, which of ``count`` ranks computes its step: each rank has about equal work."""
    work = [min(shape) ** 2 * max(shape) for shape in shapes]
    owners, loads = [0] * len(shapes), [0] * count
    for index in sorted(range(len(shapes)), key=lambda index: -work[index]):
        owners[index] = loads.index(min(loads))
        loads[owners[index]] += work[index]
    return owners
