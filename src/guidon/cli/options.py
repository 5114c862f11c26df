"""Options that several commands share, each with its panel in the help.

Some options have a default that depends on the model. They are None unless the user gave them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

Panel = Literal["Prompt", "Guidance", "Sampling", "Measuring", "Model and weights", "Output"]


def option(
    panel: Panel, metavar: str | None, help: str, *names: str, default: str | None = None, min: float | None = None
) -> Any:
    """An option in a panel of the help.

    Args:
        panel: the title of the panel.
        metavar: the placeholder for the value in the help; None for a flag.
        help: what it does, in one sentence.
        names: the option and its aliases; if empty, the option is named after the function's parameter.
        default: the text for the default in the help; None shows the default value.
        min: the smallest value.
    """
    return typer.Option(
        *names, metavar=metavar, help=help, rich_help_panel=panel, show_default=default or True, min=min
    )


# Guidance
_SCALE = ("--cfg-scale", "--guidance-scale")
CHANNELS = ("--cfg-channels", "--cfg-channel")
CfgScale = Annotated[float | None, option("Guidance", "SCALE", "Guidance scale.", *_SCALE, default="the model's")]
CfgScales = Annotated[
    list[float] | None,
    option("Guidance", "SCALE", "Guidance scale; repeatable.", *_SCALE, default="the model's"),
]
CfgScalePerChannel = Annotated[
    str | None,
    option("Guidance", "SCALE", "Guidance scale, or one per latent channel: 4,4,4,1.", *_SCALE, default="the model's"),
]
CfgChannels = Annotated[
    str | None,
    option(
        "Guidance",
        "CHANNELS",
        "Guided channels: 3 (the first three), all, none, 0,2 (these), 0-2 (a range), only:3.",
        *CHANNELS,
        default="the model's",
    ),
]
Interval = Annotated[
    str | None,
    option(
        "Guidance",
        "A,B",
        "Guide only from A to B of the sampling. 0 is noise, 1 is the video; 0,1 guides every step.",
        default="the model's",
    ),
]

# Sampling
Steps = Annotated[
    int | None,
    option("Sampling", "N", "Number of denoising steps.", "--steps", "--num-inference-steps", default="the model's"),
]
Sampler = Annotated[str | None, option("Sampling", "NAME", "Sampler: ddpm, ddim or dpm-solver.", default="the model's")]
Block = Annotated[int, option("Sampling", "N", "Number of clips that are denoised together.", min=1)]

# Model and weights
Model = Annotated[
    str, option("Model and weights", "NAME|FOLDER", "A name that `guidon models` lists, or a folder of weights.")
]
Checkpoint = Annotated[
    Path | None,
    option(
        "Model and weights",
        "FILE",
        "Checkpoint of a released model, whose weights do not come with the package.",
        default="none",
    ),
]
TextEncoder = Annotated[
    Path | None, option("Model and weights", "FOLDER", "T5 in the hub's layout, for a released model.", default="none")
]
VAE = Annotated[
    Path | None,
    option("Model and weights", "FOLDER", "Autoencoder in the hub's layout, for a released model.", default="none"),
]
Features = Annotated[
    Path | None,
    option("Model and weights", "FILE", "Caption features from `guidon encode`; replaces T5.", default="none"),
]
Device = Annotated[str, option("Model and weights", "DEVICE", "auto, cpu, cuda, cuda:N or mps.")]


def given(**values: Any) -> dict[str, Any]:
    """The options that the user gave: those that are not None."""
    return {name: value for name, value in values.items() if value is not None}
