"""Every command and snippet of the README runs."""

import re
import shlex
from pathlib import Path

import pytest

from guidon import cli

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", README, re.S) for line in block.splitlines()]
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.S)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(line, *more):
    words = [str(w) for word in shlex.split(line) for w in (sorted(Path().glob(word)) if "*" in word else [word])]
    with pytest.raises(SystemExit) as stop:
        cli.main([*words[1:], *more])
    assert stop.value.code == 0, line


def test_the_readmes_commands_run(elsewhere):
    assert len(COMMANDS) >= 6
    for line in COMMANDS:
        quick = () if "--steps" in line or "--from" in line else ("--steps", "4")
        run(line, *quick)
    assert len(list(elsewhere.glob("outputs/*.mp4"))) >= 5
    assert list(elsewhere.glob("again/*.mp4"))


def test_the_readmes_snippets_run(elsewhere):
    assert len(SNIPPETS) >= 2
    for snippet in SNIPPETS:
        exec(
            compile(snippet.replace("seed=0)", "seed=0, steps=4)").replace("steps=20", "steps=2"), "README", "exec"), {}
        )
    assert (elsewhere / "circle.mp4").exists()


def test_the_readmes_tree_names_what_is_there():
    tree = README.split("## What is where")[1]
    named = set(re.findall(r"\b([a-z0-9_-]+\.(?:py|yaml|md))\b", tree))
    found = {
        path.name
        for folder in ("src", "recipes", "examples", "benchmarks", "docs")
        for path in (ROOT / folder).rglob("*.*")
    }
    assert named <= found | {"CONTRIBUTING.md"}
    ours = {path.name for path in (ROOT / "src").rglob("*.py")} - {"__init__.py", "__main__.py"}
    assert ours <= named


def test_the_example_makes_its_picture(elsewhere):
    import runpy

    runpy.run_path(str(ROOT / "examples" / "compare_channels.py"))["main"](str(elsewhere / "guidance.png"), steps=2)
    assert (elsewhere / "guidance.png").stat().st_size > 10_000
