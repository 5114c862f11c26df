"""The one training loop. It knows no model: a task gives it a module, a loss for step n and a way to export.

Everything random in step n comes from (seed, n), so a run that was stopped, killed or cut off goes on from its last
checkpoint as if nothing had happened. Ctrl-C saves and leaves.
"""

from __future__ import annotations

import csv
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from ..atomic import atomic_path
from ..errors import InputError
from .config import Optimiser, Run
from .ema import EMA


class Task(Protocol):
    """What a kind of model brings to the loop."""

    @property
    def module(self) -> nn.Module: ...

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar loss of step ``step`` and what to log beside it."""
        ...

    def export(self, weights: dict[str, Tensor], record: dict[str, object]) -> Path:
        """Write the trained weights as a file or folder that the package loads."""
        ...


def learning_rate(step: int, steps: int, settings: Optimiser) -> float:
    """Relative rate at a step: linear warm-up, constant, linear decay to zero."""
    warmup = min(1.0, (step + 1) / max(1, settings.warmup_steps))
    remaining = (steps - step) / max(1.0, settings.decay * steps)
    return min(warmup, remaining, 1.0)


def make_optimisers(module: nn.Module, settings: Optimiser) -> list[torch.optim.Optimizer]:
    """AdamW, or Muon (Jordan 2024) on the matrices inside blocks and AdamW on the rest."""
    hidden: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        inside = parameter.ndim == 2 and "blocks." in name and "table" not in name
        (hidden if inside and settings.name == "muon" else rest).append(parameter)
    adamw = torch.optim.AdamW(rest, settings.lr, betas=settings.betas, weight_decay=settings.weight_decay, fused=True)
    if not hidden:
        return [adamw]
    muon = torch.optim.Muon(
        hidden, settings.muon_lr, weight_decay=settings.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    return [muon, adamw]


@contextmanager
def _stop_politely() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM in a list instead of dying in the middle of a step."""
    caught: list[int] = []
    previous = {
        sig: signal.signal(sig, lambda number, _: caught.append(number)) for sig in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield caught
    finally:
        for sig, handler in previous.items():
            signal.signal(sig, handler)


class Checkpoint:
    """The state of a run in one file: weights, averages, optimisers, step, seconds spent."""

    def __init__(self, run: Run, module: nn.Module, ema: EMA, optimisers: list[torch.optim.Optimizer]) -> None:
        self.path = run.out / "checkpoint.pt"
        self.module, self.ema, self.optimisers = module, ema, optimisers

    def save(self, step: int, seconds: float) -> None:
        state = {
            "step": step,
            "seconds": seconds,
            "module": self.module.state_dict(),
            "ema": self.ema.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }
        with atomic_path(self.path) as temporary:
            torch.save(state, temporary)

    def load(self) -> tuple[int, float]:
        """The step to go on from and the seconds already spent; (0, 0) for a fresh run."""
        if not self.path.exists():
            return 0, 0.0
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            self.module.load_state_dict(state["module"])
            self.ema.load_state_dict(state["ema"])
            for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
                optimiser.load_state_dict(saved)
        except Exception as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"cannot resume from {self.path}: {reason}; it is damaged or of another recipe: "
                "delete it or change 'out'"
            ) from None
        return int(state["step"]), float(state["seconds"])


class Log:
    """A CSV of the run, appended line by line; a resumed run drops the lines after its checkpoint."""

    def __init__(self, path: Path, start: int) -> None:
        self.path = path
        kept: list[dict[str, str]] = []
        if start and path.exists():
            with path.open(newline="") as file:
                kept = [
                    row
                    for row in csv.DictReader(file)
                    if (row.get("step") or "").isdigit() and int(row["step"]) <= start
                ]
        with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
            if kept:
                writer = csv.DictWriter(file, fieldnames=list(kept[0]))
                writer.writeheader()
                writer.writerows(kept)
        self.has_header = bool(kept)

    def write(self, row: dict[str, float]) -> None:
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(row))
            if not self.has_header:
                writer.writeheader()
                self.has_header = True
            writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})


def train(run: Run, task: Task, device: torch.device) -> Path | None:
    """Train to ``run.steps``, resuming if ``run.out`` holds a checkpoint.

    Returns where the weights were exported, or None when the run was interrupted (its checkpoint is saved).
    """
    module = task.module.train()
    optimisers = make_optimisers(module, run.optimiser)
    base_rates = [[group["lr"] for group in optimiser.param_groups] for optimiser in optimisers]
    ema = EMA(module, run.ema_decay)
    checkpoint = Checkpoint(run, module, ema, optimisers)
    start, spent = checkpoint.load()
    log = Log(run.out / "log.csv", start)
    began, sums, count = time.monotonic(), {}, 0

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    # one bar on a terminal, a line per log entry elsewhere
    from rich.console import Console

    console = Console(stderr=True)
    with _stop_politely() as stopped, Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        line = bar.add_task("training", total=run.steps, completed=start)
        for step in range(start, run.steps):
            rate = learning_rate(step, run.steps, run.optimiser)
            for optimiser, rates in zip(optimisers, base_rates, strict=True):
                for group, base in zip(optimiser.param_groups, rates, strict=True):
                    group["lr"] = base * rate
            generator = torch.Generator().manual_seed(run.seed * 1_000_003 + step)
            with torch.autocast(device.type, torch.bfloat16, enabled=run.precision == "bf16"):
                loss, logs = task.loss(step, generator)
            for optimiser in optimisers:
                optimiser.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(module.parameters(), run.optimiser.grad_clip)
            for optimiser in optimisers:
                optimiser.step()
            ema.update(module, step)

            for name, value in {"loss": loss.detach(), "grad_norm": norm, **logs}.items():
                sums[name] = sums.get(name, 0) + value
            count += 1
            done = step + 1
            if done % run.log_every == 0 or done == run.steps:
                means = {name: float(value) / count for name, value in sums.items()}
                if means["loss"] != means["loss"]:
                    raise InputError(
                        f"the loss became NaN by step {done}: lower optimiser.lr; {checkpoint.path} is from before"
                    )
                elapsed = spent + time.monotonic() - began
                log.write({"step": done, "seconds": elapsed, "lr": rate, **means})
                bar.update(line, completed=done, description=f"loss {means['loss']:.4f}")
                if not console.is_terminal and "GUIDON_QUIET" not in os.environ:
                    print(
                        f"step {done}/{run.steps} {elapsed:.0f}s " + " ".join(f"{k} {v:.4g}" for k, v in means.items()),
                        flush=True,
                    )
                sums, count = {}, 0
            if stopped or done % run.checkpoint_every == 0 or done == run.steps:
                checkpoint.save(done, spent + time.monotonic() - began)
            if stopped and done < run.steps:
                return None
    seconds = spent + time.monotonic() - began
    record: dict[str, object] = {
        "steps": run.steps,
        "batch_size": run.batch_size,
        "hours": round(seconds / 3600, 3),
        "device": str(device),
    }
    return task.export(ema.shadow, record)
