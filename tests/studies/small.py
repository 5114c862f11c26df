"""A small study: its file, and what its results folder holds."""

import numpy as np
import yaml

from guidon.metrics.metric import Bench, Examples, Goal, Metric, named
from guidon.studies.study import load_study

STUDY = {
    "prompts": 3, "steps": 2, "seeds": 2, "block": 4,
    "settings": [{"cfg_scale": 1}, {"grid": {"cfg_scale": [3], "cfg_channels": [3, "all"]}}],
    "primary": {"metric": "law_residual", "baseline": "scale 3, channels 3", "against": "scale 3, channels all"},
}  # fmt: skip
MATCHED = {
    "settings": [
        {"name": "three", "cfg_scale": 3, "cfg_channels": 3},
        {"name": "all", "energy_of": "three", "cfg_channels": "all"},
    ],
    "primary": {"metric": "law_residual", "baseline": "three", "against": "all"},
    "timing": "constant",
    "tuning_prompts": 3,
}


def write(path, **changes):
    path.write_text(yaml.safe_dump(STUDY | changes))
    return path


def study(folder, model, **changes):
    return load_study(write(folder / "study.yaml", model=str(model), **changes))


def content(folder):
    """The bytes of every file of every cell."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted((folder / "cells").rglob("*")) if p.is_file()}


def toy_bench():
    """A domain of brightness: each colour word stands for a level, and a clip should be as bright."""
    words = ("red", "green", "blue", "yellow", "purple", "cyan")

    def measure(frames, captions):
        found = frames.mean((1, 2, 3, 4)) / 255
        wanted = np.array([words.index(text.split()[1]) / 5 for text in captions])
        return {"light": found, "error": np.abs(found - wanted)}

    def caption(split, seed, index):
        return f"a {words[(seed + index) % 6]} circle"

    def frames(split, seed, index):
        return np.full((16, 64, 64, 3), (seed + index) % 6 / 5, np.float32)

    return Bench(
        name="toy",
        metrics=named(
            Metric(
                "light", "quality", "intensity", (0, 1), None, "mean intensity", label="light", words="how light it is"
            ),
            Metric(
                "error",
                "alignment",
                "intensity",
                (0, 1),
                "lower",
                "distance from the prompt's",
                label="error",
                words="how far the light is from what the prompt asks for",
            ),
        ),
        measure=measure,
        shown=("error", "light"),
        primary="error",
        matched=("light",),
        fronts=(("error", "light"),),
        examples=Examples(("all",), "all", caption, frames, lambda *_: {}),
        goal=Goal("light", {"error": lambda values: values["error"]}),
    )
