"""Commands that several ranks run as one program: the first prints and writes, the others are silent."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..core.limits import as_text
from ..core.ranks import Ranks, own_rank, ranks_to_join
from .outputs import say

COMMANDS = ("generate", "evaluate", "train")
GRACE = 10.0
"""Seconds that a rank which failed leaves to the first one. torchrun ends all ranks as soon as one has failed, and the
first one must say why before that."""


def is_silent(words: Sequence[str]) -> bool:
    """Whether this process is a rank of a command whose first rank speaks for all."""
    several = own_rank() > 0 and ranks_to_join() > 1
    return several and any(word in COMMANDS for word in words[:1]) and not os.environ.get("GUIDON_DEBUG")


def fall_silent() -> None:
    """Print nothing from now on."""
    sys.stdout = sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115


def let_first_speak() -> None:
    """Wait until torchrun ends this rank, because the first one has failed too."""
    time.sleep(GRACE)


@contextmanager
def joined(branches: int | None) -> Iterator[Ranks]:
    """All ranks, once they have joined. At the end the first one says what crossed between them."""
    with Ranks.join(branches) as ranks:
        yield ranks
        if len(ranks) > 1 and ranks.first:
            say(crossed(ranks))


def crossed(ranks: Ranks) -> str:
    """What the first rank exchanged with others, in a line."""
    traffic, parts = ranks.traffic, list[str]()
    if traffic.out["latents"]:
        parts.append(
            f"{as_text(traffic.out['latents'])} of latents went to other branches and "
            f"{as_text(traffic.back['predictions'])} of predictions came back"
        )
    parts.append(f"{as_text(traffic.out['results'] + traffic.back['results'])} of results crossed")
    messages = f"{traffic.messages} messages of {as_text(traffic.message_bytes)}"
    return f"{len(ranks)} ranks worked together by {ranks.backend}: {', '.join(parts)}, and {messages}"
