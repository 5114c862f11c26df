"""A small study: its file, and what its results folder holds."""

import yaml

from guidon.studies.plan import load_study

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
