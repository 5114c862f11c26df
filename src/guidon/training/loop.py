"""The training loop. It knows nothing about models: a ``Task`` draws batches, runs the module and computes the loss.

All random numbers of step n depend only on (seed, n). A run that was stopped or killed can therefore resume from its
last checkpoint and reach the same weights. Ctrl-C saves a checkpoint and ends the run.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..core.errors import InputError
from ..core.extras import require
from ..core.progress import progress
from .data.prefetch import prefetched
from .ema import EMA
from .log import Log, draw_curves
from .optimisers import learning_rate, make_optimisers
from .recipe import Run
from .state import Checkpoint

Look = Callable[[Path, int], dict[str, float]]
"""A function that measures exported weights: (their path, number of steps) -> values to log."""


class Task(Protocol):
    """What the loop needs to train one kind of model.

    A task is made by its class method ``prepare(recipe, device)``, which reads files, builds the module and encodes the
    training data. In each step the loop calls ``draw``, ``predict`` and ``loss``.
    """

    @property
    def module(self) -> nn.Module:
        """The module that is trained. Checkpoints hold its state dict."""
        ...

    @property
    def identity(self) -> dict[str, object]:
        """The settings that must be equal in checkpoint and recipe, or the checkpoint is refused."""
        ...

    def draw(self, step: int, generator: torch.Generator) -> Any:
        """The batch of a step, on the CPU. Another thread calls it one step ahead, so it must not change the task."""
        ...

    def predict(self, batch: Any) -> Any:
        """Run the module on a batch. The result is passed to ``loss``."""
        ...

    def loss(self, predicted: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar loss, and more values to log; a value that this step does not define is NaN."""
        ...

    def validate(self, weights: dict[str, Tensor]) -> dict[str, float]:
        """Quality of the averaged weights on held-out data, as values to log."""
        ...

    def export(self, weights: dict[str, Tensor], record: dict[str, object]) -> Path:
        """Write averaged weights as a file or folder that the package loads, with a record of the training."""
        ...


def train(
    run: Run,
    task: Task,
    device: torch.device,
    *,
    export_only: bool = False,
    look: Look | None = None,
    record: dict[str, object] | None = None,
) -> Path | None:
    """Train to ``run.steps``, from the checkpoint in ``run.out`` if there is one.

    Args:
        run: the recipe.
        task: the task, prepared for that recipe.
        device: the device of the task's module.
        export_only: do not train; export the averaged weights of the checkpoint.
        look: measures the averaged weights every ``run.evaluate_every`` steps.
        record: added to the training record in the exported files, beside steps, batch size, hours and device.

    Returns:
        The exported file or folder; None if the run was interrupted, after its checkpoint was saved.

    Raises:
        InputError: the checkpoint does not fit the recipe, there is no checkpoint to export, the loss became NaN or
            infinite, or an optional library is missing.
    """
    require("matplotlib.figure", "training", "train")  # used at the first checkpoint, hours from now
    module = task.module.train()
    optimisers = make_optimisers(module, run.optimiser)
    rates = [group["lr"] for optimiser in optimisers for group in optimiser.param_groups]
    ema = EMA(module, run.ema_decay)
    checkpoint = Checkpoint(run.out / "checkpoint.pt", task.identity, module, ema, optimisers)
    start, spent = checkpoint.load()
    groups = [group for optimiser in optimisers for group in optimiser.param_groups]  # load() replaced them
    if export_only and not start:
        raise InputError(f"there is no checkpoint in {run.out} to export: train first")
    log = Log(run.out / "log.csv", start, spent)

    def draw(step: int) -> Any:
        return task.draw(step, torch.Generator().manual_seed(run.seed * 1_000_003 + step))

    step, end = start, start if export_only else run.steps
    with (
        _interrupts() as interrupts,
        progress("training") as on_step,
        closing(prefetched(draw, start, end)) as batches,
    ):
        for batch in batches:
            # Loss, in the recipe's precision.
            with torch.autocast(device.type, torch.bfloat16, enabled=run.precision == "bf16"), _attention(device):
                loss, logs = task.loss(task.predict(batch))
            # Gradient step, at the learning rate of this step.
            rate = learning_rate(step, run.steps, run.optimiser)
            for group, base in zip(groups, rates, strict=True):
                group["lr"] = base * rate
            for optimiser in optimisers:
                optimiser.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(module.parameters(), run.optimiser.grad_clip)
            for optimiser in optimisers:
                optimiser.step()
            ema.update(module, step)
            log.add({"loss": loss.detach(), "grad_norm": norm, **logs})
            step += 1
            on_step(step, run.steps)
            # Measure the averaged weights.
            if run.evaluate_every and step % run.evaluate_every == 0:
                log.note(task.validate(ema.weights))
                if look is not None:
                    log.note(look(task.export(ema.weights, {"steps": step}), step))
            # Report and save.
            save = bool(interrupts) or step % run.checkpoint_every == 0 or step == run.steps
            if save or step % run.log_every == 0:
                log.write(step, run.steps, rate)
            if save:
                checkpoint.save(step, log.seconds)
                draw_curves(log.path, run.out / "curve.png")
            if interrupts and step < run.steps:
                return None
    hours = round(log.seconds / 3600, 3)
    made = {"steps": step, "batch_size": run.batch_size, "hours": hours, "device": str(device)}
    return task.export(ema.weights, made | (record or {}))


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in the list instead of raising, so that the current step can finish."""
    caught: list[int] = []
    previous = {
        sig: signal.signal(sig, lambda number, _: caught.append(number)) for sig in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield caught
    finally:
        for sig, handler in previous.items():
            signal.signal(sig, handler)


def _attention(device: torch.device) -> AbstractContextManager[object]:
    """Plain matrix products on a CPU, where the backward pass of fused attention in bf16 is very slow."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
