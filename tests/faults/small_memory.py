"""Makes clips in a process whose address space is limited: ``python -m faults.small_memory MODEL SHARE ...``.

It runs in an interpreter of its own, because memory that earlier tests freed would serve where a limit is to be met.
"""

import json
import sys
import warnings
from typing import Any

import numpy as np

import guidon
from faults.harness import child

OPTIONS: dict[str, Any] = {
    "num_samples": 2, "steps": 1, "cfg_scale": 3.0, "timing": "constant", "size": (320, 320), "seed": 3,
}  # fmt: skip
PROMPT = "a red circle moves left on a white background"


def main(model: str, *shares: str) -> None:
    """Print how clips are made in each share of the memory that they take without a limit."""
    pipe = guidon.load(model, device="cpu")
    pipe(PROMPT, steps=1, timing="constant")  # the decoder is loaded

    def work() -> tuple[list[np.ndarray], list[str], object]:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            videos = pipe(PROMPT, **OPTIONS)
        lines = [str(w.message) for w in warned if "memory ran out" in str(w.message)]
        return [frame for video in videos for frame in video.frames], lines, videos[0].manifest["computed"]

    whole = child(work, memory=None, cpu=120)
    frames, _, computed = whole.value
    found = list[dict[str, Any]]()
    for share in shares:
        ended = child(work, memory=int(float(share) * whole.memory), cpu=120)
        row = {"share": share, "how": ended.how, "message": str(ended), "one_line": ended.one_line, "told": 0}
        if ended.how == "returned":
            made, lines, now = ended.value
            right = all(np.abs(a.astype(np.int16) - b).max() <= 1 for a, b in zip(made, frames, strict=True))
            row |= {"told": len(lines), "right": right and len(lines) == (now != computed), "message": f"{lines} {now}"}
        found.append(row)
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
