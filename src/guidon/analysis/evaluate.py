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
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from ..core import errors
from ..core.atomic import atomic_path
from ..core.devices import pick_device
from ..core.errors import InputError
from ..core.numbers import all_digits
from ..core.progress import OnStep
from ..core.ranks import ALONE, Ranks
from ..core.reading import read_object, reading
from ..media import contact_sheet, load_video
from ..media.files import shrink
from ..metrics import video, world
from ..metrics.bench import find_bench, open_bench
from ..metrics.choice import BenchChoice, find_weights, learned_parts
from ..metrics.metric import COSINE, EVALUATION_SEED, SHARE, Bench, Examples, Metric, Values
from ..metrics.statistics import Comparison, Interval, compare, mean_interval, metric_interval
from ..pipeline.division import branch_count
from ..pipeline.planner import Planner
from ..request import Choices, Request

if TYPE_CHECKING:
    import torch

    from ..pipeline import Pipeline
    from ..training.preview import Preview

TRUTH, CEILING = "truth", "truth through the VAE"
MODELS_OWN = BenchChoice()
BATCH = 16  # clips denoised together. Guidance doubles the rows; larger batches no longer fit a CPU's caches
RECORDED = (
    "sampler",
    "steps",
    "spacing",
    "adaptive",
    "reuse",
    "eta",
    "guidance",
    "timing",
    "dtype",
    "decode_dtype",
)  # keys of a request that an evaluation records


@dataclass(frozen=True)
class Setting:
    """One setting of guidance."""

    cfg_scale: float
    cfg_channels: str

    def __str__(self) -> str:
        if self.cfg_scale == 1:
            return "no guidance"
        return f"scale {all_digits(self.cfg_scale)}, channels {self.cfg_channels}"  # results go by this name


def settings_of(scales: Sequence[float], channels: Sequence[str]) -> list[Setting]:
    """Every scale with every choice of channels. Scale 1 comes once, because it guides no channel."""
    found = [Setting(scale, choice) for scale in scales for choice in (channels if scale != 1 else channels[:1])]
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Evaluation:
    """The measurements of a model."""

    bench: Bench
    model: str
    split: str | None
    """The split of the bench's captions; None where prompts were given as texts."""
    captions: tuple[str, ...]
    seeds: int
    sampling: dict[str, Any]
    """The choices that all settings share."""
    values: dict[str, Values]
    """setting -> metric -> (prompts, seeds). For captions of a split ``TRUTH`` and ``CEILING`` are settings too."""
    over_seeds: dict[str, Values]
    """setting -> name -> (prompts,): statistics over the samples of a prompt. Empty with one seed."""
    weights: dict[str, str] = field(default_factory=dict[str, str])
    """The hash of all weights that decide the clips, by part; an adapter is a part, called by its name and weight."""
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
        digits = (lambda x: f"{100 * x:.0f}") if share else partial(readable, unit=metric.unit)
        text = digits(found.value) + ("%" if share else "")
        if setting in self.sampled and math.isfinite(found.low):
            text += f" [{digits(found.low)}, {digits(found.high)}]"
        values = self.values[setting][name]
        undefined = int(np.isnan(values).sum())
        return text + (f", {undefined} of {values.size} undefined" if undefined and metric.counts_undefined else "")

    def legend(self, metrics: Sequence[str] | None = None) -> str:
        """What the columns of the table say, one line each, why values are undefined, and what the brackets hold."""
        lines: list[str] = []
        for name in metrics or self.bench.shown:
            metric = self.bench.metrics[name]
            some = any(np.isnan(values[name]).any() for values in self.values.values())
            lines.append(explained(metric) + (f"; undefined where {metric.undefined}" if some else ""))
        lines += said_weights(self.bench)
        return "\n".join([*lines, "[low, high] is the 95% interval of the mean over prompts"])

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
        described = {
            "model": self.model,
            "weights": self.weights,
            "split": self.split,
            "prompts": len(self.captions),
            "seeds": self.seeds,
        }
        against = {"against": self.sampled[0], "compared": compared}
        weights = {part: own.model_dump() for part, own in self.bench.weights.items()}
        described |= {"bench": self.bench.name, "bench_weights": weights} if weights else {}
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


def readable(value: float, unit: str = "") -> str:
    """A number for people: two or three decimals, and no exponent. Cosines are close to each other: they have three."""
    if abs(value) >= 0.1 and unit != COSINE:
        return f"{value:.2f}" if abs(value) < 1000 else f"{value:.0f}"
    text = f"{value:.3f}"
    return "0" if float(text) == 0 else text


def said_weights(bench: Bench) -> list[str]:
    """A line for each learned part of a bench: the weights with which it measures."""
    return [f"{part} measures with {own.name}, SHA-256 {own.hash[:12]}" for part, own in bench.weights.items()]


def explained(metric: Metric) -> str:
    """What a metric measures, in a line."""
    better = "" if metric.better is None else f"; {metric.better} is better"
    return f"{metric.name}: {metric.meaning}{better}"


def check_evaluation(
    planner: Planner,
    settings: Sequence[Setting],
    choices: Choices,
    *,
    split: str | None = None,
    prompts: int | Sequence[str] = 100,
    seeds: int = 1,
    bench: BenchChoice = MODELS_OWN,
    device: torch.device | None = None,
) -> tuple[str, ...]:
    """The captions of an evaluation whose settings are valid. It needs neither the model's weights nor torch.

    The arguments are those of ``evaluate``; ``planner`` is that of its model, and ``device`` where it runs, if known.

    Raises:
        InputError: a setting is not valid for the model, its bench has no captions or no such split, or weights of the
            bench are missing.
    """
    if not settings:
        raise InputError("there is no setting to evaluate: give at least one")
    judge = find_bench(bench.full_name(planner.facts.bench))
    find_weights(bench, judge.name)
    if isinstance(prompts, int):
        first = judge.captions(split, EVALUATION_SEED, 1)
    else:
        for text in prompts:
            judge.check_prompt(text)
        planner.check_prompts(prompts, follow=True)
        first = tuple(prompts[:1])
    for setting in settings:
        planner.complete(first, range(seeds), device=device, **_at(setting, choices))
    return judge.captions(split, EVALUATION_SEED, prompts) if isinstance(prompts, int) else tuple(prompts)


def evaluate(
    pipe: Pipeline,
    settings: Sequence[Setting],
    *,
    split: str | None = None,
    prompts: int | Sequence[str] = 100,
    seeds: int = 1,
    bench: BenchChoice = MODELS_OWN,
    batch_size: int = BATCH,
    pictures: int = 8,
    on_step: OnStep | None = None,
    ranks: Ranks = ALONE,
    **choices: Unpack[Choices],
) -> Evaluation:
    """Sample prompts ``seeds`` times at every setting, and measure.

    Args:
        pipe: the model.
        settings: settings of guidance. All others are compared with the first one.
        split: of the bench's captions; None for its default one. The world has "L0" new seeds, "L1" and "L2" held-out
            combinations, "L3" an unseen speed.
        prompts: how many captions of the split, for a model whose bench has captions with exact truth; or texts.
        seeds: samples of each caption.
        bench: what measures, with its weights; by default the model's own bench.
        batch_size: clips denoised together.
        pictures: for how many prompts the frames of the first sample are kept.
        on_step: called as ``on_step(done, 1000)`` over all sampling.
        ranks: the processes that share the work, all of which make this call and get its result. Each samples and
            measures whole batches, so that numbers are those of one process.
        choices: choices that all settings share, such as sampler and steps. The seed of prompt k is ``seed + k``.

    Raises:
        InputError: a setting is not valid for the model, its bench has no captions or no such split, or weights of the
            bench are missing or cannot be read.
    """
    seed = choices.pop("seed", None)
    first = pipe.preset.seed if seed is None else seed
    if not isinstance(first, int):
        raise InputError(f"seed {first!r:.60} is not one whole number: prompt k gets the seed seed + k")
    # Refuse an invalid setting before anything is sampled.
    captions = check_evaluation(
        pipe.planner, settings, choices, split=split, prompts=prompts, seeds=seeds, bench=bench, device=pipe.device
    )
    # Measure the upper bounds: truth, and truth through the autoencoder.
    judge = open_bench(bench, pipe.model.facts.bench, device=pipe.device, keep=pipe.model.vae.keep)
    count = len(captions)
    values, shown, exact = dict[str, Values](), dict[str, list[np.ndarray]](), None
    if isinstance(prompts, int):
        exact = judge.own_examples(split)
        values, shown = _ceilings(pipe, judge, *exact, captions, pictures, ranks)
    # Sample and measure every setting, block by block. Teams of ranks take turns.
    per_block = max(1, batch_size // seeds)
    requests = [
        pipe.complete(
            captions[start : start + per_block], tuple(range(seeds)),
            **_at(setting, choices) | {"seed": first + start, "seed_per_prompt": True},
        )
        for setting in settings for start in range(0, count, per_block)
    ]  # fmt: skip
    size = ranks.branches_for(len(requests), max(branch_count(request.guidance) for request in requests))
    team, teams = ranks.teams(size), len(ranks) // size

    def sampled() -> dict[int, _Block]:
        """The blocks of this rank's team, by number."""
        found, own = dict[int, _Block](), range(ranks.index // size, len(requests), teams)
        done, total = 0, sum(len(requests[number].prompts) for number in own)
        for number in own:
            request, start = requests[number], number % blocks_of_each * per_block
            report = _share_of(on_step if ranks.first else None, done, len(request.prompts), total)
            block = _sample_block(pipe, judge, exact, start, request, batch_size, report, team)
            found[number] = replace(block, first_samples=block.first_samples[: max(0, pictures - start)])
            done += len(request.prompts)
        return found

    blocks_of_each = -(-count // per_block)
    by_number = dict[int, _Block]()
    for part in ranks.together(sampled)[::size]:
        by_number |= part
    over_seeds: dict[str, Values] = {}
    for number, setting in enumerate(settings):
        name = str(setting)
        blocks = [by_number[number * blocks_of_each + k] for k in range(blocks_of_each)]
        values[name] = {key: found.reshape(count, seeds) for key, found in _joined(b.values for b in blocks).items()}
        shown[name] = [frames for block in blocks for frames in block.first_samples][:pictures]
        if blocks[0].over_seeds:
            over_seeds[name] = _joined(block.over_seeds for block in blocks)
    sampling = {key: value for key, value in requests[-1].model_dump(mode="json").items() if key in RECORDED}
    return Evaluation(
        judge, pipe.preset.name, exact and exact[1], captions, seeds, sampling | {"seed": first}, values, over_seeds,
        {name: found for request in requests for name, found in pipe.hashes_for(request).items()},
        shown if pictures else {},
    )  # fmt: skip


def _at(setting: Setting, choices: Choices) -> Choices:
    """The shared choices with a setting's guidance."""
    return {**choices, "cfg_scale": setting.cfg_scale, "cfg_channels": setting.cfg_channels}


def _ceilings(
    pipe: Pipeline, bench: Bench, examples: Examples, split: str, captions: Sequence[str], pictures: int, ranks: Ranks
) -> tuple[dict[str, Values], dict[str, list[np.ndarray]]]:
    """Truth and truth through the autoencoder: their values (prompts, 1), and frames of truth.

    Both are rounded to 8 bits as samples are, so that rounding affects all rows equally.
    """

    def measured_part() -> tuple[dict[str, list[Values]], dict[str, list[np.ndarray]]]:
        """The blocks of this rank: block by block, so that memory does not grow with the captions."""
        measured: dict[str, list[Values]] = {TRUTH: [], CEILING: []}
        shown: dict[str, list[np.ndarray]] = {TRUTH: [], CEILING: []}
        for start in range(0, len(captions), BATCH)[ranks.share(-(-len(captions) // BATCH))]:
            texts = captions[start : start + BATCH]
            exact = [examples.frames(split, EVALUATION_SEED, start + k) for k in range(len(texts))]
            clips = {TRUTH: exact, CEILING: [pipe.autoencode(frames) for frames in exact]}
            for name, found in clips.items():
                frames = _bytes(np.stack(found))
                measured[name].append(bench.measure(frames, texts))
                shown[name] += list(frames[: max(0, pictures - start)].copy())
        return measured, shown

    parts = ranks.together(measured_part)
    measured = {name: [values for part, _ in parts for values in part[name]] for name in (TRUTH, CEILING)}
    shown = {name: [frames for _, part in parts for frames in part[name]] for name in (TRUTH, CEILING)}
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
    pipe: Pipeline,
    bench: Bench,
    exact: tuple[Examples, str] | None,
    start: int,
    request: Request,
    batch_size: int,
    on_step: OnStep | None,
    team: Ranks,
) -> _Block:
    """Sample and measure the prompts of a request, with the other ranks of a team.

    If ``exact`` names the examples and the split of the captions, the first prompt is caption number ``start``.
    """
    seeds = len(request.samples)
    videos = pipe.generate(request, batch_size=batch_size, on_step=on_step, ranks=team)
    frames = np.stack([video.frames for video in videos])
    measured = [prompt for prompt in request.prompts for _ in range(seeds)]
    values = team.from_first(lambda: bench.measure(frames, measured))
    together: list[dict[str, float]] = []
    if exact is not None and seeds > 1:
        examples, split = exact
        for k in range(len(request.prompts)):
            own = frames[k * seeds : (k + 1) * seeds]
            together.append(examples.over_seeds(split, EVALUATION_SEED, start + k, own))
    over_seeds = {name: np.array([row[name] for row in together]) for name in (together[0] if together else ())}
    return _Block(values, over_seeds, [video.frames for video in videos[::seeds]])


def _joined(parts: Iterable[Values]) -> Values:
    """Values of consecutive blocks, by name."""
    rows = list(parts)
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _share_of(on_step: OnStep | None, before: int, size: int, total: int) -> OnStep | None:
    """A callback that reports progress of parts ``before`` to ``before + size`` of ``total``, in thousandths."""
    return on_step and (lambda done, steps: on_step(round(1000 * (before + size * done / steps) / total), 1000))


@dataclass(frozen=True)
class MeasuredFiles:
    """The measurements of video files."""

    values: dict[Path, dict[str, float]]
    """file -> metric -> value; NaN where undefined."""
    left_out: dict[Path, str]
    """Files that were not measured, or not against a caption, and why."""
    bench: Bench = video.BENCH
    """What measured all files; those with a caption of the world were also measured by the bench "world"."""

    @property
    def metrics(self) -> dict[str, Metric]:
        """The metrics of all files, in the order of the tables."""
        known = {**world.BENCH.metrics, **self.bench.metrics}
        return {name: known[name] for name in dict.fromkeys(name for row in self.values.values() for name in row)}

    def table(self) -> str:
        """A Markdown table with one row for each metric, one column for each file, and what the metric says."""
        lines = [
            "| metric | " + " | ".join(path.name for path in self.values) + " | what it says |",
            "|---" * (2 + len(self.values)) + "|",
        ]
        for name, metric in self.metrics.items():
            cells = " | ".join(_written(row.get(name), metric) for row in self.values.values())
            head = name if metric.unit == SHARE else f"{name} ({metric.unit})"
            lines.append(f"| {head} | {cells} | {explained(metric).partition(': ')[2]} |")
        said = said_weights(self.bench)
        return "\n".join([*lines, *(["", *said] if said else [])])

    def write(self, path: Path) -> Path:
        """Write the values as JSON; undefined ones are null."""
        clean = {str(p): {n: _number(v) for n, v in row.items()} for p, row in self.values.items()}
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(clean, indent=1) + "\n", encoding="utf-8")
        return path


def _written(value: float | None, metric: Metric) -> str:
    """A value in a table; empty where the file was not measured in this metric."""
    if value is None:
        return ""
    if math.isnan(value):
        return f"undefined: {metric.undefined}"
    if metric.kind == "alignment" and metric.unit == SHARE and value in (0, 1):  # of one clip
        return "right" if value else "wrong"
    return f"{100 * value:.0f}%" if metric.unit == SHARE else readable(value, metric.unit)


def check_files_bench(bench: BenchChoice) -> None:
    """Refuse a bench that does not measure any video, or whose weights are missing.

    Raises:
        InputError: the message says which one to give.
    """
    full = bench.full_name(video.BENCH.name)
    if full.partition("+")[0] != video.BENCH.name:
        name = errors.setting("bench")
        raise InputError(f"{name} {full!r} is for a model: files are measured by video and learned parts")
    find_weights(bench, full)


def measure_files(
    paths: Sequence[Path], caption: str | None = None, bench: BenchChoice = MODELS_OWN, device: str = "auto"
) -> MeasuredFiles:
    """Measure video files with the bench "video", and with the bench "world" if there is a caption of it.

    What cannot be measured is left out, and named.

    Args:
        paths: the files.
        caption: what they should show; None for the prompt in the manifest beside each.
        bench: learned parts that measure too, with their weights.
        device: where these run.

    Raises:
        InputError: the caption asks for nothing that can be measured, weights are missing, or no file could be
            measured.
    """
    check_files_bench(bench)
    learned = learned_parts(bench.full_name(video.BENCH.name))
    judge = open_bench(bench, video.BENCH.name, device=pick_device(device) if learned else "cpu")
    reads_any = "clip" in learned  # it compares with captions that the world does not know
    if caption is not None and not reads_any:
        world.BENCH.check_prompt(caption)
    found, left_out = dict[Path, dict[str, float]](), dict[Path, str]()
    for path in dict.fromkeys(paths):
        if path.name.endswith(("-sheet.png", ".json", ".npz")):
            left_out[path] = "it is a contact sheet" if path.suffix == ".png" else f"it is {path.suffix[1:]}, no video"
            continue
        text, why = (caption, None) if caption is not None else _caption_of(path)
        try:
            frames = _frames_as_made(path)
            values = _measured(judge, frames, text or "")
        except InputError as error:
            left_out[path] = str(error).removeprefix(f"{path} ").removeprefix(f"{path}: ")
            continue
        aligned: dict[str, float] = {}
        if text is not None:
            aligned, unlike = _against_caption(frames, text)
            why = None if reads_any else unlike
        found[path] = aligned | values
        if why is not None:
            left_out[path] = f"measured without a caption: {why}"
    if not found:
        first, why = next(iter(left_out.items()))
        more = f", and {len(left_out) - 1} others were not either" if len(left_out) > 1 else ""
        raise InputError(f"no file could be measured: {first}: {why}{more}")
    return MeasuredFiles(found, left_out, judge)


def _against_caption(frames: np.ndarray, text: str) -> tuple[dict[str, float], str | None]:
    """The metrics of a clip of the world against its caption; none, and why, where they do not fit the world."""
    try:
        world.BENCH.check_prompt(text)
        return _measured(world.BENCH, frames, text), None
    except InputError as error:
        return {}, str(error)


def _measured(bench: Bench, frames: np.ndarray, caption: str) -> dict[str, float]:
    """The metrics of one clip."""
    return {name: float(value[0]) for name, value in bench.measure(frames[None], [caption]).items()}


def _frames_as_made(path: Path) -> np.ndarray:
    """The frames of a file, shrunk to those of the model where they were enlarged for looking."""
    frames, _ = load_video(path)
    content = _manifest_beside(path)
    upscale = content.get("output", {}).get("upscale", 1) if content else 1
    if upscale == 1:
        return frames
    with reading(path, "the video of its manifest", "keep them together, or measure the file without its manifest"):
        return shrink(frames, upscale, *content["frames"][1:3])


def _caption_of(path: Path) -> tuple[str | None, str | None]:
    """The prompt in the manifest beside a video, as the model read it; or None, and why there is none."""
    try:
        content = _manifest_beside(path)
    except InputError as error:
        return None, str(error)
    prompts = content["generation"]["prompts"] if content else []
    if len(prompts) != 1:
        return None, "there is no manifest with one prompt beside it"
    return content["generation"]["read_as"].get(prompts[0], prompts[0]), None


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


def look_during_training(model: Path | Preview, step: int) -> dict[str, float]:
    """Measure the weights of a training run, and write a contact sheet as PNG.

    A model folder that the run has just exported is measured on 16 prompts of its bench; a model of a user's clips on
    captions of held-out clips.
    """
    if not isinstance(model, Path):
        return _look_at_prompts(model, step)
    from ..pipeline import load

    pipe = load(model)
    setting = Setting(pipe.preset.cfg_scale, pipe.preset.cfg_channels)
    found = evaluate(pipe, [setting], prompts=16, sampler="ddim", steps=20)
    found.write_sheet(model.parent / "sheets" / f"{step:07}.png")
    return {name: found.interval(str(setting), name).value for name in found.bench.watched}


def _look_at_prompts(preview: Preview, step: int) -> dict[str, float]:
    """Measure a model that is being trained on its own prompts, and write a contact sheet."""
    from ..pipeline import Pipeline

    if not preview.prompts:
        return {}
    pipe = Pipeline(preview.preset, preview.model, preview.device)
    pipe.set_progress_bar_config(disable=True)
    setting = Setting(pipe.preset.cfg_scale, pipe.preset.cfg_channels)
    few: Choices = {"sampler": "ddim", "steps": 20} if pipe.model.facts.path == "diffusion" else {"steps": 20}
    found = evaluate(pipe, [setting], prompts=preview.prompts, seeds=1, pictures=len(preview.prompts), **few)
    found.write_sheet(preview.sheet(step))
    values = {name: found.interval(str(setting), name).value for name in found.bench.watched or found.bench.shown}
    return {name: value for name, value in values.items() if math.isfinite(value)}
