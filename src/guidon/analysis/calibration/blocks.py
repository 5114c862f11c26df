"""Clips of candidates, sampled and measured block by block. Processes that work in one folder share the blocks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ...core.atomic import write_json
from ...core.hashing import hash_settings
from ...core.interrupts import finished_first
from ...core.locks import try_held
from ...core.reading import read_object, reading
from ...metrics.metric import Bench, Values
from ...request import Choices, Request
from .candidates import Candidate

if TYPE_CHECKING:
    from ...pipeline import Pipeline

BLOCK = 16
"""Clips that are denoised together, and stored together."""
POLL = 0.5
"""Seconds between two looks at blocks that other processes sample."""


@dataclass(frozen=True)
class Measured:
    """A candidate that was sampled on some prompts."""

    candidate: Candidate
    values: Values
    """(prompts,) by metric."""
    seconds: float
    """Of one clip, denoising and decoding: the median over blocks; of the CPU, or by the clock on another device."""


class Sampler:
    """Samples and measures candidates block by block, and stores each block in a file of its own.

    Processes that work in one folder share the blocks. An interrupted search goes on from the blocks that are there, if
    they were sampled on a device of the same kind, by the same version of torch.

    Args:
        pipe: the model.
        bench: what measures.
        folder: where blocks are stored.
        shared: choices of all settings.
        block: clips that are denoised and stored together.
        say: called with each message for the user.
    """

    def __init__(
        self, pipe: Pipeline, bench: Bench, folder: Path, *, shared: Choices, block: int, say: Callable[[str], None]
    ) -> None:
        self.pipe, self.bench, self.folder, self.block, self.say = pipe, bench, folder, block, say
        self.shared = shared
        folder.mkdir(parents=True, exist_ok=True)
        self.weights = {part: own.model_dump(mode="json") for part, own in bench.weights.items()}

    def __call__(
        self, candidates: Sequence[Candidate], captions: Sequence[str], on_clip: Callable[[int], None] | None = None
    ) -> list[Measured]:
        """Candidates on the same captions and noise. ``on_clip(clips)`` is called with the clips of each block.

        Raises:
            InputError: a choice is not valid for the model, or a file of the folder is damaged.
        """
        starts = range(0, len(captions), self.block)
        asked = [(c, start, self._request(c, captions, start)) for c in candidates for start in starts]
        waiting, found = list(asked), dict[tuple[int, int], tuple[Values, float]]()
        numbers = {id(candidate): number for number, candidate in enumerate(candidates)}
        idle = 0
        while waiting:
            candidate, start, request = waiting.pop(0)
            block = self._known(request) or self._sampled(request, captions[start : start + self.block])
            if block is None:  # another process has it: look again after all others
                waiting.append((candidate, start, request))
                idle += 1
                if idle >= len(waiting):
                    idle = 0
                    time.sleep(POLL)
                continue
            idle = 0
            found[numbers[id(candidate)], start] = block
            if on_clip is not None:
                on_clip(len(request.prompts))
        return [
            Measured(
                candidate,
                {name: np.concatenate([found[k, start][0][name] for start in starts]) for name in self.bench.metrics},
                float(np.median([found[k, start][1] for start in starts])),
            )
            for k, candidate in enumerate(candidates)
        ]

    def _request(self, candidate: Candidate, captions: Sequence[str], start: int) -> Request:
        """The request of a block. The seed of caption k is k, under every candidate."""
        own = cast("Choices", {**self.shared, **candidate.choices, "seed": start, "seed_per_prompt": True})
        return self.pipe.complete(captions[start : start + self.block], (0,), batch_size=self.block, **own)

    def _asked(self, request: Request) -> dict[str, Any]:
        """What decides the values of a block and its seconds."""
        import torch

        weights = self.pipe.hashes | (self.pipe.distilled_hashes if request.distilled else {})
        own = {"request": request.model_dump(mode="json"), "weights": weights, "bench": self.bench.name}
        own |= {"device": self.pipe.device.type, "torch": torch.__version__}
        return own | ({"bench_weights": self.weights} if self.weights else {})

    def _path(self, request: Request) -> Path:
        return self.folder / f"{hash_settings(self._asked(request))[:24]}.json"

    def _known(self, request: Request) -> tuple[Values, float] | None:
        """The values of a block and its seconds a clip; None if it was not sampled.

        Raises:
            InputError: its file is damaged.
        """
        path = self._path(request)
        if not path.exists():
            return None
        return read_block(path, self._asked(request), list(self.bench.metrics), len(request.prompts))

    def _sampled(self, request: Request, captions: Sequence[str]) -> tuple[Values, float] | None:
        """Sample a block and store it; None if another process does."""
        path = self._path(request)
        with try_held(self.folder, f".{path.stem}.lock", "guidon calibrate-fast") as ours:
            if not ours:
                return None
            if (known := self._known(request)) is not None:
                return known
            clock = time.process_time if self.pipe.device.type == "cpu" else time.perf_counter
            waits = f"finishing the {len(captions)} clips in work; press Ctrl-C again to stop now and lose them"
            with finished_first(lambda: self.say(waits)):
                began = clock()
                videos = self.pipe.generate(request, batch_size=self.block)
                seconds = (clock() - began) / len(captions)
                values = self.bench.measure(np.stack([video.frames for video in videos]), captions)
                store_block(path, self._asked(request), seconds, values)
            return self._known(request)


def store_block(path: Path, asked: Mapping[str, Any], seconds: float, values: Values) -> None:
    """Write the file of a block, whole or not at all."""
    plain = {name: [number_of(float(x)) for x in column] for name, column in values.items()}
    kept = {"asked": dict(asked), "seconds": seconds, "values": plain}
    write_json(path, kept | {"digest": hash_settings(kept)})


def read_block(path: Path, asked: Mapping[str, Any], metrics: Sequence[str], clips: int) -> tuple[Values, float]:
    """The values of a block's clips, and the seconds that one took.

    Raises:
        InputError: the file is damaged, or of another block than what is asked for.
    """
    what = "a block of a calibration"
    stored = read_object(path, what)
    with reading(path, what, "delete it to sample the block again"):
        kept = {name: stored[name] for name in ("asked", "seconds", "values")}
        if stored["digest"] != hash_settings(kept) or kept["asked"] != asked:
            raise ValueError("its content is not what was written")
        values = {name: np.array(kept["values"][name], float) for name in metrics}
        if any(column.shape != (clips,) for column in values.values()):
            raise ValueError("it holds no value for each clip")
        return values, float(kept["seconds"])


def number_of(value: float) -> float | None:
    """A number as JSON holds it; None where it is not finite."""
    return value if math.isfinite(value) else None
