"""What a study writes: the targets of its tests of I/O faults. They are forked from a process that has run it once."""

from __future__ import annotations

from pathlib import Path

from faults.shim import Target
from faults.study_work import copied, finished, parts, report, run, toy_world
from guidon.studies.cells import cells_of, read_plan

finished()


def _damaged(folder: Path) -> None:
    copied(folder / "out")
    with toy_world():
        cells = cells_of(read_plan(folder / "out"), folder / "out")
    for cell in cells[1::2]:
        (cell.folder / "metrics.json").write_text("{}")


study_run = Target("study run", lambda folder: run(folder / "out"), parts=parts)
study_run_again = Target("study run over damaged cells", lambda folder: run(folder / "out"), _damaged, parts=parts)
study_report = Target(
    "study report over an old one",
    lambda folder: report(folder / "out"),
    lambda folder: _old_report(folder / "out"),
    parts=parts,
)


def _old_report(out: Path) -> None:
    """A finished study whose report is of another time, and has not all clips."""
    copied(out)
    (out / "report.html").write_text("old")
    (out / "summary.csv").write_text("old")
    for video in sorted((out / "videos").rglob("*.mp4"))[::2]:
        video.unlink()
