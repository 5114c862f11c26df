"""``guidon generate``: prompts, or a manifest, to videos."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import InputError, setting
from . import options
from .options import given, of_model, option
from .outputs import prepare_folder, run_name, say, stopped, write_trace, write_videos
from .planning import find_planner, known_device
from .values import parse_scale, parse_size, parse_timing

if TYPE_CHECKING:
    from ..models.family import Preset
    from ..pipeline import Pipeline
    from ..request import Computation, Output, Request

EXAMPLE = 'guidon generate "a red circle moves left on a white background" --seed 7 --cfg-scale 4 --cfg-channels 3'
DEFAULT_MODEL = "guidon-small"  # used if neither a model nor a manifest is given
BATCH = 8  # clips that are denoised together, where neither the user nor a manifest says it
MOST_THREADS = 4  # for each core: a manifest that asks for more is not followed
MOST_PROMPTS = 1 << 20  # of one file: each is held in memory with its clips


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
    random_prompt: Annotated[
        bool,
        option("Prompt", None, "Draw a prompt that guidon-small follows; --seed chooses which.", "--random-prompt"),
    ] = False,
    force: options.Force = False,
    negative_prompt: Annotated[
        str | None,
        option("Prompt", "TEXT", "What to steer away from, in place of the null caption.", default="the null caption"),
    ] = None,
    from_manifest: Annotated[
        Path | None,
        option(
            "Prompt",
            "FILE",
            "Reproduce a video bit for bit: take every setting from its JSON manifest. A video from a batch "
            "takes as long as that batch; --batch-size 1 is faster, and pixels differ by at most 1/255 in fp32.",
            "--from",
            default="none",
        ),
    ] = None,
    cfg_scale: options.CfgScalePerChannel = None,
    cfg_channels: options.CfgChannels = None,
    guidance: options.Rule = None,
    interval: options.Interval = None,
    ramp: options.Ramp = None,
    oscillate: options.Oscillate = None,
    seed: options.Seed = None,
    num_samples: Annotated[
        int,
        option(
            "Sampling",
            "N",
            "Number of videos per prompt, each from noise of its own.",
            "--num-samples",
            "--num-videos-per-prompt",
            "--num-images-per-prompt",
            min=1,
        ),
    ] = 1,
    steps: options.Steps = None,
    sampler: options.Sampler = None,
    eta: Annotated[float | None, option("Sampling", "X", "Noise that ddim adds, from 0 to 1.", default="0")] = None,
    size: Annotated[
        str | None,
        option(
            "Sampling",
            "HEIGHTxWIDTH",
            "Size in pixels, for a model that takes other sizes; --upscale enlarges any clip.",
            default=of_model("64x64"),
        ),
    ] = None,
    height: Annotated[
        int | None,
        option(
            "Sampling", "PIXELS", "Height, given together with --width; the same as --size.", default=of_model("64")
        ),
    ] = None,
    width: Annotated[
        int | None,
        option(
            "Sampling", "PIXELS", "Width, given together with --height; the same as --size.", default=of_model("64")
        ),
    ] = None,
    frames: Annotated[
        int | None,
        option(
            "Sampling",
            "N",
            "Number of frames, for a model that takes other lengths.",
            "--frames",
            "--num-frames",
            default=of_model("16"),
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
        int | None,
        option(
            "Sampling",
            "N",
            "Number of clips that are denoised together. It changes memory, and pixels by at most 1/255, except with "
            "--exact, where it decides the clips.",
            min=1,
            default=f"{BATCH}, or the manifest's",
        ),
    ] = None,
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
            values=options.models,
        ),
    ] = None,
    checkpoint: options.Checkpoint = None,
    text_encoder: options.TextEncoder = None,
    vae: options.VAE = None,
    features: options.Features = None,
    text_dtype: Annotated[
        str | None,
        option(
            "Model and weights",
            "TYPE",
            "Precision of T5: fp32, bf16, fp16 or int8.",
            default="fp32",
            values=options.TEXT_DTYPES,
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        option(
            "Model and weights",
            "TYPE",
            "Precision of the network: fp32, bf16 or fp16.",
            default=of_model("fp32"),
            values=options.DTYPES,
        ),
    ] = None,
    offload: Annotated[
        str | None,
        option(
            "Model and weights",
            "HOW",
            "stages frees the memory of each part after its use; none keeps all parts.",
            default="none for guidon-small, stages for the others",
            values=("stages", "none"),
        ),
    ] = None,
    download: Annotated[
        bool, option("Model and weights", None, "Fetch missing weights from the hub.", "--download")
    ] = False,
    device: options.Device = "auto",
    out: Annotated[
        Path, option("Output", "FOLDER", "Folder for videos, manifests and the contact sheet.", *options.OUT)
    ] = Path("outputs"),
    format: Annotated[
        str | None,
        option(
            "Output",
            "FORMAT",
            "mp4, gif, webp, frames (a folder of PNGs) or png (one image).",
            default="mp4, or png for an image",
            values=options.FORMATS,
        ),
    ] = None,
    upscale: Annotated[
        int | None,
        option(
            "Output",
            "N",
            "Enlarge the frames that are written N times, each pixel to N x N equal ones, to look at them.",
            default="1",
            min=1,
        ),
    ] = None,
    fps: Annotated[
        float | None,
        option(
            "Output",
            "X",
            "Frames per second that the file is played at.",
            default=of_model("8"),
            min=0.1,
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
    manifest, texts = None, ()
    own = {"prompts": prompts, "classes": classes, "prompts_file": prompts_file, "random_prompt": random_prompt}
    own |= {"force": force, "model": model, "num_samples": num_samples != 1}
    if from_manifest is None:
        drawn = [draw_prompt(seed or 0)] if random_prompt else []
        texts = read_prompts([*(prompts or ()), *map(str, classes or ()), *drawn], prompts_file)
    elif more := [*(name for name, value in own.items() if value), *choices]:
        raise InputError(
            f"{setting('from_manifest')} takes every setting from the manifest: leave out {setting(more[0])}"
        )
    else:
        manifest = read_manifest(from_manifest)
        format, fps = format or manifest.output.format, fps or manifest.output.fps
        upscale = upscale or manifest.output.upscale

    # Check everything, and complete the request with the model's defaults, before torch is imported.
    model = manifest.request.model if manifest else model or DEFAULT_MODEL
    planner = find_planner(model, device, parts)
    preset, facts = planner.preset, planner.facts
    if classes and not preset.classes:
        raise InputError(
            f"{setting('classes')} is for a class-conditional model, {preset.name} takes text: give a prompt"
        )
    asked = {"batch_size": batch_size or BATCH, "device": known_device(device)}
    if manifest is None:
        planner.complete(texts[:1], range(num_samples), **asked, **choices)
    from ..media.files import check_fps, check_upscale

    format = checked_format(format, preset)
    if fps is not None:
        check_fps(fps)
    prepare_folder(out)
    if manifest is None:
        request = planner.plan(texts, range(num_samples), **asked, **choices, **given(force=force or None))
    else:
        request = manifest.request
        planner.check(request)
    shape, unit = planner.latent_shape(request), facts.downsampling
    check_upscale(upscale or 1, shape[1] if len(shape) == 4 else 1, shape[-2] * unit, shape[-1] * unit)

    # Load the model.
    from ..guidance import GuidanceTrace
    from ..pipeline import load

    pipe, like = load(model, device=device, **parts), None
    if manifest is not None:
        if manifest.computed is not None and not batch_size and not sequential:
            like = computed_here(manifest.computed, pipe)
        warn_of_differences(manifest, like, pipe)

    # Generate and write.
    traced = GuidanceTrace() if trace else None
    if traced is not None:  # a trace can hold only one batch
        batch_size = max(batch_size or BATCH, len(request.prompts) * len(request.samples))
    from ..core.progress import progress

    clips = len(request.prompts) * len(request.samples)
    what = f"denoising {clips} {'clip' if clips == 1 else 'clips'}"
    with stopped("nothing was written"), progress(what, "steps") as on_step:
        videos = pipe.generate(
            request, batch_size=batch_size or BATCH, sequential=sequential, on_step=on_step, trace=traced, like=like
        )
    write_videos(videos, request, pipe.hashes, out, format, upscale or 1, fps)
    if traced is not None:
        write_trace(traced, out / f"{run_name(request, pipe.hashes)}-trace.npz")


def checked_format(format: str | None, preset: Preset[Any]) -> str:
    """The format to write: the given one, or the one that suits the model.

    Raises:
        InputError: it does not exist, cannot be written here, or is a picture's and the model makes videos.
    """
    from ..media.files import check_format

    format = format or ("png" if preset.is_image else "mp4")
    if format == "png" and not preset.is_image:
        raise InputError(
            f"{setting('format')} png holds one image, {preset.name} makes video: choose mp4, gif, webp or frames"
        )
    check_format(format)
    return format


def draw_prompt(seed: int) -> str:
    """A caption of the world, which the model in the package follows. It is printed, too."""
    from .. import world

    text = world.clip("L0", seed, 0).caption
    print(f"{'prompt:':<14} {text}")
    return text


def read_prompts(prompts: Sequence[str], file: Path | None) -> tuple[str, ...]:
    """The prompts of the command line, then those of a file.

    Raises:
        InputError: there are none, or too many, one is not text, or the file cannot be read.
    """
    for prompt in prompts:
        if any("\ud800" <= letter <= "\udfff" for letter in prompt):
            raise InputError(f"the prompt {prompt!r} is not UTF-8 text")
    found = list(prompts)
    if file is not None:
        from ..core.reading import TEXT_BYTES, reading, regular_file

        what = f"{setting('prompts_file')}, a prompt a line"
        regular_file(file, what, TEXT_BYTES)
        with reading(file, what), file.open(encoding="utf-8-sig") as lines:
            for line in lines:  # the whole text is never held beside its lines
                found += [prompt for part in line.splitlines() if (prompt := part.strip())]
                if len(found) > MOST_PROMPTS:
                    raise InputError(f"{file} has over {MOST_PROMPTS:,} prompts: divide it into several files")
    if not found:
        raise InputError('no prompt was given: guidon generate "a red circle moves left on a white background"')
    return tuple(found)


@dataclass(frozen=True)
class Manifest:
    """What a manifest says about its video."""

    request: Request
    computed: Computation | None
    """How the video was computed; None if an earlier version wrote the manifest."""
    output: Output
    """How the video was written."""
    weights: dict[str, str]
    """The hash of each part of its model."""
    torch: str | None
    """The version of torch."""
    device: str | None
    """Where it was made, such as "cuda:0"."""


def manifest_of(path: Path) -> Path:
    """The manifest that a path means: itself, or the one beside a video or a folder of frames.

    Raises:
        InputError: it is a video or a folder without one.
    """
    from ..core.reading import is_there

    beside = path.with_name(f"{path.name}.json") if path.name else path
    if path.suffix != ".json" and is_there(beside, "a manifest"):
        return beside
    if path.suffix.lower() in (".mp4", ".gif", ".webp", ".png") or path.is_dir():
        what = "is a folder without" if path.is_dir() else "is a video without"
        raise InputError(f"{path} {what} its manifest, {beside.name}: give the manifest that was written beside it")
    return path


def read_manifest(path: Path) -> Manifest:
    """The content of a manifest.

    Raises:
        InputError: the file is no manifest of `guidon generate`.
    """
    from ..core.settings import read_mapping, validated
    from ..request import Computation, Output, Request

    path = manifest_of(path)
    found = read_mapping(path)
    if not isinstance(found, dict) or "generation" not in found:
        raise InputError(f"{path} is not a manifest that `guidon generate` wrote: it has no 'generation'")
    weights = found.get("weights", {})
    if not isinstance(weights, dict):
        raise InputError(f"{path}: weights is {weights!r:.40}, expected hashes by name")
    request = validated(Request, found["generation"], str(path))
    computed = validated(Computation, found["computed"], str(path)) if "computed" in found else None
    output = validated(Output, found.get("output", {}), str(path))
    torch, device = (value if isinstance(value := found.get(name), str) else None for name in ("torch", "device"))
    return Manifest(request, computed, output, weights, torch, device)


def computed_here(computed: Computation, pipe: Pipeline) -> Computation:
    """How a manifest's clip is computed here: as it says. Threads are followed on a CPU, if they are not too many."""
    threads = computed.threads
    followed = pipe.device.type == "cpu" and (threads is None or threads <= MOST_THREADS * (os.cpu_count() or 1))
    return computed if followed else computed.model_copy(update={"threads": None})


def warn_of_differences(manifest: Manifest, like: Computation | None, pipe: Pipeline) -> None:
    """Print on stderr how this run differs from the one that made a manifest's video.

    Args:
        manifest: what it says.
        like: how its clip is computed here; None for another way than the manifest says.
        pipe: the model.
    """
    # other weights: other frames
    for name in sorted(manifest.weights.keys() | pipe.hashes.keys()) if manifest.weights else ():
        if pipe.hashes.get(name) != manifest.weights.get(name):
            other = f"another {name}" if name == "text_dtype" else f"other {name} weights"
            say(f"the manifest was made with {other}: frames will differ")
    # another arithmetic: other last bits
    import torch

    others: list[str] = []
    if manifest.torch not in (None, torch.__version__):
        others.append(f"torch {manifest.torch}")
    if manifest.device is not None and manifest.device.partition(":")[0] != pipe.device.type:
        others.append(f"the device {manifest.device}")
    if (computed := manifest.computed) is not None:
        if like is None:
            others.append(f"{computed.batch} clip{'s' * (computed.batch > 1)} together, {_branches(computed)}")
        elif pipe.device.type == "cpu" and like.threads != computed.threads:
            others.append(f"{computed.threads} threads")
    if others:
        say(f"the manifest was made with {', '.join(others)}: frames may differ by {manifest.request.closeness}")


def _branches(computed: Computation) -> str:
    return "one branch after the other" if computed.sequential else "its branches together"
