"""``guidon audit``: channel-sliced guidance in source code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import option
from .outputs import say

if TYPE_CHECKING:
    from ..analysis.audit import Audit, Finding

EXAMPLE = "guidon audit src --json"


def audit(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH", help="Python files, notebooks or folders; folders are searched through."),
    ],
    json: Annotated[
        bool, option("Output", None, "Print JSON, with the places that guide every channel too.", "--json")
    ] = False,
    all: Annotated[
        bool, option("Output", None, "Print the places that guide every latent channel too.", "--all")
    ] = False,
    exit_zero: Annotated[bool, option("Output", None, "Exit with 0 whatever is found.", "--exit-zero")] = False,
) -> None:
    """Find guidance that acts on some channels in Python code.

    Reads the syntax tree; no code is run. Says which channels are guided, and which Guidon call does the same. Exits
    with 1 if code leaves latent channels unguided, or may do so; with 0 if none does; with 2 on bad input.
    """
    from ..analysis.audit import audit as audited
    from ..core.progress import progress

    with progress("reading", "files") as on_step:
        result = audited(paths, on_step)
    if json:
        print(_as_json(result))
    else:
        for finding in (*result.findings, *(result.complete if all else ())):
            print(_as_text(finding) + "\n")
        print(_summary(result, listed=all))
        for file, why in result.unreadable:
            say(f"{file} was not read: {why}")
    if result.findings and not exit_zero:
        raise typer.Exit(1)


def _as_text(finding: Finding) -> str:
    joined = "" if finding.joined is None else f", joined with the rest in line {finding.joined}"
    rows = [
        ("guided", finding.guided),
        ("cut", f"{finding.source} (axis {finding.axis}){joined}"),
        ("formula", f"{finding.formula}, {finding.branches}: {finding.combination}"),
        ("Guidon", finding.call),
    ]
    if finding.suspicious:
        rows.insert(1, ("suspicious", finding.suspicious))
    lines = [f"{finding.file}:{finding.line} {finding.function}"]
    return "\n".join(lines + [f"  {name:<11}{text}" for name, text in rows])


def _summary(result: Audit, *, listed: bool) -> str:
    """What was found and read, in one line."""
    count = len(result.findings)
    text = f"{_count(count, 'place')} in {_count(result.files, 'file')}: guidance on some channels"
    if not count:
        text = f"no guidance on some channels in {_count(result.files, 'file')}"
    if result.complete:
        more = "" if listed else " (--all lists them)"
        text += f"; {_count(len(result.complete), 'other place')} with guidance on all latent channels{more}"
    if result.unreadable:
        text += f"; {_count(len(result.unreadable), 'file')} could not be parsed"
    return text


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _as_json(result: Audit) -> str:
    import json
    from dataclasses import asdict

    def entries(findings: tuple[Finding, ...]) -> list[dict[str, Any]]:
        return [asdict(finding) | {"call": finding.call} for finding in findings]

    document = {
        "findings": entries(result.findings),
        "complete": entries(result.complete),
        "files": result.files,
        "unreadable": [{"file": file, "why": why} for file, why in result.unreadable],
    }
    return json.dumps(document, indent=2)
