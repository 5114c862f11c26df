"""The one training loop. It knows no model: a task gives it a module, a loss for step n and a way to export.

Everything random in step n comes from (seed, n), so a run that was stopped, killed or cut off goes on from its last
checkpoint as if nothing had happened. Ctrl-C saves and leaves.
"""

from __future__ import annotations

import csv
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..core.atomic import atomic_path
from ..core.errors import InputError, first_line
from .curve import draw_curve
from .ema import EMA
from .recipe import Optimiser, Run

Look = Callable[[Path, int], dict[str, float]]  # at exported weights, after so many steps


class Task(Protocol):
    """What a kind of model brings to the loop."""

    @property
    def module(self) -> nn.Module: ...

    @property
    def identity(self) -> dict[str, object]:
        """What a checkpoint must share with the recipe to be resumed or exported."""
        ...

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar loss of step ``step`` and what to log beside it; NaN where a step has nothing to say."""
        ...

    def validate(self, weights: dict[str, Tensor]) -> dict[str, float]:
        """How good averaged weights are on what training does not see."""
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
        if not parameter.requires_grad:
            continue
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


def _attention(device: torch.device) -> AbstractContextManager[object]:
    """On a CPU the fused attention's backward in bf16 takes as long as all the rest; plain products do not."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


class Checkpoint:
    """The state of a run in one file: weights, averages, optimisers, step, seconds spent."""

    def __init__(self, run: Run, task: Task, ema: EMA, optimisers: list[torch.optim.Optimizer]) -> None:
        self.path = run.out / "checkpoint.pt"
        self.identity, self.module, self.ema, self.optimisers = task.identity, task.module, ema, optimisers

    def save(self, step: int, seconds: float) -> None:
        state = {
            "step": step,
            "identity": self.identity,
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
            saved = state.get("identity", self.identity)
            changed = sorted(name for name, value in self.identity.items() if saved.get(name) != value)
            if changed:
                raise InputError(f"the recipe's {' and '.join(changed)} changed since")
            self.module.load_state_dict(state["module"])
            self.ema.load_state_dict(state["ema"])
            for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
                optimiser.load_state_dict(saved)
        except Exception as error:
            reason = first_line(error)
            raise InputError(
                f"cannot go on from {self.path}: {reason}; it is damaged, of another recipe or of another version: "
                "delete it or change 'out'"
            ) from None
        return int(state["step"]), float(state["seconds"])


class Log:
    """Means of what training reports: a CSV line now and then, and a bar on a terminal or a line elsewhere.

    A resumed run drops the lines after its checkpoint.
    """

    def __init__(self, run: Run, start: int, spent: float) -> None:
        self.run, self.path = run, run.out / "log.csv"
        self.began = time.monotonic() - spent
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}
        self.beside: dict[str, str] = {}
        self.console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.line = self.bar.add_task("training", total=run.steps, completed=start)
        self.kept = self._rows(start)

    @property
    def seconds(self) -> float:
        """Time spent on the run, earlier sittings included."""
        return time.monotonic() - self.began

    def _rows(self, start: int) -> list[dict[str, str]]:
        """What an earlier sitting logged up to its checkpoint."""
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            return [r for r in csv.DictReader(file) if (r.get("step") or "").isdigit() and int(r["step"]) <= start]

    def add(self, values: dict[str, Tensor]) -> None:
        """Count one step; nothing waits for the device."""
        for name, value in values.items():
            said = torch.ones_like(value) if name == "loss" else (~value.isnan()).to(value)
            value = value if name == "loss" else value.nan_to_num(0)
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts[name] + said if name in self.counts else said

    def note(self, values: dict[str, float]) -> None:
        """What is measured now and then, for the next line."""
        self.beside |= {name: f"{value:.6g}" for name, value in values.items()}

    def write(self, step: int, rate: float) -> None:
        """Report the means since the last time; a loss that is no number stops the run before it is saved."""
        means = {name: float(value / self.counts[name]) for name, value in self.sums.items() if self.counts[name]}
        if not math.isfinite(means["loss"]):
            raise InputError(f"the loss became {means['loss']} by step {step}: lower optimiser.lr and resume")
        row = {"step": str(step), "seconds": f"{self.seconds:.0f}", "lr_factor": f"{rate:.4g}"}
        self.kept.append(row | {name: f"{value:.6g}" for name, value in means.items()} | self.beside)
        fields = list(dict.fromkeys(name for kept in self.kept for name in kept))
        with atomic_path(self.path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=fields, restval="")
            writer.writeheader()
            writer.writerows(self.kept)
        self.bar.update(self.line, completed=step, description=f"loss {means['loss']:.4f}")
        if not self.console.is_terminal:
            report = " ".join(f"{name} {value:.4g}" for name, value in means.items())
            print(f"step {step}/{self.run.steps} {self.seconds:.0f} s {report}", file=sys.stderr, flush=True)
        self.sums, self.counts, self.beside = {}, {}, {}


def train(
    run: Run, task: Task, device: torch.device, *, export_only: bool = False, look: Look | None = None
) -> Path | None:
    """Train to ``run.steps``, resuming if ``run.out`` holds a checkpoint.

    Returns where the weights were exported, or None when the run was interrupted (its checkpoint is saved).
    ``export_only`` exports the averaged weights of the last checkpoint and trains no further. Every
    ``run.evaluate_every`` steps the averaged weights are validated, and exported for ``look`` to measure.
    """
    module = task.module.train()
    optimisers = make_optimisers(module, run.optimiser)
    rates = [group["lr"] for optimiser in optimisers for group in optimiser.param_groups]
    ema = EMA(module, run.ema_decay)
    checkpoint = Checkpoint(run, task, ema, optimisers)
    step, spent = checkpoint.load()
    groups = [group for optimiser in optimisers for group in optimiser.param_groups]  # loading replaced them
    if export_only and not step:
        raise InputError(f"there is no checkpoint in {run.out} to export: train first")
    log = Log(run, step, spent)
    with _stop_politely() as stopped, log.bar:
        while step < run.steps and not export_only:
            rate = learning_rate(step, run.steps, run.optimiser)
            for group, base in zip(groups, rates, strict=True):
                group["lr"] = base * rate
            generator = torch.Generator().manual_seed(run.seed * 1_000_003 + step)
            with torch.autocast(device.type, torch.bfloat16, enabled=run.precision == "bf16"), _attention(device):
                loss, logs = task.loss(step, generator)
            for optimiser in optimisers:
                optimiser.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(module.parameters(), run.optimiser.grad_clip)
            for optimiser in optimisers:
                optimiser.step()
            ema.update(module, step)
            log.add({"loss": loss.detach(), "grad_norm": norm, **logs})
            step += 1
            if run.evaluate_every and step % run.evaluate_every == 0:
                log.note(task.validate(ema.shadow))
                if look is not None:
                    log.note(look(task.export(ema.shadow, {"steps": step}), step))
            save = bool(stopped) or step % run.checkpoint_every == 0 or step == run.steps
            if save or step % run.log_every == 0:
                log.write(step, rate)
            if save:
                checkpoint.save(step, log.seconds)
                draw_curve(log.path, run.out / "curve.png")
            if save and stopped and step < run.steps:
                return None
    record = {"steps": step, "batch_size": run.batch_size, "hours": round(log.seconds / 3600, 3), "device": str(device)}
    return task.export(ema.shadow, record)
