"""Options that several commands share, each with its panel in the help.

Some options have a default that depends on the model. They are None unless the user gave them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

Panel = Literal[
    "Prompt", "Given pictures and videos", "Guidance", "Sampling", "Measuring", "Model and weights", "Output", "Options"
]

# The values of options, for completion in a shell. Their own modules would load torch.
SAMPLERS = (
    "ddpm",
    "ddim",
    "dpm-solver",
    "dpm-solver-sde",
    "dpm-solver-3m-sde",
    "unipc",
    "consistency",
    "euler",
    "heun",
)
RULES = (
    "cfg", "rescale", "apg", "cfg-zero", "cfg++", "fdg", "perp-neg", "tcfg", "mambo-g", "momentum", "samg", "renorm",
    "fdg-time", "autoguidance", "stg", "three-way",
)  # fmt: skip
FORMATS = ("mp4", "gif", "webp", "frames", "png")
SPACINGS = ("uniform", "quadratic", "karras", "logsnr", "power:1.5", "split:0.35,0.5", "at:999,500,0")
RAMPS = ("linear", "cosine", "exponential")
DTYPES = ("fp32", "bf16", "fp16")
CHOSEN_DTYPES = ("auto", *DTYPES)
DECODE_DTYPES = ("auto", "fp32", "bf16")
TEXT_DTYPES = (*DTYPES, "int8")
OFFLOADS = ("none", "stages", "blocks", "model", "sequential")
DEVICES = ("auto", "cpu", "cuda", "mps")
CHOICES_OF_CHANNELS = ("3", "all", "none", "only:3", "0,2", "0-2")
SPLITS = ("L0", "L1", "L2", "L3")
BENCHES = ("video", "world", "learned", "video+clip", "video+dino", "video+clip+dino")


def models() -> list[str]:
    """The names of all presets."""
    from ..models.catalogue import presets

    return list(presets())


def option(
    panel: Panel,
    metavar: str | None,
    help: str,
    *names: str,
    default: str | None = None,
    min: float | None = None,
    values: Sequence[str] | Callable[[], Sequence[str]] = (),
) -> Any:
    """An option in a panel of the help.

    Args:
        panel: the title of the panel.
        metavar: the placeholder for the value in the help; None for a flag.
        help: what it does, in one sentence.
        names: the option and its aliases; if empty, the option is named after the function's parameter.
        default: the text for the default in the help; None shows the default value.
        min: the smallest value.
        values: what a shell completes it to, or a function that returns it.
    """
    return typer.Option(
        *names, metavar=metavar, help=help, rich_help_panel=panel, show_default=default or True, min=min,
        autocompletion=_completion(values) if values else None,
    )  # fmt: skip


def _completion(values: Sequence[str] | Callable[[], Sequence[str]]) -> Callable[[str], list[str]]:
    """What typer calls for the values that begin with the text that was typed."""

    def complete(incomplete: str) -> list[str]:
        return [value for value in (values() if callable(values) else values) if value.startswith(incomplete)]

    return complete


def of_model(value: str) -> str:
    """The text for a default that depends on the model, with its value for the model of the package."""
    return f"the model's: {value} for guidon-small"


OUT = ("--out", "-o", "--output")

# Prompt
Force = Annotated[bool, option("Prompt", None, "Sample a prompt that the model cannot follow, too.", "--force")]

# Guidance
_SCALE = ("--cfg-scale", "--guidance-scale")
CHANNELS = ("--cfg-channels", "--cfg-channel")
_SCALE_OF_MODEL = of_model("3")
CfgScale = Annotated[float | None, option("Guidance", "SCALE", "Guidance scale.", *_SCALE, default=_SCALE_OF_MODEL)]
CfgScales = Annotated[
    list[float] | None,
    option("Guidance", "SCALE", "Guidance scale; repeatable.", *_SCALE, default=_SCALE_OF_MODEL),
]
CfgScalePerChannel = Annotated[
    str | None,
    option("Guidance", "SCALE", "Scale, or one per latent channel: 4,4,4,1.", *_SCALE, default=_SCALE_OF_MODEL),
]
CfgChannels = Annotated[
    str | None,
    option(
        "Guidance",
        "CHANNELS",
        "Guided channels: 3 (the first three), all, none, 0,2 (these), 0-2 (a range), only:3.",
        *CHANNELS,
        default=of_model("3"),
        values=CHOICES_OF_CHANNELS,
    ),
]
Interval = Annotated[
    str | None,
    option(
        "Guidance",
        "A,B",
        "Guide only from A to B of the sampling. 0 is noise, 1 is the video; 0,1 guides every step.",
        default=of_model("0,0.5"),
    ),
]
Rule = Annotated[
    str | None,
    option(
        "Guidance",
        "RULE",
        f"Guidance rule: {', '.join(RULES[:-1])} or {RULES[-1]}; its settings follow a colon, as in apg:momentum=0.",
        default="cfg",
        values=RULES,
    ),
]
Ramp = Annotated[
    str | None,
    option(
        "Guidance",
        "SHAPE",
        "Let the scale grow during sampling: linear, cosine, or exponential:RATE.",
        default="off",
        values=RAMPS,
    ),
]
Oscillate = Annotated[
    int | None,
    option("Guidance", "N", "From step N on, guide every second step only.", default="off"),
]

Adaptive = Annotated[
    float | None,
    option(
        "Guidance",
        "X",
        "Stop guiding a clip once both branches agree, from this cosine on, such as 0.99; only guided channels count.",
        default="off",
    ),
]
Reuse = Annotated[
    int | None,
    option(
        "Guidance",
        "K",
        "Call the unconditional branch at every K-th guided step; between them, use the last difference again.",
        default="1",
        min=1,
    ),
]

# Sampling
Seed = Annotated[int | None, option("Sampling", "N", "Seed of the noise.", min=0, default=of_model("0"))]
Steps = Annotated[
    int | None,
    option("Sampling", "N", "Number of denoising steps.", "--steps", "--num-inference-steps", default=of_model("50")),
]
Sampler = Annotated[
    str | None,
    option(
        "Sampling",
        "NAME",
        f"Sampler: {', '.join(SAMPLERS[:-3])} or {SAMPLERS[-3]}; for a rectified flow {SAMPLERS[-2]} or "
        f"{SAMPLERS[-1]}.",
        default=of_model("ddpm"),
        values=SAMPLERS,
    ),
]
Spacing = Annotated[
    str | None,
    option(
        "Sampling",
        "SPACING",
        "Where the steps lie: uniform, quadratic, karras (or karras:RHO), logsnr, power:P (above 1: more near the "
        "video), split:F,SHARE (a share of them below a fraction F of the timesteps), or at:T,T,... (these timesteps).",
        default="uniform",
        values=SPACINGS,
    ),
]
Fast = Annotated[
    bool,
    option(
        "Sampling",
        None,
        "Sample with the fast settings that were calibrated for the model; `guidon models` says what they are and what "
        "was measured.",
        "--fast",
    ),
]
Block = Annotated[int, option("Sampling", "N", "Number of clips that are denoised together.", min=1)]

# Model and weights
Model = Annotated[
    str,
    option(
        "Model and weights", "NAME|FOLDER", "A name that `guidon models` lists, or a folder of weights.", values=models
    ),
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
TextDtype = Annotated[
    str | None,
    option(
        "Model and weights", "TYPE", "Precision of T5: fp32, bf16, fp16 or int8.", default="fp32", values=TEXT_DTYPES
    ),
]
Download = Annotated[bool, option("Model and weights", None, "Fetch missing weights from the hub.", "--download")]
AnyModel = Annotated[
    str,
    option(
        "Model and weights",
        "NAME|FOLDER",
        "A name that `guidon models` lists, a folder of weights, or diffusers:FOLDER.",
        values=models,
    ),
]
Call = Annotated[
    list[str] | None,
    option(
        "Model and weights",
        "NAME=VALUE",
        "Argument of a diffusers pipeline's call, such as height=480; repeatable.",
        default="the pipeline's own",
    ),
]
Dtype = Annotated[
    str | None,
    option(
        "Model and weights",
        "DTYPE",
        "Precision of the network: fp32, bf16, fp16, or auto: bf16 where this machine is fast in it and errs little.",
        default="the model's: fp32 for guidon-small; of a diffusers pipeline, that of its weights",
        values=CHOSEN_DTYPES,
    ),
]
DecodeDtype = Annotated[
    str | None,
    option(
        "Model and weights",
        "DTYPE",
        "Precision in which the autoencoder decodes: fp32, bf16 or auto.",
        default="fp32",
        values=DECODE_DTYPES,
    ),
]
Compile = Annotated[
    bool,
    option(
        "Model and weights",
        None,
        "Compile the blocks of the network; what that costs and saves is measured at the start, and said.",
        "--compile",
    ),
]
Offload = Annotated[
    str | None,
    option(
        "Model and weights",
        "HOW",
        "What leaves the memory after its use: stages, blocks (of the network, too) or none; of a diffusers "
        "pipeline model, sequential or none.",
        default="none for guidon-small and diffusers, stages for the others",
        values=OFFLOADS,
    ),
]
BranchRanks = Annotated[
    int | None,
    option(
        "Sampling",
        "N",
        "Under torchrun, how many ranks share the branches of a clip; 1 gives each rank clips of its own.",
        min=1,
        default="by the number of clips",
    ),
]
Lora = Annotated[
    list[str] | None,
    option(
        "Model and weights",
        "FILE|FOLDER",
        "Adapters of low rank, merged into the network's weights; FOLDER=0.8 weighs them; repeatable.",
        "--lora",
        default="none",
    ),
]
Weak = Annotated[
    Path | None,
    option(
        "Model and weights",
        "FOLDER|FILE",
        "A weaker model, for the rule autoguidance: a model folder, or a checkpoint for a released model.",
        default="none",
    ),
]
Device = Annotated[str, option("Model and weights", "DEVICE", "auto, cpu, cuda, cuda:N or mps.", values=DEVICES)]


def given(**values: Any) -> dict[str, Any]:
    """The options that the user gave: those that are not None."""
    return {name: value for name, value in values.items() if value is not None}
