"""``guidon generate``: prompts, or a manifest, to videos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..core.errors import InputError, setting
from . import options
from .options import given, option
from .outputs import prepare_folder, run_name, say, write_trace, write_videos
from .values import parse_scale, parse_size, parse_timing

if TYPE_CHECKING:
    from ..request import Request

EXAMPLE = 'guidon generate "a red circle moves left on a white background" --seed 7 --cfg-scale 4 --cfg-channels 3'
DEFAULT_MODEL = "guidon-small"  # used if neither a model nor a manifest is given


def generate(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROMPT", help="What to show; several are allowed.", rich_help_panel="Prompt"),
    ] = None,
    prompts_file: Annotated[
        Path | None, option("Prompt", "FILE", "A text file of more prompts, one per line.", default="none")
    ] = None,
    classes: Annotated[
        list[int] | None,
        option("Prompt", "NUMBER", "A class, for a class-conditional model; repeatable.", "--class", default="none"),
    ] = None,
    negative_prompt: Annotated[
        str | None,
        option("Prompt", "TEXT", "What to steer away from, in place of the null caption.", default="the null caption"),
    ] = None,
    from_manifest: Annotated[
        Path | None,
        option(
            "Prompt", "FILE", "Reproduce a video: take every setting from its JSON manifest.", "--from", default="none"
        ),
    ] = None,
    cfg_scale: options.CfgScalePerChannel = None,
    cfg_channels: options.CfgChannels = None,
    guidance: Annotated[
        str | None,
        option(
            "Guidance",
            "RULE",
            "Guidance rule: cfg, rescale, apg, cfg-zero, cfg++, fdg or perp-neg; its settings follow a colon, as "
            "in apg:momentum=0.",
            default="cfg",
        ),
    ] = None,
    interval: options.Interval = None,
    ramp: Annotated[
        str | None,
        option("Guidance", "SHAPE", "Let the scale grow during sampling: linear or cosine.", default="off"),
    ] = None,
    oscillate: Annotated[
        int | None,
        option("Guidance", "N", "From step N on, guide every second step only.", default="off"),
    ] = None,
    seed: Annotated[int | None, option("Sampling", "N", "Seed of the noise.", min=0, default="0")] = None,
    num_samples: Annotated[
        int, option("Sampling", "N", "Number of videos per prompt, each from noise of its own.", min=1)
    ] = 1,
    steps: options.Steps = None,
    sampler: options.Sampler = None,
    eta: Annotated[float | None, option("Sampling", "X", "Noise that ddim adds, from 0 to 1.", default="0")] = None,
    size: Annotated[
        str | None,
        option(
            "Sampling", "HEIGHTxWIDTH", "Size in pixels, for a model that takes other sizes.", default="the model's"
        ),
    ] = None,
    height: Annotated[
        int | None,
        option("Sampling", "PIXELS", "Height, given together with --width; the same as --size.", default="the model's"),
    ] = None,
    width: Annotated[
        int | None,
        option("Sampling", "PIXELS", "Width, given together with --height; the same as --size.", default="the model's"),
    ] = None,
    frames: Annotated[
        int | None,
        option(
            "Sampling",
            "N",
            "Number of frames, for a model that takes other lengths.",
            "--frames",
            "--num-frames",
            default="the model's",
        ),
    ] = None,
    exact: Annotated[
        str | None,
        option(
            "Sampling",
            "NAME",
            "Draw the noise as an original does: open-sora-1.0, open-sora-1.1, dit or pixart.",
            default="off",
        ),
    ] = None,
    exact_noise: Annotated[
        str | None,
        option(
            "Sampling",
            "NAME",
            "With --exact, draw the noise on this device, or as a CUDA device does: cuda:a100, cuda:h100, ...",
            default="device",
        ),
    ] = None,
    batch_size: Annotated[
        int,
        option(
            "Sampling",
            "N",
            "Number of clips that are denoised together. It changes memory, not the clips, except with --exact.",
            min=1,
        ),
    ] = 8,
    sequential: Annotated[
        bool,
        option(
            "Sampling",
            None,
            "Run the conditional and the unconditional branch one after the other, in the memory of one branch.",
            "--sequential",
        ),
    ] = False,
    model: Annotated[
        str | None,
        option(
            "Model and weights",
            "NAME|FOLDER",
            "A name that `guidon models` lists, or a folder of weights.",
            default=DEFAULT_MODEL,
        ),
    ] = None,
    checkpoint: options.Checkpoint = None,
    text_encoder: options.TextEncoder = None,
    vae: options.VAE = None,
    features: options.Features = None,
    text_dtype: Annotated[
        str | None, option("Model and weights", "TYPE", "Precision of T5: fp32, bf16, fp16 or int8.", default="fp32")
    ] = None,
    dtype: Annotated[
        str | None, option("Model and weights", "TYPE", "Precision of the network: fp32, bf16 or fp16.", default="fp32")
    ] = None,
    offload: Annotated[
        str | None,
        option(
            "Model and weights",
            "HOW",
            "stages frees the memory of each part after its use; none keeps all parts.",
            default="the model's",
        ),
    ] = None,
    download: Annotated[
        bool, option("Model and weights", None, "Fetch missing weights from the hub.", "--download")
    ] = False,
    device: options.Device = "auto",
    out: Annotated[Path, option("Output", "FOLDER", "Folder for videos, manifests and the contact sheet.")] = Path(
        "outputs"
    ),
    format: Annotated[
        str | None,
        option(
            "Output",
            "FORMAT",
            "mp4, gif, webp, frames (a folder of PNGs) or png (one image).",
            default="mp4, or png for an image",
        ),
    ] = None,
    trace: Annotated[
        bool, option("Output", None, "Also write what guidance did, per channel and step, as .npz.", "--trace")
    ] = False,
) -> None:
    """Turn prompts into guided videos.

    Beside every video lies a JSON manifest of all its settings, from which --from makes the video again.
    """
    choices = given(
        negative_prompt=negative_prompt, cfg_scale=parse_scale(cfg_scale), cfg_channels=cfg_channels, guidance=guidance,
        timing=parse_timing(interval, ramp, oscillate), seed=seed, steps=steps, sampler=sampler, eta=eta,
        size=parse_size(size, height, width), frames=frames, exact=exact, exact_noise=exact_noise, dtype=dtype,
    )  # fmt: skip
    parts = given(
        checkpoint=checkpoint, text_encoder=text_encoder, vae=vae, features=features, text_dtype=text_dtype,
        download=download or None, offload=offload,
    )  # fmt: skip

    # What to make: prompts and choices, or all that a manifest says.
    request, texts, made_with = None, (), {}
    if from_manifest is None:
        texts = read_prompts([*(prompts or ()), *map(str, classes or ())], prompts_file)
    elif prompts or classes or prompts_file or choices or model or num_samples != 1:
        raise InputError(
            f"{setting('from_manifest')} takes every setting from the manifest: give no prompt, model or setting too"
        )
    else:
        request, made_with = read_manifest(from_manifest)

    # Refuse what cannot be written before the model is loaded.
    from ..media.files import check_format

    if format is not None:
        check_format(format)
    prepare_folder(out)

    # Load the model and complete the request with its defaults.
    from ..guidance import GuidanceTrace
    from ..pipeline import load

    pipe = load(request.model if request else model or DEFAULT_MODEL, device=device, **parts)
    format = format or ("png" if pipe.preset.is_image else "mp4")
    check_format(format)
    if format == "png" and not pipe.preset.is_image:
        raise InputError(
            f"{setting('format')} png holds one image, {pipe.preset.name} makes video: choose mp4, gif, webp or frames"
        )
    if request is None:
        request = pipe.plan(texts, tuple(range(num_samples)), batch_size=batch_size, **choices)
    warn_of_other_weights(made_with, pipe.hashes)

    # Generate and write.
    traced = GuidanceTrace() if trace else None
    if traced is not None:  # a trace can hold only one batch
        batch_size = max(batch_size, len(request.prompts) * len(request.samples))
    from ..core.progress import progress

    with progress("denoising") as on_step:
        videos = pipe.generate(request, batch_size=batch_size, sequential=sequential, on_step=on_step, trace=traced)
    write_videos(videos, request, pipe.hashes, out, format)
    if traced is not None:
        write_trace(traced, out / f"{run_name(request, pipe.hashes)}-trace.npz")


def read_prompts(prompts: Sequence[str], file: Path | None) -> tuple[str, ...]:
    """The prompts of the command line, then those of a file.

    Raises:
        InputError: there are none, one is not text, or the file cannot be read.
    """
    for prompt in prompts:
        if any("\ud800" <= letter <= "\udfff" for letter in prompt):
            raise InputError(f"the prompt {prompt!r} is not UTF-8 text")
    lines: list[str] = []
    if file is not None:
        from ..core.reading import read_text

        lines = read_text(file, f"{setting('prompts_file')}, a prompt a line").splitlines()
    found = (*prompts, *(line.strip() for line in lines if line.strip()))
    if not found:
        raise InputError('no prompt was given: guidon generate "a red circle moves left on a white background"')
    return found


def read_manifest(path: Path) -> tuple[Request, dict[str, str]]:
    """The request in a manifest, and the hashes of the weights that made its video.

    Raises:
        InputError: the file is no manifest of `guidon generate`.
    """
    from ..core.settings import read_mapping, validated
    from ..request import Request

    manifest = read_mapping(path)
    if not isinstance(manifest, dict) or "generation" not in manifest:
        raise InputError(f"{path} is not a manifest that `guidon generate` wrote: it has no 'generation'")
    weights = manifest.get("weights", {})
    if not isinstance(weights, dict):
        raise InputError(f"{path}: weights is {weights!r:.40}, expected hashes by name")
    return validated(Request, manifest["generation"], str(path)), weights


def warn_of_other_weights(made_with: dict[str, str], weights: dict[str, str]) -> None:
    """Print on stderr which weights differ from those that made a manifest's video."""
    for name in sorted(made_with.keys() | weights.keys()) if made_with else ():
        if weights.get(name) != made_with.get(name):
            other = f"another {name}" if name == "text_dtype" else f"other {name} weights"
            say(f"the manifest was made with {other}: frames will differ")
