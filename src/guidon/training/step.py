"""A step of training: the loss of a batch, its gradient, and the update of weights and averages."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..core.ranks import ALONE, Ranks
from .ema import EMA
from .optimisers import learning_rate, make_optimisers
from .parallel import Parallel
from .recipe import Run


class Trainable(Protocol):
    """The part of a ``Task`` that a step needs."""

    @property
    def module(self) -> nn.Module:
        """The module that is trained. Checkpoints hold its state dict."""
        ...

    def predict(self, batch: Any) -> Any:
        """Run the module on rows of a batch. The result is passed to ``loss``.

        It is a dataclass. All its tensors but scalars have one row a sample (``rows.py``), because several ranks join
        theirs. Everything else in it is equal for all rows.
        """
        ...

    def loss(self, predicted: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar loss of the whole batch, and more values to log; a value that this step does not define is NaN.

        On several ranks every one computes it, on the joined predictions of all. It uses no parameter of the module.
        """
        ...


@dataclass(frozen=True, eq=False)
class Done:
    """What a step did."""

    values: list[dict[str, Tensor]] | None
    """Values to log of each part; None if the step was skipped, because its loss or gradient is NaN or infinite."""
    rate: float
    """The factor on the recipe's learning rate."""


class Steps:
    """The steps of a run, and the state that they change: the module, its optimisers, its averaged weights.

    Args:
        run: the recipe.
        task: the task of the recipe.
        device: the device of the task's module.
        ranks: those that train together.

    Raises:
        InputError: the ranks cannot share a batch, or the module cannot be sharded.
    """

    def __init__(self, run: Run, task: Trainable, device: torch.device, ranks: Ranks = ALONE) -> None:
        self.run, self.task, self.device = run, task, device
        self.module = task.module.train()
        self.parallel = Parallel(run, self.module, task.predict, device, ranks)
        self.optimisers = make_optimisers(self.module, run.optimiser)
        self.ema = EMA(self.module, run.ema_decay)
        self._rates = [group["lr"] for optimiser in self.optimisers for group in optimiser.param_groups]
        self._buffers = list(self.module.buffers())
        self._before = [buffer.clone() for buffer in self._buffers]

    def __call__(self, parts: Sequence[Any], step: int) -> Done:
        """Do step ``step``, counted from 0, with this rank's rows of its batch, in equal parts one after the other."""
        settings = self.run.optimiser
        _copy(self._buffers, self._before)
        half = self.run.precision == "bf16"
        self.module.zero_grad(set_to_none=True)
        logs: list[dict[str, Tensor]] = []
        for batch in parts:
            # Loss, in the recipe's precision.
            with torch.autocast(self.device.type, torch.bfloat16, enabled=half), _attention(self.device):
                loss, values = self.task.loss(self.parallel.predict(batch))
            # Gradient of the mean over the parts.
            (loss if len(parts) == 1 else loss / len(parts)).backward()
            logs.append({"loss": loss.detach(), **values})
            del loss, values  # before the next part is computed
        loss = logs[0]["loss"] if len(logs) == 1 else torch.stack([values["loss"] for values in logs]).sum()
        norm = self.parallel.clip_gradient(self.module, settings.grad_clip)
        # Update the weights, unless the loss or the gradient is NaN or infinite. To read these, the host waits for the
        # device. It did so already when it moved the batch there.
        rate = learning_rate(step, self.run.steps, settings)
        if not self.parallel.all_finite(loss, norm):
            _copy(self._before, self._buffers)
            return Done(None, rate)
        groups = [group for optimiser in self.optimisers for group in optimiser.param_groups]
        for group, base in zip(groups, self._rates, strict=True):
            group["lr"] = base * rate
        for optimiser in self.optimisers:
            self.parallel.update(optimiser)
        self.ema.update(self.module, step)
        return Done([{"loss": logs[0].pop("loss"), "grad_norm": norm, **logs[0]}, *logs[1:]], rate)


@torch.no_grad()
def _copy(values: list[Tensor], into: list[Tensor]) -> None:
    """Copy tensors, by one operator."""
    if values:
        torch._foreach_copy_(into, values)  # pyright: ignore[reportPrivateImportUsage]


def _attention(device: torch.device) -> AbstractContextManager[object]:
    """Plain matrix products on a CPU, where the backward pass of fused attention in bf16 is very slow."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
