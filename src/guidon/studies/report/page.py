"""Makes the report of a results folder: one HTML file that works offline, with the clips of all prompts that fit."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import resources
from itertools import zip_longest
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from jinja2 import Template as PageTemplate
from markupsafe import Markup

from ...core.atomic import atomic_path
from ...core.errors import InputError, setting
from ...core.hashing import hash_text
from ...core.progress import OnStep
from ...core.version import VERSION
from ...models.sources import WEAK
from ..answer import answer
from ..cells import cells_of, delete_leftovers, read_plan
from ..plan import Plan
from ..results import results
from ..words import write_change, write_direction, write_interval, write_p, write_value
from .clips import SMALL, Choice, Clip, Source, object_row, write_video
from .command import stand_ins
from .content import make_content
from .tables import extremes, summarise, write_summary

SCRIPTS = ("strips.js", "clock.js", "players.js", "compare.js", "vote.js", "tables.js", "start.js")
"""The parts of the page's script, in order."""
EXAMPLES = 3  # prompts whose clips stand beside the answer
VIDEOS = 1000  # MP4s that are written where nobody asks for all, about 6 ms each


def write_report(
    folder: Path,
    out: Path | None = None,
    *,
    max_mb: float = 14,
    videos: bool | None = None,
    on_cell: OnStep | None = None,
    say: Callable[[str], None] | None = None,
) -> list[Path]:
    """Write the page, ``summary.csv`` into the results folder, and MP4s of the clips of the study.

    Args:
        folder: finished results of ``guidon study run``.
        out: the page; None for report.html in ``folder``.
        max_mb: the largest size of the page, in MB. If the exact clips are larger, the page has small ones of all
            prompts, and exact ones of as many as fit.
        videos: True for an MP4 of every clip, False for none. None for all of a study of up to ``VIDEOS`` clips, and of
            a larger one for so many, first those of the prompts in which the primary contrast differs most. The page
            links to them by relative paths; without them it can be moved freely.
        on_cell: called as ``on_cell(done, total)`` while MP4s are written.
        say: called with the answer to the primary contrast, and with how many MP4s are left out.

    Raises:
        InputError: the folder holds no finished study, or the page does not fit or cannot be written.
    """
    plan = read_plan(folder)
    delete_leftovers(folder)
    found = results(plan, folder)
    out = folder / "report.html" if out is None else out
    rows, answered = summarise(plan, found), answer(plan, found)
    if say:
        say(str(answered))
    # Order the prompts for the page: the largest gain, the largest loss, the next gain, ...; then all others.
    gains, losses = extremes(plan, found)
    turns = [prompt for pair in zip_longest(gains, losses) for prompt in pair if prompt is not None]
    order = list(dict.fromkeys([*turns, *range(len(plan.captions))]))
    cells, both = cells_of(plan, folder), (plan.primary.baseline, plan.primary.against)
    # Write the page and summary.csv.
    metric, shape = plan.metrics[plan.primary.metric], cells[0].manifest().frames
    each = len(cells) // len(order)  # clips of a prompt
    shown = set(order if videos else () if videos is False else order[: max(1, VIDEOS // each)])
    sources: dict[int, list[Source]] = {prompt: [] for prompt in order}
    parts = stand_ins(plan)
    for cell in cells:
        value = float(found[cell.setting][metric.name][cell.prompt, cell.sample])
        sources[cell.prompt].append(Source(cell, metric, value, shape, out if cell.prompt in shown else None, parts))
    content = make_content(plan, found, answered, rows, cells) | {
        "stands_in": bool(parts.keys() - {"compile"}) or any(name.startswith(WEAK) for name in plan.weights),
        "gains": gains,
        "losses": losses,
        "object_rows": {
            prompt: object_row([source.cell.frames(shape) for source in own if source.cell.setting in both])
            for prompt, own in sources.items()
        },
        "examples": _examples(plan, sources, order[:EXAMPLES]),
    }
    page = _fit(content, sources, order, int(max_mb * 1e6))
    summary = folder / "summary.csv"
    with _explained(summary, "report a copy of the results folder"):
        write_summary(plan, rows, answered, summary)
    with _explained(out, f"choose another {setting('out')}"), atomic_path(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    if not shown:
        return [out, summary]
    # Write MP4s.
    if say and len(shown) < len(order):
        say(
            f"MP4s are of {len(shown)} of {len(order)} prompts, first those in which the primary contrast differs "
            "most; ask for videos to write all"
        )
    filmed = [cell for cell in cells if cell.prompt in shown]
    for number, cell in enumerate(filmed):
        write_video(cell)
        if on_cell:
            on_cell(number + 1, len(filmed))
    return [out, summary, folder / "videos"]


@contextmanager
def _explained(path: Path, instead: str) -> Iterator[None]:
    """Refuse a file that cannot be written, and say what helps."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}): {instead} or make room") from None


def _examples(
    plan: Plan, sources: Mapping[int, Sequence[Source]], prompts: Sequence[int]
) -> list[tuple[int, list[Clip]]]:
    """By prompt, a clip of each of the primary contrast's two settings, of the sample in which they differ most."""
    both = plan.primary.baseline, plan.primary.against
    examples: list[tuple[int, list[Clip]]] = []
    for prompt in prompts:
        base, against = ([s for s in sources[prompt] if s.cell.setting == name] for name in both)
        pairs = [*zip(base, against, strict=True)]
        values = [[source.value for source in pair] for pair in pairs]
        apart = [abs(b - a) if np.isfinite([a, b]).all() else -1.0 for a, b in values]
        examples.append((prompt, [source.small(SMALL[0]) for source in pairs[int(np.argmax(apart))]]))
    return examples


def _fit(content: dict[str, Any], sources: Mapping[int, Sequence[Source]], order: Sequence[int], limit: int) -> str:
    """The page with as many clips as the limit allows."""
    room = limit - len(_render(content, {}).encode())
    choice = Choice(sources, order)
    while True:
        clips = choice.within(room)
        if not clips:
            break
        page = _render(content, {prompt: clips[prompt] for prompt in sorted(clips)})
        size = len(page.encode())
        if size <= limit:
            return page
        room -= size - limit + 1000
    raise InputError(f"the clips of one prompt do not fit into {limit / 1e6:g} MB: give a larger {setting('max_mb')}")


def _render(content: Mapping[str, Any], clips: Mapping[int, Sequence[Clip]]) -> str:
    folder = resources.files(__package__ or "guidon.studies.report")
    css = "".join(folder.joinpath(name).read_text("utf-8") for name in ("base.css", "page.css"))
    js = "\n".join(folder.joinpath("scripts", name).read_text("utf-8") for name in SCRIPTS)
    frames, height, width, _ = content["frames"]
    css = Template(css).substitute(frames=frames, seconds=f"{frames / content['fps']:.6g}", width=width, height=height)
    return _page().render(
        **content, clips=clips, css=Markup(css), js=Markup(js), css_digest=_digest(css), js_digest=_digest(js),
        version=VERSION, write_value=write_value, write_change=write_change, write_interval=write_interval,
        write_p=write_p, write_direction=write_direction,
    )  # fmt: skip


@cache
def _page() -> PageTemplate:
    """The page's template. To compile it takes longer than to fill it."""
    html = resources.files(__package__ or "guidon.studies.report").joinpath("page.html").read_text("utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(html)


def _digest(text: str) -> str:
    """The hash by which the page's content security policy allows a script or a style."""
    return "sha256-" + base64.b64encode(bytes.fromhex(hash_text(text))).decode()
