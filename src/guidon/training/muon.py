"""Muon's step on several ranks: each computes the steps of some matrices, and all get the results.

All ranks have the same gradients. Muon makes each gradient's matrix orthogonal, by fifteen products of matrices. On one
core these are a sixth of a training step of guidon-small. So each rank does this for its share of the matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from ..core.ranks import Ranks
from .optimisers import STATE


def divided_step(muon: torch.optim.Optimizer, ranks: Ranks, device: torch.device) -> None:
    """Do the step of ``torch.optim.Muon``. All ranks must call it, with equal weights, state and gradients.

    Weights and state are those of ``muon.step()`` on one process, bit for bit, on every rank.

    Args:
        muon: the optimiser; the gradients of its parameters are lost.
        ranks: all ranks.
        device: that of the parameters.
    """
    import torch.distributed as dist

    trained = [p for group in muon.param_groups for p in group["params"] if p.grad is not None]
    shares = divided([cast("tuple[int, int]", tuple(p.shape)) for p in trained], len(ranks))
    for parameter in trained:  # the first step makes the state of the own share alone
        for name in STATE["Muon"]:
            muon.state[parameter].setdefault(name, torch.zeros_like(parameter))
    for parameter in (trained[index] for rank, share in enumerate(shares) if rank != ranks.index for index in share):
        parameter.grad = None  # Muon leaves such a parameter as it is
    muon.step()
    # weights and state of a share as one vector, as long as the longest
    changed = [[tensor for index in share for tensor in _changed(muon, trained[index])] for share in shares]
    lengths = [sum(tensor.numel() for tensor in tensors) for tensors in changed]
    vectors = torch.zeros(len(ranks), max(lengths, default=0), device=device)
    own = torch.cat([vectors[0, :0], *(tensor.flatten() for tensor in changed[ranks.index])])
    vectors[ranks.index, : len(own)] = own
    dist.all_gather(list(vectors), vectors[ranks.index].clone(), group=ranks.group_for(device))
    for rank, tensors in enumerate(changed):
        if rank != ranks.index:
            parts = vectors[rank, : lengths[rank]].split([tensor.numel() for tensor in tensors])
            for tensor, part in zip(tensors, parts, strict=True):
                tensor.copy_(part.view_as(tensor))


def divided(shapes: Sequence[tuple[int, int]], count: int) -> list[list[int]]:
    """The indices of the matrices of each of ``count`` shares, of about equal work."""
    work = [min(shape) ** 2 * max(shape) for shape in shapes]
    shares, loads = [list[int]() for _ in range(count)], [0] * count
    for index in sorted(range(len(shapes)), key=lambda index: -work[index]):
        least = loads.index(min(loads))
        shares[least].append(index)
        loads[least] += work[index]
    return shares


def _changed(muon: torch.optim.Optimizer, parameter: Tensor) -> list[Tensor]:
    """The tensors that a step of a parameter changes."""
    return [parameter.detach(), *(muon.state[parameter][name] for name in STATE["Muon"])]
