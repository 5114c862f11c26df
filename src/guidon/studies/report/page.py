"""Makes the report of a results folder: one HTML file that works offline, with as many clips as fit."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import zip_longest
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from ...core.atomic import atomic_path
from ...core.errors import InputError, setting
from ...core.hashing import hash_files, hash_text
from ...core.progress import OnStep
from ...core.reading import reading
from ...media import save_video
from ...metrics.bench import find_bench
from ...metrics.metric import SHARE
from ...metrics.statistics import by_prompt, pareto
from ..cells import Cell, cells_of, read_plan
from ..plan import Plan
from ..results import Results, answer, results
from . import figures
from .command import generate_command
from .tables import Row, extremes, summarise, write_summary


@dataclass(frozen=True)
class Clip:
    """A cell as the page shows it."""

    cell: Cell
    picture: str
    """clip.png in base64."""
    metrics: dict[str, float]
    command: str
    """The command that reproduces it."""
    seed: int
    digest: str
    """SHA-256 of clip.png."""
    video: str
    """The link to its MP4; empty where there is none."""


def write_report(
    folder: Path, out: Path | None = None, *, max_mb: float = 10, videos: bool = True, on_cell: OnStep | None = None
) -> list[Path]:
    """Write the page, ``summary.csv`` into the results folder, and an MP4 of every clip of the page.

    Args:
        folder: finished results of ``guidon study run``.
        out: the page; None for report.html in ``folder``.
        max_mb: the largest size of the page, in MB. Prompts whose clips do not fit are left out.
        videos: whether to write MP4s. The page links to them by relative paths; without them it can be moved freely.
        on_cell: called as ``on_cell(done, total)`` while MP4s are written.

    Raises:
        InputError: the folder holds no finished study, or the page does not fit or cannot be written.
    """
    plan = read_plan(folder)
    found = results(plan, folder)
    out = folder / "report.html" if out is None else out
    rows = summarise(plan, found)
    # Order the prompts for the page: the largest gain, the largest loss, the next gain, ...; then all others.
    gains, losses = extremes(plan, found)
    turns = [prompt for pair in zip_longest(gains, losses) for prompt in pair if prompt is not None]
    order = list(dict.fromkeys([*turns, *range(len(plan.captions))]))
    cells = cells_of(plan, folder)
    # Write the page and summary.csv.
    content = _content(plan, found, rows, cells) | {"gains": gains, "losses": losses}
    clips = {
        prompt: [_clip(cell, out if videos else None) for cell in cells if cell.prompt == prompt] for prompt in order
    }
    page = _fit(content, clips, order, int(max_mb * 1e6))
    path = folder / "summary.csv"
    try:
        write_summary(rows, path)
        path = out
        with atomic_path(path) as temporary:
            temporary.write_text(page.html, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror}): choose another {setting('out')} or make room"
        ) from None
    # Write the clips of the page as MP4.
    if not videos:
        return [out, folder / "summary.csv"]
    shown = [clip for prompt in page.prompts for clip in clips[prompt]]
    for number, clip in enumerate(shown):
        _write_video(clip)
        if on_cell:
            on_cell(number + 1, len(shown))
    return [out, folder / "summary.csv", folder / "videos"]


@dataclass(frozen=True)
class _Page:
    html: str
    prompts: list[int]
    """The numbers of the prompts whose clips are on it."""


def _fit(content: dict[str, Any], clips: dict[int, list[Clip]], order: Sequence[int], limit: int) -> _Page:
    """The page with as many whole prompts as the limit allows, taken in the given order."""
    taken, empty = list(order), len(_render(content, {}).encode())
    while taken:
        size = empty + sum(len(clip.picture) + 1500 for prompt in taken for clip in clips[prompt])
        if size <= limit or len(taken) == 1:
            html = _render(content, {prompt: clips[prompt] for prompt in sorted(taken)})
            if len(html.encode()) <= limit:
                return _Page(html, sorted(taken))
        taken.pop()
    raise InputError(f"the clips of one prompt do not fit into {limit / 1e6:g} MB: give a larger {setting('max_mb')}")


def _render(content: dict[str, Any], clips: dict[int, list[Clip]]) -> str:
    folder = resources.files(__package__ or "guidon.studies.report")
    css, js, html = (folder.joinpath(f"page.{kind}").read_text("utf-8") for kind in ("css", "js", "html"))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(html).render(
        **content, clips=clips, css=Markup(css), js=Markup(js), css_digest=_digest(css), js_digest=_digest(js)
    )


def _digest(text: str) -> str:
    """The hash by which the page's content security policy allows a script or a style."""
    return "sha256-" + base64.b64encode(bytes.fromhex(hash_text(text))).decode()


def _content(plan: Plan, found: Results, rows: Sequence[Row], cells: Sequence[Cell]) -> dict[str, Any]:
    """The content of the page, except its clips."""
    metrics = list(find_bench(plan.bench).shown)
    if plan.primary.metric not in metrics:
        metrics.insert(0, plan.primary.metric)
    slugs = {cell.setting: cell.folder.parent.name for cell in cells}
    manifest = cells[0].manifest()
    compared = [m for m in metrics if any(r.metric.name == m and r.comparison for r in rows)]
    return {
        "plan": plan,
        "answer": answer(plan, found),
        "metrics": [plan.metrics[name] for name in metrics],
        "rows": rows,
        "table": {s: [r for m in metrics for r in rows if (r.setting, r.metric.name) == (s, m)] for s in plan.settings},
        "slugs": slugs,
        "fps": manifest.fps,
        "frames": manifest.frames,
        "forests": {m: figures.forest([r for r in rows if r.metric.name == m], slugs) for m in compared},
        "front": _front(plan, found, rows, slugs),
        "grid": _grid(plan, found),
        "energy": _energies(plan, cells),
        "number": _number,
    }


def _number(value: float, unit: str = "") -> str:
    if not np.isfinite(value):
        return "undefined"
    return f"{100 * value:.0f}%" if unit == SHARE else f"{value:.3g}"


def _front(plan: Plan, found: Results, rows: Sequence[Row], slugs: dict[str, str]) -> list[tuple[str, Markup]]:
    """A title and a scatter plot for each pair of metrics in the bench's ``fronts``."""
    plots = []
    for pair in find_bench(plan.bench).fronts if len(plan.settings) > 1 else ():
        x, y = (plan.metrics[name] for name in pair)
        values = {s: (by_prompt(found[s][x.name]), by_prompt(found[s][y.name])) for s in plan.settings}
        means = {(row.setting, row.metric.name): row.mean.value for row in rows}
        points = {s: (means[s, x.name], means[s, y.name]) for s in plan.settings}
        chance = pareto(values, (x.better or "higher", y.better or "lower"))
        plots.append((f"{x.name} against {y.name}", figures.scatter(points, chance, (x, y), slugs)))
    return plots


def _grid(plan: Plan, found: Results) -> Markup | None:
    """A heat map of the primary metric over channels and scale, for the settings that differ only in these two."""
    own = ("cfg_scale", "cfg_channels")
    chosen = {name: plan.choices(name) for name in plan.settings}
    plain = {name: s for name, s in chosen.items() if isinstance(s["cfg_scale"], int | float) and s["cfg_scale"] != 1}
    families: dict[str, dict[tuple[str, float], str]] = {}
    for name, choices in plain.items():
        rest = json.dumps({key: value for key, value in choices.items() if key not in own}, sort_keys=True)
        families.setdefault(rest, {})[choices["cfg_channels"], choices["cfg_scale"]] = name
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
    """By setting, the mean ||cond - uncond|| over channels and steps at which guidance was on."""
    plots = []
    for name in plan.settings:
        traces = []
        for cell in (cell for cell in cells if cell.setting == name):
            trace = cell.trace()
            if "difference" not in trace:
                break
            traces.append((trace["difference"], trace["timestep"]))
            if traces[-1][0].shape != traces[0][0].shape:
                raise InputError(
                    f"{cell.folder / 'trace.npz'} has another shape than that of the setting's first clip: delete the "
                    "cell, and run `guidon study run` again"
                )
        if traces:
            values = np.mean([difference for difference, _ in traces], axis=0).T  # (channels, steps)
            channels = [f"channel {c}" for c in range(len(values))]
            steps = [f"{t:.0f}" for t in traces[0][1]]
            plots.append((name, figures.heat(values, channels, steps, f"||cond - uncond|| of {name}", ".1f")))
    return plots


def _clip(cell: Cell, beside: Path | None) -> Clip:
    generation = cell.manifest().generation.model_dump(mode="json")
    path = cell.folder / "clip.png"
    cell.frames()  # refuse a picture that a browser could not show
    with reading(path, "the clip of a cell"):
        data, digest = path.read_bytes(), hash_files(path)
    video = "" if beside is None else os.path.relpath(_video_path(cell), beside.resolve().parent)
    return Clip(
        cell=cell,
        picture=base64.b64encode(data).decode(),
        metrics=cell.metrics(),
        command=generate_command(generation),
        seed=generation["seed"],
        digest=digest,
        video=quote(Path(video).as_posix()) if video else "",
    )


def _video_path(cell: Cell) -> Path:
    root = cell.folder.parent.parent.parent.resolve()
    return root / "videos" / cell.folder.parent.name / f"{cell.folder.name}.mp4"


def _write_video(clip: Clip) -> None:
    path = _video_path(clip.cell)
    if not path.exists():
        save_video(clip.cell.frames(), path, clip.cell.manifest().fps)
