"""The training loop. It knows nothing about models: a ``Task`` draws batches, runs the module and computes the loss.

All random numbers of step n depend only on (seed, n). A run that was stopped or killed can therefore resume from its
last checkpoint and reach the same weights. Ctrl-C saves a checkpoint and ends the run.

A step whose loss or gradient is NaN or infinite is skipped: it changes neither weights nor averages nor buffers. After
``SKIPPED_AT_MOST`` such steps in a row the run stops. Weights are checked before they are saved or exported.

Several ranks train as one process does (``parallel.py``). The first one alone writes checkpoints, logs and models. If a
rank ends or fails, all others stop, and the last checkpoint is kept. Ctrl-C on any rank lets all finish the step and
stop.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..core.atomic import write_json
from ..core.errors import InputError
from ..core.extras import require
from ..core.progress import progress
from ..core.ranks import ALONE, Ranks
from .data.prefetch import prefetched
from .ema import EMA
from .log import Log, draw_curves, read_rows
from .parallel import broken
from .preview import Preview
from .recipe import Run
from .rows import ALL
from .sharded import checkpoint_of
from .state import Progress
from .step import Steps, Trainable
from .trackers import Tracker, open_trackers

SKIPPED_AT_MOST = 5  # steps in a row; then the run stops
TRAINING = "training.json"  # file in the folder of a run: duration and device, which differ from run to run

Look = Callable[[Path | Preview, int], dict[str, float]]
"""A function that measures a model: (the path of exported weights or the model itself, number of steps) -> values to
log."""


class Task(Trainable, Protocol):
    """What the loop needs to train one kind of model.

    A task is made by its class method ``prepare(recipe, device)``, which reads files, builds the module and encodes the
    training data. In each step the loop calls ``draw``, ``predict`` and ``loss``.
    """

    @property
    def identity(self) -> dict[str, object]:
        """The settings that the weights depend on, and hashes of the files that they depend on, as plain data.

        They must be equal in checkpoint and recipe, except those in ``Run.changeable``.
        """
        ...

    def draw(self, step: int, generator: torch.Generator, rows: slice = ALL) -> Any:
        """Rows of the batch of a step, on the CPU. A thread or a process calls it ahead: it must not change the task.

        Each of several ranks asks for rows of its own. All random numbers are drawn for the whole batch, so that a row
        is the same however many are asked for. Data is read for the given rows alone, where it can be.
        """
        ...

    def validate(self, weights: dict[str, Tensor]) -> dict[str, float]:
        """Quality of the averaged weights on held-out data, as values to log."""
        ...

    def export(self, weights: dict[str, Tensor], record: dict[str, object]) -> Path:
        """Write averaged weights as a file or folder that the package loads, with a record of the training."""
        ...


@runtime_checkable
class Previewed(Protocol):
    """A task whose model is sampled as it is, without an export."""

    def preview(self, weights: dict[str, Tensor]) -> AbstractContextManager[Preview]:
        """The model with averaged weights, ready to be sampled during the block."""
        ...


def train(
    run: Run,
    task: Task,
    device: torch.device,
    *,
    export_only: bool = False,
    look: Look | None = None,
    record: dict[str, object] | None = None,
    ranks: Ranks = ALONE,
) -> Path | None:
    """Train to ``run.steps``, from the checkpoint in ``run.out`` if there is one.

    Args:
        run: the recipe.
        task: the task, prepared for that recipe.
        device: the device of the task's module.
        export_only: do not train; export the averaged weights of the checkpoint.
        look: measures the averaged weights every ``run.evaluate_every`` steps.
        record: added to the training record in the exported files, beside the steps and the batch size.
        ranks: those that train together, each with a task of the same recipe.

    Returns:
        The exported file or folder; None if the run was interrupted, after its checkpoint was saved.

    Raises:
        InputError: the checkpoint does not fit the recipe or is past its last step, there is no checkpoint to export,
            the loss or the gradient was NaN or infinite in too many steps in a row, weights became NaN or infinite,
            or an optional library is missing.
    """
    require("matplotlib.figure", "training", "train")  # used at the first checkpoint, hours from now
    # Restore the state of the last checkpoint.
    steps = Steps(run, task, device, ranks)
    parallel, ema = steps.parallel, steps.ema
    identity = {**task.identity, "device": str(device)}
    if len(ranks) > 1:
        identity |= {"device": device.type, "ranks": len(ranks)}
    checkpoint = checkpoint_of(run, identity, steps.module, ema, steps.optimisers, parallel)
    begun = ranks.agreed(checkpoint.load)
    if len({*ranks.together(lambda: begun.step)}) > 1:
        raise InputError(f"the ranks found different checkpoints in {run.out}: out must be a folder that all share")
    if export_only and not begun.step:
        raise InputError(f"there is no checkpoint in {run.out} to export: train first")
    if begun.step > run.steps and not export_only:
        raise InputError(
            f"{checkpoint.path} is of step {begun.step}, the recipe ends at step {run.steps}: raise steps, or export it"
        )
    trackers = open_trackers(run.told, run.out, task.identity, begun.step) if ranks.first else []
    log = _log(run.out / "log.csv", begun, silent=not ranks.first, trackers=trackers)
    parts = parallel.parts(run.batch_size, run.parts)

    def draw(step: int) -> list[Any]:
        seed = run.seed * 1_000_003 + step
        return [task.draw(step, torch.Generator().manual_seed(seed), rows) for rows in parts]

    step, end, skipped, saved = begun.step, begun.step if export_only else run.steps, begun.skipped, begun.step
    with (
        _closed(trackers),
        _interrupts() as interrupts,
        progress(f"training {run.steps} steps", "steps") as on_step,
        closing(prefetched(draw, step, end, run.workers)) as batches,
    ):
        for batch in batches:
            done = steps(batch, step)
            step += 1
            if done.values is not None:
                for values in done.values:
                    log.add(values)
                skipped = 0
            else:
                log.skip(step, run.steps)
                skipped += 1
                if skipped >= min(SKIPPED_AT_MOST, run.steps):
                    kept = f"the checkpoint of step {saved} is kept" if saved else "there is no checkpoint yet"
                    raise InputError(
                        f"the loss or the gradient was NaN or infinite in {skipped} steps in a row, up to step {step}: "
                        f"{kept}; lower optimiser.lr and resume"
                    )
            on_step(step, run.steps)
            # Measure the averaged weights.
            if run.evaluate_every and step % run.evaluate_every == 0:
                _refuse_broken(ema, step, ranks)
                weights = parallel.whole(ema.weights)
                log.note(ranks.from_first_at_length(partial(_measured, task, weights, step, look, trackers)))
            # Report and save.
            stopped = ranks.any(bool(interrupts))
            save = stopped or step % run.checkpoint_every == 0 or step == run.steps
            if save or step % run.log_every == 0:
                log.write(step, run.steps, done.rate)
            if save:
                checkpoint.save(Progress(step, log.seconds, skipped, log.rows))
                saved = step
                if step < run.steps and ranks.first:
                    draw_curves(log.rows, run.out / "curve.png")
            if stopped and step < run.steps:
                return None
    # Export. What differs from run to run stays out of the exported files: equal runs write equal bytes.
    _refuse_broken(ema, step, ranks)
    weights, told = parallel.whole(ema.weights), {"hours": round(log.seconds / 3600, 3), "device": str(device)}

    def export() -> Path:
        draw_curves(log.rows, run.out / "curve.png")  # here: the run may have been killed after its last checkpoint
        write_json(run.out / TRAINING, told if len(ranks) == 1 else told | {"ranks": len(ranks)})
        return task.export(weights, {"steps": step, "batch_size": run.batch_size} | (record or {}))

    return ranks.from_first_at_length(export)


@contextmanager
def _closed(trackers: Sequence[Tracker]) -> Iterator[None]:
    """Close the trackers after the block."""
    try:
        yield
    finally:
        for tracker in trackers:
            tracker.close()


def _measured(
    task: Task, weights: dict[str, Tensor], step: int, look: Look | None, trackers: Sequence[Tracker]
) -> dict[str, float]:
    """What the task and ``look`` measure of averaged weights."""
    found = dict(task.validate(weights))
    if look is None:
        return found
    if isinstance(task, Previewed):
        with task.preview(weights) as preview:
            seen = look(preview, step)
        if (sheet := preview.sheet(step)).is_file():
            for tracker in trackers:
                tracker.sheet(step, sheet)
        return found | seen
    return found | look(task.export(weights, {"steps": step}), step)


def _log(path: Path, begun: Progress, *, silent: bool, trackers: Sequence[Tracker]) -> Log:
    """The log of a run that goes on. Checkpoints of earlier versions do not hold its rows, so the file is read."""
    rows = begun.rows
    if rows is None:
        rows = [row for row in read_rows(path) if int(row["step"]) <= begun.step]
    return Log(path, begun.seconds, rows, silent=silent, trackers=trackers)


def _refuse_broken(ema: EMA, step: int, ranks: Ranks) -> None:
    """Raise an InputError on all ranks if an averaged weight is NaN or infinite."""

    for name in ranks.together(partial(broken, ema.weights)):
        if name is not None:
            raise InputError(
                f"after step {step} the averaged weight {name} holds NaN or infinity: nothing was exported; lower "
                "optimiser.lr and resume from the last checkpoint"
            )


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
