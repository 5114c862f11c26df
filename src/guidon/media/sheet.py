"""Contact sheets: many clips in one labelled picture, which may move."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..core.atomic import atomic_path
from ..core.errors import InputError
from ..core.limits import require_memory
from .files import check_place, enlarge, need_pillow, save_video

MOVING = (".gif", ".webp")
LEGIBLE = 160  # pixels: the width to which narrow clips are enlarged at least
STRIP = 4  # frames of a clip that a sheet shows, unless it moves
WIDTH = 1600  # pixels of the samples side by side: further samples go below
MOST_PIXELS = 1 << 26  # of a run's sheet, unless it shows a single clip


def contact_sheet(
    clips: Sequence[Sequence[np.ndarray]],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    *,
    path: str | Path,
    shown: int = STRIP,
    fps: float = 8,
) -> Path:
    """Write a labelled picture: one row per prompt, and one column per sample or setting.

    A PNG shows a strip of frames in each cell. A GIF or WebP plays the clips, all at the same time.

    Args:
        clips: rows of clips, uint8 (time, height, width, 3), all of the same height and width. Narrow clips
            are enlarged by an integer factor, to at least 160 pixels.
        row_labels: one per row; long labels wrap.
        column_labels: one per column; long labels are shortened.
        path: the file, which ends in ``.png``, ``.gif`` or ``.webp``. Its folder is made if it does not exist.
        shown: how many frames of each clip a PNG shows, evenly spaced.
        fps: frames per second of a picture that moves. A clip that ends before the longest one shows its last frame.

    Returns:
        ``path``.

    Raises:
        InputError: no clips, labels that do not match them, frames of different sizes, a sheet that needs more memory
            than there is, or a path with another suffix or that cannot be written.
    """
    need_pillow()
    from PIL import Image, ImageDraw, ImageFont

    # Check that clips, labels and path fit together.
    if len(clips) != len(row_labels) or any(len(row) != len(column_labels) for row in clips):
        raise InputError("a contact sheet needs one label per row and one per column")
    if not row_labels or not column_labels:
        raise InputError("a contact sheet needs at least one clip")
    sizes = sorted({clip.shape[1:3] for row in clips for clip in row})
    if len(sizes) > 1:
        raise InputError(f"a contact sheet needs frames of one size, not {', '.join(f'{w}x{h}' for h, w in sizes)}")
    path = Path(path)
    moves = path.suffix.lower() in MOVING
    if not moves and path.suffix.lower() != ".png":
        raise InputError(f"{path} is not the name of a sheet: give a path that ends in .png, .gif or .webp")
    check_place(path, path.suffix.lower()[1:])

    # Lay out: the size of a cell, the lines of every label, the size of the sheet.
    font = ImageFont.load_default(size=14)
    gap, line = 10, 20
    zoom = _enlargement(clips[0][0].shape[2])
    frame_height, frame_width = (side * zoom for side in clips[0][0].shape[1:3])
    length = max(len(clip) for row in clips for clip in row) if moves else shown
    pixels = len(row_labels) * frame_height * len(column_labels) * length * frame_width
    require_memory("the pixels of this contact sheet", 2 * 3 * pixels, lower="show fewer clips")
    # What is in each cell, as frames: the clip itself where it plays, one strip of its frames where it does not.
    cells = [[enlarge(clip, zoom) if moves else _strip(clip, shown, zoom)[None] for clip in row] for row in clips]
    cell_height = cells[0][0].shape[1]
    cell_width = max(cell.shape[2] for row in cells for cell in row)
    width = gap + len(column_labels) * (cell_width + gap)
    wrapped = [textwrap.wrap(label, max(20, (width - 2 * gap) // 8)) or [""] for label in row_labels]
    height = line + gap + sum(len(label) * line + cell_height + gap for label in wrapped)

    # Draw the column labels, each shortened to its cell.
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for column, label in enumerate(column_labels):
        while len(label) > 1 and draw.textlength(label, font=font) > cell_width:
            label = label.rstrip("…")[:-1] + "…"
        draw.text((gap + column * (cell_width + gap), 5), label, fill="black", font=font)

    # Draw row by row: the label's lines, and under it the place of the clips.
    top, tops = line + gap // 2, []
    for label in wrapped:
        for text in label:
            draw.text((gap, top), text, fill="#444444", font=font)
            top += line
        tops.append(top)
        top += cell_height + gap

    # Fill the cells, once for every frame of the sheet.
    frames = np.repeat(np.asarray(sheet)[None], length if moves else 1, axis=0)
    for top, row in zip(tops, cells, strict=True):
        for column, cell in enumerate(row):
            left = gap + column * (cell_width + gap)
            for time, frame in enumerate(frames):
                shown_now = cell[min(time, len(cell) - 1)]
                frame[top : top + cell_height, left : left + shown_now.shape[1]] = shown_now

    if moves:
        return save_video(frames, path, fps)
    with atomic_path(path) as temporary:
        Image.fromarray(frames[0]).save(temporary)
    return path


def sheet_of_samples(
    clips: Sequence[Sequence[np.ndarray]],
    prompts: Sequence[str],
    samples: Sequence[int],
    *,
    path: str | Path,
    heading: str = "",
) -> int:
    """Write the contact sheet of a run as PNG: the samples of a prompt side by side, in several rows if they are many.

    A run of very many clips shows its first ones, because programs cannot open a larger picture.

    Args:
        clips: a row for each prompt with a clip for each sample, as in ``contact_sheet``.
        prompts: the text of each row.
        samples: the index of each sample.
        path: the file.
        heading: a line above all clips.

    Returns:
        How many clips it shows.

    Raises:
        InputError: as in ``contact_sheet``.
    """
    height, width = clips[0][0].shape[1:3]
    zoom = _enlargement(width)
    shown_prompts, shown_samples = _fitting(len(prompts), len(samples), height * width * zoom**2)
    across = max(1, min(shown_samples, WIDTH // (STRIP * width * zoom)))
    rows, labels = [], []
    for row, prompt in zip(clips[:shown_prompts], prompts[:shown_prompts], strict=True):
        for first in range(0, shown_samples, across):
            line = slice(first, min(first + across, shown_samples))
            own, numbers = list(row[line]), ", ".join(map(str, samples[line]))
            rows.append(own + [np.full_like(own[0], 255)] * (across - len(own)))
            labels.append(prompt if len(samples) == 1 else f"{prompt}, sample{'s' * (len(own) > 1)} {numbers}")
    contact_sheet(rows, labels, [heading, *[""] * (across - 1)], path=path)
    return shown_prompts * shown_samples


def _fitting(prompts: int, samples: int, pixels: int) -> tuple[int, int]:
    """How many prompts and samples fit a sheet of ``MOST_PIXELS``; ``pixels`` are those of a frame on it."""
    cells = max(1, MOST_PIXELS // (STRIP * pixels))
    columns = min(samples, max(1, math.isqrt(cells)))
    return min(prompts, max(1, cells // columns)), columns


def _enlargement(width: int) -> int:
    """The integer factor by which a sheet enlarges clips of this width."""
    return -(-LEGIBLE // width) if width < LEGIBLE else 1


def _strip(clip: np.ndarray, shown: int, zoom: int) -> np.ndarray:
    """Evenly spaced frames side by side, enlarged, two white pixels apart."""
    picked = clip[np.linspace(0, len(clip) - 1, min(shown, len(clip))).round().astype(int)]
    spaced = [np.pad(frame, ((0, 0), (0, 2), (0, 0)), constant_values=255) for frame in enlarge(picked, zoom)]
    return np.concatenate(spaced, axis=1)[:, :-2]  # without the space after the last frame
