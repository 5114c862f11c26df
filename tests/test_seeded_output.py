"""A guard for refactors: fixed settings of the shipped model give the frames that an earlier version gave.

When a change is meant to alter frames, or the weights change, make the pictures again and say so in the commit.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import guidon

FOLDER = Path(__file__).parent / "goldens" / "frames"
CASES = json.loads((FOLDER / "cases.json").read_text())


@pytest.fixture(scope="module")
def pipe():
    return guidon.load("guidon-small", device="cpu")


LONG = ("ddim", "scale-per-channel", "apg")
"""Other cases have the sampler, guide some channels alone, and have a rule."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if name in LONG else ()) for name in CASES["settings"]]
)
def test_seeded_output_is_that_of_before(pipe, name):
    choices = {key: tuple(v) if isinstance(v, list) else v for key, v in CASES["settings"][name].items()}
    frames = pipe(CASES["prompt"], seed=CASES["seed"], **choices).frames
    expected = np.stack(np.split(np.asarray(Image.open(FOLDER / f"{name}.png")), len(frames), axis=1))
    difference = np.abs(frames.astype(int) - expected.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.001
