"""What was found in files, kept beside what is encoded: a run that is resumed does not read all files again.

A file that has the size and the time of change of before is taken to be the one of before. Its content was hashed then.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ...core.atomic import write_bytes
from ...core.errors import InputError
from ...core.hashing import hash_settings, hash_text
from ...core.reading import reading, regular_file
from ...media.streaming import Content
from ..recipe.data import Data
from .sources import METADATA_BYTES

FORMAT = "guidon files 1"
SETTLED = 2_000_000_000  # nanoseconds: a file that changed later than this may change again within the clock's tick
_DECISIVE = ("size", "sizes", "frames", "fps", "enlarge", "clips_per_video")


@dataclass(frozen=True)
class Seen:
    """What is known of a file, and which clips are cut out of it."""

    sha256: str
    """The hash of its bytes."""
    kind: str
    """As ``Look.kind``."""
    height: int
    """As ``Look.height``."""
    width: int
    """As ``Look.width``."""
    first: int
    """The first of ``Look.ticks``."""
    tick: float
    """As ``Look.tick``."""
    seconds: float
    """As ``Look.seconds``."""
    fps: float
    """Frames per second of its clips; 0 for a picture."""
    size: tuple[int, int]
    """Height and width of its clips."""
    clips: tuple[tuple[int, ...], ...]
    """The frames of each clip, as ``media.streaming.frames_at`` takes them."""
    uneven: bool
    """Whether some frames are shown longer than others."""
    slow: bool
    """Whether it has fewer frames per second than its clips."""


class SeenFiles:
    """What was found in files at an earlier check with the same settings.

    Args:
        place: the folder of what is kept; None to keep nothing.
        data: the settings.
    """

    def __init__(self, place: Path | None, data: Data) -> None:
        settings = {name: value for name, value in data.model_dump(mode="json").items() if name in _DECISIVE}
        self._settings = hash_settings([FORMAT, settings])
        self._path = None if place is None else place / f"clip-files-{self._settings[:8]}.jsonl"
        self._before = {} if self._path is None else self._read(self._path)
        self._now: dict[str, tuple[list[int], Seen]] = {}

    def find(self, content: Content) -> Seen | None:
        """What was found in a file; None if it is new or has changed."""
        found = self._before.get(_name(content))
        return found[1] if found is not None and found[0] == _state(content)[:2] else None

    def add(self, content: Content, seen: Seen) -> None:
        """Note what was found in a file."""
        *state, now = _state(content)
        if self._path is not None and now - state[1] > SETTLED:
            self._now[_name(content)] = list(state), seen

    def keep(self) -> None:
        """Write what was found."""
        if self._path is None or self._now == self._before:
            return
        rows = [json.dumps([name, state, asdict(seen)]) + "\n" for name, (state, seen) in sorted(self._now.items())]
        head = {"format": FORMAT, "settings": self._settings, "digest": hash_text("".join(rows))}
        write_bytes(self._path, "".join([json.dumps(head) + "\n", *rows]).encode())

    def _read(self, path: Path) -> Mapping[str, tuple[list[int], Seen]]:
        """The content of the file; nothing if it is not there or is damaged, since all can be found again."""
        if not path.is_file():
            return {}
        try:
            regular_file(path, "a list of files", METADATA_BYTES)
            with reading(path, "a list of files"):
                first, _, rest = path.read_text(encoding="utf-8").partition("\n")
                head = {"format": FORMAT, "settings": self._settings, "digest": hash_text(rest)}
                if json.loads(first) != head:
                    raise ValueError("its content is not what was written")
                found: dict[str, tuple[list[int], Seen]] = {}
                for line in rest.splitlines():
                    name, state, values = json.loads(line)
                    clips = tuple(map(tuple, values.pop("clips")))
                    found[name] = state, Seen(**values | {"size": tuple(values["size"])}, clips=clips)
                return found
        except InputError:
            return {}


def _name(content: Content) -> str:
    return f"{content.path.absolute()}{'' if content.part is None else content.part}"


def _state(content: Content) -> list[int]:
    """Size, time of change, and the time now, in nanoseconds."""
    found = content.path.stat()
    return [found.st_size, found.st_mtime_ns, time.time_ns()]
