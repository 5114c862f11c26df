"""What ``guidon generate`` does: read the request, run the pipeline with a progress bar, write every output safely."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.errors import InputError, nearest
from ..core.settings import read_mapping, validated
from ..request import Generation


@dataclass(frozen=True)
class Request:
    """The command line as given: prompts from arguments and a file, or a manifest to reproduce.

    ``parts`` are options of ``guidon.load``: where weights are and how they are kept.
    """

    prompts: tuple[str, ...] = ()
    prompts_file: Path | None = None
    from_manifest: Path | None = None
    model: str | None = None
    num_samples: int = 1
    parts: dict[str, Any] = field(default_factory=dict)
    choices: dict[str, Any] = field(default_factory=dict)


def parse_scale(text: str) -> float | tuple[float, ...]:
    """``4`` or ``4,4,4,1``."""
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--cfg-scale {text!r} is not a number, nor one per channel such as 4,4,4,1") from None
    return numbers[0] if len(numbers) == 1 else numbers


def read_prompts(request: Request) -> tuple[str, ...]:
    """All prompts in order; none at all, or what is not text, is refused."""
    prompts = list(request.prompts)
    for prompt in prompts:
        if any("\ud800" <= letter <= "\udfff" for letter in prompt):
            raise InputError(f"the prompt {prompt!r} is not UTF-8 text")
    if request.prompts_file is not None:
        try:
            lines = request.prompts_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"cannot read --prompts-file {request.prompts_file}: {getattr(error, 'strerror', None) or 'not text'}"
            ) from None
        prompts += [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise InputError('no prompt was given: guidon generate "a red circle moves left on a white background"')
    return tuple(prompts)


def read_manifest(path: Path, request: Request) -> tuple[Generation, dict[str, str]]:
    """The settings in a manifest and the hashes of the weights that made it."""
    if request.prompts or request.prompts_file or request.choices or request.model or request.num_samples != 1:
        raise InputError("--from takes every setting from the manifest: give no prompt, model or setting beside it")
    manifest = read_mapping(path)
    if not isinstance(manifest, dict) or "generation" not in manifest:
        raise InputError(f"{path} is not a manifest that `guidon generate` wrote: it has no 'generation'")
    weights = manifest.get("weights", {})
    if not isinstance(weights, dict):
        raise InputError(f"{path}: weights is {weights!r:.40}, expected hashes by name")
    return validated(Generation, manifest["generation"], str(path)), weights


def output_name(generation: Generation, weights: dict[str, str], prompt: int, sample: int) -> str:
    """The same settings and weights give the same name, any others another: nothing made earlier is overwritten.

    With ``exact`` a sample depends on its batch mates: the whole run and its place there are part of the name.
    """
    text = generation.prompts[prompt]
    if generation.exact:
        made_by = f"{generation.model_dump_json()} {prompt}"
    else:
        made_by = generation.model_copy(update={"prompts": (text,), "samples": (sample,)}).model_dump_json()
    slug = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60].strip("-")
    return f"{slug}-seed{generation.seed}-{sample}-{_digest(made_by, weights)}"


def run_name(generation: Generation, weights: dict[str, str]) -> str:
    """The name of what belongs to all samples of a run."""
    if len(generation.prompts) * len(generation.samples) == 1:
        return output_name(generation, weights, 0, generation.samples[0])
    return output_name(generation, weights, 0, generation.samples[0])[:-8] + _digest(
        generation.model_dump_json(), weights
    )


def _digest(made_by: str, weights: dict[str, str]) -> str:
    content = made_by + json.dumps(weights, sort_keys=True)
    return hashlib.sha256(content.encode(errors="surrogatepass")).hexdigest()[:8]


def prepare_folder(out: Path) -> None:
    """Make the output folder and prove that it can be written, before minutes of work and not after."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".guidon-write-test"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"the output folder {out} cannot be written ({error.strerror}): choose another with --out"
        ) from None


def run(
    request: Request,
    *,
    out: Path,
    format: str | None,
    batch_size: int,
    device: str,
    keep_trace: bool,
    sequential: bool = False,
) -> None:
    """Generate and write; prints the path of everything written."""
    hashes: dict[str, str] = {}
    generation: Generation | None = None
    prompts: tuple[str, ...] = ()
    if request.from_manifest is not None:
        generation, hashes = read_manifest(request.from_manifest, request)
    else:
        prompts = read_prompts(request)
    from ..media.files import FORMATS, contact_sheet

    if format is not None and format not in FORMATS:
        raise InputError(f"--format {format!r} does not exist{nearest(format, FORMATS)}")
    prepare_folder(out)

    from ..guidance import GuidanceTrace
    from ..pipeline import load

    model = generation.model if generation else request.model or "guidon-small"
    pipe = load(model, device=device, **request.parts)
    format = format or ("png" if pipe.preset.is_image else "mp4")
    if format == "png" and not pipe.preset.is_image:
        raise InputError(f"--format png holds one image, {model} makes video: choose mp4, gif, webp or frames")
    if generation is None:
        choices = dict(request.choices)
        if "cfg_scale" in choices:
            choices["cfg_scale"] = parse_scale(choices["cfg_scale"])
        generation = pipe.plan(prompts, tuple(range(request.num_samples)), batch_size=batch_size, **choices)
    for name in sorted(hashes.keys() | pipe.hashes.keys()) if hashes else ():
        if pipe.hashes.get(name) != hashes.get(name):
            print(f"guidon: the manifest was made with other {name} weights: frames will differ", file=sys.stderr)

    trace = GuidanceTrace() if keep_trace else None
    if trace is not None:
        batch_size = max(batch_size, len(generation.prompts) * len(generation.samples))
    with progress("denoising") as on_step:
        videos = pipe.generate(generation, batch_size=batch_size, sequential=sequential, on_step=on_step, trace=trace)

    pairs = [(prompt, sample) for prompt in range(len(generation.prompts)) for sample in generation.samples]
    command = shlex.join(sys.argv)
    for (prompt, sample), video in zip(pairs, videos, strict=True):
        video.manifest["command"] = command
        name = output_name(generation, pipe.hashes, prompt, sample)
        path = video.save(out / (name if format == "frames" else f"{name}.{format}"), format)
        print(f"{'image:' if format == 'png' else 'video:':<14} {path}\nmanifest:      {path}.json")
    rows = [
        [video.frames for video in videos[i : i + len(generation.samples)]]
        for i in range(0, len(videos), len(generation.samples))
    ]
    sheet = out / f"{run_name(generation, pipe.hashes)}-sheet.png"
    contact_sheet(rows, list(generation.prompts), [f"sample {k}" for k in generation.samples], path=sheet)
    print(f"contact sheet: {sheet}")
    if trace is not None:
        print(f"trace:         {_save_trace(trace, sheet.with_name(sheet.name.replace('-sheet.png', '-trace.npz')))}")


def _save_trace(trace: Any, path: Path) -> Path:
    import numpy as np

    from ..core.atomic import atomic_path

    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **trace.as_arrays())
    return path


def progress(what: str) -> Any:
    """A bar on stderr, silent when stderr is no terminal; yields ``on_step``."""
    from contextlib import contextmanager

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    @contextmanager
    def bar() -> Any:
        console = Console(stderr=True)
        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            line = progress.add_task("", total=None)
            yield lambda done, total: progress.update(line, completed=done, total=total)

    return bar()
