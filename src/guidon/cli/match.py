"""``guidon match``: the scale on other channels that does the same."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from . import options
from .options import given, option
from .outputs import prepare_folder, say, stopped
from .planning import chosen_by, find_any_planner, own_scale, precisions_for
from .values import parse_call, parse_timing

if TYPE_CHECKING:
    from ..request import Choices
    from ..studies.study import Study

EXAMPLE = "guidon match --cfg-scale 3 --cfg-channels 3 --to all"


def match(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROMPT",
            help="Prompts to match on, for a model that does not make the synthetic world.",
            rich_help_panel="Prompt",
        ),
    ] = None,
    captions: Annotated[
        int, option("Prompt", "N", "Number of captions of the synthetic world to match on.", min=2)
    ] = 24,
    metric: Annotated[
        list[str] | None,
        option(
            "Measuring",
            "NAME",
            "What to match: video (its pixels), energy (of guidance) or a metric of the bench; repeatable.",
            default="both, and some of the metrics",
        ),
    ] = None,
    cfg_scale: options.CfgScales = None,
    cfg_channels: Annotated[
        str, option("Guidance", "CHANNELS", "The channels that the scale guides.", *options.CHANNELS)
    ] = "3",
    to: Annotated[str, option("Guidance", "CHANNELS", "The channels to find the equivalent scale for.")] = "all",
    interval: options.Interval = None,
    adaptive: options.Adaptive = None,
    reuse: options.Reuse = None,
    steps: options.Steps = None,
    sampler: options.Sampler = None,
    spacing: options.Spacing = None,
    fast: options.Fast = False,
    block: Annotated[
        int | None,
        option("Sampling", "N", "Number of clips that are denoised together.", min=1, default="the model's: 16"),
    ] = None,
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
        option(
            "Output",
            "FOLDER",
            "Folder for clips, table and curve; an interrupted run resumes in it.",
            *options.OUT,
            default="none",
        ),
    ] = None,
) -> None:
    """Find equivalent guidance scales for two choices of channels.

    Prints which scale on other channels does what a scale on some channels does, and how certain that is.
    """
    # Plan a study of both choices of channels, over a grid of scales. Check it before torch is imported.
    precisions, chosen_here = precisions_for(model, dtype=dtype, decode_dtype=decode_dtype)
    parts = chosen_here | given(
        checkpoint=checkpoint, text_encoder=text_encoder, vae=vae, features=features, lora=lora or None,
        text_dtype=text_dtype, call=parse_call(call), compile=compile or None, offload=offload,
        download=download or None,
    )  # fmt: skip
    planner = find_any_planner(model, device, parts)
    sampling = precisions | given(
        steps=steps, sampler=sampler, timing=parse_timing(interval), spacing=spacing, fast=fast or None,
        adaptive=adaptive, reuse=reuse,
    )  # fmt: skip
    scales = cfg_scale or [own_scale(planner, cast("Choices", sampling))]
    guided = {"cfg_channels": cfg_channels, **sampling}
    requests = [planner.complete([""], cfg_scale=scale, **guided) for scale in scales]  # first: measuring needs numpy
    from ..analysis import matching
    from ..metrics.bench import find_bench
    from ..studies.planning import check_study, make_plan

    metrics, distilled = find_bench(planner.bench).metrics, requests[0].distilled
    matching.check_metrics(metric or (), metrics, distilled=distilled, is_image=planner.is_image)

    def study_of(sampling: dict[str, Any]) -> Study:
        return matching.matching_study(
            planner, model, scales, cfg_channels, to, prompts=prompts or captions, block=block, parts=parts, **sampling
        )

    check_study(study_of(sampling), planner)
    if out is not None:
        prepare_folder(out)

    # Run it, and find where the curves meet.
    from ..core.progress import progress
    from ..pipeline import load
    from ..studies.cells import threads_of
    from ..studies.run import run_study

    pipe = load(model, device=device, **parts)
    study = study_of(sampling | chosen_by(pipe, chosen_here))
    plan = make_plan(study, pipe, threads=None if out is None else threads_of(out))
    kept = "nothing is kept" if out is None else f"what is done is kept in {out}: the same command goes on"
    with tempfile.TemporaryDirectory() as temporary:
        folder = out or Path(temporary) / "match"
        with stopped(kept), progress(f"matching on {plan.cells} clips", "clips") as on_cell:
            run_study(plan, pipe, folder, on_cell=on_cell, say=say)
        found = matching.equivalents(plan, folder, pipe.channels, metric or ())

    # Print a paragraph per scale.
    for scale in dict.fromkeys(row.cfg_scale for row in found):
        rule = matching.thumb(scale, cfg_channels, to, pipe.channels)
        same = f"with the same sum of scale - 1: {rule:.2f}"
        print(f"scale {scale:g} on channels {cfg_channels} is this scale on channels {to} ({same}):")
        for row in found:
            if row.cfg_scale == scale:
                print(f"  {row}")
    for path in matching.write_matches(found, pipe.channels, out) if out is not None else ():
        print(path)
