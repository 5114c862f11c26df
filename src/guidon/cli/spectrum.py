"""``guidon spectrum``: guidance by channel, step and frame."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options
from .options import given, option
from .outputs import prepare_folder, stopped
from .planning import find_any_planner, known_device
from .values import parse_call, parse_timing

if TYPE_CHECKING:
    from ..request import Request

EXAMPLE = 'guidon spectrum "a red circle moves left on a white background" --out spectrum'


def spectrum(
    prompts: Annotated[
        list[str],
        typer.Argument(metavar="PROMPT", help="What to show; several are averaged.", rich_help_panel="Prompt"),
    ],
    force: options.Force = False,
    looks: Annotated[
        int, option("Measuring", "N", "Number of steps at which the effect on pixels is measured.", min=1)
    ] = 8,
    cfg_scale: options.CfgScale = None,
    cfg_channels: options.CfgChannels = None,
    interval: options.Interval = None,
    seed: Annotated[int, option("Sampling", "N", "Seed of the noise.", min=0)] = 0,
    steps: options.Steps = None,
    sampler: options.Sampler = None,
    spacing: options.Spacing = None,
    model: options.AnyModel = "guidon-small",
    call: options.Call = None,
    dtype: options.Dtype = None,
    decode_dtype: options.DecodeDtype = None,
    compile: options.Compile = False,
    offload: options.Offload = None,
    checkpoint: options.Checkpoint = None,
    text_encoder: options.TextEncoder = None,
    vae: options.VAE = None,
    features: options.Features = None,
    text_dtype: options.TextDtype = None,
    lora: options.Lora = None,
    download: options.Download = False,
    device: options.Device = "auto",
    out: Annotated[
        Path | None,
        option("Output", "FOLDER", "Folder for spectrum.npz and spectrum.png.", *options.OUT, default="none"),
    ] = None,
) -> None:
    """Split guidance by channel, step and frame.

    Shows how much of the guidance each latent channel carries, and how much of that the decoder turns into pixels.
    """
    choices = given(
        cfg_scale=cfg_scale, cfg_channels=cfg_channels, timing=parse_timing(interval), seed=seed, steps=steps,
        sampler=sampler, spacing=spacing,
    )  # fmt: skip
    parts = given(
        checkpoint=checkpoint, text_encoder=text_encoder, vae=vae, features=features, lora=lora or None,
        text_dtype=text_dtype, call=parse_call(call), dtype=dtype, decode_dtype=decode_dtype, compile=compile or None,
        offload=offload, download=download or None,
    )  # fmt: skip

    # Check everything before torch is imported.
    planner = find_any_planner(model, device, parts)
    request = planner.plan(prompts, device=known_device(device), force=force, **choices)
    from ..analysis.spectrum import check_spectrum
    from ..analysis.spectrum import spectrum as measured

    check_spectrum(request, planner.channels, looks)
    if out is not None:
        prepare_folder(out)

    from ..core.progress import progress
    from ..pipeline import load

    pipe = load(model, device=device, **parts)
    count = len(request.prompts)
    what = f"sampling {count} {'clip' if count == 1 else 'clips'}"
    with stopped("nothing was written"), progress(what, "steps") as on_step:
        found = measured(pipe, prompts, looks=looks, on_step=on_step, force=force, **choices)
    print(_measured_at(request, planner.channels))
    print(found.table())
    print("energy: share of the squared cond - uncond")
    print("cosine with cond: above 0, guidance makes the channel stronger; below 0, weaker")
    print("the rest: RMS change of the video per unit of scale, 1/1000")
    for path in found.write(out) if out is not None else ():
        print(path)


def _measured_at(request: Request, channels: int) -> str:
    """The guidance under which a request was sampled, in words."""
    from ..studies.words import spell_channels, spell_timing

    guidance = request.guidance.resolved(channels)
    scales = guidance.scale if isinstance(guidance.scale, tuple) else (guidance.scale,)
    where = spell_channels(guidance.scales_for(channels).choice.text)
    scale = ",".join(f"{each:g}" for each in scales)
    return f"sampled at scale {scale} on {where}, {request.steps} steps, {spell_timing(guidance.timing.text)}:"
