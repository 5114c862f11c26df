"""The command line that reproduces a clip of a report."""

from __future__ import annotations

import shlex
from typing import Any

from ...guidance import parse_rule
from ...request import DIFFUSERS, Request

DEFAULTS = Request(prompts=("",)).model_dump(mode="json")
LEFT_OUT = ("guidance", "spacing", "eta", "dtype", "negative_prompt")  # at their defaults


def generate_command(generation: dict[str, Any]) -> str:
    """The ``guidon generate`` command that reproduces a clip, from the request in its manifest.

    The command line has no option for a rotation, so a clip with a rotation is reproduced from its manifest. So is one
    of a diffusers pipeline, in Python, and one of a weak model, whose folder must be given too.
    """
    if generation["model"].startswith(DIFFUSERS):
        return """python -c 'import guidon; guidon.reproduce("manifest.json").save("clip.mp4")'"""
    if generation.get("rotation") is not None:
        return "guidon generate --from manifest.json"
    if parse_rule(generation["guidance"]).weak == "model":
        return "guidon generate --from manifest.json --weak FOLDER"
    words = ["guidon", "generate", *generation["prompts"], "--model", generation["model"]]
    scale = generation["cfg_scale"]
    words += ["--cfg-scale", ",".join(f"{s:g}" for s in scale) if isinstance(scale, list) else f"{scale:g}"]
    for name in ("cfg_channels", "seed", "steps", "sampler"):
        words += [f"--{name.replace('_', '-')}", str(generation[name])]
    for name in LEFT_OUT:
        value = generation.get(name)
        if value not in (None, DEFAULTS.get(name)):
            words += [f"--{name.replace('_', '-')}", f"{value:g}" if name == "eta" else value]
    timing, _, values = generation["timing"].partition(":")
    words += {
        "constant": ["--interval", "0,1"],  # written out, because the model's default may differ
        "interval": ["--interval", values],
        "oscillation": ["--oscillate", values or "10"],
    }.get(timing, ["--ramp", generation["timing"]])
    if generation["samples"] != [0]:
        words += ["--num-samples", str(generation["samples"][0] + 1)]
    return shlex.join(words)
