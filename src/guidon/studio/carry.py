"""What a user takes along: a command line, a Python program, a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from ..guidance import Guidance
from ..request import DIFFUSERS
from ..studies.words import spell_channels, spell_negative, spell_timing

OF_CALL = ("seed", "size", "frames")  # choices that all settings of a comparison share
CARRIED = ("cfg_scale", "cfg_channels", "guidance", "timing", "sampler", "steps", "negative_prompt", "fast")
"""The choices that a setting of a study holds."""


def python_of(
    model: str,
    prompt: str,
    choices: Mapping[str, Any],
    sample: int,
    *,
    force: bool = False,
    parts: Mapping[str, Any] = {},
) -> str:
    """The Python program that makes a clip again.

    Args:
        model: as ``guidon.load`` takes it.
        prompt: what is shown.
        choices: of a call of the pipeline.
        sample: which sample of the seed it is.
        force: whether the model follows the prompt only in part.
        parts: how the model is loaded.
    """
    own = dict(choices)
    if sample:
        own["num_samples"] = sample + 1
    if force:
        own["force"] = True
    lines = [
        "import guidon",
        "",
        f"pipe = guidon.load({', '.join([repr(model), *(f'{name}={value!r}' for name, value in parts.items())])})",
    ]
    if model.startswith(DIFFUSERS):
        own.pop("num_samples", None)
        shown = ", ".join(f"{name}={value!r}" for name, value in own.items())
        lines += [f"request = pipe.plan({prompt!r}, samples=[{sample}], {shown})", "video = pipe.generate(request)[0]"]
    else:
        shown = "".join(f"    {name}={value!r},\n" for name, value in own.items())
        lines += [f"video = pipe(\n    {prompt!r},\n{shown})" + (f"[{sample}]" if sample else "")]
    return "\n".join([*lines, 'video.save("clip.mp4")', ""])


def words_of(choices: Mapping[str, Any], guidance: Guidance, channels: int) -> str:
    """A setting in words: "scale 3 on the first 3 channels, ddim, 25 steps"."""
    scales = guidance.scales_for(channels)
    if scales.is_identity:
        words = "no guidance"
    elif isinstance(guidance.resolved(channels).scale, Sequence):
        words = "scales " + ", ".join(f"{one:g}" for one in scales.scales)
    else:
        where = spell_channels(scales.choice.text)
        words = f"scale {choices['cfg_scale']:g} on {'' if where.startswith(('all', 'ch')) else 'the '}{where}"
    parts = [words]
    if guidance.rule.name != "cfg":
        parts.append(str(choices.get("guidance", guidance.rule.name)))
    if choices.get("timing"):
        parts.append(spell_timing(choices["timing"]))
    if choices.get("sampler"):
        parts.append(str(choices["sampler"]))
    if choices.get("steps"):
        parts.append(f"{choices['steps']} steps")
    if choices.get("fast"):
        parts.append("fast")
    if choices.get("negative_prompt"):
        parts.append(spell_negative(choices["negative_prompt"]))
    return ", ".join(parts)


def study_of(
    model: str,
    prompts: int | Sequence[str],
    seeds: int,
    settings: Mapping[str, Mapping[str, Any]],
    metric: str,
    title: str,
    seed: int = 0,
    parts: Mapping[str, Any] = {},
) -> str:
    """The YAML of a study: ``guidon study run`` takes it.

    Args:
        model: a preset, a folder, or ``diffusers:FOLDER``.
        prompts: how many captions of the bench, or prompts.
        seeds: samples of each.
        settings: the choices of each setting, by name; the first one is the baseline.
        metric: that of the primary contrast, which is between the first setting and the second.
        title: of the report.
        seed: that of the first prompt's noise.
        parts: how the model is loaded.
    """
    names = list(settings)
    own: dict[str, Any] = {"title": title} if title else {}
    loaded = {name: value for name, value in parts.items() if name != "call"}
    if model.startswith(DIFFUSERS):
        own["model"] = {"diffusers": model.removeprefix(DIFFUSERS)} | loaded
    else:
        own["model"] = model
        own |= {"dtype": loaded.pop("dtype")} if "dtype" in loaded else {}
        own |= {"sources": loaded} if loaded else {}
    own |= {"call": parts["call"]} if "call" in parts else {}
    own |= {"prompts": prompts if isinstance(prompts, int) else list(prompts), "seeds": seeds, "seed": seed}
    own["settings"] = [
        {"name": name} | {key: _plain(choices[key]) for key in CARRIED if key in choices}
        for name, choices in settings.items()
    ]
    own["primary"] = {"metric": metric, "baseline": names[0], "against": names[1]}
    return yaml.safe_dump(own, sort_keys=False, allow_unicode=True, width=120)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
