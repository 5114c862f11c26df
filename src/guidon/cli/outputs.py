"""Output of commands: messages on stderr, output folders, and the files of `guidon generate`."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import tempfile
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..core.errors import InputError, setting
from ..core.hashing import hash_text
from ..core.reading import printable

if TYPE_CHECKING:
    from ..guidance import GuidanceTrace
    from ..media import Video
    from ..request import Request

_IN_NAMES = {"Ll", "Lu", "Lt", "Lo", "Lm", "Mn", "Mc", "Nd"}  # letters, their marks, digits: kept in file names


def say(message: str) -> None:
    """Print a message as one line on stderr. Only results go to stdout.

    Control characters are escaped, because a message may quote a damaged file, and a terminal obeys them.
    """
    with suppress(OSError):  # a message that cannot be written must not end a run, nor change its exit code
        print("guidon: " + printable(" ".join(message.split())), file=sys.stderr)


@contextmanager
def stopped(kept: str) -> Iterator[None]:
    """Where Ctrl-C ends the block, say what is kept."""
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Abort(f"stopped; {kept}") from None


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
    return f"{_slug(request.prompts[prompt])}-seed{alone.seed}-{sample}-{_digest(made_by, weights)}"


def _slug(prompt: str) -> str:
    """The letters and digits of a prompt, of any script, as the beginning of a file name; "clip" if it has none.

    It is at most 60 bytes in UTF-8, so that the whole name fits every filesystem.
    """
    text = unicodedata.normalize("NFC", prompt[:1000].lower())
    kept = "".join(letter if unicodedata.category(letter) in _IN_NAMES else "-" for letter in text)
    slug = re.sub("-+", "-", kept).strip("-").encode()[:60].decode(errors="ignore").strip("-")
    if unicodedata.category(slug[:1] or "-").startswith("M"):  # a mark needs a letter before it
        return "clip"
    try:
        os.fsencode(slug)
    except UnicodeEncodeError:  # the names of this system's files cannot hold it
        return "clip"
    return slug or "clip"


def run_name(request: Request, weights: Mapping[str, str]) -> str:
    """The file name, without suffix, of output that holds all clips of a run: the first prompt and how many more."""
    clips = len(request.prompts) * len(request.samples)
    if clips == 1:
        return output_name(request, weights, 0, request.samples[0])
    return f"{_slug(request.prompts[0])}-and-{clips - 1}-more-clips-{_digest(request.model_dump_json(), weights)}"


def _digest(made_by: str, weights: Mapping[str, str]) -> str:
    return hash_text(made_by + json.dumps(weights, sort_keys=True))[:8]


def write_videos(
    videos: Sequence[Video],
    request: Request,
    weights: Mapping[str, str],
    out: Path,
    format: str,
    upscale: int = 1,
    fps: float | None = None,
) -> None:
    """Write every video with its manifest, and one contact sheet; print their paths.

    A video whose frames are enlarged, or that plays at another rate, says so in its name. It replaces no other one.
    """
    from ..media.sheet import sheet_of_samples

    samples = len(request.samples)
    command = shlex.join(sys.argv).encode(errors="backslashreplace").decode()  # a path may be no UTF-8
    kind = "image:" if format == "png" else "video:"
    for number, video in enumerate(videos):
        name = output_name(request, weights, number // samples, request.samples[number % samples])
        video.manifest["command"] = command
        name += f"-x{upscale}" if upscale > 1 else ""
        name += f"-{fps:g}fps" if fps not in (None, video.fps) else ""
        path = out / (name if format == "frames" else f"{name}.{format}")
        video.save(path, format, upscale=upscale, fps=fps)
        print(f"{kind:<14} {path}\nmanifest:      {path}.json")
    frames = [video.frames for video in videos]
    rows = [frames[first : first + samples] for first in range(0, len(frames), samples)]
    path = out / f"{run_name(request, weights)}-sheet.png"
    shown = sheet_of_samples(rows, request.prompts, request.samples, path=path, heading=_heading(request))
    part = f" (the first {shown} of {len(videos)} clips)" if shown < len(videos) else ""
    print(f"contact sheet: {path}{part}")


def _heading(request: Request) -> str:
    """The settings that tell one run of a prompt from another."""
    guidance = ", ".join(f"{name} {value}" for name, value in request.guidance.to_settings().items())
    sampled = f"{request.sampler}, {request.steps} steps" if request.exact is None else f"exact {request.exact}"
    return f"{request.model}: {guidance}, {sampled}"


def write_trace(trace: GuidanceTrace, path: Path) -> None:
    """Write the guidance trace as .npz, and print the path."""
    import numpy as np

    from ..core.atomic import atomic_path

    arrays: dict[str, Any] = dict(trace.as_arrays())
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
    print(f"trace:         {path}")
