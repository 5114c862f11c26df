"""The checkpoint of a run: everything that is needed to resume it with the same result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints.component import refuse_misfit
from ..core.atomic import atomic_path
from ..core.errors import InputError, first_line
from .ema import EMA

EARLIER_NAMES = {"level.": "terms.mse.loss_level.", "area_level.": "terms.area.loss_level."}
"""Prefixes of buffer names: as earlier versions wrote them -> now. Earlier versions wrote them even if unused."""


class Checkpoint:
    """The state of a run in one file: weights, averaged weights, optimisers, step, seconds spent."""

    def __init__(
        self,
        path: Path,
        identity: Mapping[str, object],
        module: nn.Module,
        ema: EMA,
        optimisers: Sequence[torch.optim.Optimizer],
    ) -> None:
        self.path, self.identity, self.module, self.ema, self.optimisers = path, identity, module, ema, optimisers

    def save(self, step: int, seconds: float) -> None:
        """Write the state after ``step`` steps, atomically."""
        state = {
            "step": step,
            "identity": dict(self.identity),
            "seconds": seconds,
            "module": self.module.state_dict(),
            "ema": self.ema.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }
        with atomic_path(self.path) as temporary:
            torch.save(state, temporary)

    def load(self) -> tuple[int, float]:
        """Restore the state. Returns the step to resume from and the seconds spent so far: (0, 0) without a file.

        Raises:
            InputError: the file is damaged, or belongs to another recipe.
        """
        if not self.path.exists():
            return 0, 0.0
        state = read_state(self.path)
        identity = state["identity"]
        if changed := sorted(name for name, value in self.identity.items() if identity.get(name) != value):
            raise self._refusal(f"the recipe's {' and '.join(changed)} changed since")
        for target, saved in ((self.module, state["module"]), (self.ema, state["ema"])):
            weights = _with_names_of_now(saved, target.state_dict())
            try:
                refuse_misfit(target.state_dict(), weights, "its weights do not fit the recipe")
            except InputError as error:
                raise self._refusal(str(error)) from None
            target.load_state_dict(weights)
        try:
            for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
                optimiser.load_state_dict(saved)
        except ValueError:  # other parameters, or one optimiser where there were two
            raise self._refusal("it was trained with another optimiser") from None
        return int(state["step"]), float(state["seconds"])

    def _refusal(self, reason: str) -> InputError:
        return InputError(f"cannot go on from {self.path}: {reason}: delete it, or change the recipe's out")


def read_state(path: Path) -> dict[str, Any]:
    """The content of a checkpoint.

    Raises:
        InputError: the file is damaged.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make PyTorch raise any exception
        raise InputError(f"cannot go on from {path}: it is damaged ({first_line(error)}): delete it") from error


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
