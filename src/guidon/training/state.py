"""The checkpoint of a run: everything that is needed to resume it with the same result.

A checkpoint holds a digest of its content, which is checked when it is read: damage is refused, never trained on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, Field, field_validator
from torch import Tensor, nn

from ..checkpoints.component import refuse_misfit
from ..checkpoints.files import refuse_bad_archive
from ..core.atomic import atomic_file
from ..core.errors import InputError
from ..core.hashing import hash_tensors
from ..core.ranks import ALONE, Ranks
from ..core.reading import reading, regular_file
from ..core.settings import Settings, validated
from .ema import EMA
from .log import check_rows
from .optimisers import refuse_unusable

EARLIER_NAMES = {"level.": "terms.mse.loss_level.", "area_level.": "terms.area.loss_level."}
"""Prefixes of buffer names: as earlier versions wrote them -> now. Earlier versions wrote them even if unused."""
LATER = frozenset({"words", "classes", "start_sha256"})
"""Names in an identity that is no recipe's setting, and that earlier versions did not write: what they wrote is not
compared."""
REPEATS = 4  # times that the bytes of a checkpoint may be used, on average
DELETE = "delete it to train again from the start"


@dataclass(frozen=True)
class Progress:
    """How far a run has come."""

    step: int = 0
    """Steps that are done."""
    seconds: float = 0.0
    """Time that they took."""
    skipped: int = 0
    """How many of the last steps were skipped in a row because their gradient was NaN or infinite."""
    rows: Sequence[Mapping[str, str]] | None = ()
    """The rows of the log; None if the checkpoint does not hold them, as those of earlier versions."""


class State(Settings):
    """The content of a checkpoint."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    step: int = Field(ge=0)
    """Steps that are done."""
    seconds: float = Field(ge=0, allow_inf_nan=False)
    """Time that they took."""
    skipped: int = Field(default=0, ge=0)
    """See ``Progress``."""
    log: tuple[dict[str, str], ...] | None = None
    """See ``Progress.rows``."""
    identity: dict[str, Any]
    """The settings that the weights depend on. Earlier versions wrote some of them."""
    module: dict[str, Tensor]
    """The state of the module that is trained."""
    ema: dict[str, Tensor]
    """The averaged state."""
    optimisers: tuple[dict[str, Any], ...]
    """The state of every optimiser."""
    digest: str | None = None
    """A hash of everything else. Earlier versions wrote none."""

    @field_validator("log")
    @classmethod
    def _rows_can_be_drawn(cls, rows: tuple[dict[str, str], ...] | None) -> tuple[dict[str, str], ...] | None:
        check_rows(rows or ())
        return rows


class Checkpoint:
    """The state of a run in one file.

    Args:
        path: the file.
        identity: the settings that the weights depend on, as plain data.
        complete: gives the settings of a file the defaults of those that an earlier version did not know.
        changeable: names in ``identity`` that may differ from those of the file, such as "optimiser.lr".
        module: the module that is trained.
        ema: its averaged state.
        optimisers: its optimisers.
        ranks: those that train together. All of them save and load; the first one writes.
    """

    def __init__(
        self,
        path: Path,
        identity: Mapping[str, object],
        complete: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        changeable: frozenset[str],
        module: nn.Module,
        ema: EMA,
        optimisers: Sequence[torch.optim.Optimizer],
        ranks: Ranks = ALONE,
    ) -> None:
        self.path, self.identity, self.complete, self.changeable = path, dict(identity), complete, changeable
        self.module, self.ema, self.optimisers, self.ranks = module, ema, optimisers, ranks

    def save(self, progress: Progress) -> None:
        """Write the state, atomically.

        Raises:
            InputError: a tensor of it holds NaN or infinity. The last checkpoint is kept.
            OSError: the file cannot be written. The last checkpoint is kept.
        """
        self.ranks.from_first_at_length(lambda: self._write(progress))

    def _write(self, progress: Progress) -> None:
        """Write the file.

        Raises:
            InputError: a tensor of it holds NaN or infinity. The last checkpoint is kept.
            OSError: the file cannot be written. The last checkpoint is kept.
        """
        content = self._told(progress) | {
            "module": self.module.state_dict(),
            "ema": self.ema.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }
        state = _on_cpu(content)
        self._refuse_broken(_broken(state), progress)
        with atomic_file(self.path) as file:
            torch.save(state | {"digest": _digest(state)}, file)

    def _told(self, progress: Progress) -> dict[str, Any]:
        """What a checkpoint holds beside tensors, as plain data."""
        return {
            "step": progress.step,
            "seconds": progress.seconds,
            "skipped": progress.skipped,
            "log": [dict(row) for row in progress.rows or ()],
            "identity": self.identity,
        }

    def _refuse_broken(self, broken: str | None, progress: Progress) -> None:
        """Raise an InputError if a tensor, named by its place, holds NaN or infinity."""
        if broken is not None:
            kept = f"{self.path} is kept" if self.path.exists() else "no checkpoint is written"
            raise InputError(
                f"after step {progress.step} {broken} holds NaN or infinity: {kept}; lower optimiser.lr and resume"
            )

    def load(self) -> Progress:
        """Restore the state, if the file exists. Returns how far the run has come.

        A line on stderr names settings that changed since and may, and says if an earlier version wrote the file.

        Raises:
            InputError: the file is damaged, or belongs to another recipe.
        """
        if not self.path.exists():
            return Progress()
        state = read_state(self.path)
        self._compare(state.identity, digested=state.digest is not None)
        for target, saved in ((self.module, state.module), (self.ema, state.ema)):
            weights, expected = _with_names_of_now(saved, target.state_dict()), target.state_dict()
            try:
                refuse_misfit(expected, weights, "its weights do not fit the recipe")
            except InputError as error:
                raise self._refusal(str(error)) from None
            if wrong := [name for name, value in weights.items() if value.dtype != expected[name].dtype]:
                raise self._refusal(f"its {wrong[0]} is {weights[wrong[0]].dtype}, not {expected[wrong[0]].dtype}")
            target.load_state_dict(weights)
        if len(state.optimisers) != len(self.optimisers):
            raise self._refusal("it was trained with another optimiser")
        for optimiser, saved in zip(self.optimisers, state.optimisers, strict=True):
            made = optimiser.param_groups
            try:
                optimiser.load_state_dict(saved)
            except ValueError:  # other parameters
                raise self._refusal("it was trained with another optimiser") from None
            except Exception as error:  # a state that no optimiser wrote can make PyTorch raise any exception
                raise self._refusal(f"the state of its optimiser does not load ({type(error).__name__})") from error
            try:
                refuse_unusable(optimiser, made)
            except ValueError as error:
                raise self._refusal(f"the state of its optimiser does not fit: {error}") from None
        return Progress(state.step, state.seconds, state.skipped, state.log)

    def _compare(self, identity: Mapping[str, Any], *, digested: bool = True) -> None:
        """Refuse settings of another run. Name on stderr those that may differ, and those that cannot be compared.

        Args:
            identity: that of the checkpoint.
            digested: whether it has a digest, unlike those of earlier versions.

        Raises:
            InputError: a setting that must not change did.
        """
        then, now = dict(_flat(identity)), dict(_flat(self.identity))
        unknown = set(LATER - then.keys())
        if not digested:  # earlier versions wrote only some of the settings, but always those of an expert
            unknown = {name for name in now.keys() - then.keys() if not name.startswith(("expert.", "kept."))}
        else:  # what is completed may have settings that an identity does not hold, such as where files lie
            then = {name: value for name, value in _flat(self.complete(identity)) if name in now} | then
        compared = (then.keys() | now.keys()) - unknown
        changed = sorted(name for name in compared if then.get(name, ...) != now.get(name, ...))
        told = {name: f"{_told(then, name)}, now {_told(now, name)}" for name in changed}
        if refused := [name for name in changed if name not in self.changeable]:
            values = "; ".join(told[name] for name in refused)
            raise self._refusal(f"the recipe's {' and '.join(refused)} changed since ({values})")
        if changed:
            values = "; ".join(f"{name} {told[name]}" for name in changed)
            print(f"{self.path} goes on with other settings: {values}", file=sys.stderr)
        if not digested:
            print(
                f"{self.path} was written by an earlier version: it has no digest, and {len(unknown)} settings of the "
                "recipe are not in it, so that they cannot be compared",
                file=sys.stderr,
            )

    def _refusal(self, reason: str) -> InputError:
        return InputError(f"cannot go on from {self.path}: {reason}: delete it, or change the recipe's out")


def read_state(path: Path) -> State:
    """The content of a checkpoint.

    Raises:
        InputError: the file is damaged, holds something else, or holds NaN or infinity.
    """
    regular_file(path, "a checkpoint")
    with reading(path, "a checkpoint", DELETE):
        refuse_bad_archive(path, checksums=True, any_length=True)
        values = torch.load(path, map_location="cpu", weights_only=True)
        _refuse_repeats(values, path.stat().st_size)
        try:
            state = validated(State, values, None)
        except InputError as error:
            raise ValueError(str(error)) from None
        content = {name: value for name, value in values.items() if name != "digest"}
        digest, broken = _digest(content), _broken(content)  # an earlier version's too: it must be possible to compute
        if state.digest not in (None, digest):
            raise ValueError("its content is not what was written")
        if broken:
            raise ValueError(f"its {broken} holds NaN or infinity")
    return state


def _refuse_repeats(content: Any, size: int) -> None:
    """Refuse content that a small file repeats many times: a list that holds another one twice, and so on.

    Args:
        content: nested data.
        size: bytes of its file.

    Raises:
        ValueError: it has more values than the file has bytes, or its tensors have several times the file's bytes.
    """
    values, needed = _extent(content, {})
    if values > size or needed > REPEATS * size:
        raise ValueError(f"it repeats its content: {values:,} values and {needed:,} bytes in a file of {size:,}")


def _extent(value: Any, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """The number of values in nested data and the bytes of its tensors, a part counted at each use of it.

    Args:
        value: the data.
        known: what was found for each part, by its ``id``.
    """
    if isinstance(value, Tensor):
        return 1, value.numel() * value.element_size()
    if not isinstance(value, Mapping | list | tuple):
        return 1, 0
    if id(value) not in known:
        parts = [_extent(part, known) for part in (value.values() if isinstance(value, Mapping) else value)]
        known[id(value)] = 1 + sum(count for count, _ in parts), sum(needed for _, needed in parts)
    return known[id(value)]


def _digest(content: Mapping[str, Any]) -> str:
    """A hash of plain data and tensors on the CPU, nested in dictionaries, lists and tuples."""
    tensors = dict(_tensors(content))
    for value in tensors.values():
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise ValueError("a tensor of it is larger than its data")
    return hash_tensors(tensors, json.dumps(_plain(content), sort_keys=True))


def _plain(value: Any) -> Any:
    """Nested data as JSON can hold it: a type beside every key, and nothing in place of tensors."""
    if isinstance(value, Mapping):
        return {f"{type(key).__name__} {key}": _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [type(value).__name__, *map(_plain, value)]
    return "a tensor" if isinstance(value, Tensor) else value


def _tensors(value: Any, place: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested data, each with its place."""
    if isinstance(value, Tensor):
        yield place, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _tensors(part, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from _tensors(part, f"{place}.{number}")


def _on_cpu(value: Any) -> Any:
    """Nested data with its tensors on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {key: _on_cpu(part) for key, part in value.items()}
    return type(value)(map(_on_cpu, value)) if isinstance(value, list | tuple) else value


def _broken(content: Mapping[str, Any]) -> str | None:
    """The place of the first tensor or number that is NaN or infinite; None if there is none."""
    return next((place for place, value in _tensors(content) if not value.isfinite().all()), None)


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, object]]:
    """The settings in nested sections, by dotted name."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _told(values: Mapping[str, object], name: str) -> str:
    return str(values[name])[:40] if name in values else "not given"


def _with_names_of_now(saved: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the saved tensors to the names of this version. Old buffers of terms that are not used are left out."""
    found: dict[str, Tensor] = {}
    for name, value in saved.items():
        earlier = next((prefix for prefix in EARLIER_NAMES if name.startswith(prefix)), None)
        if earlier is None:
            found[name] = value
        elif (renamed := EARLIER_NAMES[earlier] + name.removeprefix(earlier)) in now:
            found[renamed] = value
    return found
