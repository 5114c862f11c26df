"""``guidon bench``: what a model costs on this machine, and what each choice saves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from ..core.errors import InputError, setting
from . import options
from .options import given, of_model, option
from .outputs import prepare_folder
from .planning import find_planner, known_device
from .values import parse_size

if TYPE_CHECKING:
    from ..analysis.speed import Comparison
    from ..request import Choices

EXAMPLE = "guidon bench guidon-small --dtype fp32,bf16 --rounds 5"
PARTS = ("step", "outside", "decode", "clip", "train")
BRANCHES = ("batched", "sequential", "conditional")
MOST_THREADS = 4096
WORDS = {
    "step": "guided steps",
    "outside": "steps without the network",
    "decode": "the decoder",
    "clip": "whole clips",
    "train": "steps of training",
}


def bench(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A name that `guidon models` lists, or a folder of weights.",
            rich_help_panel="Model and weights",
        ),
    ] = "guidon-small",
    prompt: Annotated[
        str | None,
        option("Prompt", "TEXT", "What the clips show: longer prompts may cost more.", default="one that it follows"),
    ] = None,
    force: options.Force = False,
    parts: Annotated[
        str | None,
        option(
            "Measuring",
            "LIST",
            "What is measured: step (one guided step), outside (the same without the network), decode, clip (a whole "
            "one), train (a step of training).",
            default="step,outside,decode,clip; of a --checkpoint alone step,outside",
            values=PARTS,
        ),
    ] = None,
    rounds: Annotated[
        int | None,
        option(
            "Measuring",
            "N",
            "Rounds; in each one every arm runs once, in random order.",
            default="what fits in 15 s for each part, 3 to 15",
            min=1,
        ),
    ] = None,
    dtype: Annotated[
        str, option("Sampling", "LIST", "Precisions of the network: fp32, bf16 or fp16.", values=options.DTYPES)
    ] = "fp32,bf16",
    branches: Annotated[
        str,
        option(
            "Sampling",
            "LIST",
            "How the branches of guidance run in a step: batched (in one batch), sequential (one after the other), "
            "conditional (without guidance).",
            values=BRANCHES,
        ),
    ] = "batched,sequential,conditional",
    sampler: Annotated[
        str | None,
        option("Sampling", "LIST", "Samplers of a whole clip.", default=of_model("ddpm"), values=options.SAMPLERS),
    ] = None,
    steps: Annotated[
        str | None,
        option("Sampling", "LIST", "Numbers of steps of a whole clip.", default=f"{of_model('50')}, and half of it"),
    ] = None,
    batch_size: Annotated[int, option("Sampling", "N", "Clips that are denoised together.", min=1)] = 1,
    size: Annotated[
        str | None, option("Sampling", "HEIGHTxWIDTH", "Size in pixels.", default=of_model("64x64"))
    ] = None,
    frames: Annotated[
        int | None, option("Sampling", "N", "Number of frames.", "--frames", "--num-frames", default=of_model("16"))
    ] = None,
    checkpoint: options.Checkpoint = None,
    text_encoder: options.TextEncoder = None,
    vae: options.VAE = None,
    features: options.Features = None,
    device: options.Device = "auto",
    threads: Annotated[
        int | None, option("Measuring", "N", "CPU threads; with 1, ratios are of CPU time.", default="torch's", min=1)
    ] = None,
    json: Annotated[
        Path | None,
        option("Output", "FILE", "Also write all times, and the machine, as JSON.", "--json", default="none"),
    ] = None,
) -> None:
    """Measure what a model costs here, and what each choice saves.

    Arms take turns in one process, and are compared by ratios within a round. The first value of each list is the base.
    Arms that give another result are labelled lossy, with their error.
    """
    # Check everything before torch is imported.
    from ..analysis.speed.choices import USUAL, Options, read_list, read_numbers, usual_prompt
    from ..core.devices import check_device
    from ..models.catalogue import find_facts, find_preset
    from ..models.sources import NetworkOnly, Sources
    from ..models.text.headers import stored_prompts
    from ..pipeline.planner import Planner

    files: dict[str, Any] = given(checkpoint=checkpoint, text_encoder=text_encoder, vae=vae, features=features)
    alone = list(files) == ["checkpoint"]  # enough to measure the network
    chosen = read_list(parts, "parts", PARTS) if parts else USUAL[:2] if alone else USUAL
    if alone and not {"decode", "clip"} & {*chosen}:
        check_device(device)
        preset, sources = find_preset(model), NetworkOnly(**files)
        planner = Planner(preset, find_facts(preset, sources))
    else:
        planner = find_planner(model, device, files)
        preset, sources = planner.preset, Sources(**files)
    half = sorted({preset.steps, max(1, preset.steps // 2)}, reverse=True)
    arms = Options(
        parts=chosen,
        dtypes=read_list(dtype, "dtype", options.DTYPES),
        branches=read_list(branches, "branches", BRANCHES),
        samplers=read_list(sampler, "sampler", options.SAMPLERS) if sampler else (preset.sampler,),
        steps=read_numbers(steps, "steps") if steps else tuple(half),
        batch_size=batch_size,
    )
    text = prompt if prompt is not None else usual_prompt(planner, stored_prompts(features) if features else ())
    shared = cast("Choices", given(size=parse_size(size, None, None), frames=frames))
    requests = arms.plan(planner, text, shared, known_device(device), force)
    if threads is not None and threads > MOST_THREADS:
        raise InputError(f"{setting('threads')} {threads} is too many: give at most {MOST_THREADS}")
    if json is not None:
        if json.is_dir():
            raise InputError(f"{setting('json')} {json} is a folder: give a file")
        prepare_folder(json.parent)

    # Load the model.

    from ..analysis.speed import describe_machine, machine_line, measure_part, write_measurements
    from ..analysis.speed.model import Measured
    from ..core.devices import cpu_threads, pick_device
    from ..core.progress import progress
    from ..models.catalogue import find_model
    from ..pipeline import Pipeline

    found: list[Comparison] = []
    with cpu_threads(threads):
        place = pick_device(device)
        pipe = Pipeline(preset, find_model(preset, sources, place), place, sources)
        print(f"{preset.name} on {machine_line(describe_machine(pipe.device))}\n", flush=True)
        measured = Measured(pipe, next(iter(requests.values())))

        # Measure part by part: what is printed and written is whole when Ctrl-C ends the next one.
        for part in chosen:
            try:
                with progress(f"measuring {WORDS[part]}", "rounds") as on_step:
                    found.append(measure_part(part, measured, arms, requests, rounds=rounds, on_step=on_step))
            except KeyboardInterrupt:
                raise typer.Abort(_kept(found, json)) from None
            print("\n".join([found[-1].table(), *found[-1].savings(), ""]), flush=True)
            if json is not None:
                write_measurements(json, found, pipe.device)
            if found[-1].stopped:
                raise typer.Abort(_kept(found, json))
    if json is not None:
        print(json)


def _kept(found: list[Comparison], json: Path | None) -> str:
    """What Ctrl-C leaves."""
    if not found:
        return "stopped; nothing was measured"
    return f"stopped; the tables above are kept{f' in {json}' if json is not None else ''}"
