"""A folder of small videos that look unlike the world: textures in two palettes, and a camera that pans over them."""

import json
from pathlib import Path

import numpy as np

from guidon.media import save_video

PALETTES = {"warm": ((0.9, 0.5, 0.2), (0.5, 0.1, 0.1)), "cold": ((0.2, 0.6, 0.9), (0.1, 0.1, 0.5))}
PANS = {"left": -1, "right": 1}


def pan(number, *, frames=8, height=64, width=64, speed=2):
    """Frames uint8 (T, H, W, 3) of clip ``number``, and its caption."""
    rng = np.random.default_rng(number)
    palette, way = list(PALETTES)[number % 2], list(PANS)[number // 2 % 2]
    wide = width + speed * frames
    cells = rng.random((-(-height // 8), -(-wide // 8)))
    texture = np.kron(cells, np.ones((8, 8)))[:height, :wide, None]
    light, dark = (np.array(colour) for colour in PALETTES[palette])
    picture = (255 * (texture * light + (1 - texture) * dark)).astype(np.uint8)
    places = [speed * (time if PANS[way] > 0 else frames - time) for time in range(frames)]
    return np.stack([picture[:, x : x + width] for x in places]), f"{palette} stones, the camera moves {way}"


def write_clips(folder, count=20, *, metadata="metadata.jsonl", fps=8, **how):
    """Write clips as mp4, with the file of metadata, or with a text file each if ``metadata`` is None."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        frames, caption = pan(number, **how)
        name = f"{number:02}.mp4"
        save_video(frames, folder / name, fps)
        rows.append({"file_name": name, "caption": caption})
    write_rows(folder, rows, metadata)
    return folder


def write_rows(folder, rows, metadata="metadata.jsonl"):
    """Write rows of metadata, or a text file each."""
    if metadata is None:
        for row in rows:
            (folder / row["file_name"]).with_suffix(".txt").write_text(row["caption"])
    elif metadata.endswith(".csv"):
        lines = [",".join(rows[0]), *(",".join(f'"{value}"' for value in row.values()) for row in rows)]
        (folder / metadata).write_text("\n".join(lines) + "\n")
    else:
        (folder / metadata).write_text("".join(json.dumps(row) + "\n" for row in rows))
