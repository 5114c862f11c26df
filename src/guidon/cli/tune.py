"""``guidon tune``: a scale per channel."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from . import options
from .options import given, option
from .outputs import prepare_folder, stopped
from .planning import chosen_by, find_any_planner, own_scale, precisions_for
from .values import parse_call, parse_timing

if TYPE_CHECKING:
    from ..pipeline.contract import ModelPipeline
    from ..request import Choices

EXAMPLE = "guidon tune --cfg-scale 3 --evaluations 40 --out tuned"


def tune(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROMPT",
            help="Prompts to tune on, for a model that does not make the synthetic world; every second one verifies.",
            rich_help_panel="Prompt",
        ),
    ] = None,
    captions: Annotated[int, option("Measuring", "N", "Number of captions that choose.", min=2)] = 24,
    held_out: Annotated[
        int, option("Measuring", "N", "Number of other captions, which verify the choice.", min=2)
    ] = 60,
    evaluations: Annotated[int, option("Measuring", "N", "Number of settings that are sampled at most.")] = 60,
    clip: Annotated[
        Path | None,
        option("Measuring", "FOLDER", "CLIP or SigLIP that tells how well a clip fits its prompt.", default="none"),
    ] = None,
    cfg_scale: options.CfgScale = None,
    cfg_channels: Annotated[
        str, option("Guidance", "CHANNELS", "Channels that are guided at the start.", *options.CHANNELS)
    ] = "all",
    interval: options.Interval = None,
    adaptive: options.Adaptive = None,
    reuse: options.Reuse = None,
    steps: options.Steps = None,
    sampler: options.Sampler = None,
    spacing: options.Spacing = None,
    fast: options.Fast = False,
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
            "Folder for the journal; an interrupted run resumes in it.",
            *options.OUT,
            default="none",
        ),
    ] = None,
) -> None:
    """Search a guidance scale per channel.

    The search starts from --cfg-scale and wants less oversaturation and drift at the same alignment with the prompt.
    """
    precisions, chosen_here = precisions_for(model, dtype=dtype, decode_dtype=decode_dtype)
    sampling: dict[str, Any] = precisions | given(
        steps=steps, sampler=sampler, timing=parse_timing(interval), spacing=spacing, fast=fast or None,
        adaptive=adaptive, reuse=reuse,
    )  # fmt: skip

    # Check everything before torch is imported.
    from ..metrics.choice import BenchChoice, find_weights
    from ..models.catalogue import find_preset
    from ..models.family import Released
    from ..request import DIFFUSERS

    chosen = BenchChoice(clip=clip)
    parts = chosen_here | given(
        checkpoint=checkpoint, text_encoder=text_encoder, vae=vae, features=features, lora=lora or None,
        text_dtype=text_dtype, call=parse_call(call), compile=compile or None, offload=offload,
        download=download or None,
    )  # fmt: skip
    if not model.startswith(DIFFUSERS):
        preset = find_preset(model)
        if isinstance(preset.weights, Released):  # before weights are asked for that could not be tuned
            from ..analysis import tuning
            from ..metrics.bench import find_bench

            tuning.goal_of(find_bench(chosen.full_name(preset.bench)))
    planner = find_any_planner(model, device, parts)
    scale = own_scale(planner, cast("Choices", sampling)) if cfg_scale is None else cfg_scale
    planner.complete([""], cfg_scale=scale, cfg_channels=cfg_channels, **sampling)  # first: what measures needs numpy
    from ..analysis import tuning
    from ..metrics.bench import find_bench, open_bench

    bench = find_bench(chosen.full_name(planner.bench))
    tuning.goal_of(bench)
    find_weights(chosen, bench.name)
    choose, verify = tuning.split_prompts(prompts) if prompts else (captions, held_out)
    tuning.check_tuning(
        planner, scale, cfg_channels, evaluations=evaluations, choices=cast("Choices", sampling), bench=bench,
        prompts=prompts or (),
    )  # fmt: skip
    if out is not None:
        prepare_folder(out)

    from ..core.progress import progress
    from ..pipeline import load

    pipe: ModelPipeline = load(model, device=device, **parts)
    sampling |= chosen_by(pipe, chosen_here)
    measures = open_bench(chosen, planner.bench, device=pipe.device, keep=pipe.keeps_parts)
    kept = "nothing is kept" if out is None else f"what is measured is kept in {out}: the same command goes on"
    with stopped(kept), progress(f"tuning over {evaluations} settings", "settings") as on_evaluation:
        found = tuning.tune(
            pipe, scale, cfg_channels, prompts=choose, held_out=verify, bench=measures, evaluations=evaluations,
            journal=None if out is None else out / "tuning.json", on_evaluation=on_evaluation, **sampling,
        )  # fmt: skip
    print(f"--cfg-scale {found.cfg_scale}\n{found.verdict}")
