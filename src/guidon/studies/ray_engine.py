"""A study on the nodes of a Ray cluster: a task a block. Blocks of a node that is lost are done again by others.

The process that the user started only plans, hands out blocks and writes cells: it loads no model, and nodes need no
folder of results in common. They need Guidon, and the model under the same path. Each node process keeps its model.

A cluster is found by the environment variable RAY_ADDRESS; without it, Ray takes the one that was started last on this
machine, or starts one of this machine alone.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.atomic import atomic_folder
from ..core.devices import cpu_threads
from ..core.errors import InputError, first_line
from ..core.extras import require
from ..core.locks import try_held
from ..core.progress import OnStep
from ..metrics.choice import BenchChoice
from ..request import DIFFUSERS
from .cells import BLOCK_LOCK, CONTENT, Cell, block_of, blocks_of, delete_leftovers, open_plan
from .energy import keep_scales, solve_scales
from .plan import Plan
from .planning import make_plan
from .run import check_model, do_block, find_missing, require_room, seconds_per_cell
from .study import Study

if TYPE_CHECKING:
    import torch

    from ..metrics.metric import Bench
    from ..pipeline.contract import ModelPipeline, ModelPlanner

RETRIES = 10
"""How many times a block is given to another process when its own is lost."""
AHEAD = 2
"""Blocks that are handed out, for each that the cluster does at a time."""
FILES = (*CONTENT, "hashes.json")

Files = dict[str, bytes]
"""The content of a cell's files by name."""


@dataclass(frozen=True)
class Loading:
    """How a node loads the model and the bench of a study."""

    model: str
    """As ``guidon.load`` takes it; a folder as an absolute path."""
    parts: Mapping[str, Any]
    """Arguments of ``guidon.load``."""
    device: str
    """The device by name; "auto" is that of the node."""
    bench: BenchChoice
    """What measures."""

    @classmethod
    def of(cls, study: Study, device: str) -> Loading:
        """That of a study file."""
        name = study.model_name.removeprefix(DIFFUSERS)
        prefix = DIFFUSERS if study.model_name.startswith(DIFFUSERS) else ""
        model = str(Path(name).resolve()) if Path(name).is_dir() else name
        parts = {key: _absolute(value) for key, value in study.parts.items()}
        weights = {key: _absolute(value) for key, value in study.bench.model_dump().items()}
        return cls(prefix + model, parts, device, BenchChoice(**weights))


@dataclass(frozen=True)
class Description:
    """What a node says of the model. It is a ``ModelDescription``."""

    planner: ModelPlanner
    device: torch.device
    hashes: dict[str, str]
    distilled_hashes: dict[str, str]
    compiles: bool


@dataclass(frozen=True)
class Cluster:
    """A connection to Ray."""

    ray: Any
    gpus: int
    """GPUs that a task needs."""
    loading: Loading

    @classmethod
    @contextmanager
    def connected(cls, study: Study, device: str) -> Iterator[Cluster]:
        """Connect to the cluster of RAY_ADDRESS or of this machine, or start one here for the block.

        Raises:
            InputError: Ray is not installed, or there is no such cluster.
        """
        ray = require("ray", "the engine ray", "ray")
        ours = not ray.is_initialized()
        if ours:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
            try:
                ray.init(log_to_driver=False, logging_level="ERROR")
            except (ConnectionError, RuntimeError, ValueError) as error:
                address = os.environ.get("RAY_ADDRESS")
                where = f"the Ray cluster {address} cannot be reached" if address else "Ray cannot be started here"
                raise InputError(f"{where}: {first_line(error)}; start one with `ray start --head`") from None
        try:
            has_gpus = ray.cluster_resources().get("GPU", 0) >= 1
            wants = device.startswith("cuda") or (device == "auto" and has_gpus)
            yield cls(ray, int(wants), Loading.of(study, device))
        finally:
            if ours:
                ray.shutdown()

    def describe(self, planner: ModelPlanner) -> Description:
        """The model as a node finds it.

        Raises:
            InputError: it cannot be loaded there.
        """
        import torch

        device, *known = self.get(self._task(_describe, 1).remote(self.loading))
        return Description(planner, torch.device(device), *known)

    def seconds_per_cell(self, plan: Plan) -> float:
        """The time of a cell on a node; see ``guidon.studies.run.seconds_per_cell``."""
        return self.get(self._task(_seconds, self._cpus(plan)).remote(self.loading, plan))

    def run(self, plan: Plan, out: Path, *, on_cell: OnStep | None = None, say: Callable[[str], None] = print) -> int:
        """Do what ``run_study`` does, on the cluster.

        Args:
            plan: the plan to run. If the folder holds results of this plan, it is resumed.
            out: the results folder, on this machine.
            on_cell: called as ``on_cell(done, total)`` over the cells of the study.
            say: called with each message for the user, one line.

        Returns:
            How many cells were written.

        Raises:
            InputError: as ``run_study``; or a block could not be done on any node.
        """
        plan = open_plan(plan, out)
        delete_leftovers(out)
        if plan.unsolved:
            say(f"solving the scales of {len(plan.unsolved)} settings on the cluster")
            scales = self.get(self._task(_solve, self._cpus(plan)).remote(self.loading, plan))
            plan = keep_scales(plan, scales, out)
        require_room(blocks_of(plan, out), out)
        written = self._do_blocks(plan, out, on_cell, say)
        delete_leftovers(out)
        return written

    def _do_blocks(self, plan: Plan, out: Path, on_cell: OnStep | None, say: Callable[[str], None]) -> int:
        """Hand out every block that has missing cells, and write what comes back."""
        blocks, written, done = blocks_of(plan, out), 0, 0
        cpus = self._cpus(plan)
        task, most = self._task(_do, cpus), AHEAD * self._slots(cpus)
        waiting = deque(range(len(blocks)))
        running: dict[Any, tuple[int, list[Cell], ExitStack]] = {}
        try:
            while waiting or running:
                while waiting and len(running) < most:
                    number = waiting.popleft()
                    lock = ExitStack()
                    if not any(cell.damage() for cell in blocks[number]):
                        done += len(blocks[number])
                    elif not lock.enter_context(try_held(out, BLOCK_LOCK.format(number), "guidon study run")):
                        raise InputError(f"another process runs this study in {out}: wait until it ends, or stop it")
                    elif not (cells := find_missing(blocks[number], say)):  # done since by another process
                        lock.close()
                        done += len(blocks[number])
                    else:
                        running[task.remote(self.loading, plan, number)] = number, cells, lock
                if on_cell:
                    on_cell(done, plan.cells)
                if not running:
                    break
                (ready, *_), _ = self.ray.wait(list(running), num_returns=1)
                number, cells, lock = running.pop(ready)
                with lock:
                    _write(blocks[number], cells, self.get(ready))
                written, done = written + len(cells), done + len(blocks[number])
        finally:
            for reference, (_, _, lock) in running.items():
                self.ray.cancel(reference, force=True)
                lock.close()
        if on_cell:
            on_cell(done, plan.cells)
        return written

    def get(self, reference: Any) -> Any:
        """What a task returned.

        Raises:
            InputError: the task raised one, or no node could do it.
        """
        errors = self.ray.exceptions
        try:
            return self.ray.get(reference)
        except errors.RayTaskError as error:
            if isinstance(error.cause, InputError):
                raise InputError(*error.cause.args) from None
            raise
        except errors.RayError as error:
            raise InputError(
                f"the cluster cannot do this, after {RETRIES} tries where a process or a node was lost "
                f"({first_line(error)}): what is done is kept, run the same command again"
            ) from None

    def _task(self, work: Callable[..., Any], cpus: int) -> Any:
        """A function as a task of Ray. It is done again where its process or its node is lost."""
        return self.ray.remote(num_cpus=cpus, num_gpus=self.gpus, max_retries=RETRIES)(work)

    def _cpus(self, plan: Plan) -> int:
        """The CPUs that a block needs: as many as threads, if a node has so many. On a GPU one is enough."""
        return 1 if self.gpus else max(1, min(plan.threads, max(self._resources("CPU"), default=1)))

    def _slots(self, cpus: int) -> int:
        """How many blocks the cluster does at a time."""
        return max(1, sum(self._resources("GPU")) if self.gpus else sum(n // cpus for n in self._resources("CPU")))

    def _resources(self, kind: str) -> list[int]:
        """How many CPUs or GPUs each node has."""
        return [int(node["Resources"].get(kind, 0)) for node in self.ray.nodes() if node["Alive"]]


def plan_study(cluster: Cluster, study: Study, planner: ModelPlanner, threads: int | None) -> Plan:
    """The plan of a study on a cluster; see ``make_plan``."""
    return make_plan(study, cluster.describe(planner), threads=threads)


# on a node

_loaded: dict[str, tuple[ModelPipeline, Bench]] = {}
"""The model and the bench of this process."""


def _load(loading: Loading) -> tuple[ModelPipeline, Bench]:
    if repr(loading) not in _loaded:
        from ..metrics.bench import open_bench
        from ..pipeline import load

        _loaded.clear()  # there is room for one
        pipe: ModelPipeline = load(loading.model, device=loading.device, **loading.parts)
        bench = open_bench(loading.bench, pipe.planner.bench, device=pipe.device, keep=pipe.keeps_parts)
        _loaded[repr(loading)] = pipe, bench
    return _loaded[repr(loading)]


def _describe(loading: Loading) -> tuple[str, dict[str, str], dict[str, str], bool]:
    pipe, _ = _load(loading)
    return pipe.device.type, pipe.hashes, pipe.distilled_hashes, pipe.compiles


def _seconds(loading: Loading, plan: Plan) -> float:
    pipe, _ = _load(loading)
    with cpu_threads(plan.threads):
        return seconds_per_cell(plan, pipe)


def _solve(loading: Loading, plan: Plan) -> dict[str, float]:
    pipe, _ = _checked(loading, plan)
    with cpu_threads(plan.threads), tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "study"
        return solve_scales(open_plan(plan, out), pipe, out, say=lambda line: None).scales


def _do(loading: Loading, plan: Plan, number: int) -> list[Files]:
    """The files of every cell of a block."""
    pipe, bench = _checked(loading, plan)
    with cpu_threads(plan.threads), tempfile.TemporaryDirectory() as folder:
        block = block_of(plan, Path(folder), number)
        do_block(plan, pipe, bench, block, block)
        return [{name: (cell.folder / name).read_bytes() for name in FILES} for cell in block]


def _checked(loading: Loading, plan: Plan) -> tuple[ModelPipeline, Bench]:
    """The model and the bench, after a check that they give the bytes of the plan.

    Raises:
        InputError: the node has another model, another version of torch, or another kind of device.
    """
    import torch

    pipe, bench = _load(loading)
    found = {"torch": torch.__version__, "device": pipe.device.type}
    for name, value in found.items():
        if value != getattr(plan, name):
            raise InputError(
                f"the node {socket.gethostname()} has {name} {value}, and the plan is for {getattr(plan, name)}: "
                "results of both would differ in last bits, take that node out"
            )
    check_model(plan, pipe, bench)
    return pipe, bench


def _write(block: list[Cell], missing: list[Cell], made: list[Files]) -> None:
    """Write the missing cells of a block, each whole or not at all."""
    wanted = set(missing)
    for cell, files in zip(block, made, strict=True):
        if cell not in wanted:
            continue
        with cell.writing(), atomic_folder(cell.folder) as folder:
            for name, content in files.items():
                (folder / name).write_bytes(content)


def _absolute(value: Any) -> Any:
    return value.resolve() if isinstance(value, Path) else value
