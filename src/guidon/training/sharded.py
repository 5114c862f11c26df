"""The checkpoint of a run that shards its weights: a folder, which ``torch.distributed.checkpoint`` writes and reads.

Each rank writes the parts that it has, as safetensors. Another number of ranks, or one process, reads the parts that it
needs. ``state.json`` beside them holds everything else, and a hash of each file: damage is refused. The folder is
written beside the last checkpoint and takes its place when it is whole.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, field_validator
from safetensors import safe_open
from torch import Tensor, nn

from ..checkpoints.component import refuse_misfit
from ..core.atomic import atomic_folder, write_json
from ..core.errors import InputError
from ..core.hashing import hash_files, hash_settings
from ..core.ranks import Ranks
from ..core.reading import read_object, reading, regular_file
from ..core.settings import Settings, validated
from .ema import EMA
from .log import check_rows
from .optimisers import STATE
from .parallel import Parallel, broken
from .recipe import Run
from .recipe.section import completed
from .state import DELETE, Checkpoint, Progress, read_state

FILE, FOLDER = "checkpoint.pt", "checkpoint"  # of a run, in its folder
STATE_FILE, PARTS = "state.json", "*.safetensors"  # in the folder of a sharded checkpoint
PLACES = "DCP_SHARDING_INFO"  # where a part lies in its tensor, in the header of a file
MODULE, AVERAGE, OPTIMISER = "module.", "ema.", "optimiser"  # beginnings of the names of tensors


class ShardedState(Settings):
    """The content of ``state.json``."""

    step: int = Field(ge=0)
    """Steps that are done."""
    seconds: float = Field(ge=0, allow_inf_nan=False)
    """Time that they took."""
    skipped: int = Field(ge=0)
    """See ``Progress``."""
    log: tuple[dict[str, str], ...]
    """See ``Progress.rows``."""
    identity: dict[str, Any]
    """The settings that the weights depend on."""
    tensors: dict[str, tuple[int, ...]]
    """The shape of each whole tensor, by name."""
    files: dict[str, str]
    """SHA-256 of each file of tensors."""
    digest: str
    """A hash of everything else in this file."""

    @field_validator("log")
    @classmethod
    def _rows_can_be_drawn(cls, rows: tuple[dict[str, str], ...]) -> tuple[dict[str, str], ...]:
        check_rows(rows)
        return rows


class ShardedCheckpoint(Checkpoint):
    """The state of a run in a folder, of which each rank has a part. All ranks must save and load it together."""

    def save(self, progress: Progress) -> None:
        """Write the state: the old folder or the new one is there, whatever happens.

        Raises:
            InputError: a tensor of it holds NaN or infinity. The last checkpoint is kept.
            OSError: the folder cannot be written. The last checkpoint is kept.
        """
        tensors = self._tensors()
        for name in self.ranks.together(partial(broken, tensors)):
            self._refuse_broken(name, progress)
        with ExitStack() as stack:
            place = Path(self.ranks.from_first(lambda: str(stack.enter_context(atomic_folder(self.path)))))
            with _engine(self.ranks) as (engine, options):
                writer = engine.HuggingFaceStorageWriter(str(place), save_distributed=True)
                engine.save(tensors, storage_writer=writer, **options)
            state = self._told(progress) | {
                "tensors": {name: list(value.shape) for name, value in tensors.items()},
                "files": _shared_hashes(place, sorted(path.name for path in place.glob(PARTS)), self.ranks),
            }

            def finish() -> None:
                write_json(place / STATE_FILE, state | {"digest": hash_settings(state)})
                stack.close()  # the folder takes its place

            self.ranks.from_first_at_length(finish)

    def load(self) -> Progress:
        """Restore the state, if the folder exists. See ``Checkpoint.load``.

        Raises:
            InputError: the folder is damaged, or belongs to another recipe.
        """
        if not self.path.exists():
            return Progress()
        state = read_sharded(self.path, self.ranks)
        self._compare(state.identity)
        held = {name for name in state.tensors if name.startswith(OPTIMISER)}
        tensors = self._tensors(lambda name: name in held)
        given = {name: torch.empty(shape, device="meta") for name, shape in state.tensors.items()}
        try:
            refuse_misfit(tensors, given, "its weights do not fit the recipe")
        except InputError as error:
            raise self._refusal(str(error)) from None
        with reading(self.path, "a checkpoint", DELETE), _engine(self.ranks) as (engine, options):
            engine.load(tensors, storage_reader=engine.HuggingFaceStorageReader(str(self.path)), **options)
        for name in self.ranks.together(partial(broken, tensors)):
            if name is not None:
                raise self._refusal(f"its {name} holds NaN or infinity")
        return Progress(state.step, state.seconds, state.skipped, state.log)

    def _tensors(self, kept: Callable[[str], bool] | None = None) -> dict[str, Tensor]:
        """All tensors of the state, by name.

        Args:
            kept: which tensors the optimisers of the checkpoint have; they are made where these have none. None to take
                what the optimisers have.
        """
        found = {MODULE + name: value.detach() for name, value in self.module.state_dict().items()}
        found |= {AVERAGE + name: value for name, value in self.ema.state_dict().items()}
        names = {parameter: name for name, parameter in self.module.named_parameters()}
        for number, optimiser in enumerate(self.optimisers):
            for parameter in (parameter for group in optimiser.param_groups for parameter in group["params"]):
                for key in STATE[type(optimiser).__name__]:
                    name = f"{OPTIMISER}{number}.{names[parameter]}.{key}"
                    if kept is not None and kept(name):
                        optimiser.state[parameter][key] = (
                            torch.zeros((), device=parameter.device)
                            if key == "step"
                            else torch.zeros_like(parameter, requires_grad=False)
                        )
                    if key in optimiser.state.get(parameter, {}):
                        found[name] = optimiser.state[parameter][key]
        return found


def read_sharded(path: Path, ranks: Ranks) -> ShardedState:
    """What ``state.json`` of a sharded checkpoint says, once all files are those that were written.

    Raises:
        InputError: it is damaged.
    """
    values = read_object(path / STATE_FILE, "the state of a checkpoint")
    state = validated(ShardedState, values, str(path / STATE_FILE))
    with reading(path, "a checkpoint", DELETE):
        if state.digest != hash_settings({name: value for name, value in values.items() if name != "digest"}):
            raise ValueError(f"the content of {STATE_FILE} is not what was written")
        if sorted(found.name for found in path.glob(PARTS)) != sorted(state.files):
            raise ValueError(f"its files are not those that {STATE_FILE} names")
    for name in state.files:
        regular_file(path / name, "a part of a checkpoint")
    found = _shared_hashes(path, sorted(state.files), ranks)
    with reading(path, "a checkpoint", DELETE):
        if wrong := [name for name in found if found[name] != state.files[name]]:
            raise ValueError(f"the content of {wrong[0]} is not what was written")
        _refuse_gaps(path, state)
    return state


def _refuse_gaps(folder: Path, state: ShardedState) -> None:
    """Refuse files that do not hold every value of every tensor once.

    Raises:
        ValueError: they do not.
    """
    held = dict.fromkeys(state.tensors, 0)
    for name in state.files:
        with safe_open(folder / name, framework="pt") as file:
            places = json.loads((file.metadata() or {})[PLACES])
            for tensor in file.keys():  # noqa: SIM118
                shape, whole = file.get_slice(tensor).get_shape(), state.tensors[tensor]
                first = places[tensor]["saved_offsets"]
                ends = [begin + length for begin, length in zip(first, shape, strict=True)]
                if any(not 0 <= begin <= end <= size for begin, end, size in zip(first, ends, whole, strict=True)):
                    raise ValueError(f"a part of {tensor} in {name} is outside of it")
                held[tensor] += math.prod(shape)
    if wrong := [tensor for tensor, count in held.items() if count != math.prod(state.tensors[tensor])]:
        raise ValueError(f"its files do not hold {wrong[0]} as a whole")


def checkpoint_of(
    run: Run,
    identity: Mapping[str, object],
    module: nn.Module,
    ema: EMA,
    optimisers: Sequence[torch.optim.Optimizer],
    parallel: Parallel,
) -> Checkpoint:
    """The checkpoint of a run: a folder if the recipe shards the module, else a file.

    Raises:
        InputError: the run has a checkpoint of the other form.
    """
    own, other = run.out / FILE, run.out / FOLDER
    if parallel.sharded:
        own, other = other, own
    if other.exists() and not own.exists():
        raise InputError(
            f"{other} was written under another shard_above than the recipe's: give that one, or delete the checkpoint "
            "to train again from the start"
        )
    kind = ShardedCheckpoint if parallel.sharded else Checkpoint
    complete = partial(completed, recipe=run)
    return kind(own, identity, complete, run.changeable, module, ema, optimisers, parallel.ranks)


def step_of(out: Path) -> int:
    """The step of the checkpoint of the run in ``out``; 0 where there is none.

    Raises:
        InputError: it is damaged.
    """
    if (folder := out / FOLDER).exists():
        values = read_object(folder / STATE_FILE, "the state of a checkpoint")
        return validated(ShardedState, values, str(folder / STATE_FILE)).step
    return read_state(out / FILE).step if (out / FILE).exists() else 0


@contextmanager
def _engine(ranks: Ranks) -> Iterator[tuple[Any, dict[str, Any]]]:
    """``torch.distributed.checkpoint``, and how it finds the other ranks. Its errors become usual ones.

    Raises:
        InputError: this PyTorch cannot write safetensors with it.
    """
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.api import CheckpointException

    if not hasattr(checkpoint, "HuggingFaceStorageWriter"):
        raise InputError(
            f"sharded checkpoints need PyTorch 2.9 or newer, this is {torch.__version__}: install it, or raise "
            "shard_above"
        )
    options = {"no_dist": True} if len(ranks) == 1 else {"process_group": ranks.group_for(torch.device("cpu"))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that one process is one process
        try:
            yield checkpoint, options
        except CheckpointException as error:  # a BaseException, with the errors of all ranks
            first = next(iter(error.failures.values()))[0]
            raise (first if isinstance(first, Exception) else ValueError(str(first))) from None


def _shared_hashes(folder: Path, names: Sequence[str], ranks: Ranks) -> dict[str, str]:
    """The hash of each file, of which every rank computes some."""
    own = names[ranks.index :: len(ranks)]
    parts = ranks.together(lambda: {name: hash_files(folder / name) for name in own})
    return {name: value for part in parts for name, value in part.items()}
