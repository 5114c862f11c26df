"""``guidon audit``: what it prints, and its exit codes."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from audit_snippets import COMPLETE, FOUND, NOTHING, SUSPICIOUS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "audit.md"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sliced.py").write_text(FOUND["dit"][2])
    (tmp_path / "whole.py").write_text(COMPLETE["in_channels"])
    (tmp_path / "other.py").write_text(NOTHING["all channels"])
    return tmp_path


def test_a_finding_names_place_channels_formula_and_the_guidon_call(run, folder):
    code, out, err = run("audit", folder)
    assert (code, err) == (1, "")
    lines = out.splitlines()
    assert lines[0] == f"{folder / 'sliced.py'}:5 forward_with_cfg"
    assert "the first 3 channels" in lines[1]
    assert "out[:, :3] (axis 1), joined with the rest in line 9" in lines[2]
    assert "uncond + s (cond - uncond), one batch, cond first" in lines[3]
    assert lines[4].endswith("guidon.Guidance(cfg_scale, channels=3)")
    assert lines[-1] == (
        "1 place in 3 files: guidance on some channels; 1 other place with guidance on all latent channels "
        "(--all lists them)"
    )
    assert "whole.py" not in out


def test_a_suspicious_axis_is_said(run, tmp_path):
    (tmp_path / "tokens.py").write_text(SUSPICIOUS["tokens, by a shape"])
    code, out, _ = run("audit", tmp_path)
    assert code == 1
    assert "suspicious" in out
    assert "not the channels" in out


def test_nothing_sliced_exits_with_zero(run, folder):
    for name in ("whole.py", "other.py"):
        code, out, err = run("audit", folder / name)
        assert (code, err) == (0, "")
        assert out.startswith("no guidance on some channels in 1 file")
    code, out, _ = run("audit", folder / "whole.py", "--all")
    assert code == 0
    assert 'channels="all"' in out


def test_exit_zero_and_several_paths(run, folder):
    code, out, _ = run("audit", folder / "sliced.py", folder / "whole.py", "--exit-zero")
    assert code == 0
    assert "in 2 files" in out


def test_json_is_for_machines(run, folder):
    (folder / "broken.py").write_text(FOUND["dit"][2] + "def (")
    code, out, err = run("audit", folder, "--json")
    assert (code, err) == (1, "")
    document = json.loads(out)
    (finding,) = document["findings"]
    assert finding["file"] == str(folder / "sliced.py")
    assert (finding["line"], finding["axis"], finding["channels"], finding["level"]) == (5, 1, "3", "some")
    assert finding["call"] == "guidon.Guidance(cfg_scale, channels=3)"
    assert [entry["level"] for entry in document["complete"]] == ["all"]
    assert document["files"] == 4
    assert [entry["file"] for entry in document["unreadable"]] == [str(folder / "broken.py")]


def test_what_could_not_be_parsed_is_said_on_stderr(run, folder):
    (folder / "broken.py").write_text(FOUND["dit"][2] + "def (")
    _, out, err = run("audit", folder)
    assert "1 file could not be parsed" in out
    assert err.startswith(f"guidon: {folder / 'broken.py'} was not read: line ")


def test_bad_input_is_refused(refused, tmp_path):
    assert (
        refused("audit", tmp_path / "none") == f"PATH {tmp_path / 'none'} does not exist: give Python files or folders"
    )
    (tmp_path / "notes.md").write_text("")
    assert "no Python file" in refused("audit", tmp_path / "notes.md")
    assert refused("audit")


def test_an_audit_writes_nothing_and_loads_no_tensor_library(folder):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    code = (
        "import sys; sys.argv = ['guidon', 'audit', sys.argv[1]]\nfrom guidon.cli import main\ntry: main()\n"
        "finally: assert not {'torch', 'numpy', 'diffusers', 'einops'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (1, "")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_the_pages_commands_and_code_do_what_it_says(run, folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "src").mkdir()
    (folder / "sliced.py").rename(folder / "src" / "model.py")
    commands = re.findall(r"^guidon (audit .*)$", PAGE.read_text(), re.MULTILINE)
    assert len(commands) >= 3
    for command in commands:
        code, _, err = run(*shlex.split(command))
        assert (code, err) == (0 if "--exit-zero" in command else 1, "")
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    exec(compile(snippet, "page", "exec"), {})
