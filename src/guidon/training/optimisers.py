"""The optimisers of a run, and their learning-rate schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import InputError
from .recipe import Optimiser

STATE = {"AdamW": ("step", "exp_avg", "exp_avg_sq"), "Muon": ("momentum_buffer",)}
"""What each optimiser keeps for a parameter: scalars called "step", and tensors of the parameter's shape."""
NARROW = 4
"""Kernels of so many outputs, or values for each output, or fewer are not for Muon."""


def learning_rate(step: int, steps: int, settings: Optimiser) -> float:
    """The factor on the recipe's learning rate at a step: linear warm-up, then 1, then linear decay to zero."""
    warmup = min(1.0, (step + 1) / max(1, settings.warmup_steps))
    remaining = (steps - step) / max(1.0, settings.decay * steps)
    return min(warmup, remaining, 1.0)


def make_optimisers(module: nn.Module, settings: Optimiser) -> list[torch.optim.Optimizer]:
    """AdamW, or Muon (Jordan 2024) for hidden matrices and kernels and AdamW for the rest.

    Raises:
        InputError: Muon is asked for, and this PyTorch has none.
    """
    if settings.name == "muon" and not hasattr(torch.optim, "Muon"):
        raise InputError(
            f"optimiser muon needs PyTorch 2.9 or newer, this is {torch.__version__}: install it, or use adamw"
        )
    hidden: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    kernels = _kernels(module)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            inside = id(parameter) in kernels or (parameter.ndim == 2 and "blocks." in name and "table" not in name)
            (hidden if inside and settings.name == "muon" else rest).append(parameter)
    found: list[torch.optim.Optimizer] = []
    if hidden:
        from .muon import Muon

        found.append(Muon(hidden, settings.muon_lr, weight_decay=settings.weight_decay))
    if rest:
        found.append(
            torch.optim.AdamW(rest, settings.lr, betas=settings.betas, weight_decay=settings.weight_decay, fused=True)
        )
    return found


def _kernels(module: nn.Module) -> set[int]:
    """The kernels that Muon trains, by ``id``.

    Not the embeddings of patches, which are first layers, and no kernel with so few outputs or inputs as have the last
    layers: Jordan trains these by AdamW.
    """
    return {
        id(part.weight)
        for name, part in module.named_modules()
        if isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        and "embedder" not in name
        and min(part.weight.flatten(1).shape) > NARROW
    }


def refuse_unusable(optimiser: torch.optim.Optimizer, made: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a state that was loaded into an optimiser and with which it cannot do a step.

    Args:
        optimiser: with the state.
        made: its groups of parameters as they were before.

    Raises:
        ValueError: the state lacks a part, or a part is of another type or shape.
    """
    for group, before in zip(optimiser.param_groups, made, strict=True):
        for name in before.keys() - {"params"}:
            if _kind(group.get(name)) != _kind(before[name]):
                raise ValueError(f"its {name} is {group.get(name)!r:.60}, not like {before[name]!r}")
        for parameter in group["params"]:
            kept: Mapping[str, Any] = optimiser.state.get(parameter, {})
            for name in STATE[type(optimiser).__name__] if kept else ():  # a parameter without a gradient has no state
                value, shape = kept.get(name), () if name == "step" else parameter.shape
                if not isinstance(value, Tensor) or not value.is_floating_point() or value.shape != shape:
                    raise ValueError(f"its {name} is no tensor of shape {tuple(shape)}")


def _kind(value: object) -> object:
    """The type of a setting; numbers are of one type, and sequences are of the types of their parts."""
    if isinstance(value, tuple | list):
        return [_kind(part) for part in value]
    return float if isinstance(value, int | float) and not isinstance(value, bool) else type(value)
