"""Folders of small videos and pictures, and recipes that train on them, for tests."""

import json

import numpy as np
import yaml

from guidon.media.files import save_video

CAPTIONS = [
    "a red circle moves left on a white background", "a blue wave pans right", "green dots pan left",
    "a red grid pans right", "a blue wave pans left", "green dots pan right", "a red grid pans left", "a blue square",
]  # fmt: skip
COLOURS = {"red": (200, 40, 40), "blue": (40, 60, 200), "green": (40, 180, 60)}
NETWORKS = {
    "stdit": {"hidden_size": 32, "depth": 1, "num_heads": 2},
    "stdit2": {"hidden_size": 24, "depth": 1, "num_heads": 2},
    "stdit3": {"hidden_size": 24, "depth": 1, "num_heads": 2},
    "dit": {"hidden_size": 32, "depth": 1, "num_heads": 2},
    "pixart": {"hidden_size": 32, "depth": 1, "num_heads": 2},
}


def write_clips(folder, side=32, frames=4, count=8):
    """Videos of noise over one colour, whose captions name it, and the colour as their class; pictures if ``frames`` is 1."""
    folder.mkdir()
    rows = []
    for k in range(count):
        caption = CAPTIONS[k % len(CAPTIONS)]
        colour = next(name for name in COLOURS if name in caption)
        noise = np.random.default_rng(k).integers(0, 50, (frames, side, side, 3))
        clip = (np.array(COLOURS[colour]) + noise).clip(0, 255).astype(np.uint8)
        name = f"{k}.{'png' if frames == 1 else 'mp4'}"
        save_video(clip, folder / name, 8)
        rows.append({"file_name": name, "caption": caption, "label": colour})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def videos_recipe(folder, clips, vae, family="stdit", **values):
    """The file of a recipe that trains a tiny network from nothing, or from ``start``."""
    images = family in ("dit", "pixart")
    data = {"folder": str(clips), "size": [32, 32], "frames": 1 if images else 4, "validation": 0.25}
    recipe = {
        "task": "videos", "out": str(folder / "run"), "steps": 3, "batch_size": 4, "device": "cpu", "log_every": 1,
        "evaluate_every": 3, "vae": str(vae), "data": data, "cache": str(folder / "cache"),
        "optimiser": {"warmup_steps": 1},
    }  # fmt: skip
    if "start" not in values:
        recipe["network"] = {"family": family, **NETWORKS[family]}
    if family == "dit":
        recipe["text"] = {"classes": True}
    recipe["data"] |= values.pop("data", {})
    path = folder / "videos.yaml"
    path.write_text(yaml.safe_dump(recipe | values, sort_keys=False))
    return path
