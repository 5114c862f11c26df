"""The branches of a guided step on several ranks: the first has the sampler, and asks the others for their branches.

A step sends the noisy latents to the other ranks, and the channels that guidance looks at back. Steps at which guidance
does not act send nothing, and the other ranks wait without calling the network. Every branch is a batch of its own, so
that the numbers are those of one process that runs one branch after the other, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from ..core.errors import InputError
from ..core.limits import is_out_of_memory
from ..core.ranks import RankFailed, RankLost, Ranks, said
from ..diffusion import NoiseLevel

LATENTS, PREDICTIONS = "latents", "predictions"
"""What crosses, as ``Traffic`` counts it."""
Predict = Callable[[Sequence[str], Tensor, NoiseLevel], Mapping[str, Tensor]]
"""The predictions of the branches with these names."""


class Spread:
    """How the branches of one run are divided among the ranks of a team.

    Args:
        ranks: the team. Branches are dealt one by one: branch k is on rank k modulo their number, so that "cond" is on
            the first.
        names: the branches. "imageless" builds on "uncond" and goes to the same rank.
    """

    def __init__(self, ranks: Ranks, names: Sequence[str]) -> None:
        self.ranks = ranks
        dealt = [name for name in names if name != "imageless"]
        self.place = {name: number % len(ranks) for number, name in enumerate(dealt)}
        if "imageless" in names:
            self.place["imageless"] = self.place["uncond"]
        self.open: dict[int, tuple[int, ...]] = {}  # ranks that have not answered yet -> the shape of each answer

    def of(self, rank: int) -> list[str]:
        """The branches of a rank."""
        return [name for name, place in self.place.items() if place == rank]

    # the first rank

    def ask(self, x: Tensor, level: NoiseLevel, channels: Sequence[int]) -> None:
        """Have the other ranks begin with their branches.

        Args:
            x: the noisy latents (B, C, ...).
            level: their level. Its numbers are floats.
            channels: those to send back.
        """
        noisy = level.noisy
        for rank in range(1, len(self.ranks)):
            if not self.of(rank):
                continue
            self.ranks.tell(
                rank, step=[float(n) for n in (level.timestep, level.alpha, level.sigma, level.progress)],
                shape=list(x.shape), dtype=str(x.dtype).removeprefix("torch."), channels=list(channels),
                noisy=None if noisy is None else list(noisy.shape),
            )  # fmt: skip
            self.ranks.give(rank, x, LATENTS)
            if noisy is not None:
                self.ranks.give(rank, noisy.to(torch.uint8), LATENTS)
            self.open[rank] = (len(x), len(channels), *x.shape[2:])

    def answers(self, cond: Tensor, channels: Sequence[int]) -> dict[str, Tensor]:
        """The predictions of the other ranks' branches, shaped like ``cond``; 0 in channels that did not cross.

        Raises:
            InputError, MemoryError, KeyboardInterrupt: what happened on another rank.
        """
        found: dict[str, Tensor] = {}
        refused: dict[int, Mapping[str, str]] = {}
        for rank, shape in [*self.open.items()]:  # those of all ranks are read, whatever one of them says
            said = self.ranks.hear(rank)
            if "failed" in said:
                refused[rank] = said
            else:
                for name in self.of(rank):
                    part = self.ranks.take(rank, cond.new_empty(shape), PREDICTIONS)
                    found[name] = torch.zeros_like(cond)
                    found[name][:, list(channels)] = part
            del self.open[rank]
        for rank, why in refused.items():
            _raise(why, f"rank {self.ranks.members[rank]}")
        return found

    def end(self, **result: Any) -> None:
        """Tell the other ranks that the run is over."""
        self._tell_all(end="done", **result)

    def fail(self, error: BaseException) -> None:
        """Tell the other ranks why the run is over."""
        with suppress(InputError):  # a rank that is gone need not be told
            for rank, shape in [*self.open.items()]:
                if "failed" not in self.ranks.hear(rank):
                    for _ in self.of(rank):
                        self.ranks.take(rank, torch.empty(shape), PREDICTIONS)
                del self.open[rank]
        with suppress(InputError):
            self._tell_all(end="failed", **_reason(error))

    def _tell_all(self, **what: Any) -> None:
        for rank in range(1, len(self.ranks)):
            self.ranks.tell(rank, **what)

    # the other ranks

    def serve(self, predict: Predict, device: torch.device) -> dict[str, Any]:
        """Answer the first rank until the run is over.

        Args:
            predict: predicts the branches of this rank.
            device: where.

        Returns:
            The result that the first rank gave to ``end``.

        Raises:
            InputError, MemoryError, KeyboardInterrupt: why the run failed on the first rank, or here.
        """
        own, failure = self.of(self.ranks.index), None
        while True:
            message = self.ranks.hear(0)
            if message.get("end") == "done":
                return message
            if "end" in message:
                if failure is not None:
                    raise failure
                _raise(message, f"rank {self.ranks.members[0]}")
            try:
                predictions, failure = self._answer(message, predict, own, device), None
            except RankLost:
                raise
            except BaseException as error:
                failure = error
                self.ranks.tell(0, **_reason(error))
                if not isinstance(error, Exception):
                    raise
                continue
            self.ranks.tell(0, found=len(predictions))
            for prediction in predictions:
                self.ranks.give(0, prediction, PREDICTIONS)

    def _answer(
        self, message: Mapping[str, Any], predict: Predict, own: Sequence[str], device: torch.device
    ) -> list[Tensor]:
        """The channels that were asked for, of each branch of this rank."""
        dtype = getattr(torch, message["dtype"])
        x = self.ranks.take(0, torch.empty(message["shape"], dtype=dtype, device=device), LATENTS)
        noisy = message["noisy"]
        if noisy is not None:
            noisy = self.ranks.take(0, torch.empty(noisy, dtype=torch.uint8, device=device), LATENTS).bool()
        timestep, alpha, sigma, progress = message["step"]
        level = NoiseLevel(timestep, alpha, sigma, progress, noisy=noisy)
        found = predict(own, x, level)
        return [found[name][:, message["channels"]].contiguous() for name in own]


def _reason(error: BaseException) -> dict[str, str]:
    """What happened, as a message. Texts are cut so that they are no burden to send."""
    if isinstance(error, Exception) and is_out_of_memory(error):
        return {"failed": "memory"}
    if not isinstance(error, Exception):
        return {"failed": "stopped"}
    return {"failed": "error", "why": said(error)[:2000]}


def _raise(reason: Mapping[str, str], where: str) -> None:
    """Raise here what happened on another rank."""
    if reason["failed"] == "memory":
        raise MemoryError(f"the memory of {where} is full")
    if reason["failed"] == "stopped":
        raise KeyboardInterrupt
    raise RankFailed(f"{where}: {reason['why']}")
