"""The command line that reproduces a clip of a report."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from ...core.numbers import all_digits
from ...guidance import parse_rule
from ...models.adapters.files import adapter_in
from ...models.catalogue import presets
from ...models.family import Released
from ...request import DIFFUSERS, Request
from ..plan import Plan

DEFAULTS = Request(prompts=("",)).model_dump(mode="json") | {"decode_dtype": "fp32"}
LEFT_OUT = (
    "guidance",
    "spacing",
    "eta",
    "adaptive",
    "reuse",
    "negative_prompt",
)  # at their defaults
PRECISIONS = ("dtype", "decode_dtype")  # never left out: another machine, or a fast setting, may choose others


def generate_command(generation: dict[str, Any], *, force: bool = False, parts: Mapping[str, Any] = {}) -> str:
    """The ``guidon generate`` command that reproduces a clip, from the request in its manifest.

    The command line has no option for a rotation, so a clip with a rotation is reproduced from its manifest. So is one
    of a diffusers pipeline, in Python, and one of a weak model, whose folder must be given too.

    Args:
        generation: the request.
        force: whether the model follows the prompt only in part.
        parts: how the model is loaded: arguments of ``guidon.load``. A precision among them is the request's, too.
    """
    asks_weak = parse_rule(generation["guidance"]).weak == "model"
    left_out = PRECISIONS if asks_weak else (*PRECISIONS, "weak")  # a weak model that is not asked is refused
    parts = {name: value for name, value in parts.items() if name not in left_out}
    if generation["model"].startswith(DIFFUSERS):
        return """python -c 'import guidon; guidon.reproduce("manifest.json").save("clip.mp4")'"""
    if generation.get("rotation") is not None:
        return shlex.join(["guidon", "generate", "--from", "manifest.json", *_loaded(parts)])
    if asks_weak:
        weak = {"weak": "FOLDER"} | parts
        return shlex.join(["guidon", "generate", "--from", "manifest.json", *_loaded(weak)])
    prompts = generation["prompts"]
    last = ["--", *prompts] if any(text.startswith("-") for text in prompts) else []  # no option begins after --
    words = ["guidon", "generate", *([] if last else prompts), "--model", generation["model"], *_loaded(parts)]
    scale = generation["cfg_scale"]
    words += ["--cfg-scale", all_digits(*(scale if isinstance(scale, list) else [scale]))]
    fast = bool(generation.get("distilled"))  # its settings are those of --fast, which decides the rest itself
    if fast:
        words.append("--fast")
    for name in ("cfg_channels", "seed", *(() if fast else ("steps", "sampler"))):
        if generation.get(name) is not None:  # one scale for each channel needs no choice of channels
            words += [_option(name), str(generation[name])]
    for name in PRECISIONS:
        words += [_option(name), generation.get(name, DEFAULTS[name])]
    for name in ("negative_prompt",) if fast else LEFT_OUT:
        value = generation.get(name)
        if value not in (None, DEFAULTS.get(name)):
            words += [_option(name), value if isinstance(value, str) else all_digits(value)]
    if (size := generation.get("size")) is not None:
        words += ["--size", "x".join(map(str, size))]
    if generation.get("frames") is not None:
        words += ["--frames", str(generation["frames"])]
    timing, _, values = generation["timing"].partition(":")
    if not fast:
        words += {
            "constant": ["--interval", "0,1"],  # written out, because the model's default may differ
            "interval": ["--interval", values],
            "oscillation": ["--oscillate", values or "10"],
        }.get(timing, ["--ramp", generation["timing"]])
    if generation["samples"] != [0]:
        words += ["--num-samples", str(generation["samples"][0] + 1)]
    if force:
        words.append("--force")
    return shlex.join([*words, *last])


def stand_ins(plan: Plan) -> dict[str, Any]:
    """How the model of a study is loaded, as ``parts`` of its commands.

    A plan holds hashes of files and no paths: FILE and FOLDER stand for these.
    """
    parts: dict[str, Any] = {"compile": True} if plan.compile else {}
    preset, precision = presets().get(plan.model), plan.weights.get("text_dtype")  # T5 alone has one
    if preset is not None and isinstance(preset.weights, Released):
        parts |= {"checkpoint": "FILE"} | ({"vae": "FOLDER"} if "vae" in plan.weights else {})
        if precision is not None:
            parts["text_encoder"] = "FOLDER"
        elif "text" in plan.weights:
            parts["features"] = "FILE"
    if precision not in (None, "fp32"):
        parts["text_dtype"] = precision
    adapters = [found for part in plan.weights if (found := adapter_in(part)) is not None]
    if lora := [f"FOLDER/{name}={scale}" for name, scale in adapters]:
        parts["lora"] = lora
    return parts


def _loaded(parts: Mapping[str, Any]) -> list[str]:
    """The options of a model's parts."""
    words = list[str]()
    for name, value in parts.items():
        if value is True:
            words.append(_option(name))
        else:
            for one in value if isinstance(value, list | tuple) else [value]:
                words += [_option(name), str(one)]
    return words


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
