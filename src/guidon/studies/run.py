"""Running a study. It can be interrupted, resumed and shared by several processes, and always gives the same bytes.

The plan fixes the blocks of cells that are sampled together. If cells of a block are missing or damaged, the whole
block is sampled again, but only these cells are written. Each cell is written atomically.

Processes that run the same study into the same folder at the same time share the blocks: each takes the next block that
is not done and not locked. A lock ends with its process, so the others do the blocks of one that is killed.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..core.devices import cpu_threads
from ..core.errors import InputError, setting
from ..core.interrupts import finished_first
from ..core.limits import require_disk
from ..core.locks import try_held
from ..core.progress import OnStep, as_time
from ..core.ranks import own_rank, rank_count
from ..diffusion.spacing import Explicit, parse_spacing
from ..guidance import CONSTANT, GuidanceTrace
from ..metrics.bench import find_bench
from ..metrics.metric import Bench
from ..pipeline.contract import ModelPipeline
from ..pipeline.manifests import other_weights
from ..request import Request
from .cells import BLOCK_LOCK, BY_SAMPLE, OF_RUN, Cell, blocks_of, delete_leftovers, open_plan
from .energy import solve_scales
from .plan import ANY_SCALE, Plan
from .planning import weights_of
from .study import CELL_BYTES

POLL = 0.5  # seconds between two looks at blocks that other processes hold
LOOKS = 64  # blocks of others that are looked for after each block; to look for all of them would take ever longer


def run_study(
    plan: Plan,
    pipe: ModelPipeline,
    out: Path,
    *,
    bench: Bench | None = None,
    on_cell: OnStep | None = None,
    on_solve: OnStep | None = None,
    say: Callable[[str], None] = print,
) -> int:
    """Solve the scales that are not known yet, then sample the cells that are missing or damaged.

    It ends when all cells of the study are done, by this process or by others. The first Ctrl-C waits for the end of
    the block in work and then raises ``KeyboardInterrupt``; a second one does so at once, and loses the block. Under
    ``torchrun`` the ranks start at different blocks.

    Args:
        plan: the plan to run. If the folder holds results of this plan, it is resumed.
        pipe: the plan's model.
        out: the results folder.
        bench: what measures, from ``open_bench``. A plan whose bench has no learned parts finds its own.
        on_cell: called as ``on_cell(done, total)`` over the cells of the study, those of other processes included.
        on_solve: called as ``on_solve(done, total)`` over the denoising steps that solve scales, before any cell.
        say: called with each message for the user, one line.

    Returns:
        How many cells this process has written.

    Raises:
        InputError: the weights or the folder belong to another plan, a scale has no solution, or the disk is full.
    """
    bench = bench or find_bench(plan.bench)
    check_model(plan, pipe, bench)
    with cpu_threads(plan.threads):
        plan = open_plan(plan, out)
        if plan.bench != bench.name:  # a folder of an earlier format goes on with the metrics of then
            bench = find_bench(plan.bench)
        delete_leftovers(out)
        plan = solve_scales(plan, pipe, out, on_step=on_solve, say=say)
        blocks = blocks_of(plan, out)
        done = _Done(blocks, require_room(blocks, out), on_cell)
        written = _do_blocks(plan, pipe, bench, out, done, say)
        delete_leftovers(out)  # again: others may have been killed since
        return written


def require_room(blocks: list[list[Cell]], out: Path) -> list[int]:
    """The numbers of the blocks that have missing cells, for which the disk must have room.

    Raises:
        InputError: it has not.
    """
    missing = [sum(cell.damage() is not None for cell in block) for block in blocks]
    size = sum(missing) * CELL_BYTES
    require_disk(f"{sum(missing):,} cells", size, out, lower="choose another disk, or make room")
    return [number for number, count in enumerate(missing) if count]


class _Done:
    """How many cells of a study are done, by this process or by others: an estimate needs the pace of all.

    Args:
        blocks: all of the study.
        left: the numbers of those that are not done.
        on_cell: called whenever more cells are done, and at the start.
    """

    def __init__(self, blocks: list[list[Cell]], left: list[int], on_cell: OnStep | None) -> None:
        self.blocks, self.on_cell, self.left = blocks, on_cell, set(left)
        self.absent = deque(number for number in left if not os.path.lexists(blocks[number][-1].folder))
        self.total, self.told = sum(map(len, blocks)), -1
        self.count = self.total - sum(len(blocks[number]) for number in left)
        self.report()

    def report(self, number: int | None = None) -> None:
        """Count what is there. Block ``number`` is done, even if it was there before and damaged."""
        self._mark(number)
        for _ in range(min(LOOKS, len(self.absent))):
            other = self.absent.popleft()
            if other not in self.left:
                continue
            if os.path.lexists(self.blocks[other][-1].folder):
                self._mark(other)
            else:
                self.absent.append(other)
        if self.count != self.told and self.on_cell:
            self.on_cell(self.count, self.total)
        self.told = self.count

    def _mark(self, number: int | None) -> None:
        if number in self.left:
            self.left.remove(number)
            self.count += len(self.blocks[number])


def _do_blocks(
    plan: Plan, pipe: ModelPipeline, bench: Bench, out: Path, done: _Done, say: Callable[[str], None]
) -> int:
    """Do every block that is left and that no other process does, until all are done.

    Ctrl-C waits for the end of the block in work, which would else be lost.

    Returns:
        How many cells were written here.
    """
    blocks = done.blocks
    rank, ranks = own_rank(), rank_count()
    waiting = deque(sorted(done.left))
    waiting.rotate(-(rank * len(waiting) // ranks))
    written, refused, told = 0, 0, False
    while waiting:
        number = waiting.popleft()
        block = blocks[number]
        if any(cell.damage() for cell in block):
            with try_held(out, BLOCK_LOCK.format(number), "guidon study run") as ours:
                if not ours:  # look at it again after all others
                    waiting.append(number)
                    refused += 1
                    if refused >= len(waiting):
                        if not told:
                            say(f"other processes do the last {len(waiting)} blocks: waiting for them")
                        told, refused = True, 0
                        time.sleep(POLL)
                        done.report()
                    continue
                missing = find_missing(block, say)  # the last owner may have done it between our look and our lock
                if missing:
                    pace = _Pace()
                    with finished_first(lambda: say(pace.finishing(len(block)))):  # noqa: B023 - it ends here
                        do_block(plan, pipe, bench, block, missing, pace.note)
                written += len(missing)
        refused = 0
        done.report(number)
    return written


class _Pace:
    """How fast a block is sampled."""

    def __init__(self) -> None:
        self.begun, self.done, self.total = time.monotonic(), 0, 0

    def note(self, done: int, total: int) -> None:
        """Called after every denoising step."""
        self.done, self.total = done, total

    def finishing(self, clips: int) -> str:
        """What Ctrl-C waits for, and how long that takes, once a step is done."""
        took = time.monotonic() - self.begun
        left = f", which takes about {as_time(took * (self.total - self.done) / self.done)}" if self.done else ""
        return f"finishing the {clips} clips in work{left}; press Ctrl-C again to stop now and lose them"


def check_model(plan: Plan, pipe: ModelPipeline, bench: Bench) -> None:
    """Refuse a model or a bench that is not the plan's.

    Raises:
        InputError: they have other weights.
    """
    _check_weights(plan, pipe)
    _check_bench(plan, bench)


def _check_weights(plan: Plan, pipe: ModelPipeline) -> None:
    if changed := other_weights(plan.weights, weights_of(pipe, plan.settings)):
        raise InputError(
            f"the weights of {plan.model} ({', '.join(changed)}) are not those of the plan: use another "
            f"{setting('out')}"
        )
    if pipe.compiles != plan.compile:
        raise InputError(
            f"the plan is for a network that is {'' if plan.compile else 'not '}compiled, and this one is "
            f"{'not' if plan.compile else 'compiled'}: load it with {setting('compile')} {plan.compile}"
        )


def _check_bench(plan: Plan, bench: Bench) -> None:
    """Refuse a bench that would measure with other weights than the plan's, or without weights."""
    parts = plan.bench_weights.keys() | bench.weights.keys()
    known = {name: (plan.bench_weights.get(name), bench.weights.get(name)) for name in sorted(parts)}
    changed = [name for name, (a, b) in known.items() if a is None or b is None or a.hash != b.hash]
    if bench.name != plan.bench or changed:
        raise InputError(
            f"the plan measures by {plan.bench}, with weights that are not those of this bench "
            f"({', '.join(changed) or bench.name}): give the weights of the plan, or use another {setting('out')}"
        )


def find_missing(block: list[Cell], say: Callable[[str], None]) -> list[Cell]:
    """The cells of a block that are absent or damaged."""
    missing = []
    for cell in block:
        fault = cell.damage()
        if fault is None:
            continue
        if fault != "absent":
            say(f"{cell.folder} is done again: {fault}")
        missing.append(cell)
    return missing


def do_block(
    plan: Plan,
    pipe: ModelPipeline,
    bench: Bench,
    block: list[Cell],
    missing: list[Cell],
    on_step: OnStep | None = None,
) -> None:
    """Sample and measure a block, and write those of its cells that are missing."""
    request = plan.request(block[0].setting, slice(block[0].prompt, block[-1].prompt + 1))
    trace = GuidanceTrace()  # which stays empty where a distilled network runs one branch
    observed = None if request.distilled else trace
    videos = pipe.generate(request, batch_size=len(block), trace=observed, on_step=on_step)
    captions = [plan.captions[cell.prompt] for cell in block]
    values = bench.measure(np.stack([video.frames for video in videos]), captions)
    arrays, wanted = trace.as_arrays(), set(missing)
    for number, cell in enumerate(block):
        if cell not in wanted:
            continue
        own = {name: arrays[name][number] for name in BY_SAMPLE if len(trace)}
        metrics = {name: float(column[number]) for name, column in values.items()}
        with cell.writing():
            cell.write(videos[number], metrics, own | {name: arrays[name] for name in OF_RUN})


def seconds_per_cell(plan: Plan, pipe: ModelPipeline) -> float:
    """An estimate of the time for one cell. A block of each setting is timed over a few steps, all of them guided."""
    plan = plan.with_scales(dict.fromkeys(plan.unsolved, ANY_SCALE))
    size = min(plan.block, len(plan.captions) * plan.seeds)
    total = 0.0
    for name in plan.settings:
        request = plan.request(name, slice(max(1, size // plan.seeds)))
        clips = len(request.prompts) * plan.seeds
        if request.spacing is not None and isinstance(parse_spacing(request.spacing), Explicit):
            total += _seconds(pipe, request, size) / clips  # its timesteps are what they are
            continue
        # Time runs of 2 and 4 steps; half of the difference is the cost of a step.
        guidance = dataclasses.replace(request.guidance, timing=CONSTANT)
        few = [request.model_copy(update={"steps": steps, "guidance": guidance}) for steps in (2, 4)]
        took = [_seconds(pipe, each, size) for each in few]
        each = max(0.0, took[1] - took[0]) / 2
        total += (took[0] + each * (request.steps - 2)) / clips
    return total / len(plan.settings)


def _seconds(pipe: ModelPipeline, request: Request, batch_size: int) -> float:
    """How long it takes to make the clips of a request."""
    began = time.monotonic()
    pipe.generate(request, batch_size=batch_size)
    return time.monotonic() - began
