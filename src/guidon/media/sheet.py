"""Contact sheets: many clips in one labelled picture."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..core.atomic import atomic_path
from ..core.errors import InputError
from ..core.limits import require_memory
from .files import check_place, need_pillow


def contact_sheet(
    clips: Sequence[Sequence[np.ndarray]],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    *,
    path: str | Path,
    shown: int = 4,
) -> Path:
    """Write a labelled PNG: one row per prompt, one column per sample or setting, and a strip of frames in each cell.

    Args:
        clips: rows of clips, uint8 (time, height, width, 3), all of the same height and width. Clips narrower than 96
            pixels are enlarged by an integer factor.
        row_labels: one per row; long labels wrap.
        column_labels: one per column; long labels are shortened.
        path: the file, which ends in ``.png``. Its folder is made if it does not exist.
        shown: how many frames of each clip are shown, evenly spaced.

    Returns:
        ``path``.

    Raises:
        InputError: no clips, labels that do not match them, frames of different sizes, a sheet that needs more memory
            than there is, or a path that does not end in ``.png`` or cannot be written.
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
    if path.suffix.lower() != ".png":
        raise InputError(f"{path} is not the name of a PNG: give a path that ends in .png")
    check_place(path, "png")

    # Lay out: the size of a cell, the lines of every label, the size of the sheet.
    font = ImageFont.load_default(size=14)
    gap, line = 10, 20
    zoom = max(1, 96 // clips[0][0].shape[2])
    frame_height, frame_width = (side * zoom for side in clips[0][0].shape[1:3])
    pixels = len(row_labels) * frame_height * len(column_labels) * shown * frame_width
    require_memory("the pixels of this contact sheet", 2 * 3 * pixels, lower="show fewer clips")
    strips = [[_strip(clip, shown, zoom) for clip in row] for row in clips]
    cell_height = strips[0][0].shape[0]
    cell_width = max(strip.shape[1] for row in strips for strip in row)
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

    # Draw row by row: the label's lines, then the strips under it.
    top = line + gap // 2
    for label, row in zip(wrapped, strips, strict=True):
        for text in label:
            draw.text((gap, top), text, fill="#444444", font=font)
            top += line
        for column, strip in enumerate(row):
            sheet.paste(Image.fromarray(strip), (gap + column * (cell_width + gap), top))
        top += cell_height + gap

    with atomic_path(path) as temporary:
        sheet.save(temporary)
    return path


def _strip(clip: np.ndarray, shown: int, zoom: int) -> np.ndarray:
    """Evenly spaced frames side by side, enlarged, two white pixels apart."""
    picked = clip[np.linspace(0, len(clip) - 1, min(shown, len(clip))).round().astype(int)]
    large = picked.repeat(zoom, axis=1).repeat(zoom, axis=2)
    spaced = [np.pad(frame, ((0, 0), (0, 2), (0, 0)), constant_values=255) for frame in large]
    return np.concatenate(spaced, axis=1)[:, :-2]  # without the space after the last frame
