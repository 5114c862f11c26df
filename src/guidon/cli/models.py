"""``guidon models``: the presets, and what a user of one needs to know."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..models.family import Preset, Released

EXAMPLE = "guidon models guidon-small"
WIDTH = 110  # of a line of the list of words
OF_THE_WORLD = ("a small red circle moves left slowly on a white background", "a blue ball rises, black background")
"""Examples of prompts for models of the world."""


def models(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME|FOLDER", help="Say more of this model: its words, or its files.")
    ] = None,
) -> None:
    """List the models that have a name, with their recommended settings.

    With a name, also list what its prompts may say, or the files that it needs.
    """
    from ..models import registry
    from ..models.catalogue import find_preset, presets
    from ..models.family import Released

    if name is None:
        for preset in presets().values():
            _print_settings(preset)
        return
    preset = find_preset(name)
    _print_settings(preset)
    if isinstance(preset.weights, Released):
        _print_files(preset)
    elif words := registry.find_family(preset.family).describe_words(preset):
        _print_words(words, preset)


def _print_settings(preset: Preset[Any]) -> None:
    print(f"{preset.name}: {preset.summary}")
    when = "" if preset.timing == "constant" else f", {preset.timing}"
    guided = f"scale {preset.cfg_scale:g}, channels {preset.cfg_channels}{when}"
    print(f"  {preset.sampler}, {preset.steps} steps, {guided}")
    print(f"  settings from {preset.source}")
    if preset.measured:
        print(f"  measured: {preset.measured}")
    if fast := preset.fast:
        said = ", ".join(f"{name} {value}" for name, value in fast.settings.items() if value is not None)
        for text in (f"--fast: {said}", f"  measured: {fast.measured}"):
            indent = "  " + " " * (len(text) - len(text.lstrip()))
            print(textwrap.fill(text.strip(), WIDTH, initial_indent=indent, subsequent_indent=indent + "  "))


def _print_files(preset: Preset[Released]) -> None:
    """Where a released model's parts are published, and how they are given."""
    released = preset.weights
    model = f"guidon generate PROMPT --model {preset.name}"
    files = [("--checkpoint", f"{released.file} of {released.repository}")]
    if preset.classes:
        model = model.replace("PROMPT", "--class NUMBER")
    else:
        files.append(("--text-encoder", "DeepFloyd/t5-v1_1-xxl, 19 GB in fp32; --text-dtype takes less"))
    files.append(("--vae", released.vae))
    print("  its weights do not come with the package; its parts are published on huggingface.co:")
    for option, place in files:
        print(f"    {option:<16} {place}")
    print(f"  {model} {' '.join(f'{option} PATH' for option, _ in files)}")
    print("  or give --download in their place, which fetches what is missing")
    if preset.classes:
        print(f"  a class is a number from 0 to {preset.classes - 1}")


def _print_words(words: dict[str, str], preset: Preset[Any]) -> None:
    """What prompts may say, and examples."""
    print("  its prompts may say (words in brackets mean the same):")
    for kind, text in words.items():
        start = f"    {kind:<14} "
        print(textwrap.fill(text, WIDTH, initial_indent=start, subsequent_indent=" " * len(start)))
    from ..models.trained.config import read_model_config

    clips = read_model_config(preset.weights)  # of a user's clips
    prompts = OF_THE_WORLD if clips is None else clips.shown[:2]
    if prompts:
        print("  for example:")
    for prompt in prompts:
        model = "" if preset.name == "guidon-small" else f" --model {preset.name}"
        print(f'    guidon generate "{prompt}"{model}')
    if clips is None:
        print("  --random-prompt draws one; what it cannot follow is refused, or sampled with --force")
