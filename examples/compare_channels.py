"""Moving pictures for the documentation: a row for each prompt, a column for each choice of guided channels, one noise.

python examples/compare_channels.py channels docs/channels.webp
python examples/compare_channels.py guidance docs/guidance.webp

The prompts of ``guidance`` were taken as they came; its seed was chosen from ten, because two of the four clips are
wrong without guidance. The prompts of ``channels`` were chosen from 24, because in them one sees what each channel
does: scale 6 at all steps, which is stronger and longer than the model's own setting.
"""

import sys
from dataclasses import dataclass, field
from typing import Any

import guidon
from guidon.media import contact_sheet


@dataclass(frozen=True)
class Picture:
    prompts: list[str]
    columns: dict[str, int | str]
    """Label -> the guided channels."""
    seed: int
    choices: dict[str, Any] = field(default_factory=dict)
    """What else the pipeline is called with."""


PICTURES = {
    "guidance": Picture(
        [
            "a red circle moves left on a white background",
            "a small yellow square moves up on a black background",
            "a purple triangle moves down and to the left quickly on a gray background",
            "a large cyan cross stays still on a brown background",
        ],
        {"no guidance": "none", "3 channels": 3, "all channels": "all"},
        seed=2,
    ),
    "channels": Picture(
        [
            "the small violet cross travels up over a black background",
            "there is a green triangle that is still on a gray background",
            "a small yellow cross moves leftwards against a brown backdrop",
            "the small green wedge goes diagonally down right slowly over a black background",
        ],
        {
            "no guidance": "none",
            "channel 3 alone": "only:3",
            "channel 0 alone": "only:0",
            "channel 2 alone": "only:2",
            "the first three": 3,
            "all four": "all",
        },
        seed=5,
        choices={"cfg_scale": 6, "timing": "interval:0,1", "steps": 20},
    ),
}


def main(name: str, path: str, **choices: Any) -> None:
    """Write a picture. ``choices`` take the place of its own."""
    picture, pipe = PICTURES[name], guidon.load("guidon-small")
    columns = [
        [
            video.frames
            for video in pipe(picture.prompts, cfg_channels=channels, seed=picture.seed, **picture.choices | choices)
        ]
        for channels in picture.columns.values()
    ]
    rows = [list(row) for row in zip(*columns, strict=True)]
    print(contact_sheet(rows, picture.prompts, list(picture.columns), path=path))


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["channels", "channels.webp"]))
