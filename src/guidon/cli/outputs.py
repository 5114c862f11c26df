"""Output of commands: messages on stderr, output folders, and the files of `guidon generate`."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import InputError, setting
from ..core.hashing import hash_text

if TYPE_CHECKING:
    from ..guidance import GuidanceTrace
    from ..media import Video
    from ..request import Request


def say(message: str) -> None:
    """Print a message as one line on stderr. Only results go to stdout."""
    print("guidon: " + " ".join(message.split()), file=sys.stderr)


def prepare_folder(out: Path) -> None:
    """Check that an output folder can be written, before any long work.

    Nothing is made, so that a request that is refused later leaves nothing behind: ``core.atomic`` makes the folder
    with the first file. The check writes a file without a name into the folder, or into its nearest parent that exists.

    Raises:
        InputError: the folder cannot be made or written.
    """
    while True:
        found = None
        try:
            found = _nearest_that_exists(out.absolute())
            with tempfile.TemporaryFile(dir=found):
                return
        except OSError as error:
            if found is None or os.path.lexists(found):  # else another process deleted it: look again
                raise InputError(
                    f"the output folder {out} cannot be written ({error.strerror}): choose another {setting('out')}"
                ) from None


def _nearest_that_exists(folder: Path) -> Path:
    """The folder, or the nearest of its parents that exists."""
    try:
        folder.lstat()
    except FileNotFoundError:
        return _nearest_that_exists(folder.parent)
    return folder


def output_name(request: Request, weights: Mapping[str, str], prompt: int, sample: int) -> str:
    """The file name of one clip, without suffix. Other settings or weights give another name, so none is overwritten.

    In an exact replay the clips depend on each other. The name then depends on the whole request and on the clip's
    position in it.
    """
    alone = request.alone(prompt, sample)
    made_by = alone.model_dump_json() + (f" {prompt}" if request.exact else "")
    slug = re.sub(r"[^a-z0-9]+", "-", request.prompts[prompt].lower()).strip("-")[:60].strip("-")
    return f"{slug or 'prompt'}-seed{alone.seed}-{sample}-{_digest(made_by, weights)}"


def run_name(request: Request, weights: Mapping[str, str]) -> str:
    """The file name of output that belongs to all samples of a run, without suffix."""
    name = output_name(request, weights, 0, request.samples[0])
    if len(request.prompts) * len(request.samples) == 1:
        return name
    return name[:-8] + _digest(request.model_dump_json(), weights)


def _digest(made_by: str, weights: Mapping[str, str]) -> str:
    return hash_text(made_by + json.dumps(weights, sort_keys=True))[:8]


def write_videos(videos: Sequence[Video], request: Request, weights: Mapping[str, str], out: Path, format: str) -> None:
    """Write every video with its manifest, and one contact sheet; print their paths."""
    from ..media import contact_sheet

    samples = len(request.samples)
    command = shlex.join(sys.argv)
    kind = "image:" if format == "png" else "video:"
    for number, video in enumerate(videos):
        name = output_name(request, weights, number // samples, request.samples[number % samples])
        video.manifest["command"] = command
        path = video.save(out / (name if format == "frames" else f"{name}.{format}"), format)
        print(f"{kind:<14} {path}\nmanifest:      {path}.json")
    rows = [[video.frames for video in videos[i : i + samples]] for i in range(0, len(videos), samples)]
    columns = [f"sample {number}" for number in request.samples]
    path = out / f"{run_name(request, weights)}-sheet.png"
    print(f"contact sheet: {contact_sheet(rows, list(request.prompts), columns, path=path)}")


def write_trace(trace: GuidanceTrace, path: Path) -> None:
    """Write the guidance trace as .npz, and print the path."""
    import numpy as np

    from ..core.atomic import atomic_path

    arrays: dict[str, Any] = dict(trace.as_arrays())
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
    print(f"trace:         {path}")
