"""The optimisers of a run, and their learning-rate schedule."""

from __future__ import annotations

import torch
from torch import nn

from ..core.errors import InputError
from .recipe import Optimiser


def learning_rate(step: int, steps: int, settings: Optimiser) -> float:
    """The factor on the recipe's learning rate at a step: linear warm-up, then 1, then linear decay to zero."""
    warmup = min(1.0, (step + 1) / max(1, settings.warmup_steps))
    remaining = (steps - step) / max(1.0, settings.decay * steps)
    return min(warmup, remaining, 1.0)


def make_optimisers(module: nn.Module, settings: Optimiser) -> list[torch.optim.Optimizer]:
    """AdamW, or Muon (Jordan 2024) for the matrices inside blocks and AdamW for the rest.

    Raises:
        InputError: Muon is asked for, and this PyTorch has none.
    """
    if settings.name == "muon" and not hasattr(torch.optim, "Muon"):
        raise InputError(
            f"optimiser muon needs PyTorch 2.9 or newer, this is {torch.__version__}: install it, or use adamw"
        )
    hidden: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            inside = parameter.ndim == 2 and "blocks." in name and "table" not in name
            (hidden if inside and settings.name == "muon" else rest).append(parameter)
    adamw = torch.optim.AdamW(rest, settings.lr, betas=settings.betas, weight_decay=settings.weight_decay, fused=True)
    if not hidden:
        return [adamw]
    muon = torch.optim.Muon(
        hidden, settings.muon_lr, weight_decay=settings.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    return [muon, adamw]
