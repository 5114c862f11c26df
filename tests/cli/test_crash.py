"""The report of a defect."""

import stat
import tempfile
from pathlib import Path

import pytest

import guidon
from guidon.cli.app import command_line
from guidon.cli.crash import write_report

SECRET = "my secret plan for a film"


@pytest.fixture
def reports(monkeypatch, tmp_path):
    """The folder of reports."""
    folder = tmp_path / "reports"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.delenv("GUIDON_DEBUG", raising=False)
    return folder


@pytest.fixture
def defect(monkeypatch):
    """Makes ``guidon generate`` raise what it is given."""

    def defect(make_error):
        def read_prompts(prompts, file):
            raise make_error(prompts)

        monkeypatch.setattr("guidon.cli.generate.read_prompts", read_prompts)

    return defect


def test_a_defect_is_one_line_that_names_a_report_and_an_exit_code_of_its_own(run, reports, defect):
    defect(lambda prompts: AttributeError("'NoneType' object has no attribute 'shape'"))
    code, out, err = run("generate", SECRET, "--seed", "7", "--size=64x64", "--trace")
    (path,) = reports.iterdir()
    assert (code, out) == (70, "")
    assert err.startswith("guidon: this is a defect of Guidon (AttributeError)")
    assert str(path) in err
    assert err.count("\n") == 1
    text = path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert f"guidon {guidon.__version__}" in text
    assert "torch 2." in text
    assert "command: guidon generate <hidden> --seed 7 --size=64x64 --trace\n" in text
    assert "Traceback" in text
    assert "in read_prompts" in text
    assert text.rstrip().endswith("AttributeError: 'NoneType' object has no attribute 'shape'")


@pytest.mark.parametrize(
    "words",
    [
        (SECRET,), ("--seed", "3", SECRET), ("--trace", SECRET), ("a", "--negative-prompt", SECRET), ("a", f"--negative-prompt={SECRET}"),
        ("--", SECRET), ("secretive", SECRET), ("--unknown", SECRET), ("--prompts-file", "FILE"), ("--prompts-file=FILE",),
        ("--prompts_file", "FILE"), (f"--negative_prompt={SECRET}",), ("--negative_prompt", SECRET),
        ("bench", "--prompt", SECRET), ("evaluate", f"--caption={SECRET}"), ("spectrum", "--call", f"negative_prompt={SECRET}"),
        ("spectrum", f"--call=negative_prompt={SECRET}"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("message", ["bad {!r}", "bad {}", 'in "{}"'])
def test_a_report_holds_no_prompt(reports, tmp_path, words, message):
    file = tmp_path / "prompts.txt"
    file.write_text(f"a red circle\n  {SECRET}\n")
    words = [word.replace("FILE", str(file)) for word in words]
    try:
        try:
            raise KeyError(SECRET)
        except KeyError:
            raise RuntimeError(message.format(SECRET)) from None
    except RuntimeError as error:
        error.__context__ = KeyError(SECRET)
        named = words[0] in ("bench", "evaluate", "spectrum")
        path = write_report(error, words if named else ["generate", *words], command_line())
    assert "secret" not in path.read_text()
    assert "RuntimeError" in path.read_text()


def test_prompts_of_a_study_or_a_manifest_are_quoted_texts_and_hidden(reports):
    path = write_report(KeyError(SECRET), ["study", "run", "a.yaml"], command_line())
    assert "secret" not in path.read_text()
    assert "KeyError: '<hidden>'" in path.read_text()


def test_a_report_that_cannot_be_written_hides_nothing(run, defect, monkeypatch, tmp_path):
    monkeypatch.delenv("GUIDON_DEBUG", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "not" / "there"))
    defect(lambda prompts: KeyError("x"))
    code, out, err = run("generate", SECRET)
    assert (code, out) == (70, "")
    assert "defect of Guidon (KeyError); no report could be written: set GUIDON_DEBUG=1" in err
    assert not list(tmp_path.iterdir())


def test_an_error_whose_text_cannot_be_made_is_reported(run, reports, defect):
    class Odd(Exception):
        def __str__(self):
            raise ValueError

    defect(lambda prompts: Odd())
    code, _, err = run("generate", "a")
    assert code == 70
    assert "Odd" in err
    assert list(reports.iterdir())


def test_nothing_is_left_in_the_working_folder(run, reports, defect, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    defect(lambda prompts: KeyError("x"))
    run("generate", "a")
    assert [path.name for path in Path.cwd().iterdir()] == ["reports"]
