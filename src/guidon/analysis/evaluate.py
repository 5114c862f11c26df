"""What ``guidon evaluate`` does: sample held-out prompts at several settings, measure, compare, write.

Every setting gets the same prompts and the same noise. Truth, and truth through the autoencoder, are rows of every
table: no sample can be expected to be better.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .. import world
from ..core.atomic import atomic_path
from ..core.errors import InputError
from ..core.settings import read_mapping
from ..media import contact_sheet, load_video
from ..metrics.statistics import Comparison, Interval, compare, mean_interval, metric_interval
from ..metrics.video import VIDEO_METRICS, measure_video
from ..metrics.world import METRICS, measure, start_spread, starts
from ..pipeline import Pipeline

TRUTH, CEILING = "truth", "truth through the VAE"
SHOWN = (
    "joint", "one_object", "colour", "shape", "direction", "background", "law_residual", "colour_drift", "area_cv",
    "background_flicker", "speed", "chroma",
)  # fmt: skip
WORLD_SEED = 1  # of the prompts; training draws its clips with another
BATCH = 16  # guided, twice as many rows: more no longer fit a CPU's caches


@dataclass(frozen=True)
class Setting:
    """One way to guide."""

    cfg_scale: float
    cfg_channels: str

    def __str__(self) -> str:
        return "no guidance" if self.cfg_scale == 1 else f"scale {self.cfg_scale:g}, channels {self.cfg_channels}"


def settings_of(scales: Sequence[float], channels: Sequence[str]) -> list[Setting]:
    """Every scale with every choice of channels; scale 1 once, for it guides none."""
    found = [Setting(scale, choice) for scale in scales for choice in (channels if scale != 1 else channels[:1])]
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Evaluation:
    """Metrics of every clip, (prompts, seeds) each, by setting and metric; ``spread`` is (prompts,) by setting."""

    model: str
    split: str
    captions: list[str]
    seeds: int
    sampling: dict[str, Any]
    values: dict[str, dict[str, np.ndarray]]
    spread: dict[str, np.ndarray]
    pictures: dict[str, list[np.ndarray]] = field(repr=False, default_factory=dict)

    @property
    def sampled(self) -> list[str]:
        """The settings that are no ceiling."""
        return [name for name in self.values if name not in (TRUTH, CEILING)]

    def interval(self, setting: str, metric: str) -> Interval:
        """Mean over prompts with a 95% interval: BCa, or Wilson's where every prompt of a share gives the same."""
        return metric_interval(self.values[setting][metric], share=METRICS[metric].unit == "share")

    def comparisons(self, metric: str) -> dict[str, Comparison]:
        """Every setting against the first one."""
        first, *others = self.sampled
        better = METRICS[metric].better
        return {name: compare(self.values[first][metric], self.values[name][metric], better=better) for name in others}

    def table(self, metrics: Sequence[str] = SHOWN) -> str:
        """Markdown: one row a setting, means with intervals, and how often a value was undefined."""
        units = {name: METRICS[name].unit for name in metrics}
        lines = [
            "| setting | " + " | ".join(n if units[n] == "share" else f"{n} ({units[n]})" for n in metrics) + " |",
            "|---" * (len(metrics) + 1) + "|",
        ]
        for setting in self.values:
            lines.append(f"| {setting} | " + " | ".join(self._cell(setting, name) for name in metrics) + " |")
        return "\n".join(lines)

    def _cell(self, setting: str, metric: str) -> str:
        found, share = self.interval(setting, metric), METRICS[metric].unit == "share"
        digits = (lambda x: f"{100 * x:.0f}") if share else (lambda x: f"{x:.2g}" if abs(x) < 0.1 else f"{x:.2f}")
        if math.isnan(found.value):
            return "undefined"
        text = digits(found.value) + ("%" if share else "")
        if setting in self.sampled and math.isfinite(found.low):
            text += f" [{digits(found.low)}, {digits(found.high)}]"
        undefined = float(np.isnan(self.values[setting][metric]).mean())
        return text + (f", {100 * undefined:.0f}% undefined" if undefined and metric != "size" else "")

    def write(self, out: Path) -> list[Path]:
        """metrics.csv, a row a clip; summary.json; and sheet.png of the first prompts at every setting."""
        out.mkdir(parents=True, exist_ok=True)
        paths = [out / "metrics.csv", out / "summary.json"]
        with atomic_path(paths[0]) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["setting", "prompt", "seed", "caption", *METRICS])
            for setting, values in self.values.items():
                for prompt, caption in enumerate(self.captions):
                    for seed in range(values["joint"].shape[1]):
                        numbers = [f"{values[name][prompt, seed]:.6g}" for name in METRICS]
                        writer.writerow([setting, prompt, seed, caption, *numbers])
        with atomic_path(paths[1]) as temporary:
            temporary.write_text(json.dumps(self.summary(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        if self.pictures:
            columns = list(self.pictures)
            rows = [list(row) for row in zip(*self.pictures.values(), strict=True)]
            contact_sheet(rows, self.captions[: len(rows)], columns, path=out / "sheet.png")
            paths.append(out / "sheet.png")
        return paths

    def summary(self) -> dict[str, Any]:
        """All that the table shows and what it leaves out, for machines; undefined numbers are null."""

        def number(value: float) -> float | None:
            return value if math.isfinite(value) else None

        def interval(found: Interval) -> dict[str, Any]:
            ends = {"value": number(found.value), "low": number(found.low), "high": number(found.high)}
            return ends | ({"note": found.note} if found.note else {})

        settings = {
            setting: {name: interval(self.interval(setting, name)) for name in METRICS}
            | ({"start_spread": interval(mean_interval(self.spread[setting]))} if setting in self.spread else {})
            for setting in self.values
        }
        against = {
            name: {
                setting: {
                    "difference": interval(found.difference), "p": number(found.p), "d_z": number(found.d_z),
                    "improves": interval(found.improves), "pairs": found.pairs, "undefined": found.undefined,
                    "smallest_visible_d_z": number(found.visible),
                }
                for setting, found in self.comparisons(name).items()
            }
            for name in METRICS
        }  # fmt: skip
        described = {"model": self.model, "split": self.split, "prompts": len(self.captions), "seeds": self.seeds}
        first = self.sampled[0] if self.sampled else None
        return described | {"sampling": self.sampling, "settings": settings, "against": first, "compared": against}


def evaluate(
    pipe: Pipeline,
    settings: Sequence[Setting],
    *,
    split: str = "L0",
    prompts: int = 100,
    seeds: int = 1,
    pictures: int = 8,
    on_step: Callable[[int, int], None] | None = None,
    **sampling: Any,
) -> Evaluation:
    """Sample ``prompts`` captions of a split ``seeds`` times at every setting, and measure.

    Args:
        pipe: a model of the world.
        settings: how to guide; the first one is what the others are compared with.
        split: "L0" new seeds, "L1" and "L2" held-out combinations, "L3" an unseen speed.
        pictures: of how many prompts the first seed's frames are kept.
        on_step: called as ``on_step(done, total)`` over all sampling.
        sampling: further fields of ``Generation``: sampler, steps, ... The seed of prompt k is ``seed + k``.

    Raises:
        InputError: a setting is not valid for the model, or the model does not make the world's videos.
    """
    if split not in world.SPLITS:
        raise InputError(f"split {split!r} does not exist; valid: {', '.join(world.SPLITS)}")
    if not of_the_world(pipe):
        raise InputError(f"{pipe.preset.name} does not make the world's {world.SIZE}x{world.SIZE} videos")
    first = sampling.pop("seed", pipe.preset.seed)
    for setting in settings:  # before anything is sampled
        pipe.plan([""], cfg_scale=setting.cfg_scale, cfg_channels=setting.cfg_channels, **sampling)
    clips = [world.clip(split, WORLD_SEED, index) for index in range(prompts)]
    captions = [clip.caption for clip in clips]
    wanted = [world.read_caption(caption) for caption in captions]
    exact = [clip.frames() for clip in clips]
    truth = _bytes(np.stack(exact))  # as samples are: a change of half a level is lost in all of them alike
    through = _bytes(np.stack([pipe.autoencode(frames) for frames in exact]))
    values: dict[str, dict[str, np.ndarray]] = {}
    for name, frames in ((TRUTH, truth), (CEILING, through)):
        values[name] = {metric: found[:, None] for metric, found in measure(frames, wanted).items()}
    shown = {TRUTH: list(truth[:pictures].copy())}
    del exact, truth, through

    spread: dict[str, np.ndarray] = {}
    whole: dict[str, Any] = {}
    for number, setting in enumerate(settings):
        rows, places, kept = [], [], []
        for k in range(0, prompts, max(1, BATCH // seeds)):
            part = slice(k, k + max(1, BATCH // seeds))
            guidance = {"cfg_scale": setting.cfg_scale, "cfg_channels": setting.cfg_channels}
            own = {"seed": first + k, "seed_per_prompt": True}
            generation = pipe.plan(captions[part], tuple(range(seeds)), **guidance, **sampling, **own)
            whole = generation.model_dump(mode="json", include={"sampler", "steps", "eta", "guidance", "timing"})

            def report(
                done: int, total: int, before: int = number * prompts + k, size: int = len(captions[part])
            ) -> None:
                if on_step:
                    on_step(round(1000 * (before + size * done / total) / (len(settings) * prompts)), 1000)

            videos = pipe.generate(generation, batch_size=BATCH, on_step=report)
            frames = np.stack([video.frames for video in videos])
            rows.append(measure(frames, [want for want in wanted[part] for _ in range(seeds)]))
            places.append(starts(frames))
            kept += [video.frames for video in videos[::seeds]]
        name = str(setting)
        values[name] = {
            metric: np.concatenate([row[metric] for row in rows]).reshape(prompts, seeds) for metric in METRICS
        }
        shown[name] = kept[:pictures]
        if seeds > 1:
            positions = np.concatenate(places).reshape(prompts, seeds, 2)
            things = [clip.scene.things[0] for clip in clips]
            spread[name] = np.array([start_spread(p, thing) for p, thing in zip(positions, things, strict=True)])
    whole |= {"seed": first}
    return Evaluation(pipe.preset.name, split, captions, seeds, whole, values, spread, shown if pictures else {})


def of_the_world(pipe: Pipeline) -> bool:
    """Whether a model makes the world's videos, whose truth is known."""
    shape = tuple(side * pipe.model.downsampling for side in pipe.model.latent_shape[-2:])
    return shape == (world.SIZE, world.SIZE) and len(pipe.model.latent_shape) == 4 and pipe.preset.released is None


def _bytes(frames: np.ndarray) -> np.ndarray:
    return (frames * 255).round().clip(0, 255).astype(np.uint8)


def measure_files(paths: Sequence[Path], caption: str | None, out: Path | None) -> str:
    """Measure video files: against a caption of the world where there is one, and by themselves.

    Without ``caption`` a file's own is taken from the manifest beside it. Returns the table; writes metrics.json to
    ``out`` if given.

    Raises:
        InputError: a file is no video, or a caption's clip is not of the world's size.
    """
    found: dict[str, dict[str, float]] = {}
    for path in paths:
        frames, _ = load_video(path)
        text = caption or _caption_of(path)
        values: dict[str, float] = {}
        if text is not None:
            try:
                wanted = world.read_caption(text)
            except ValueError as error:
                raise InputError(str(error)) from None
            if frames.shape[1:3] != (world.SIZE, world.SIZE) or len(frames) < 2:
                raise InputError(
                    f"{path} is {frames.shape[2]}x{frames.shape[1]}, {len(frames)} frames: captions are judged on the "
                    f"world's {world.SIZE}x{world.SIZE} videos"
                )
            values |= {name: float(value[0]) for name, value in measure(frames[None], [wanted]).items()}
        found[str(path)] = values | measure_video(frames)
    if out is not None:
        clean = {p: {n: v if math.isfinite(v) else None for n, v in row.items()} for p, row in found.items()}
        with atomic_path(out / "metrics.json") as temporary:
            temporary.write_text(json.dumps(clean, indent=1) + "\n", encoding="utf-8")
    names = list(dict.fromkeys(name for row in found.values() for name in row))
    lines = [
        "| metric | unit | " + " | ".join(Path(path).name for path in found) + " |",
        "|---" * (2 + len(found)) + "|",
    ]
    for name in names:
        unit = (METRICS | VIDEO_METRICS)[name].unit
        cells = [row.get(name, math.nan) for row in found.values()]
        lines.append(
            f"| {name} | {unit} | " + " | ".join("undefined" if math.isnan(v) else f"{v:.3g}" for v in cells) + " |"
        )
    return "\n".join(lines)


def _caption_of(path: Path) -> str | None:
    """The prompt in the manifest beside a video of the world, if there is one."""
    manifest = path.with_name(path.name + ".json")
    if not manifest.is_file():
        return None
    content = read_mapping(manifest)
    prompts = content.get("generation", {}).get("prompts", []) if isinstance(content, dict) else []
    return prompts[0] if len(prompts) == 1 and content.get("frames", [0, 0])[1] == world.SIZE else None


def look_during_training(folder: Path, step: int) -> dict[str, float]:
    """Measure weights that a training run has just exported: 16 prompts at the preset's scale, and a sheet as PNG."""
    from ..pipeline import load

    pipe = load(folder)
    setting = Setting(pipe.preset.cfg_scale, pipe.preset.cfg_channels)
    found = evaluate(pipe, [setting], prompts=16, sampler="ddim", steps=20)
    picture = folder.parent / "sheets" / f"{step:07}.png"
    picture.parent.mkdir(exist_ok=True)
    rows = [list(row) for row in zip(*found.pictures.values(), strict=True)]
    contact_sheet(rows, found.captions[: len(rows)], list(found.pictures), path=picture)
    names = ("joint", "colour", "shape", "direction", "law_residual")
    return {name: found.interval(str(setting), name).value for name in names}
