"""From a results folder to one HTML file that needs no network: what is on the page, and what fits into it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import zip_longest
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from ...analysis.evaluate import SHOWN
from ...core.atomic import atomic_path
from ...core.errors import InputError
from ...media.files import save_video
from ...metrics.statistics import by_prompt, pareto
from ...metrics.video import VIDEO_METRICS
from ...request import Generation
from ..plan import Plan
from ..run import Cell, answer, cells_of, read_plan, results
from . import figures
from .tables import Results, Row, extremes, summarise, write_summary

FRONT = (("joint", "colour_drift"), ("joint", "law_residual"), ("interpolation_error", "clipped"))
OnCell = Callable[[int, int], None]


@dataclass(frozen=True)
class Clip:
    """A cell as the page shows it."""

    cell: Cell
    picture: str
    metrics: dict[str, float]
    command: str
    seed: int
    digest: str
    video: str


def write_report(
    folder: Path, out: Path | None = None, *, max_mb: float = 10, videos: bool = True, on_cell: OnCell | None = None
) -> list[Path]:
    """The page, ``summary.csv`` beside the results, and there an MP4 of every clip of the page.

    Args:
        folder: results of ``guidon study run``, finished.
        out: the page; report.html in ``folder`` if left out.
        max_mb: no page is larger; prompts whose clips do not fit stay in the folder.
        videos: False leaves the MP4s out, for a page that goes where the folder does not.
        on_cell: called as ``on_cell(done, total)`` while MP4s are written.

    Raises:
        InputError: the folder holds no finished study, or the page does not fit or cannot be written.
    """
    plan = read_plan(folder)
    found = results(plan, folder)
    out = folder / "report.html" if out is None else out
    rows = summarise(plan, found)
    gains, losses = extremes(plan, found)
    turns = [prompt for pair in zip_longest(gains, losses) for prompt in pair if prompt is not None]
    order = list(dict.fromkeys([*turns, *range(len(plan.captions))]))
    cells = cells_of(plan, folder)
    content = _content(plan, found, rows, cells) | {"gains": gains, "losses": losses}
    clips = {
        prompt: [_clip(cell, out if videos else None) for cell in cells if cell.prompt == prompt] for prompt in order
    }
    page = _fit(content, clips, order, int(max_mb * 1e6))
    path = folder / "summary.csv"
    try:
        write_summary(rows, path)
        path = out
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            temporary.write_text(page.html, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}): choose another --out or make room") from None
    if not videos:
        return [out, folder / "summary.csv"]
    shown = [clip for prompt in page.prompts for clip in clips[prompt]]
    for number, clip in enumerate(shown):
        _write_video(folder, clip)
        if on_cell:
            on_cell(number + 1, len(shown))
    return [out, folder / "summary.csv", folder / "videos"]


@dataclass(frozen=True)
class _Page:
    html: str
    prompts: list[int]


def _fit(content: dict[str, Any], clips: dict[int, list[Clip]], order: Sequence[int], limit: int) -> _Page:
    """As many whole prompts as the limit allows, the first of ``order`` first."""
    taken, empty = list(order), len(_render(content, {}).encode())
    while taken:
        size = empty + sum(len(clip.picture) + 1500 for prompt in taken for clip in clips[prompt])
        if size <= limit or len(taken) == 1:
            html = _render(content, {prompt: clips[prompt] for prompt in sorted(taken)})
            if len(html.encode()) <= limit:
                return _Page(html, sorted(taken))
        taken.pop()
    raise InputError(f"not one prompt's clips fit into {limit / 1e6:g} MB: give a larger --max-mb")


def _render(content: dict[str, Any], clips: dict[int, list[Clip]]) -> str:
    parts = {
        name: resources.files(__name__.rpartition(".")[0]).joinpath(name).read_text("utf-8")
        for name in ("page.css", "page.js")
    }
    digests = {
        name: "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for name, text in parts.items()
    }
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(
        resources.files(__name__.rpartition(".")[0]).joinpath("page.html").read_text("utf-8")
    )
    return template.render(
        **content,
        clips=clips,
        css=Markup(parts["page.css"]),
        js=Markup(parts["page.js"]),
        css_digest=digests["page.css"],
        js_digest=digests["page.js"],
    )


def _content(plan: Plan, found: Results, rows: Sequence[Row], cells: Sequence[Cell]) -> dict[str, Any]:
    """All of the page but its clips."""
    metrics = [name for name in (SHOWN if plan.of_the_world else VIDEO_METRICS) if name in plan.metrics]
    if plan.primary.metric not in metrics:
        metrics.insert(0, plan.primary.metric)
    slugs = {cell.setting: cell.folder.parent.name for cell in cells}
    manifest = json.loads((cells[0].folder / "manifest.json").read_text())
    compared = [m for m in metrics if any(r.metric.name == m and r.comparison for r in rows)]
    return {
        "plan": plan,
        "answer": answer(plan, found),
        "metrics": [plan.metrics[name] for name in metrics],
        "rows": rows,
        "table": {s: [r for m in metrics for r in rows if (r.setting, r.metric.name) == (s, m)] for s in plan.settings},
        "slugs": slugs,
        "fps": manifest["fps"],
        "frames": manifest["frames"],
        "forests": {m: figures.forest([r for r in rows if r.metric.name == m], slugs) for m in compared},
        "front": _front(plan, found, rows, slugs),
        "grid": _grid(plan, found),
        "energy": _energies(plan, cells),
        "number": _number,
    }


def _number(value: float, unit: str = "") -> str:
    if not np.isfinite(value):
        return "undefined"
    return f"{100 * value:.0f}%" if unit == "share" else f"{value:.3g}"


def _front(plan: Plan, found: Results, rows: Sequence[Row], slugs: dict[str, str]) -> list[tuple[str, Markup]]:
    """A scatter for each pair of metrics, and its title."""
    plots = []
    for pair in FRONT:
        if not all(name in plan.metrics for name in pair) or len(plan.settings) < 2:
            continue
        x, y = (plan.metrics[name] for name in pair)
        values = {s: (by_prompt(found[s][x.name]), by_prompt(found[s][y.name])) for s in plan.settings}
        means = {(row.setting, row.metric.name): row.mean.value for row in rows}
        points = {s: (means[s, x.name], means[s, y.name]) for s in plan.settings}
        chance = pareto(values, (x.better or "higher", y.better or "lower"))
        plots.append((f"{x.name} against {y.name}", figures.scatter(points, chance, (x, y), slugs)))
    return plots


def _grid(plan: Plan, found: Results) -> Markup | None:
    """The primary metric over channels and scale, where settings differ in nothing else."""
    own = ("cfg_scale", "cfg_channels")
    plain = {
        name: s for name, s in plan.settings.items() if isinstance(s["cfg_scale"], int | float) and s["cfg_scale"] != 1
    }
    families: dict[str, dict[tuple[str, float], str]] = {}
    for name, setting in plain.items():
        rest = json.dumps({key: value for key, value in setting.items() if key not in own}, sort_keys=True)
        families.setdefault(rest, {})[setting["cfg_channels"], setting["cfg_scale"]] = name
    cells = max(families.values(), key=len, default={})
    channels, scales = (list(dict.fromkeys(key[k] for key in cells)) for k in (0, 1))
    if len(channels) < 2 or len(scales) < 2:
        return None
    metric = plan.metrics[plan.primary.metric]
    values = np.full((len(channels), len(scales)), np.nan)
    for (channel, scale), name in cells.items():
        values[channels.index(channel), scales.index(scale)] = np.nanmean(by_prompt(found[name][metric.name]))
    order = np.argsort(scales)
    columns = [f"{scales[k]:g}" for k in order]
    rows = [f"channels {channel}" for channel in channels]
    return figures.heat(values[:, order], rows, columns, f"{metric.name} ({metric.unit}) over channels and scale")


def _energies(plan: Plan, cells: Sequence[Cell]) -> list[tuple[str, Markup]]:
    """Where guidance was on, its mean ||cond - uncond|| over channels and steps, by setting."""
    plots = []
    for setting in plan.settings:
        traces = []
        for cell in (cell for cell in cells if cell.setting == setting):
            with np.load(cell.folder / "trace.npz") as trace:
                if "difference" not in trace:
                    break
                traces.append((trace["difference"], trace["timestep"]))
        if traces:
            values = np.mean([difference for difference, _ in traces], axis=0).T  # (channels, steps)
            names = [f"channel {c}" for c in range(len(values))]
            steps = [f"{t:.0f}" for t in traces[0][1]]
            plots.append((setting, figures.heat(values, names, steps, f"||cond - uncond|| of {setting}", ".1f")))
    return plots


def _clip(cell: Cell, beside: Path | None) -> Clip:
    manifest = json.loads((cell.folder / "manifest.json").read_text())
    digest = json.loads((cell.folder / "hashes.json").read_text())["clip.png"]
    video = "" if beside is None else os.path.relpath(_video_path(cell), beside.resolve().parent)
    return Clip(
        cell=cell,
        picture=base64.b64encode((cell.folder / "clip.png").read_bytes()).decode(),
        metrics=cell.metrics(),
        command=_command(manifest["generation"]),
        seed=manifest["generation"]["seed"],
        digest=digest,
        video=quote(Path(video).as_posix()) if video else "",
    )


def _command(generation: dict[str, Any]) -> str:
    """The ``guidon generate`` that makes the clip, or what to give it where no options exist."""
    defaults = {name: field.default for name, field in Generation.model_fields.items()}
    if generation.get("rotation") is not None:
        return "guidon generate --from manifest.json"
    words = ["guidon", "generate", *generation["prompts"], "--model", generation["model"]]
    scale = generation["cfg_scale"]
    words += ["--cfg-scale", ",".join(f"{s:g}" for s in scale) if isinstance(scale, list) else f"{scale:g}"]
    for name in ("cfg_channels", "seed", "steps", "sampler"):
        words += [f"--{name.replace('_', '-')}", str(generation[name])]
    for name in ("guidance", "eta", "dtype", "negative_prompt"):
        if generation[name] not in (None, defaults[name]):
            words += [f"--{name.replace('_', '-')}", f"{generation[name]:g}" if name == "eta" else generation[name]]
    timing, _, values = generation["timing"].partition(":")
    words += {
        "constant": ["--interval", "0,1"],  # said, for the model's own may be another
        "interval": ["--interval", values],
        "oscillation": ["--oscillate", values or "10"],
    }.get(timing, ["--ramp", timing])
    if generation["samples"] != [0]:
        words += ["--num-samples", str(generation["samples"][0] + 1)]
    return shlex.join(words)


def _video_path(cell: Cell) -> Path:
    root = cell.folder.parent.parent.parent.resolve()
    return root / "videos" / cell.folder.parent.name / f"{cell.folder.name}.mp4"


def _write_video(folder: Path, clip: Clip) -> None:
    path = _video_path(clip.cell)
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    manifest = json.loads((clip.cell.folder / "manifest.json").read_text())
    save_video(clip.cell.frames(), path, manifest["fps"])
