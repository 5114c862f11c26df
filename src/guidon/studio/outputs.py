"""Clips on a disk. Each has an id that nobody can guess, and belongs to one session."""

from __future__ import annotations

import io
import json
import secrets
import shutil
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core.atomic import write_bytes
from ..core.errors import InputError, nearest, setting
from ..core.reading import reading
from ..core.workspaces import workspace_for
from ..media.files import as_images, enlarge, save_video

NAME = "guidon-studio"
WIDEST = 1 << 14  # pixels of a strip: browsers refuse wider pictures
LEGIBLE = 256  # pixels: the shorter side to which a small clip is enlarged in a download
FORMATS: Mapping[str, str] = {"mp4": "video/mp4", "gif": "image/gif", "png": "image/png", "webp": "image/webp"}
"""What a clip can be downloaded as; a png is the strip of its frames."""


class Absent(InputError):
    """There is no such session, job or output, or it is another session's."""


@dataclass(frozen=True)
class Output:
    """One file."""

    path: Path
    media: str
    """Its media type."""
    name: str
    """The name that it is downloaded under."""


@dataclass(frozen=True)
class _Clip:
    folder: Path
    fps: float
    owner: str | None


class Outputs:
    """The folder of a running studio. It is deleted at the end, and that of a studio that was killed at the next start.

    It is a workspace (``core.workspaces``): where there are no locks, a folder is deleted after a day without a change.

    Args:
        parent: where the folder is made; None for the system's folder for temporary files.
    """

    def __init__(self, parent: Path | None = None) -> None:
        self._held = ExitStack()
        self.folder = self._held.enter_context(workspace_for((parent or Path(tempfile.gettempdir())) / NAME))
        self._clips: dict[str, _Clip] = {}
        self._files: dict[str, tuple[Output, str | None]] = {}
        self._lock = threading.Lock()
        self._encoding = threading.Lock()

    def close(self) -> None:
        """Delete everything."""
        self._held.close()

    def add_clip(self, frames: np.ndarray, fps: float, owner: str | None) -> str:
        """Keep a clip, uint8 (time, height, width, 3), and return its id. ``owner`` None shows it to every session."""
        key = new_id()
        folder = self.folder / key
        folder.mkdir(mode=0o700)
        try:
            file = io.BytesIO()  # NumPy's own error of a full disk does not say that it is full
            np.save(file, frames)
            write_bytes(folder / "frames.npy", file.getvalue())
            write_bytes(folder / "strip.png", strip(frames))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        with self._lock:
            self._clips[key] = _Clip(folder, fps, owner)
        return key

    def add_file(self, path: Path, media: str, name: str, owner: str | None) -> str:
        """Show a file that lies elsewhere, such as a report, and return its id."""
        key = new_id()
        with self._lock:
            self._files[key] = Output(path, media, name), owner
        return key

    def add_text(self, text: str, media: str, name: str, owner: str | None) -> str:
        """Keep a text, and return its id."""
        path = self.folder / new_id()
        write_bytes(path, text.encode())
        return self.add_file(path, media, name, owner)

    def find(self, key: str, session: str | None, format: str | None = None) -> Output:
        """The output of an id.

        Args:
            key: the id.
            session: who asks.
            format: of a clip, one of ``FORMATS`` for a download; None for its strip of frames.

        Raises:
            Absent: there is none, or it is another session's.
            InputError: there is no such format.
        """
        with self._lock:
            clip, file = self._clips.get(key), self._files.get(key)
        if clip is not None and clip.owner in (None, session):
            return self._of_clip(clip, key, format)
        if file is not None and file[1] in (None, session) and format is None:
            return file[0]
        raise Absent("this output is not there any more: make it again")

    def frames(self, key: str) -> np.ndarray:
        """The frames of a clip, uint8 (time, height, width, 3)."""
        path = self._clips[key].folder / "frames.npy"
        with reading(path, "a clip"):
            return np.load(path, allow_pickle=False)

    def _of_clip(self, clip: _Clip, key: str, format: str | None) -> Output:
        name = f"guidon-{key[:8]}"
        if format is None:
            return Output(clip.folder / "strip.png", "image/png", f"{name}.png")
        if format not in FORMATS:
            raise InputError(f"{setting('format')} {format[:20]!r} does not exist{nearest(format[:20], FORMATS)}")
        path = clip.folder / f"clip.{format}"
        with self._encoding:  # one at a time: two would write the same file
            if not path.exists():
                frames = self.frames(key)
                larger = enlarge(frames, max(1, LEGIBLE // min(frames.shape[1:3])))
                if format == "png":
                    write_bytes(path, strip(frames))
                else:
                    save_video(larger, path, clip.fps)
        return Output(path, FORMATS[format], f"{name}.{format}")

    def forget(self, keys: Sequence[str]) -> None:
        """Delete some outputs. A file that lies elsewhere stays there."""
        with self._lock:
            clips = [self._clips.pop(key, None) for key in keys]
            files = [self._files.pop(key, None) for key in keys]
        for clip in filter(None, clips):
            shutil.rmtree(clip.folder, ignore_errors=True)
        for file, _ in filter(None, files):
            if file.path.parent == self.folder:
                with suppress(OSError):
                    file.path.unlink()


def new_id() -> str:
    """128 random bits."""
    return secrets.token_hex(16)


def strip(frames: np.ndarray) -> bytes:
    """The frames of a clip side by side as PNG. If that is wider than ``WIDEST``, only some pixels are taken."""
    apart = -(-frames.shape[0] * frames.shape[2] // WIDEST)
    small = frames[:, ::apart, ::apart]
    file = io.BytesIO()
    as_images(np.concatenate(list(small), axis=1)[None])[0].save(file, format="PNG")
    return file.getvalue()


def as_json(value: Any) -> str:
    """Plain data as JSON for people."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
