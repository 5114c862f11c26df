"""The finished comparison that the page opens with. It lies in the package, so that nothing has to be computed for it.

``python -m guidon.studio.example`` makes it anew.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import numpy as np

from .outputs import Outputs

PROMPT = "a purple triangle moves down and to the left quickly on a gray background"
ASKED: dict[str, Any] = {
    "model": "guidon-small",
    "prompt": PROMPT,
    "seed": 1,
    "settings": [
        {"channels": [True] * 4, "scales": [1, 1, 1, 1]},
        {"channels": [True, True, True, False], "scales": [3, 3, 3, 3]},
        {"channels": [True, True, True, True], "scales": [6, 6, 6, 6], "timing": "constant"},
    ],
}
"""What it asks for: no guidance, the model's own, and far too much of it."""
CLIPS, RESULT = "clips.npz", "result.json"


def read_example(outputs: Outputs) -> dict[str, Any] | None:
    """The result of the example, its clips among the outputs of every session; None where it was not made."""
    folder = resources.files(__package__ or "guidon.studio").joinpath("finished")
    if not folder.joinpath(RESULT).is_file():
        return None
    result = json.loads(folder.joinpath(RESULT).read_text("utf-8"))
    with folder.joinpath(CLIPS).open("rb") as file:
        clips = np.load(file, allow_pickle=False)
        shown = {name: outputs.add_clip(clips[name], result["fps"], None) for name in clips.files}
    for number, own in enumerate(result["settings"]):
        own["clips"] = [shown[f"{number}"]]
        own["manifests"] = [
            outputs.add_text(text, "application/json", "manifest.json", None) for text in own["manifest"]
        ]
    result["truth"]["clip"] = shown["truth"]
    return result


def make_example() -> None:
    """Compute the example, and write it into the package."""
    from pathlib import Path

    from ..core.atomic import atomic_path, write_bytes
    from .engine import Studio

    studio = Studio()
    try:
        session = studio.open()
        key = studio.compare(session, ASKED)["id"]
        job = studio.queue.job(session, key)
        while not job.over:
            job.stop.wait(0.5)
        if job.state != "done":
            raise RuntimeError(job.message)
        result = job.result
        for own in result["settings"]:
            own["seconds"] = None  # of this machine
        clips = {str(k): studio.outputs.frames(own["clips"][0]) for k, own in enumerate(result["settings"])}
        clips["truth"] = studio.outputs.frames(result["truth"]["clip"])
        folder = Path(__file__).with_name("finished")
        with atomic_path(folder / CLIPS) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **clips)  # type: ignore[arg-type]
        write_bytes(folder / RESULT, json.dumps(result, ensure_ascii=False).encode())
    finally:
        studio.close()


if __name__ == "__main__":
    make_example()
