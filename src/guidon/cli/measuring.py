"""Commands that measure: a model, guidance in it, settings against each other."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import InputError
from .app import (
    VAE,
    Checkpoint,
    Device,
    Features,
    Interval,
    Model,
    Sampler,
    Steps,
    TextEncoder,
    WorldModel,
    app,
    example,
)


@app.command(
    epilog=example("guidon evaluate --prompts 100 --cfg-scale 1 --cfg-scale 2 --cfg-channels 3 --cfg-channels all")
)
def evaluate(
    videos: Annotated[
        list[Path] | None, typer.Argument(metavar="VIDEO...", help="Files to measure, in place of a model.")
    ] = None,
    caption: Annotated[
        str | None, typer.Option(help="What the files should show; theirs, where a manifest lies beside them.")
    ] = None,
    model: WorldModel = "guidon-small",
    split: Annotated[
        str, typer.Option(help="L0 new seeds, L1 unseen pairs, L2 unseen triples, L3 an unseen speed.")
    ] = "L0",
    prompts: Annotated[int, typer.Option(help="How many captions of the split.", min=2)] = 100,
    seeds: Annotated[int, typer.Option(help="Samples of each caption.", min=1)] = 1,
    cfg_scale: Annotated[
        list[float] | None, typer.Option(help="Guidance scale; repeatable. [default: 1 and the model's]")
    ] = None,
    cfg_channels: Annotated[list[str] | None, typer.Option(help="Guided channels; repeatable. [default: 3]")] = None,
    interval: Interval = None,
    steps: Steps = None,
    sampler: Sampler = None,
    device: Device = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder for metrics.csv, summary.json and sheet.png.")] = None,
) -> None:
    """Measure a model on held-out captions, every setting with the same noise; or measure video files."""
    from ..analysis import evaluate as evaluation
    from .making_generate import prepare_folder, progress

    if out is not None:
        prepare_folder(out)
    if videos:
        given = {"cfg-scale": cfg_scale, "cfg-channels": cfg_channels, "interval": interval}
        given |= {"steps": steps, "sampler": sampler}
        for name, value in given.items():
            if value is not None:
                raise InputError(f"--{name} belongs to a model, and video files were given: leave it out")
        print(evaluation.measure_files(videos, caption, out))
        return
    if caption is not None:
        raise InputError("--caption belongs to video files, and none was given")
    from ..pipeline import load

    pipe = load(model, device=device)
    settings = evaluation.settings_of(cfg_scale or [1.0, pipe.preset.cfg_scale], cfg_channels or ["3"])
    with progress("evaluating") as on_step:
        found = evaluation.evaluate(
            pipe, settings, split=split, prompts=prompts, seeds=seeds, on_step=on_step,
            steps=steps, sampler=sampler, timing=interval,
        )  # fmt: skip
    print(found.table())
    print("{sampler}, {steps} steps, guidance {guidance}, {timing}".format_map(found.sampling))
    for path in found.write(out) if out is not None else ():
        print(path)


@app.command(epilog=example('guidon spectrum "a red circle moves left on a white background" --out spectrum'))
def spectrum(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="What to show; several are averaged.")],
    model: Model = "guidon-small",
    seed: Annotated[int, typer.Option(help="Seed of the noise.", min=0)] = 0,
    steps: Steps = None,
    sampler: Sampler = None,
    cfg_scale: Annotated[float | None, typer.Option(help="Guidance scale. [default: the model's]")] = None,
    cfg_channels: Annotated[str | None, typer.Option(help="Guided channels. [default: the model's]")] = None,
    interval: Interval = None,
    looks: Annotated[int, typer.Option(help="At how many steps the decoder is asked.", min=1)] = 8,
    checkpoint: Checkpoint = None,
    text_encoder: TextEncoder = None,
    vae: VAE = None,
    features: Features = None,
    device: Device = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder for spectrum.npz and spectrum.png.")] = None,
) -> None:
    """Take guidance apart: its energy per channel, step and frame, and what of it the decoder shows."""
    from ..analysis.spectrum import spectrum as measured
    from ..pipeline import load
    from .making_generate import prepare_folder, progress

    if out is not None:
        prepare_folder(out)
    given = {"seed": seed, "steps": steps, "sampler": sampler, "timing": interval}
    given |= {"cfg_scale": cfg_scale, "cfg_channels": cfg_channels}
    choices = {name: value for name, value in given.items() if value is not None}
    pipe = load(model, device=device, checkpoint=checkpoint, text_encoder=text_encoder, vae=vae, features=features)
    with progress("sampling") as on_step:
        found = measured(pipe, prompts, looks=looks, on_step=on_step, **choices)
    print(found.table())
    print("energy: share of the squared cond - uncond; the rest: RMS change of the video per unit of scale, 1/1000")
    for path in found.write(out) if out is not None else ():
        print(path)


@app.command(epilog=example("guidon match --cfg-scale 3 --cfg-channels 3 --to all"))
def match(
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT...", help="To match on, where the model is not of the world.")
    ] = None,
    cfg_scale: Annotated[
        list[float] | None, typer.Option(help="The scale to match; repeatable, for a curve. [default: the model's]")
    ] = None,
    cfg_channels: Annotated[str, typer.Option(help="The channels that it guides.")] = "3",
    to: Annotated[str, typer.Option(help="The channels to find the equivalent scale for.")] = "all",
    interval: Interval = None,
    model: Model = "guidon-small",
    captions: Annotated[int, typer.Option(help="Captions of the world to match on.", min=2)] = 24,
    metric: Annotated[list[str] | None, typer.Option(help="What to match; repeatable. [default: several]")] = None,
    steps: Steps = None,
    sampler: Sampler = None,
    block: Annotated[int, typer.Option(help="Clips denoised together.", min=1)] = 16,
    checkpoint: Checkpoint = None,
    text_encoder: TextEncoder = None,
    vae: VAE = None,
    features: Features = None,
    device: Device = "auto",
    out: Annotated[
        Path | None, typer.Option(help="Folder to keep cells, table and curve in; cut off, it goes on there.")
    ] = None,
) -> None:
    """Find the scale on other channels that does what a scale on some channels does, and how sure that is."""
    import tempfile

    from ..analysis import matching
    from ..pipeline import load
    from ..studies.plan import make_plan
    from ..studies.run import run_study, threads_of
    from .making_generate import progress

    pipe = load(model, device=device, checkpoint=checkpoint, text_encoder=text_encoder, vae=vae, features=features)
    study = matching.matching_study(
        pipe, model, cfg_scale or [pipe.preset.cfg_scale], cfg_channels, to,
        prompts=prompts or captions, steps=steps, sampler=sampler, timing=interval, block=block,
    )  # fmt: skip
    plan = make_plan(study, pipe, threads=None if out is None else threads_of(out))
    matching.check_metrics(metric or (), plan.metrics)
    with tempfile.TemporaryDirectory() as temporary:
        folder = out or Path(temporary) / "match"
        with progress("matching") as on_cell:
            run_study(plan, pipe, folder, on_cell=on_cell, say=lambda text: print(f"guidon: {text}", file=sys.stderr))
        found = matching.equivalents(plan, folder, pipe.channels, metric or ())
    for scale in dict.fromkeys(row.cfg_scale for row in found):
        rule = matching.thumb(scale, cfg_channels, to, pipe.channels)
        print(f"scale {scale:g} on channels {cfg_channels} is, on channels {to} (as much in sum: {rule:.2f}):")
        for row in found:
            if row.cfg_scale == scale:
                print(f"  {row}")
    for path in matching.write_matches(found, pipe.channels, out) if out is not None else ():
        print(path)


@app.command(epilog=example("guidon tune --cfg-scale 3 --evaluations 40 --out tuned"))
def tune(
    cfg_scale: Annotated[float | None, typer.Option(help="Where to start. [default: the model's]")] = None,
    cfg_channels: Annotated[str, typer.Option(help="Channels that are guided at the start.")] = "all",
    interval: Interval = None,
    model: WorldModel = "guidon-small",
    captions: Annotated[int, typer.Option(help="Captions that choose.", min=2)] = 24,
    held_out: Annotated[int, typer.Option(help="Other captions, that judge.", min=2)] = 48,
    evaluations: Annotated[int, typer.Option(help="Settings that are sampled at most.")] = 60,
    steps: Steps = None,
    sampler: Sampler = None,
    device: Device = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder for the journal; cut off, it goes on there.")] = None,
) -> None:
    """Find scales per channel with less oversaturation and drift at the same alignment, verified on other prompts."""
    from ..analysis import tuning
    from ..pipeline import load
    from .making_generate import prepare_folder, progress

    if out is not None:
        prepare_folder(out)
    pipe = load(model, device=device)
    choices = {"steps": steps, "sampler": sampler, "timing": interval}
    with progress("tuning") as on_evaluation:
        found = tuning.tune(
            pipe, pipe.preset.cfg_scale if cfg_scale is None else cfg_scale, cfg_channels,
            prompts=captions, held_out=held_out, evaluations=evaluations,
            journal=None if out is None else out / "tuning.json", on_evaluation=on_evaluation, **choices,
        )  # fmt: skip
    print(found)


study_app = typer.Typer(no_args_is_help=True, help="Compare settings on the same prompts and noise, with statistics.")
app.add_typer(study_app, name="study")


@study_app.command("run", epilog=example("guidon study run studies/quick.yaml --out results"))
def study_run(
    file: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="Model, prompts, settings, primary contrast.")],
    out: Annotated[Path, typer.Option(help="Results folder; a study that was cut off goes on in it.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan, its cost and what it can see, and stop.")
    ] = False,
    device: Device = "auto",
) -> None:
    """Do every cell of a study once: settings x prompts x seeds. Stopped or killed, the same command goes on."""
    from ..pipeline import load
    from ..studies import plan as planning
    from ..studies import run as running
    from .making_generate import progress

    wanted = planning.load_study(file)
    pipe = load(wanted.model, device=device, **wanted.sources.model_dump())
    plan = planning.make_plan(wanted, pipe, threads=running.threads_of(out))
    if dry_run:
        print(planning.outline(plan, running.seconds_per_cell(plan, pipe)))
        return
    with progress("study") as on_cell:
        running.run_study(plan, pipe, out, on_cell=on_cell, say=lambda text: print(f"guidon: {text}", file=sys.stderr))
    try:
        found = running.results(plan, out)
    except InputError:
        if os.environ.get("WORLD_SIZE", "1") == "1":
            raise
        return  # other ranks are still at theirs, and the last one answers
    running.write_csv(plan, found, out / "results.csv")
    print(out / "results.csv")
    print(running.answer(plan, found))


@study_app.command("report", epilog=example("guidon study report results"))
def study_report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Results of `guidon study run`.")],
    out: Annotated[Path | None, typer.Option(help="The page. [default: DIR/report.html]")] = None,
    max_mb: Annotated[float, typer.Option(help="The page grows no larger; further clips stay in DIR.", min=0.1)] = 10,
    videos: Annotated[bool, typer.Option("--videos/--no-videos", help="Also write the clips as MP4, into DIR.")] = True,
) -> None:
    """Make one HTML file of a study: answer, figures, plots, every clip on one clock, a blind vote. Works offline."""
    from ..studies.report import write_report
    from .making_generate import progress

    with progress("writing MP4s") as on_cell:
        paths = write_report(folder, out, max_mb=max_mb, videos=videos, on_cell=on_cell)
    for path in paths:
        print(path)
