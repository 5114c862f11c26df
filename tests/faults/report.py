"""The table of verdicts: what a run measured as JSON, and the table of docs/reliability.md that is made from it.

    python tests/faults/report.py    writes the table of docs/reliability.md from docs/reliability.json

``make test-faults`` writes docs/reliability.json and then the page.
"""

from __future__ import annotations

import json
import platform
import re
import sys
import time
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"
MEASURED, PAGE = DOCS / "reliability.json", DOCS / "reliability.md"
START, END = "<!-- table: written by `make test-faults` -->", "<!-- end of the table -->"
CASES = 300  # lines of recorded cases that are kept for each kind


def measured(kinds: dict[str, Any]) -> dict[str, Any]:
    """Verdicts as plain data, with the environment in which they were measured."""
    import torch

    from faults.harness import LONG, SEED, as_plain
    from guidon.core.version import VERSION

    run = {"date": time.strftime("%Y-%m-%d"), "run": "long" if LONG else "sample", "seed": SEED}
    return {
        "format": "guidon faults 2",
        "guidon": VERSION,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.system(),
        "kinds": [row | run | {name: _kept(row[name]) for name in ("cases", "failures")} for row in as_plain(kinds)],
    }


def _kept(lines: list[str]) -> list[str]:
    """The first lines, with the names of files in place of their paths, which are another in every run."""
    return [re.sub(r"(?:/[^\s/:,'\"()]+)+/", "", line)[:300] for line in lines[:CASES]]


def table(found: dict[str, Any]) -> str:
    """The table in Markdown: a row for each kind, and the sum."""
    lines = [
        "| tried | run | cases | refused | survived | failed | CPU s | MB |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    totals = dict.fromkeys(("refused", "survived", "failed"), 0)
    for row in found["kinds"]:
        for name in totals:
            totals[name] += row[name]
        cpu = f"{row['cpu']:.1f}" if row["cpu"] else ""
        memory = f"{row['memory'] / 2**20:.0f}" if row["memory"] else ""
        numbers = (row["refused"], row["survived"], row["failed"])
        run = row["run"] if row["seed"] == 0 else f"{row['run']}, seed {row['seed']}"
        lines.append(f"| {row['what']} | {run} | {sum(numbers)} | {' | '.join(map(str, numbers))} | {cpu} | {memory} |")
    lines.append(f"| all | | {sum(totals.values())} | {' | '.join(map(str, totals.values()))} | | |")
    dates = sorted({row["date"] for row in found["kinds"]})
    words = f"Measured on {' to '.join(dict.fromkeys((dates[0], dates[-1])))}: Guidon {found['guidon']}, "
    return "\n".join([*lines, "", words + f"Python {found['python']}, torch {found['torch']}, {found['system']}."])


def write(found: dict[str, Any], path: Path) -> None:
    """Write what was measured as JSON. Kinds in the file that were not measured now stay."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(path.read_text(encoding="utf-8"))["kinds"] if path.is_file() else []
    kinds = {row["what"]: row for row in (*before, *found["kinds"])}
    found = found | {"kinds": [kinds[what] for what in sorted(kinds)]}
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def page(text: str, found: dict[str, Any]) -> str:
    """The page with its table replaced."""
    between = re.compile(f"{re.escape(START)}\n.*?{re.escape(END)}", re.DOTALL)
    made, count = between.subn(lambda _: f"{START}\n\n{table(found)}\n\n{END}", text)
    if count != 1:
        raise ValueError(f"the page has {count} places for the table, not 1: keep the lines {START} and {END}")
    return made


def main() -> None:
    found = json.loads(MEASURED.read_text(encoding="utf-8"))
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    sys.exit(main())
