"""The loss of a denoiser: the sum of its terms."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .term import Loss, Term, TrainingStep


def total_loss(terms: Mapping[str, Term], step: TrainingStep) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum of the terms, and values to log. The value of a noise band is NaN if no sample is in the band."""
    losses: dict[str, Loss] = {}
    total = step.x_0.new_zeros(())
    for name, term in terms.items():
        losses[name] = term(step, losses)
        total = total + term.weight * losses[name].mean
    logs: dict[str, Tensor] = {}
    for loss in losses.values():
        logs |= loss.logs
    for loss in losses.values():
        for name, of in loss.by_noise.items():
            logs |= {f"{name}_{band}": of(samples) for band, samples in step.bands.items()}
    return total, logs
