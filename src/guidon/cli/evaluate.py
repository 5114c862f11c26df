"""``guidon evaluate``: metrics of a model, or of video files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from ..core.errors import InputError, setting
from ..core.ranks import check_branches, own_rank, ranks_to_join
from . import options
from .generate import lines_named, read_prompts
from .options import given, option
from .outputs import prepare_folder, say, stopped
from .planning import brings_weights, chosen_by, find_planner, own_scale, refuse_idle_weak, split_precisions
from .together import joined
from .values import parse_timing

if TYPE_CHECKING:
    from ..request import Choices

EXAMPLE = "guidon evaluate --prompts 40 --cfg-scale 1 --cfg-scale 3 --cfg-channels 3 --cfg-channels all"


def evaluate(
    videos: Annotated[
        list[Path] | None,
        typer.Argument(metavar="VIDEO", help="Files to measure, in place of a model.", rich_help_panel="Measuring"),
    ] = None,
    caption: Annotated[
        str | None,
        option("Measuring", "TEXT", "What the files should show.", default="each file's manifest"),
    ] = None,
    split: Annotated[
        str,
        option(
            "Measuring",
            "NAME",
            "Held-out captions: L0 new seeds, L1 unseen pairs, L2 unseen triples, L3 an unseen speed.",
            values=options.SPLITS,
        ),
    ] = "L0",
    prompts: Annotated[int, option("Measuring", "N", "Number of captions of the split.", min=2)] = 100,
    prompts_file: Annotated[
        Path | None,
        option(
            "Measuring",
            "FILE",
            "A text file of prompts, one per line, in place of captions; for a model of another domain.",
            default="none",
        ),
    ] = None,
    seeds: Annotated[int, option("Measuring", "N", "Number of samples per caption.", min=1)] = 1,
    bench: Annotated[
        str | None,
        option(
            "Measuring",
            "NAME",
            "What measures: video, world, or with learned parts video+clip+dino; learned stands for all of these.",
            default="the model's, and the parts whose weights are given",
            values=options.BENCHES,
        ),
    ] = None,
    clip: Annotated[
        Path | None,
        option("Measuring", "FOLDER", "CLIP or SigLIP for the bench: fit to the prompt.", default="none"),
    ] = None,
    dino: Annotated[
        Path | None,
        option("Measuring", "FOLDER", "DINOv2 for the bench: consistency of the subject.", default="none"),
    ] = None,
    lpips: Annotated[
        Path | None,
        option("Measuring", "FOLDER", "The two files of LPIPS for the bench: visible change.", default="none"),
    ] = None,
    aesthetic: Annotated[
        Path | None,
        option("Measuring", "FILE", "LAION's aesthetic head for the bench and its CLIP.", default="none"),
    ] = None,
    cfg_scale: options.CfgScales = None,
    cfg_channels: Annotated[
        list[str] | None,
        option(
            "Guidance", "CHANNELS", "Guided channels; repeatable.", *options.CHANNELS, default=options.of_model("3")
        ),
    ] = None,
    guidance: options.Rule = None,
    interval: options.Interval = None,
    ramp: options.Ramp = None,
    oscillate: options.Oscillate = None,
    adaptive: options.Adaptive = None,
    reuse: options.Reuse = None,
    seed: options.Seed = None,
    steps: options.Steps = None,
    sampler: options.Sampler = None,
    spacing: options.Spacing = None,
    fast: options.Fast = False,
    batch_size: Annotated[
        int,
        option("Sampling", "N", "Number of clips that are denoised together; it changes memory.", min=1),
    ] = 16,
    model: options.Model = "guidon-small",
    checkpoint: options.Checkpoint = None,
    text_encoder: options.TextEncoder = None,
    vae: options.VAE = None,
    features: options.Features = None,
    text_dtype: options.TextDtype = None,
    weak: options.Weak = None,
    lora: options.Lora = None,
    dtype: options.Dtype = None,
    decode_dtype: options.DecodeDtype = None,
    compile: options.Compile = False,
    download: options.Download = False,
    device: options.Device = "auto",
    branch_ranks: options.BranchRanks = None,
    out: Annotated[
        Path | None,
        option("Output", "FOLDER", "Folder for metrics.csv, summary.json and sheet.png.", *options.OUT, default="none"),
    ] = None,
) -> None:
    """Measure a model on held-out captions, or measure video files.

    Every setting is sampled with the same noise. Without --cfg-scale these are no guidance and the model's scale.
    Files that cannot be measured are named and left out.
    """
    sampling = given(
        guidance=guidance, timing=parse_timing(interval, ramp, oscillate), seed=seed, steps=steps, sampler=sampler,
        spacing=spacing, fast=fast or None, adaptive=adaptive, reuse=reuse,
    )  # fmt: skip
    precisions, chosen_here = split_precisions(dtype=dtype, decode_dtype=decode_dtype)
    sampling |= precisions
    parts = chosen_here | given(
        checkpoint=checkpoint, text_encoder=text_encoder, vae=vae, features=features, weak=weak, lora=lora or None,
        text_dtype=text_dtype, compile=compile or None,
    )  # fmt: skip
    weights = given(name=bench, clip=clip, dino=dino, lpips=lpips, aesthetic=aesthetic)
    check_branches(branch_ranks, ranks_to_join())
    if videos:
        for name in given(
            cfg_scale=cfg_scale,
            cfg_channels=cfg_channels,
            prompts_file=prompts_file,
            branch_ranks=branch_ranks,
            **sampling,
            **parts,
        ):
            raise InputError(f"{setting(name)} belongs to a model, and video files were given: leave it out")
        if own_rank() == 0 or ranks_to_join() == 1:
            measure_files(videos, caption, weights | {"download": download}, device, out)
        return
    if caption is not None:
        raise InputError(f"{setting('caption')} belongs to video files, and none was given")

    # Check everything before torch is imported.
    if download and not (weights and brings_weights(model)):  # it may be for the bench alone
        parts["download"] = True
    planner = find_planner(model, device, parts)
    texts = prompts if prompts_file is None else read_prompts((), prompts_file)
    scales = cfg_scale or [1.0, own_scale(planner, cast("Choices", sampling))]
    channels = cfg_channels or [planner.preset.cfg_channels]
    for scale in scales:  # the settings first: what measures needs numpy
        for choice in channels:
            asked_for = planner.complete([""], range(seeds), cfg_scale=scale, cfg_channels=choice, **sampling)
            refuse_idle_weak(weak, asked_for.guidance)
    from ..analysis import evaluate as evaluation
    from ..metrics.choice import BenchChoice

    chosen = BenchChoice(**weights, download=download)
    settings = evaluation.settings_of(scales, channels)
    asked: dict[str, Any] = {"split": None if prompts_file else split, "prompts": texts, "seeds": seeds}
    asked["bench"] = chosen
    check = partial(evaluation.check_evaluation, planner, settings, cast("Choices", sampling))
    with lines_named(prompts_file, lambda prompt: check(prompts=[prompt], seeds=seeds, bench=chosen)):
        captions = check(**asked)
    if out is not None:
        prepare_folder(out)

    # Sample and measure.
    from ..core.progress import progress
    from ..pipeline import load

    clips = len(settings) * len(captions) * seeds
    with stopped("nothing was written"), joined(branch_ranks) as ranks:
        pipe = ranks.agreed(lambda: load(model, device=device, **parts))
        own = chosen_by(pipe, chosen_here)
        sampling |= ranks.together(lambda: own)[0] if own else own  # all ranks take what the first one chose
        with progress(f"sampling and measuring {clips} clips") as on_step:
            run: dict[str, Any] = {"batch_size": batch_size, "on_step": on_step, "ranks": ranks}
            found = evaluation.evaluate(pipe, settings, **run, **asked, **sampling)
    if not ranks.first:
        return
    print(found.table())
    print("\nsampled with {sampler}, {steps} steps, guidance {guidance}, {timing}\n".format_map(found.sampling))
    print(found.legend())
    for path in found.write(out) if out is not None else ():
        print(path)


def measure_files(
    videos: Sequence[Path], caption: str | None, weights: dict[str, Any], device: str, out: Path | None
) -> None:
    """Measure files, and name those that are left out on stderr."""
    from ..analysis import evaluate as evaluation
    from ..metrics.choice import BenchChoice

    bench = BenchChoice(**weights)
    evaluation.check_files_bench(bench)
    if out is not None:
        prepare_folder(out)
    found = evaluation.measure_files(videos, caption, bench, device)
    for path, why in found.left_out.items():
        say(f"{path}: {why}")
    print(found.table())
    if out is not None:
        print(found.write(out / "metrics.json"))
