"""The command line: one thin subcommand a capability. Heavy imports happen inside the command that needs them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import InputError, nearest
from .presets import PRESETS

_UsageError: Any = typer.BadParameter.__bases__[0]  # what the argument parser raises, whichever parser typer carries
Checkpoint = Annotated[Path | None, typer.Option(help="Released weights, of a model that is not shipped.")]
TextEncoder = Annotated[Path | None, typer.Option(help="Folder of T5 in hub layout.")]
VAE = Annotated[Path | None, typer.Option(help="Folder of the autoencoder in hub layout.")]
Features = Annotated[Path | None, typer.Option(help="Caption features kept by `guidon encode`, in place of T5.")]
app = typer.Typer(
    name="guidon",
    help="Classifier-free guidance for latent video diffusion: prompt to video, and what guidance does on the way.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _example(text: str) -> str:
    return f"Example:\n\n  {text}"


@app.command(
    epilog=_example(
        'guidon generate "a red circle moves left on a white background" --seed 7 --cfg-scale 4 --cfg-channels 3'
    )
)
def generate(
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT...", help="What to show; several are allowed.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for videos, manifests and the contact sheet.")] = Path("outputs"),
    seed: Annotated[int | None, typer.Option(help="Seed of the noise. [default: 0]", min=0)] = None,
    num_samples: Annotated[int, typer.Option(help="Videos per prompt.", min=1)] = 1,
    steps: Annotated[int | None, typer.Option(help="Denoising steps. [default: the model's]")] = None,
    sampler: Annotated[str | None, typer.Option(help="ddpm, ddim or dpm-solver. [default: the model's]")] = None,
    eta: Annotated[float | None, typer.Option(help="Noise of ddim, 0 to 1. [default: 0]")] = None,
    cfg_scale: Annotated[
        str | None, typer.Option(help="Guidance scale, or one per channel: 4,4,4,1. [default: the model's]")
    ] = None,
    cfg_channels: Annotated[
        str | None,
        typer.Option(
            "--cfg-channels", "--cfg-channel", help="Guided channels: 3 (the first three), all, none, 0,2, 0-2, only:3."
        ),
    ] = None,
    guidance: Annotated[
        str | None,
        typer.Option(
            help="Guidance rule: cfg, rescale, apg, cfg-zero, cfg++, fdg, perp-neg; settings as in apg:momentum=0."
        ),
    ] = None,
    interval: Annotated[
        str | None, typer.Option(help="Guide only between A,B: fractions of sampling, 0 noise, 1 video.")
    ] = None,
    ramp: Annotated[str | None, typer.Option(help="Let the scale grow during sampling: linear or cosine.")] = None,
    oscillate: Annotated[int | None, typer.Option(help="Guide every second step only, from step N on.")] = None,
    negative_prompt: Annotated[
        str | None, typer.Option(help="What to steer away from, in place of the null caption.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="HEIGHTxWIDTH in pixels, of a model that takes others. [default: the model's]")
    ] = None,
    frames: Annotated[
        int | None, typer.Option(help="Length, of a model that takes others. [default: the model's]")
    ] = None,
    model: Annotated[str | None, typer.Option(help="A preset (see `guidon models`) or a folder of weights.")] = None,
    classes: Annotated[
        list[int] | None, typer.Option("--class", help="A class number, of a class-conditional model; repeatable.")
    ] = None,
    checkpoint: Checkpoint = None,
    text_encoder: TextEncoder = None,
    vae: VAE = None,
    text_dtype: Annotated[
        str | None, typer.Option(help="Precision of T5: fp32, bf16, fp16 or int8. [default: fp32]")
    ] = None,
    features: Features = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch missing weights from the hub.")] = False,
    offload: Annotated[
        str | None, typer.Option(help="stages: free each part after use; none: keep all. [default: the model's]")
    ] = None,
    exact: Annotated[
        str | None, typer.Option(help="Replay an original's draws: open-sora-1.0, open-sora-1.1, dit or pixart.")
    ] = None,
    exact_noise: Annotated[
        str | None,
        typer.Option(help="With --exact: draw on this device, or as cuda:a100, cuda:h100, ... do. [default: device]"),
    ] = None,
    prompts_file: Annotated[Path | None, typer.Option(help="More prompts, one a line.")] = None,
    from_manifest: Annotated[
        Path | None, typer.Option("--from", help="Reproduce a video from its JSON manifest.")
    ] = None,
    format: Annotated[
        str | None, typer.Option(help="mp4, gif, webp, frames (PNGs) or png (an image). [default: mp4, or png]")
    ] = None,
    batch_size: Annotated[
        int, typer.Option(help="Clips denoised together: memory only, except with --exact.", min=1)
    ] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    dtype: Annotated[
        str | None, typer.Option(help="Precision of the network: fp32, bf16 or fp16. [default: fp32]")
    ] = None,
    sequential: Annotated[
        bool, typer.Option("--sequential", help="Run guidance's two branches one after the other: half the memory.")
    ] = False,
    trace: Annotated[
        bool, typer.Option("--trace", help="Also write what guidance did, per channel and step, as .npz.")
    ] = False,
) -> None:
    """Turn prompts into guided videos."""
    from .generate import Request, run

    choices = {
        "seed": seed, "steps": steps, "sampler": sampler, "eta": eta, "guidance": guidance, "dtype": dtype,
        "negative_prompt": negative_prompt, "cfg_scale": cfg_scale, "cfg_channels": cfg_channels,
        "timing": _timing(interval, ramp, oscillate), "exact": exact, "exact_noise": exact_noise,
        "size": _size(size), "frames": frames,
    }  # fmt: skip
    parts = {
        "checkpoint": checkpoint, "text_encoder": text_encoder, "vae": vae, "features": features,
        "text_dtype": text_dtype, "download": download, "offload": offload,
    }  # fmt: skip
    request = Request(
        prompts=(*(prompts or ()), *(str(number) for number in classes or ())),
        prompts_file=prompts_file,
        from_manifest=from_manifest,
        model=model,
        num_samples=num_samples,
        parts={name: value for name, value in parts.items() if value},
        choices={name: value for name, value in choices.items() if value is not None},
    )
    run(request, out=out, format=format, batch_size=batch_size, device=device, keep_trace=trace, sequential=sequential)


def _timing(interval: str | None, ramp: str | None, oscillate: int | None) -> str | None:
    """The text form of when to guide."""
    if sum(given is not None for given in (interval, ramp, oscillate)) > 1:
        raise InputError("--interval, --ramp and --oscillate say when to guide: choose one")
    if ramp is not None and ramp not in ("linear", "cosine"):
        raise InputError(f"--ramp {ramp!r} does not exist{nearest(ramp, ('linear', 'cosine'))}")
    if oscillate is not None:
        return f"oscillation:{oscillate}"
    return f"interval:{interval}" if interval is not None else ramp


def _size(text: str | None) -> tuple[int, ...] | None:
    """``768x1344``, height first."""
    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdecimal() for side in sides):
        raise InputError(f"--size {text!r} is no size: give HEIGHTxWIDTH in pixels, such as 768x1344")
    return tuple(int(side) for side in sides)


@app.command(epilog=_example("guidon inspect OpenSora-v1-HQ-16x256x256.pth"))
def inspect(
    checkpoint: Annotated[Path, typer.Argument(help="A .pt, .pth or safetensors file, or a folder in hub layout.")],
    num_heads: Annotated[int | None, typer.Option(help="Attention heads, where the size does not tell.")] = None,
) -> None:
    """Say what a checkpoint is: architecture, size, channels, precision, and what is odd about it."""
    from .checkpoints import inspect_checkpoint

    print(inspect_checkpoint(checkpoint, **({} if num_heads is None else {"num_heads": num_heads})))


@app.command(epilog=_example('guidon encode "a lighthouse" --text-encoder t5-v1_1-xxl --out captions.safetensors'))
def encode(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="Captions; '' for the empty one.")],
    text_encoder: Annotated[Path, typer.Option(help="Folder of T5 in hub layout.")],
    out: Annotated[Path, typer.Option(help="File to write, or to add to.")],
    max_length: Annotated[int, typer.Option(help="Tokens: 120 (Open-Sora 1.0, PixArt), 200 (1.1), 300.", min=1)] = 120,
    dtype: Annotated[str, typer.Option(help="fp32, bf16, fp16 or int8.")] = "fp32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
) -> None:
    """Encode captions with T5 once and keep the features, for `guidon generate --features`."""
    from .devices import pick_device
    from .features import load_features, save_features
    from .models.t5 import T5Encoder

    if out.exists():  # what could not be added to it is refused before gigabytes are read
        before = load_features(out, max_length).encoder
        if before.get("dtype") != dtype:
            raise InputError(f"{out} was encoded in {before.get('dtype')}, --dtype is {dtype}: write to a new file")
    encoder = T5Encoder.load(text_encoder, max_length=max_length, dtype=dtype, device=pick_device(device))
    print(save_features(out, prompts, *encoder.encode(prompts), encoder=encoder.description))


@app.command(epilog=_example("guidon models"))
def models() -> None:
    """List the models that can be asked for by name, with their recommended settings."""
    for preset in PRESETS.values():
        print(f"{preset.name}: {preset.summary}")
        print(f"  {preset.sampler}, {preset.steps} steps, scale {preset.cfg_scale:g}, channels {preset.cfg_channels}")
        print(f"  made by {preset.source}")
        if preset.measured:
            print(f"  measured: {preset.measured}")


@app.command(epilog=_example("guidon train recipes/small.yaml"))
def train(
    config: Annotated[Path, typer.Argument(help="A recipe, see recipes/.")],
    export: Annotated[bool, typer.Option("--export", help="Export the last checkpoint; train no further.")] = False,
) -> None:
    """Train a model from a YAML recipe. Stop it at any time; the same command resumes."""
    from .evaluation.evaluate import look_during_training
    from .training import run_recipe

    result = run_recipe(config, export_only=export, look=look_during_training)
    if result is None:
        print("stopped; its checkpoint is saved: the same command goes on from there", file=sys.stderr)
        raise typer.Exit(130)
    print(result)


@app.command(
    epilog=_example("guidon evaluate --prompts 100 --cfg-scale 1 --cfg-scale 2 --cfg-channels 3 --cfg-channels all")
)
def evaluate(
    videos: Annotated[
        list[Path] | None, typer.Argument(metavar="VIDEO...", help="Files to measure, in place of a model.")
    ] = None,
    caption: Annotated[
        str | None, typer.Option(help="What the files should show; theirs, where a manifest lies beside them.")
    ] = None,
    model: Annotated[str, typer.Option(help="A model of the world: a preset or a folder of weights.")] = "guidon-small",
    split: Annotated[
        str, typer.Option(help="L0 new seeds, L1 unseen pairs, L2 unseen triples, L3 an unseen speed.")
    ] = "L0",
    prompts: Annotated[int, typer.Option(help="How many captions of the split.", min=2)] = 100,
    seeds: Annotated[int, typer.Option(help="Samples of each caption.", min=1)] = 1,
    cfg_scale: Annotated[
        list[float] | None, typer.Option(help="Guidance scale; repeatable. [default: 1 and the model's]")
    ] = None,
    cfg_channels: Annotated[list[str] | None, typer.Option(help="Guided channels; repeatable. [default: 3]")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps. [default: the model's]")] = None,
    sampler: Annotated[str | None, typer.Option(help="ddpm, ddim or dpm-solver. [default: the model's]")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder for metrics.csv, summary.json and sheet.png.")] = None,
) -> None:
    """Measure a model on held-out captions, every setting with the same noise; or measure video files."""
    from .evaluation import evaluate as evaluation
    from .generate import prepare_folder, progress

    if out is not None:
        prepare_folder(out)
    sampling = {"steps": steps, "sampler": sampler, "cfg-scale": cfg_scale, "cfg-channels": cfg_channels}
    if videos:
        for name, value in sampling.items():
            if value is not None:
                raise InputError(f"--{name} belongs to a model, and video files were given: leave it out")
        print(evaluation.measure_files(videos, caption, out))
        return
    if caption is not None:
        raise InputError("--caption belongs to video files, and none was given")
    from .pipeline import load

    pipe = load(model, device=device)
    settings = evaluation.settings_of(cfg_scale or [1.0, pipe.preset.cfg_scale], cfg_channels or ["3"])
    choices = {name: value for name, value in {"steps": steps, "sampler": sampler}.items() if value is not None}
    with progress("evaluating") as on_step:
        found = evaluation.evaluate(
            pipe, settings, split=split, prompts=prompts, seeds=seeds, on_step=on_step, **choices
        )
    print(found.table())
    for path in found.write(out) if out is not None else ():
        print(path)


@app.command(epilog=_example('guidon spectrum "a red circle moves left on a white background" --out spectrum'))
def spectrum(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="What to show; several are averaged.")],
    model: Annotated[str, typer.Option(help="A preset or a folder of weights.")] = "guidon-small",
    seed: Annotated[int, typer.Option(help="Seed of the noise.", min=0)] = 0,
    steps: Annotated[int | None, typer.Option(help="Denoising steps. [default: the model's]")] = None,
    sampler: Annotated[str | None, typer.Option(help="ddpm, ddim or dpm-solver. [default: the model's]")] = None,
    cfg_scale: Annotated[float | None, typer.Option(help="Guidance scale. [default: the model's]")] = None,
    cfg_channels: Annotated[str | None, typer.Option(help="Guided channels. [default: the model's]")] = None,
    looks: Annotated[int, typer.Option(help="At how many steps the decoder is asked.", min=1)] = 8,
    checkpoint: Checkpoint = None,
    text_encoder: TextEncoder = None,
    vae: VAE = None,
    features: Features = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder for spectrum.npz and spectrum.png.")] = None,
) -> None:
    """Take guidance apart: its energy per channel, step and frame, and what of it the decoder shows."""
    from .evaluation.spectrum import spectrum as measured
    from .generate import prepare_folder, progress
    from .pipeline import load

    if out is not None:
        prepare_folder(out)
    given = {"seed": seed, "steps": steps, "sampler": sampler, "cfg_scale": cfg_scale, "cfg_channels": cfg_channels}
    choices = {name: value for name, value in given.items() if value is not None}
    pipe = load(model, device=device, checkpoint=checkpoint, text_encoder=text_encoder, vae=vae, features=features)
    with progress("sampling") as on_step:
        found = measured(pipe, prompts, looks=looks, on_step=on_step, **choices)
    print(found.table())
    print("energy: share of the squared cond - uncond; the rest: RMS change of the video per unit of scale, 1/1000")
    for path in found.write(out) if out is not None else ():
        print(path)


@app.command(epilog=_example("guidon match --cfg-scale 3 --cfg-channels 3 --to all"))
def match(
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT...", help="To match on, where the model is not of the world.")
    ] = None,
    cfg_scale: Annotated[
        list[float] | None, typer.Option(help="The scale to match; repeatable, for a curve. [default: the model's]")
    ] = None,
    cfg_channels: Annotated[str, typer.Option(help="The channels that it guides.")] = "3",
    to: Annotated[str, typer.Option(help="The channels to find the equivalent scale for.")] = "all",
    model: Annotated[str, typer.Option(help="A preset or a folder of weights.")] = "guidon-small",
    captions: Annotated[int, typer.Option(help="Captions of the world to match on.", min=2)] = 24,
    metric: Annotated[list[str] | None, typer.Option(help="What to match; repeatable. [default: several]")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps. [default: the model's]")] = None,
    sampler: Annotated[str | None, typer.Option(help="ddpm, ddim or dpm-solver. [default: the model's]")] = None,
    block: Annotated[int, typer.Option(help="Clips denoised together.", min=1)] = 16,
    checkpoint: Checkpoint = None,
    text_encoder: TextEncoder = None,
    vae: VAE = None,
    features: Features = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    out: Annotated[
        Path | None, typer.Option(help="Folder to keep cells, table and curve in; cut off, it goes on there.")
    ] = None,
) -> None:
    """Find the scale on other channels that does what a scale on some channels does, and how sure that is."""
    import tempfile

    from .evaluation import matching
    from .evaluation.plan import make_plan
    from .evaluation.study import run_study, threads_of
    from .generate import progress
    from .pipeline import load

    pipe = load(model, device=device, checkpoint=checkpoint, text_encoder=text_encoder, vae=vae, features=features)
    study = matching.matching_study(
        pipe, model, cfg_scale or [pipe.preset.cfg_scale], cfg_channels, to,
        prompts=prompts or captions, steps=steps, sampler=sampler, block=block,
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


@app.command(epilog=_example("guidon tune --cfg-scale 3 --evaluations 40 --out tuned"))
def tune(
    cfg_scale: Annotated[float | None, typer.Option(help="Where to start. [default: the model's]")] = None,
    cfg_channels: Annotated[str, typer.Option(help="Channels that are guided at the start.")] = "all",
    model: Annotated[str, typer.Option(help="A model of the world: a preset or a folder of weights.")] = "guidon-small",
    captions: Annotated[int, typer.Option(help="Captions that choose.", min=2)] = 24,
    held_out: Annotated[int, typer.Option(help="Other captions, that judge.", min=2)] = 48,
    evaluations: Annotated[int, typer.Option(help="Settings that are sampled at most.")] = 60,
    steps: Annotated[int | None, typer.Option(help="Denoising steps. [default: the model's]")] = None,
    sampler: Annotated[str | None, typer.Option(help="ddpm, ddim or dpm-solver. [default: the model's]")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Folder for the journal; cut off, it goes on there.")] = None,
) -> None:
    """Find scales per channel with less oversaturation and drift at the same alignment, verified on other prompts."""
    from .evaluation import tuning
    from .generate import prepare_folder, progress
    from .pipeline import load

    if out is not None:
        prepare_folder(out)
    pipe = load(model, device=device)
    choices = {"steps": steps, "sampler": sampler}
    with progress("tuning") as on_evaluation:
        found = tuning.tune(
            pipe, pipe.preset.cfg_scale if cfg_scale is None else cfg_scale, cfg_channels,
            prompts=captions, held_out=held_out, evaluations=evaluations,
            journal=None if out is None else out / "tuning.json", on_evaluation=on_evaluation, **choices,
        )  # fmt: skip
    print(found)


study_app = typer.Typer(no_args_is_help=True, help="Compare settings on the same prompts and noise, with statistics.")
app.add_typer(study_app, name="study")


@study_app.command("run", epilog=_example("guidon study run studies/quick.yaml --out results"))
def study_run(
    file: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="Model, prompts, settings, primary contrast.")],
    out: Annotated[Path, typer.Option(help="Results folder; a study that was cut off goes on in it.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan, its cost and what it can see, and stop.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
) -> None:
    """Do every cell of a study once: settings x prompts x seeds. Stopped or killed, the same command goes on."""
    from .evaluation import plan as planning
    from .evaluation import study as running
    from .generate import progress
    from .pipeline import load

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


@study_app.command("report", epilog=_example("guidon study report results"))
def study_report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Results of `guidon study run`.")],
    out: Annotated[Path | None, typer.Option(help="The page. [default: DIR/report.html]")] = None,
    max_mb: Annotated[float, typer.Option(help="The page grows no larger; further clips stay in DIR.", min=0.1)] = 10,
    videos: Annotated[bool, typer.Option("--videos/--no-videos", help="Also write the clips as MP4, into DIR.")] = True,
) -> None:
    """Make one HTML file of a study: answer, figures, plots, every clip on one clock, a blind vote. Works offline."""
    from .evaluation.report import write_report
    from .generate import progress

    with progress("writing MP4s") as on_cell:
        paths = write_report(folder, out, max_mb=max_mb, videos=videos, on_cell=on_cell)
    for path in paths:
        print(path)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if context.invoked_subcommand is None and not version:
        print(context.get_help())
    if version:
        from . import __version__

        print(__version__)
        raise typer.Exit


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line. Bad input prints one line and exits with 2; Ctrl-C exits with 130."""
    try:
        code = app(arguments, standalone_mode=False)
    except _UsageError as error:
        _refuse(error.format_message())
        code = 2
    except InputError as error:
        _refuse(str(error))
        code = 2
    except OSError as error:
        if os.environ.get("GUIDON_DEBUG"):
            raise
        where = f" ({error.filename})" if error.filename else ""
        _refuse(f"{error.strerror or error}{where}")
        code = 2
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError" or os.environ.get("GUIDON_DEBUG"):
            raise
        _refuse("the device's memory is full: denoise fewer clips together (--batch-size, --block, block in a study)")
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        _refuse("stopped")
        code = 130
    sys.exit(code or 0)


def _refuse(message: str) -> None:
    print("guidon: " + " ".join(message.split()), file=sys.stderr)
