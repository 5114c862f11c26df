"""``guidon evaluate``: metrics of a model, or of video files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import InputError, setting
from . import options
from .options import given, option
from .outputs import prepare_folder
from .values import parse_timing

EXAMPLE = "guidon evaluate --prompts 100 --cfg-scale 1 --cfg-scale 2 --cfg-channels 3 --cfg-channels all"


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
    seeds: Annotated[int, option("Measuring", "N", "Number of samples per caption.", min=1)] = 1,
    cfg_scale: options.CfgScales = None,
    cfg_channels: Annotated[
        list[str] | None, option("Guidance", "CHANNELS", "Guided channels; repeatable.", *options.CHANNELS, default="3")
    ] = None,
    interval: options.Interval = None,
    steps: options.Steps = None,
    sampler: options.Sampler = None,
    model: options.Model = "guidon-small",
    device: options.Device = "auto",
    out: Annotated[
        Path | None,
        option("Output", "FOLDER", "Folder for metrics.csv, summary.json and sheet.png.", *options.OUT, default="none"),
    ] = None,
) -> None:
    """Measure a model on held-out captions, or measure video files.

    Every setting is sampled with the same noise. Without --cfg-scale these are no guidance and the model's scale.
    """
    from ..analysis import evaluate as evaluation
    from ..core.progress import progress
    from ..pipeline import load

    sampling = {"steps": steps, "sampler": sampler, "timing": parse_timing(interval)}
    if out is not None:
        prepare_folder(out)
    if videos:
        for name in given(cfg_scale=cfg_scale, cfg_channels=cfg_channels, **sampling):
            raise InputError(f"{setting(name)} belongs to a model, and video files were given: leave it out")
        print(evaluation.measure_files(videos, caption, out))
        return
    if caption is not None:
        raise InputError(f"{setting('caption')} belongs to video files, and none was given")
    pipe = load(model, device=device)
    settings = evaluation.settings_of(cfg_scale or [1.0, pipe.preset.cfg_scale], cfg_channels or ["3"])
    with progress("evaluating") as on_step:
        found = evaluation.evaluate(
            pipe, settings, split=split, prompts=prompts, seeds=seeds, on_step=on_step, **sampling
        )
    print(found.table())
    print("{sampler}, {steps} steps, guidance {guidance}, {timing}".format_map(found.sampling))
    for path in found.write(out) if out is not None else ():
        print(path)
