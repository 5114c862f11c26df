"""The job that makes the clips of a comparison: a result for each setting as soon as it is there, then what differs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

from ..core.errors import InputError
from ..metrics.bench import find_bench
from ..metrics.metric import Bench, Values
from ..studies.report.command import generate_command
from ..studies.words import write_direction, write_interval, write_value
from .asked import LETTERS, Comparison
from .carry import python_of, words_of
from .jobs import Job, spelled
from .outputs import Outputs, as_json, strip
from .truth import BENCH, draw_truth

if TYPE_CHECKING:
    from torch import Tensor

    from ..media import Video
    from ..pipeline import Pipeline
    from ..pipeline.contract import ModelPipeline

PREVIEW_SHARE = 0.15  # of the time of a run that its previews may take
PREVIEW_FRAMES = 4  # frames of a clip that a preview shows
FEWEST = 5  # seeds from which an interval is shown: of fewer, a bootstrap says nothing


@dataclass
class Preview:
    """Pictures of what is made while it is made. They take no more than ``PREVIEW_SHARE`` of the time.

    They are decoded where the autoencoder is at hand, else drawn from the latents.
    """

    pipe: ModelPipeline
    job: Job
    cost: float = 0.0
    """Seconds that the last picture took."""
    last: float = field(default_factory=time.monotonic)
    """When it was done."""

    def __call__(self, x0: Tensor) -> None:
        """Show some frames of the first clip of x0 (B, C, ...), if it is time."""
        now = time.monotonic()
        if now - self.last < self.cost / PREVIEW_SHARE:
            return
        latent = x0[:1] if x0.ndim == 5 else x0[:1, :, None]
        if not latent.isfinite().all():
            return
        model = self.pipe.model if is_at_hand(self.pipe) else None
        if latent.shape[2] > PREVIEW_FRAMES and (model is None or model.facts.latents_together == 1):
            latent = latent[:, :, np.linspace(0, latent.shape[2] - 1, PREVIEW_FRAMES).round().astype(int)]
        if model is None:
            frames = drawn_latents(latent[0])
        else:
            with model.vae.in_use() as vae:
                frames = vae.decode(latent.float() if x0.ndim == 5 else latent[:, :, 0].float())[0].float()
        frames = (frames if frames.ndim == 4 else frames[:, None]).clamp(-1, 1)
        whole = ((frames + 1) * 127.5).round().byte().permute(1, 2, 3, 0).cpu().numpy()
        self.job.show(strip(whole))
        self.last = time.monotonic()
        self.cost = self.last - now


def is_at_hand(pipe: ModelPipeline) -> TypeGuard[Pipeline]:
    """Whether a model's autoencoder is free while it denoises: that of diffusers belongs to the call in work, and what
    is offloaded is not in memory."""
    from ..pipeline import Pipeline

    return isinstance(pipe, Pipeline) and pipe.keeps_parts


def drawn_latents(latent: Tensor) -> Tensor:
    """Latents (C, T, h, w) as video (3, T, h, w) without their autoencoder: shapes and motion, in colours of its own.

    The direction in which they vary most becomes brightness, the next two become colour.
    """
    import torch

    flat = torch.nn.functional.pad(latent.detach().flatten(1).double().cpu(), (0, 0, 0, max(0, 3 - len(latent))))
    flat = flat - flat.mean(1, keepdim=True)
    directions = torch.linalg.eigh(flat @ flat.T).eigenvectors.flip(1)[:, :3]  # the largest first
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    bright, warm, cold = directions.T.mul(largest.sign().T) @ flat
    colours = torch.stack([bright + warm, bright - (warm + cold) / 2, bright + cold])
    return (colours / (3 * bright.std()).clamp_min(1e-9)).float().reshape(3, *latent.shape[1:])


@dataclass(frozen=True)
class Made:
    """What one setting made."""

    videos: Sequence[Video]
    values: Values | None
    """(seeds,) for every metric; None where nothing was measured."""


def compare(
    comparison: Comparison, pipe: ModelPipeline, outputs: Outputs, job: Job, parts: Mapping[str, Any] = {}
) -> None:
    """Make the clips of a comparison. Parts of ``job.result`` come as they are done.

    Args:
        comparison: what is made.
        pipe: the model.
        outputs: where the clips are kept.
        job: whose result it is.
        parts: how the model was loaded.

    Raises:
        Cancelled: the job was cancelled.
        InputError: the model cannot make the clips.
    """
    asked, channels = comparison.asked, pipe.channels
    job.decoded = is_at_hand(pipe)
    bench, refusal = bench_of(pipe.planner.bench, asked.prompt)
    result = job.result
    result |= {
        "model": asked.model, "prompt": asked.prompt, "seed": asked.seed, "seeds": asked.seeds, "settings": [],
        "metrics": described(bench) if bench else [], "unmeasured": refusal, "truth": None, "changes": [],
    }  # fmt: skip
    # the precision that the machine chose when the model was loaded
    chosen = {"dtype": pipe.planner.complete(("",)).dtype} if parts.get("dtype") == "auto" else {}
    requests = [request.model_copy(update=chosen) for request in comparison.requests]
    steps = [request.steps for request in requests]
    made: list[Made] = []
    for number, request in enumerate(requests):
        job.message = f"denoising {LETTERS[number]}"
        before = sum(steps[:number])
        began = time.monotonic()
        videos, trace = _generate(pipe, request, job, _steps(job, before, steps[number], sum(steps)))
        job.check()
        values = None
        if bench is not None:
            job.message = f"measuring {LETTERS[number]}"
            try:
                values = bench.measure(np.stack([video.frames for video in videos]), [asked.prompt] * len(videos))
            except InputError as error:  # clips of a size that the bench does not know, or a library is missing
                bench, result["metrics"], result["unmeasured"] = None, [], spelled(error)
        made.append(Made(videos, values))
        manifests = [as_json(video.manifest) for video in videos]
        clips, files = list[str](), list[str]()
        try:
            for video, text in zip(videos, manifests, strict=True):
                clips.append(outputs.add_clip(video.frames, video.fps, job.session))
                files.append(outputs.add_text(text, "application/json", "manifest.json", job.session))
        except BaseException:  # a full disk must not stay full
            outputs.forget([*clips, *files])
            raise
        job.outputs += [*clips, *files]
        choices = comparison.choices[number]
        shape = videos[0].frames.shape
        result |= {"fps": videos[0].fps, "frames": shape[0], "height": shape[1], "width": shape[2]}
        result["settings"] = [
            *result["settings"],
            {
                "letter": LETTERS[number], "words": words_of(choices, request.guidance, channels), "clips": clips,
                "manifests": files, "manifest": manifests, "seconds": time.monotonic() - began,
                "commands": [
                    generate_command(dict(video.manifest["generation"]), force=asked.force, parts=parts)
                    for video in videos
                ],
                "python": [
                    python_of(asked.model, asked.prompt, {**choices, **chosen}, sample, force=asked.force, parts=parts)
                    for sample in range(asked.seeds)
                ],
                "trace": trace, "values": plain_values(values), "steps": request.steps,
                "lossy": videos[0].manifest.get("lossy", []),
            },
        ]  # fmt: skip
    result["changes"] = [changes(made[0], one, bench, LETTERS[k]) for k, one in enumerate(made) if k]
    _add_truth(comparison, pipe, made, bench, outputs, job)


def _add_truth(
    comparison: Comparison, pipe: ModelPipeline, made: Sequence[Made], bench: Bench | None, outputs: Outputs, job: Job
) -> None:
    """Draw what the prompt asks for, where the world knows it, and measure it as the clips."""
    if bench is None or pipe.planner.bench != BENCH:
        return
    truth = draw_truth(comparison.asked.prompt, made[0].videos[0].frames)
    if truth is None:
        return
    values = bench.measure(truth[None], [comparison.asked.prompt])
    key = outputs.add_clip(truth, made[0].videos[0].fps, job.session)
    job.outputs.append(key)
    job.result["truth"] = {"clip": key, "values": plain_values(values)}


def _generate(
    pipe: ModelPipeline, request: Any, job: Job, on_step: Callable[[int, int], None]
) -> tuple[list[Video], dict[str, Any] | None]:
    """The clips of one setting, and its trace: None where one branch ran alone."""
    from ..guidance import GuidanceTrace

    trace = None if request.distilled else GuidanceTrace()
    options: dict[str, Any] = {"trace": trace, "on_step": on_step, "on_x0": Preview(pipe, job)}
    videos = pipe.generate(request, **options)
    if trace is None or not len(trace):
        return videos, None
    arrays = trace.as_arrays()
    return videos, {
        "timestep": arrays["timestep"].tolist(),
        "difference": np.sqrt((arrays["difference"] ** 2).mean(0)).T.round(5).tolist(),  # (channels, steps)
        "cosine": arrays["cosine"].mean(0).T.round(5).tolist(),
        "scale": arrays["scale"].T.tolist(),
    }


def _steps(job: Job, before: int, own: int, whole: int) -> Callable[[int, int], None]:
    """Progress of one setting as progress of the job."""
    return lambda done, total: job.step(before + round(own * done / max(1, total)), whole)


def bench_of(name: str, prompt: str) -> tuple[Bench | None, str]:
    """The bench that measures clips of a prompt, or None and why nothing is measured."""
    try:
        bench = find_bench(name)
        bench.check_prompt(prompt)
    except InputError as error:
        return None, spelled(error)
    return bench, ""


def described(bench: Bench) -> list[dict[str, Any]]:
    """The metrics that tables show."""
    found = [bench.find_metric(name) for name in bench.shown]
    return [
        {
            "name": own.name, "label": own.label, "unit": own.unit, "better": own.better, "words": own.words,
            "direction": write_direction(own), "meaning": own.meaning,
        }
        for own in found
    ]  # fmt: skip


def plain_values(values: Values | None) -> dict[str, list[float | None]] | None:
    """Values as JSON: None where undefined."""
    if values is None:
        return None
    return {name: [float(v) if math.isfinite(v) else None for v in column] for name, column in values.items()}


def changes(base: Made, other: Made, bench: Bench | None, letter: str) -> dict[str, Any]:
    """What changed between two settings, in words, with intervals over the seeds if there are several."""
    count = len(base.videos)
    pixels = [
        np.abs(a.frames.astype(np.int16) - b.frames).mean() for a, b in zip(base.videos, other.videos, strict=True)
    ]
    mean = float(np.mean(pixels))
    same = all(np.array_equal(a.frames, b.frames) for a, b in zip(base.videos, other.videos, strict=True))
    lines = [
        "Every pixel is the same." if same else f"Pixels differ by {float(f'{mean:.2g}'):g} of 255 on average."
    ]  # fmt: skip
    if bench is not None and base.values is not None and other.values is not None and not same:
        lines += _metric_lines(base.values, other.values, bench)
    if same:
        note = ""
    elif count < FEWEST:
        made = "One clip of each" if count == 1 else f"{count} clips of each"
        note = f"{made}: other seeds may differ in the other direction. From {FEWEST} clips on there are intervals."
    else:
        note = f"In brackets 95% intervals over {count} seeds of this prompt, not corrected for the number of metrics."
    return {"letter": letter, "lines": lines, "note": note, "pixels": mean, "same": same}


def _metric_lines(base: Values, other: Values, bench: Bench) -> list[str]:
    """A line for each metric that changed, the largest change against its spread first."""
    from ..metrics.statistics import compare as compared

    found: list[tuple[float, str]] = []
    unchanged = 0
    for name in bench.shown:
        metric, a, b = bench.metrics[name], np.asarray(base[name], float), np.asarray(other[name], float)
        both = np.isfinite(a) & np.isfinite(b)
        if not both.any():
            continue
        if np.array_equal(a[both], b[both]):
            unchanged += 1
            continue
        before, after = (write_value(float(own[both].mean()), metric.unit) for own in (a, b))
        if before == after and both.sum() < FEWEST:
            unchanged += 1
            continue
        values = f"{before} to {after}"
        if both.sum() >= FEWEST:
            comparison = compared(a, b, better=metric.better)
            shown = write_interval(comparison.difference, metric.unit)
            weight = abs(comparison.d_z) if math.isfinite(comparison.d_z) else 1.0
            found.append((weight, f"{metric.label}: {values}, {shown}"))
        else:
            found.append((abs(float((b - a)[both].mean())), f"{metric.label}: {values}"))
    lines = [line for _, line in sorted(found, key=lambda own: -own[0])]
    return lines + ([f"{unchanged} other metrics are equal, to three digits."] if unchanged else [])
