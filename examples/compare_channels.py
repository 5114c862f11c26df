"""What guidance does, in one moving picture: prompts with no guidance, three channels, all channels, on the same noise.

python examples/compare_channels.py docs/guidance.webp
"""

import sys

import guidon
from guidon.media import contact_sheet

PROMPTS = [
    "a red circle moves left on a white background",
    "a small yellow square moves up on a black background",
    "a purple triangle moves down and to the left quickly on a gray background",
    "a large cyan cross stays still on a brown background",
]
SETTINGS = {"no guidance": "none", "3 channels": 3, "all channels": "all"}


def main(path: str, steps: int | None = None) -> None:
    pipe = guidon.load("guidon-small")
    columns = [
        [video.frames for video in pipe(PROMPTS, cfg_channels=channels, seed=3, steps=steps)]
        for channels in SETTINGS.values()
    ]
    rows = [list(row) for row in zip(*columns, strict=True)]
    print(contact_sheet(rows, PROMPTS, list(SETTINGS), path=path))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "guidance.webp")
