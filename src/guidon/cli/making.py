"""Commands that make something: videos, caption features, models; and say what models there are."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..core.errors import InputError, nearest
from ..models.catalogue import PRESETS
from .app import VAE, Checkpoint, Device, Features, Interval, Sampler, Steps, TextEncoder, app, example


@app.command(
    epilog=example(
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
    steps: Steps = None,
    sampler: Sampler = None,
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
    interval: Interval = None,
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
    device: Device = "auto",
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
    from .making_generate import Request, run

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
    return interval or ramp


def _size(text: str | None) -> tuple[int, ...] | None:
    """``768x1344``, height first."""
    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.isdecimal() for side in sides):
        raise InputError(f"--size {text!r} is no size: give HEIGHTxWIDTH in pixels, such as 768x1344")
    return tuple(int(side) for side in sides)


@app.command(epilog=example("guidon inspect OpenSora-v1-HQ-16x256x256.pth"))
def inspect(
    checkpoint: Annotated[Path, typer.Argument(help="A .pt, .pth or safetensors file, or a folder in hub layout.")],
    num_heads: Annotated[int | None, typer.Option(help="Attention heads, where the size does not tell.")] = None,
) -> None:
    """Say what a checkpoint is: architecture, size, channels, precision, and what is odd about it."""
    from ..models.released import inspect_checkpoint

    print(inspect_checkpoint(checkpoint, **({} if num_heads is None else {"num_heads": num_heads})))


@app.command(epilog=example('guidon encode "a lighthouse" --text-encoder t5-v1_1-xxl --out captions.safetensors'))
def encode(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="Captions; '' for the empty one.")],
    text_encoder: Annotated[Path, typer.Option(help="Folder of T5 in hub layout.")],
    out: Annotated[Path, typer.Option(help="File to write, or to add to.")],
    max_length: Annotated[int, typer.Option(help="Tokens: 120 (Open-Sora 1.0, PixArt), 200 (1.1), 300.", min=1)] = 120,
    dtype: Annotated[str, typer.Option(help="fp32, bf16, fp16 or int8.")] = "fp32",
    device: Device = "auto",
) -> None:
    """Encode captions with T5 once and keep the features, for `guidon generate --features`."""
    from ..core.devices import pick_device
    from ..models.text.features import load_features, save_features
    from ..models.text.t5 import T5Encoder

    if out.exists():  # what could not be added to it is refused before gigabytes are read
        before = load_features(out, max_length).encoder
        if before.get("dtype") != dtype:
            raise InputError(f"{out} was encoded in {before.get('dtype')}, --dtype is {dtype}: write to a new file")
    encoder = T5Encoder.load(text_encoder, max_length=max_length, dtype=dtype, device=pick_device(device))
    print(save_features(out, prompts, *encoder.encode(prompts), encoder=encoder.description))


@app.command(epilog=example("guidon models"))
def models() -> None:
    """List the models that can be asked for by name, with their recommended settings."""
    for preset in PRESETS.values():
        print(f"{preset.name}: {preset.summary}")
        when = "" if preset.timing == "constant" else f", {preset.timing}"
        guided = f"scale {preset.cfg_scale:g}, channels {preset.cfg_channels}{when}"
        print(f"  {preset.sampler}, {preset.steps} steps, {guided}")
        print(f"  made by {preset.source}")
        if preset.measured:
            print(f"  measured: {preset.measured}")


@app.command(epilog=example("guidon train recipes/small.yaml"))
def train(
    config: Annotated[Path, typer.Argument(help="A recipe, see recipes/.")],
    export: Annotated[bool, typer.Option("--export", help="Export the last checkpoint; train no further.")] = False,
) -> None:
    """Train a model from a YAML recipe. Stop it at any time; the same command resumes."""
    from ..analysis.evaluate import look_during_training
    from ..training import run_recipe

    result = run_recipe(config, export_only=export, look=look_during_training)
    if result is None:
        print("stopped; its checkpoint is saved: the same command goes on from there", file=sys.stderr)
        raise typer.Exit(130)
    print(result)
