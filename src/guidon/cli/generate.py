"""``guidon generate``: prompts, or a manifest, to videos."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..core.errors import InputError, setting
from ..core.ranks import check_branches, ranks_to_join
from ..media.placing import EDIT_STRENGTH
from ..samplers import CLIPS_TOGETHER
from . import options
from .options import given, of_model, option
from .outputs import prepare_folder, run_name, stopped, write_trace, write_videos
from .planning import find_planner, known_device, refuse_idle_weak, split_precisions
from .together import joined
from .values import parse_scale, parse_size, parse_timing

if TYPE_CHECKING:
    from ..models.family import Preset

EXAMPLE = 'guidon generate "a red circle moves left on a white background" --seed 7 --cfg-scale 4 --cfg-channels 3'
DEFAULT_MODEL = "guidon-small"  # used if neither a model nor a manifest is given
GIVEN = "Given pictures and videos"
FIRST = ("--first-frame", "--image", "--first-image")
LAST = ("--last-frame", "--last-image")
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
        list[str] | None,
        option(
            "Prompt", "NUMBER|NAME", "A class, for a class-conditional model; repeatable.", "--class", default="none"
        ),
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
    first_frame: Annotated[
        Path | None, option(GIVEN, "IMAGE", "The picture that the clip begins with.", *FIRST, default="none")
    ] = None,
    last_frame: Annotated[
        Path | None, option(GIVEN, "IMAGE", "The picture that the clip ends with.", *LAST, default="none")
    ] = None,
    continue_from: Annotated[
        Path | None,
        option(
            GIVEN,
            "VIDEO",
            "The clip begins with the last frames of this video, --condition-frames of them.",
            "--continue",
            "--continue-from",
            default="none",
        ),
    ] = None,
    connect_to: Annotated[
        Path | None,
        option(
            GIVEN,
            "VIDEO",
            "The clip ends with the first frames of this video, --condition-frames of them; with --continue, it "
            "connects two videos.",
            default="none",
        ),
    ] = None,
    edit: Annotated[
        Path | None,
        option(GIVEN, "VIDEO", "Draw this video anew, by --edit-strength.", "--edit", "--video", default="none"),
    ] = None,
    edit_strength: Annotated[
        float | None,
        option(
            GIVEN,
            "X",
            "How much of the sampling edits the video: near 0 it stays, 1 draws it anew.",
            "--edit-strength",
            "--strength",
            default=f"{EDIT_STRENGTH:g}",
        ),
    ] = None,
    loop: Annotated[
        int | None,
        option(
            GIVEN,
            "N",
            "Join N clips to a long one. Each begins with the last frames of the one before.",
            default="1",
            min=1,
        ),
    ] = None,
    condition_frames: Annotated[
        int | None,
        option(
            GIVEN,
            "N",
            "How many frames a clip takes over from the one before, or from the video of --continue and --connect-to.",
            default=of_model("4"),
            min=1,
        ),
    ] = None,
    condition_edit: Annotated[
        float | None,
        option(GIVEN, "X", "With --loop, how much of the sampling edits those frames, from 0 to 1.", default="0"),
    ] = None,
    reference: Annotated[
        list[Path] | None,
        option(GIVEN, "FILE", "A picture or a video for --mask-strategy; repeatable.", default="none"),
    ] = None,
    mask_strategy: Annotated[
        str | None,
        option(
            GIVEN,
            "TEXT",
            "Which frames of the references go where, as Open-Sora writes it: '0,0,0,0,1,0;0,1,0,-1'.",
            default="none",
        ),
    ] = None,
    cfg_scale: options.CfgScalePerChannel = None,
    cfg_channels: options.CfgChannels = None,
    guidance: options.Rule = None,
    interval: options.Interval = None,
    ramp: options.Ramp = None,
    oscillate: options.Oscillate = None,
    adaptive: options.Adaptive = None,
    reuse: options.Reuse = None,
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
    spacing: options.Spacing = None,
    fast: options.Fast = False,
    eta: Annotated[float | None, option("Sampling", "X", "Noise that ddim adds, from 0 to 1.", default="0")] = None,
    size: Annotated[
        str | None,
        option(
            "Sampling",
            "HEIGHTxWIDTH",
            "Size in pixels. guidon-small takes multiples of 8, but was trained at 64x64; --upscale enlarges any clip.",
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
    resolution: Annotated[
        str | None,
        option(
            "Sampling",
            "NAME",
            "A size of Open-Sora's tables, in place of --size: 144p, 240p, 360p, 480p, 720p, 1080p, 2k or 4k.",
            default="none",
        ),
    ] = None,
    aspect_ratio: Annotated[
        str | None,
        option(
            "Sampling",
            "H:W",
            "With --resolution, height to width as Open-Sora writes it: 9:16 is wide, 16:9 is high.",
            default="9:16",
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
            "Draw the noise as an original does: open-sora-1.0, open-sora-1.1, open-sora-1.2, dit or pixart.",
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
            default=f"{CLIPS_TOGETHER}, or the manifest's",
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
    weak: options.Weak = None,
    lora: options.Lora = None,
    text_dtype: options.TextDtype = None,
    dtype: options.Dtype = None,
    decode_dtype: options.DecodeDtype = None,
    compile: options.Compile = False,
    offload: Annotated[
        str | None,
        option(
            "Model and weights",
            "HOW",
            "stages frees the memory of each part after its use; blocks also keeps the network's blocks in the CPU's "
            "memory, two of them at a time on the GPU; none keeps all parts.",
            default="none for guidon-small, stages for the others",
            values=("stages", "blocks", "none"),
        ),
    ] = None,
    download: options.Download = False,
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
    branch_ranks: options.BranchRanks = None,
    trace: Annotated[
        bool, option("Output", None, "Also write what guidance did, per channel and step, as .npz.", "--trace")
    ] = False,
) -> None:
    """Turn prompts into guided videos.

    Beside every video lies a JSON manifest of all its settings, from which --from makes the video again.
    """
    choices = given(
        negative_prompt=negative_prompt, cfg_scale=parse_scale(cfg_scale), cfg_channels=cfg_channels, guidance=guidance,
        timing=parse_timing(interval, ramp, oscillate), seed=seed, steps=steps, sampler=sampler, spacing=spacing,
        fast=fast or None, adaptive=adaptive, reuse=reuse, eta=eta,
        size=parse_size(size, height, width, resolution, aspect_ratio), frames=frames, exact=exact,
        exact_noise=exact_noise,
        first_frame=first_frame, last_frame=last_frame, continue_from=continue_from, connect_to=connect_to, edit=edit,
        edit_strength=edit_strength, loop=loop, condition_frames=condition_frames, condition_edit=condition_edit,
        reference=reference or None, mask_strategy=mask_strategy,
    )  # fmt: skip
    precisions, chosen_here = split_precisions(dtype=dtype, decode_dtype=decode_dtype)
    choices |= precisions
    parts = chosen_here | given(
        checkpoint=checkpoint, text_encoder=text_encoder, vae=vae, features=features, weak=weak, lora=lora or None,
        text_dtype=text_dtype,
        download=download or None, compile=compile or None, offload=offload,
    )  # fmt: skip

    check_branches(branch_ranks, ranks_to_join())

    # What to make: prompts and choices, or all that a manifest says.
    manifest, texts, drawn = None, (), list[str]()
    own = {"prompts": prompts, "classes": classes, "prompts_file": prompts_file, "random_prompt": random_prompt}
    own |= {"force": force, "model": model, "num_samples": num_samples != 1}
    if from_manifest is None:
        drawn = [draw_prompt(seed or 0)] if random_prompt else []
        require_quotes(prompts or ())
        texts = read_prompts([*(prompts or ()), *(classes or ()), *drawn], prompts_file)
    elif more := [*(name for name, value in own.items() if value), *choices, *chosen_here]:
        raise InputError(
            f"{setting('from_manifest')} takes every setting from the manifest: leave out {setting(more[0])}"
        )
    else:
        from ..pipeline.manifests import Manifest

        manifest = Manifest.read(from_manifest)
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
    together = batch_size or CLIPS_TOGETHER
    if manifest is None:
        request = planner.complete(
            texts, range(num_samples), batch_size=together, device=known_device(device), **choices
        )
    else:
        request = manifest.request
        planner.check(request)
        manifest.find_references()
        if manifest.computed is not None and manifest.computed.compiled:
            parts["compile"] = True
    refuse_idle_weak(weak, request.guidance)
    from ..media.formats import check_fps, check_library, check_upscale

    format = checked_format(format, preset, planner.length(request), facts.clip is not None)
    if fps is not None:
        check_fps(fps)
    shape, unit = planner.latent_shape(request), facts.downsampling
    check_upscale(upscale or 1, planner.length(request), shape[-2] * unit, shape[-1] * unit)
    check_library(format)
    prepare_folder(out)
    if manifest is None:
        asked = request
        with lines_named(
            prompts_file, lambda text: planner.read_prompts(asked.model_copy(update={"prompts": (text,)}), force=force)
        ):
            request = planner.read_prompts(asked, force=force)

    clips = len(request.prompts) * len(request.samples)
    if trace and batch_size is not None and batch_size < clips:
        raise InputError(
            f"{setting('trace')} needs its {clips} clips in one batch, and {setting('batch_size')} is {batch_size}: "
            f"give at least {clips}, or leave one of them out"
        )
    for text in drawn:
        print(f"{'prompt:':<14} {text}")

    # Load the model.
    from ..guidance import GuidanceTrace
    from ..pipeline import load

    with stopped("nothing was written"), joined(branch_ranks) as ranks:
        pipe = ranks.agreed(lambda: load(model, device=device, **parts))
        # what a machine chose: all ranks take what the first one did
        own = {name: getattr(pipe.preset, name) for name in chosen_here}
        request = request.model_copy(update=ranks.together(lambda: own)[0] if own else own)

        # Generate and write.
        from ..core.progress import progress

        traced = GuidanceTrace() if trace else None
        together = max(together, clips) if trace else together  # a trace can hold only one batch
        what = f"denoising {clips} {'clip' if clips == 1 else 'clips'}"
        with progress(what, "steps", "decoding") as on_step:
            run: dict[str, Any] = {"sequential": sequential, "on_step": on_step, "trace": traced, "ranks": ranks}
            if batch_size or (trace if manifest is None else manifest.computed is None):
                run["batch_size"] = together
            videos = pipe.generate(request, **run) if manifest is None else pipe.reproduce(manifest, **run)
    if not ranks.first:
        return
    write_videos(videos, request, pipe.hashes_for(request), out, format, upscale or 1, fps)
    if traced is not None:
        write_trace(traced, out / f"{run_name(request, pipe.hashes_for(request))}-trace.npz")


def checked_format(format: str | None, preset: Preset[Any], frames: int, makes_images: bool) -> str:
    """The format to write: the given one, or the one that suits the model.

    Args:
        format: the given one.
        preset: the model's.
        frames: of a clip.
        makes_images: whether a clip of one frame is an image to the model.

    Raises:
        InputError: it does not exist, or is a picture's and the clips are videos.
    """
    from ..media.formats import check_format

    format = format or ("png" if preset.is_image or (frames == 1 and makes_images) else "mp4")
    if format == "png" and not preset.is_image and frames > 1:
        raise InputError(
            f"{setting('format')} png holds one image, {preset.name} makes video: choose mp4, gif, webp or frames"
        )
    check_format(format)
    return format


def draw_prompt(seed: int) -> str:
    """A caption of the world, which the model in the package follows."""
    from .. import world

    return world.clip("L0", seed, 0).caption


def require_quotes(prompts: Sequence[str]) -> None:
    """Refuse the words of a prompt that was written without quotes.

    Raises:
        InputError: there are at least three prompts, each of one word.
    """
    if len(prompts) > 2 and not any(" " in prompt for prompt in prompts):
        sentence = " ".join(prompts)
        raise InputError(
            f"these are {len(prompts)} prompts of one word each: write a prompt in quotes, guidon generate "
            f'"{sentence}", or prompts of one word in {setting("prompts_file")}'
        )


def read_prompts(prompts: Sequence[str], file: Path | None) -> tuple[str, ...]:
    """The prompts of the command line, then those of a file.

    Raises:
        InputError: there are none, or too many, one is not text, or the file cannot be read.
    """
    for prompt in prompts:
        if any("\ud800" <= letter <= "\udfff" for letter in prompt):
            raise InputError(f"the prompt {prompt!r} is not UTF-8 text")
    found = [*prompts, *(prompt for _, prompt in (read_lines(file) if file is not None else ()))]
    if not found:
        raise InputError('no prompt was given: guidon generate "a red circle moves left on a white background"')
    return tuple(found)


def read_lines(file: Path) -> list[tuple[int, str]]:
    """The prompts of a file, each with the number of its line. Empty lines hold none.

    Raises:
        InputError: there are too many, or the file is no text.
    """
    from ..core.reading import TEXT_BYTES, reading, regular_file

    found, number, what = list[tuple[int, str]](), 0, f"{setting('prompts_file')}, a prompt a line"
    regular_file(file, what, TEXT_BYTES)
    with reading(file, what, "save it as UTF-8"), file.open("rb") as lines:
        for line in lines:  # the whole text is never held beside its lines
            try:
                parts = line.decode("utf-8" if number else "utf-8-sig").splitlines()
            except UnicodeDecodeError:
                raise ValueError(f"line {number + 1} is not text in UTF-8") from None
            found += [(number + k, prompt) for k, part in enumerate(parts, 1) if (prompt := part.strip())]
            number += len(parts)
            if len(found) > MOST_PROMPTS:
                raise InputError(f"{file} has over {MOST_PROMPTS:,} prompts: divide it into several files")
    return found


@contextmanager
def lines_named(file: Path | None, check: Callable[[str], object]) -> Iterator[None]:
    """Where the block refuses a prompt of a file, name the file and the line in the message.

    Args:
        file: the file of prompts; None for none.
        check: refuses one prompt, as the block does.
    """
    try:
        yield
    except InputError:
        for number, prompt in read_lines(file) if file is not None else ():
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    check(prompt)
            except InputError as error:
                raise InputError(f"{file}, line {number}: {error.args[0]}") from error
        raise
