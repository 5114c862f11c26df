"""The work of ``guidon evaluate``: sample captions of a bench at several settings, measure, compare, write results.

All settings use the same prompts and the same noise. Every table also has a row for the true clips and a row for the
true clips after encoding and decoding. These are upper bounds: samples are not expected to be better.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from ..core.atomic import atomic_path
from ..core.errors import InputError
from ..core.progress import OnStep
from ..core.reading import read_object, reading
from ..media import contact_sheet, load_video
from ..media.files import shrink
from ..metrics import video, world
from ..metrics.bench import find_bench
from ..metrics.metric import EVALUATION_SEED, SHARE, Bench, Values
from ..metrics.statistics import Comparison, Interval, compare, mean_interval, metric_interval
from ..pipeline import Pipeline
from ..request import Choices, Request
from ..world import SIZE

TRUTH, CEILING = "truth", "truth through the VAE"
BATCH = 16  # clips denoised together. Guidance doubles the rows; larger batches no longer fit a CPU's caches
RECORDED = ("sampler", "steps", "eta", "guidance", "timing")  # keys of a request that an evaluation records


@dataclass(frozen=True)
class Setting:
    """One setting of guidance."""

    cfg_scale: float
    cfg_channels: str

    def __str__(self) -> str:
        return "no guidance" if self.cfg_scale == 1 else f"scale {self.cfg_scale:g}, channels {self.cfg_channels}"


def settings_of(scales: Sequence[float], channels: Sequence[str]) -> list[Setting]:
    """Every scale with every choice of channels. Scale 1 comes once, because it guides no channel."""
    found = [Setting(scale, choice) for scale in scales for choice in (channels if scale != 1 else channels[:1])]
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Evaluation:
    """The measurements of a model."""

    bench: Bench
    model: str
    split: str
    captions: tuple[str, ...]
    seeds: int
    sampling: dict[str, Any]
    """The choices that all settings share."""
    values: dict[str, Values]
    """setting -> metric -> (prompts, seeds). ``TRUTH`` and ``CEILING`` are also settings here, with one seed."""
    over_seeds: dict[str, Values]
    """setting -> name -> (prompts,): statistics over the samples of a prompt. Empty with one seed."""
    pictures: dict[str, list[np.ndarray]] = field(repr=False, default_factory=dict[str, list[np.ndarray]])
    """Frames of the first prompts, by setting."""

    @property
    def sampled(self) -> list[str]:
        """The settings that were sampled: all but ``TRUTH`` and ``CEILING``."""
        return [name for name in self.values if name not in (TRUTH, CEILING)]

    def interval(self, setting: str, metric: str) -> Interval:
        """Mean over prompts with a 95% interval; see ``metric_interval``."""
        return metric_interval(self.values[setting][metric], share=self.bench.metrics[metric].unit == SHARE)

    def comparisons(self, metric: str) -> dict[str, Comparison]:
        """Comparisons of every other setting with the first one, by setting."""
        first, *others = self.sampled
        better = self.bench.metrics[metric].better
        return {name: compare(self.values[first][metric], self.values[name][metric], better=better) for name in others}

    def table(self, metrics: Sequence[str] | None = None) -> str:
        """A Markdown table with one row for each setting: means with intervals, and how often a value was undefined."""
        chosen = [self.bench.metrics[name] for name in metrics or self.bench.shown]
        heads = [metric.name if metric.unit == SHARE else f"{metric.name} ({metric.unit})" for metric in chosen]
        lines = ["| setting | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
        for setting in self.values:
            lines.append(f"| {setting} | " + " | ".join(self._cell(setting, metric.name) for metric in chosen) + " |")
        return "\n".join(lines)

    def _cell(self, setting: str, name: str) -> str:
        found, metric = self.interval(setting, name), self.bench.metrics[name]
        if math.isnan(found.value):
            return "undefined"
        share = metric.unit == SHARE
        digits = (lambda x: f"{100 * x:.0f}") if share else (lambda x: f"{x:.2g}" if abs(x) < 0.1 else f"{x:.2f}")
        text = digits(found.value) + ("%" if share else "")
        if setting in self.sampled and math.isfinite(found.low):
            text += f" [{digits(found.low)}, {digits(found.high)}]"
        undefined = float(np.isnan(self.values[setting][name]).mean())
        return text + (f", {100 * undefined:.0f}% undefined" if undefined and metric.counts_undefined else "")

    def write(self, out: Path) -> list[Path]:
        """Write metrics.csv (one row for each clip), summary.json, and sheet.png with the first prompts."""
        paths = [out / "metrics.csv", out / "summary.json"]
        self._write_csv(paths[0])
        with atomic_path(paths[1]) as temporary:
            temporary.write_text(json.dumps(self.summary(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        if self.pictures:
            paths.append(self.write_sheet(out / "sheet.png"))
        return paths

    def _write_csv(self, path: Path) -> None:
        names = list(self.bench.metrics)
        with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["setting", "prompt", "seed", "caption", *names])
            for setting, values in self.values.items():
                for prompt, caption in enumerate(self.captions):
                    for seed in range(values[names[0]].shape[1]):
                        numbers = [f"{values[name][prompt, seed]:.6g}" for name in names]
                        writer.writerow([setting, prompt, seed, caption, *numbers])

    def write_sheet(self, path: Path) -> Path:
        """Write the pictures as one PNG: one row for each prompt, one column for each setting."""
        rows = [list(row) for row in zip(*self.pictures.values(), strict=True)]
        return contact_sheet(rows, self.captions[: len(rows)], list(self.pictures), path=path)

    def summary(self) -> dict[str, Any]:
        """All results as data for JSON, with those that the table leaves out. Undefined numbers are null."""
        names = list(self.bench.metrics)
        settings = {
            setting: {name: _as_json(self.interval(setting, name)) for name in names}
            | {name: _as_json(mean_interval(values)) for name, values in self.over_seeds.get(setting, {}).items()}
            for setting in self.values
        }
        compared = {
            name: {setting: _compared_as_json(found) for setting, found in self.comparisons(name).items()}
            for name in names
        }
        described = {"model": self.model, "split": self.split, "prompts": len(self.captions), "seeds": self.seeds}
        against = {"against": self.sampled[0], "compared": compared}
        return described | {"sampling": self.sampling, "settings": settings} | against


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _as_json(found: Interval) -> dict[str, Any]:
    ends = {"value": _number(found.value), "low": _number(found.low), "high": _number(found.high)}
    return ends | ({"note": found.note} if found.note else {})


def _compared_as_json(found: Comparison) -> dict[str, Any]:
    return {
        "difference": _as_json(found.difference),
        "p": _number(found.p),
        "d_z": _number(found.d_z),
        "improves": _as_json(found.improves),
        "pairs": found.pairs,
        "undefined": found.undefined,
        "smallest_visible_d_z": _number(found.visible),
    }


def evaluate(
    pipe: Pipeline,
    settings: Sequence[Setting],
    *,
    split: str | None = None,
    prompts: int = 100,
    seeds: int = 1,
    pictures: int = 8,
    on_step: OnStep | None = None,
    **choices: Unpack[Choices],
) -> Evaluation:
    """Sample ``prompts`` captions of a split ``seeds`` times at every setting, and measure.

    Args:
        pipe: a model of a bench that has captions with exact truth.
        settings: settings of guidance. All others are compared with the first one.
        split: of the bench's captions; None for its default one. The world has "L0" new seeds, "L1" and "L2" held-out
            combinations, "L3" an unseen speed.
        prompts: how many captions.
        seeds: samples of each caption.
        pictures: for how many prompts the frames of the first sample are kept.
        on_step: called as ``on_step(done, 1000)`` over all sampling.
        choices: choices that all settings share, such as sampler and steps. The seed of prompt k is ``seed + k``.

    Raises:
        InputError: a setting is not valid for the model, or its bench has no captions or no such split.
    """
    if not settings:
        raise InputError("there is no setting to evaluate: give at least one")
    bench = find_bench(pipe.model.facts.bench)
    _, split = bench.own_examples(split)
    seed = choices.pop("seed", None)
    first = pipe.preset.seed if seed is None else seed
    if not isinstance(first, int):
        raise InputError(f"seed {first!r:.60} is not one whole number: prompt k gets the seed seed + k")
    for setting in settings:  # refuse an invalid setting before anything is sampled
        pipe.complete([""], range(seeds), **_at(setting, choices))
    # Measure the upper bounds: truth, and truth through the autoencoder.
    captions = bench.captions(split, EVALUATION_SEED, prompts)
    values, shown = _ceilings(pipe, bench, split, captions, pictures)
    # Sample and measure every setting, block by block.
    over_seeds: dict[str, Values] = {}
    sampling: dict[str, Any] = {}
    per_block = max(1, BATCH // seeds)
    for number, setting in enumerate(settings):
        blocks: list[_Block] = []
        for start in range(0, prompts, per_block):
            done, size = number * prompts + start, len(captions[start : start + per_block])
            own: Choices = {**_at(setting, choices), "seed": first + start, "seed_per_prompt": True}
            request = pipe.complete(captions[start : start + per_block], tuple(range(seeds)), **own)
            report = _share_of(on_step, done, size, len(settings) * prompts)
            blocks.append(_sample_block(pipe, bench, split, start, request, report))
            sampling = {key: value for key, value in request.model_dump(mode="json").items() if key in RECORDED}
        name = str(setting)
        values[name] = {key: found.reshape(prompts, seeds) for key, found in _joined(b.values for b in blocks).items()}
        shown[name] = [frames for block in blocks for frames in block.first_samples][:pictures]
        if seeds > 1:
            over_seeds[name] = _joined(block.over_seeds for block in blocks)
    return Evaluation(
        bench, pipe.preset.name, split, captions, seeds, sampling | {"seed": first}, values, over_seeds,
        shown if pictures else {},
    )  # fmt: skip


def _at(setting: Setting, choices: Choices) -> Choices:
    """The shared choices with a setting's guidance."""
    return {**choices, "cfg_scale": setting.cfg_scale, "cfg_channels": setting.cfg_channels}


def _ceilings(
    pipe: Pipeline, bench: Bench, split: str, captions: Sequence[str], pictures: int
) -> tuple[dict[str, Values], dict[str, list[np.ndarray]]]:
    """Truth and truth through the autoencoder: their values (prompts, 1), and frames of truth.

    Both are rounded to 8 bits as samples are, so that rounding affects all rows equally.
    """
    examples, _ = bench.own_examples(split)
    measured: dict[str, list[Values]] = {TRUTH: [], CEILING: []}
    shown: dict[str, list[np.ndarray]] = {TRUTH: [], CEILING: []}
    for start in range(0, len(captions), BATCH):  # block by block, so that memory does not grow with the captions
        texts = captions[start : start + BATCH]
        exact = [examples.frames(split, EVALUATION_SEED, start + k) for k in range(len(texts))]
        clips = {TRUTH: exact, CEILING: [pipe.autoencode(frames) for frames in exact]}
        for name, found in clips.items():
            frames = _bytes(np.stack(found))
            measured[name].append(bench.measure(frames, texts))
            shown[name] += list(frames[: max(0, pictures - start)].copy())
    values = {name: {key: found[:, None] for key, found in _joined(rows).items()} for name, rows in measured.items()}
    return values, shown


def _bytes(frames: np.ndarray) -> np.ndarray:
    return (frames * 255).round().clip(0, 255).astype(np.uint8)


@dataclass(frozen=True)
class _Block:
    """Results for some prompts of a setting that were sampled together."""

    values: Values
    """(prompts * seeds,) by metric."""
    over_seeds: Values
    """(prompts,) by name."""
    first_samples: list[np.ndarray]
    """Frames of each prompt's first sample."""


def _sample_block(
    pipe: Pipeline, bench: Bench, split: str, start: int, request: Request, on_step: OnStep | None
) -> _Block:
    """Sample and measure the prompts of a request. The first one is caption number ``start`` of the split."""
    seeds = len(request.samples)
    videos = pipe.generate(request, batch_size=BATCH, on_step=on_step)
    frames = np.stack([video.frames for video in videos])
    values = bench.measure(frames, [prompt for prompt in request.prompts for _ in range(seeds)])
    examples, _ = bench.own_examples(split)
    together = [
        examples.over_seeds(split, EVALUATION_SEED, start + k, frames[k * seeds : (k + 1) * seeds])
        for k in range(len(request.prompts) if seeds > 1 else 0)
    ]
    over_seeds = {name: np.array([row[name] for row in together]) for name in (together[0] if together else ())}
    return _Block(values, over_seeds, [video.frames for video in videos[::seeds]])


def _joined(parts: Iterable[Values]) -> Values:
    """Values of consecutive blocks, by name."""
    rows = list(parts)
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _share_of(on_step: OnStep | None, before: int, size: int, total: int) -> OnStep | None:
    """A callback that reports progress of parts ``before`` to ``before + size`` of ``total``, in thousandths."""
    return on_step and (lambda done, steps: on_step(round(1000 * (before + size * done / steps) / total), 1000))


def measure_files(paths: Sequence[Path], caption: str | None, out: Path | None) -> str:
    """Measure video files with the bench "video", and with the bench "world" if there is a caption.

    Args:
        paths: the files.
        caption: what they should show; None for the prompt in the manifest beside each.
        out: a folder for metrics.json, or None.

    Returns:
        A Markdown table with one row for each metric and one column for each file.

    Raises:
        InputError: a file is no video, or a caption's clip is not of the world's size.
    """
    found: dict[str, dict[str, float]] = {}
    for path in paths:
        frames = _frames_as_made(path)
        text = caption or _caption_of(path)
        values = {} if text is None else _measure_file(path, world.BENCH, frames, text)
        found[str(path)] = values | _measure_file(path, video.BENCH, frames, "")
    if out is not None:
        clean = {p: {n: _number(v) for n, v in row.items()} for p, row in found.items()}
        with atomic_path(out / "metrics.json") as temporary:
            temporary.write_text(json.dumps(clean, indent=1) + "\n", encoding="utf-8")
    metrics = {**world.BENCH.metrics, **video.BENCH.metrics}
    lines = [
        "| metric | unit | " + " | ".join(Path(path).name for path in found) + " |",
        "|---" * (2 + len(found)) + "|",
    ]
    for name in dict.fromkeys(name for row in found.values() for name in row):
        cells = [row.get(name, math.nan) for row in found.values()]
        texts = " | ".join("undefined" if math.isnan(value) else f"{value:.3g}" for value in cells)
        lines.append(f"| {name} | {metrics[name].unit} | {texts} |")
    return "\n".join(lines)


def _measure_file(path: Path, bench: Bench, frames: np.ndarray, caption: str) -> dict[str, float]:
    """The metrics of one clip."""
    bench.check_prompt(caption)
    try:
        return {name: float(value[0]) for name, value in bench.measure(frames[None], [caption]).items()}
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _frames_as_made(path: Path) -> np.ndarray:
    """The frames of a file, shrunk to those of the model where they were enlarged for looking."""
    frames, _ = load_video(path)
    content = _manifest_beside(path)
    upscale = content.get("output", {}).get("upscale", 1) if content else 1
    if upscale == 1:
        return frames
    with reading(path, "the video of its manifest", "keep them together, or measure the file without its manifest"):
        return shrink(frames, upscale, *content["frames"][1:3])


def _caption_of(path: Path) -> str | None:
    """The prompt in the manifest beside a video of the world's size, as the model read it; None if there is none."""
    content = _manifest_beside(path)
    prompts = content["generation"]["prompts"] if content else []
    if len(prompts) != 1 or content["frames"][1] != SIZE:
        return None
    return content["generation"]["read_as"].get(prompts[0], prompts[0])


def _manifest_beside(path: Path) -> dict[str, Any]:
    """The manifest beside a video; empty if there is none.

    Raises:
        InputError: its prompts, its frames or its output are not those of a video.
    """
    manifest = path.with_name(path.name + ".json")
    if not os.path.isfile(manifest):  # noqa: PTH113  # Path.is_file raises for a name that is too long
        return {}
    what = "the manifest of a video"
    content = read_object(manifest, what)
    with reading(manifest, what):
        generation = content.setdefault("generation", {})
        prompts, read_as = generation.setdefault("prompts", []), generation.setdefault("read_as", {})
        if not isinstance(prompts, list) or not all(isinstance(text, str) for text in [*prompts, *read_as.values()]):
            raise ValueError("its prompts are not a list of texts")
        shape, upscale = content.setdefault("frames", [0, 0, 0, 3]), content.setdefault("output", {}).get("upscale", 1)
        numbers = [*shape, upscale]
        if len(shape) != 4 or not all(isinstance(number, int) and 0 <= number < 1 << 31 for number in numbers):
            raise ValueError("its frames or its upscale are not whole numbers")
    return content


def look_during_training(folder: Path, step: int) -> dict[str, float]:
    """Measure weights that a training run has just exported, on 16 prompts, and write a contact sheet as PNG."""
    from ..pipeline import load

    pipe = load(folder)
    setting = Setting(pipe.preset.cfg_scale, pipe.preset.cfg_channels)
    found = evaluate(pipe, [setting], prompts=16, sampler="ddim", steps=20)
    found.write_sheet(folder.parent / "sheets" / f"{step:07}.png")
    return {name: found.interval(str(setting), name).value for name in found.bench.watched}
