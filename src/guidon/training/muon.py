"""Muon's step on several ranks: each computes the steps of some matrices, and all get the results.

All ranks have the same gradients. Muon makes each gradient's matrix orthogonal, by fifteen products of matrices. On one
core these are a sixth of a training step of guidon-small. So each rank does this for its share of the matrices.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..core.ranks import Ranks
from .optimisers import STATE


def divided_step(muon: torch.optim.Optimizer, ranks: Ranks, device: torch.device) -> None:
    """Do the step of ``torch.optim.Muon``. All ranks must call it, with equal weights, state and gradients.

    Weights and state are those of ``muon.step()`` on one process, bit for bit, on every rank.

    Args:
        muon: the optimiser. The gradients of the other ranks' matrices are deleted.
        ranks: all ranks.
        device: that of the parameters.
    """
    import torch.distributed as dist

    trained = [p for group in muon.param_groups for p in group["params"] if p.grad is not None]
    owners = divided([tuple(p.shape) for p in trained], len(ranks))
    for parameter, owner in zip(trained, owners, strict=True):
        if owner != ranks.index:
            parameter.grad = None  # Muon leaves such a parameter as it is
    muon.step()
    group, waits = ranks.group_for(device), []
    for parameter, owner in zip(trained, owners, strict=True):
        state = muon.state[parameter]
        for name in STATE["Muon"]:
            if name not in state:  # the first step makes the state of the own matrices alone
                state[name] = torch.zeros_like(parameter)
        for tensor in (parameter.detach(), *(state[name] for name in STATE["Muon"])):
            waits.append(dist.broadcast(tensor, ranks.members[owner], group=group, async_op=True))
    for wait in waits:
        wait.wait()


def divided(shapes: Sequence[tuple[int, ...]], count: int) -> list[int]:
    """For each matrix, which of ``count`` ranks computes its step: each rank has about equal work."""
    work = [min(shape) ** 2 * max(shape) for shape in shapes]
    owners, loads = [0] * len(shapes), [0] * count
    for index in sorted(range(len(shapes)), key=lambda index: -work[index]):
        owners[index] = loads.index(min(loads))
        loads[owners[index]] += work[index]
    return owners
