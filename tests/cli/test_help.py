"""The help of every command: panels, defaults, aliases, examples; quick, and easy to search."""

import re
import subprocess
import sys
from typing import get_args

import pytest
from typer.main import get_command

from guidon.cli.app import app

ROOT = get_command(app)
COMMANDS = [(name,) for name in ROOT.commands if name != "study"] + [("study", "run"), ("study", "report")]


def command(words):
    found = ROOT
    for word in words:
        found = found.commands[word]
    return found


@pytest.fixture
def help_of(run):
    def help_of(*words):
        code, out, err = run(*words, "--help")
        assert (code, err) == (0, "")
        return out

    return help_of


def panels(text):
    """Titles of the panels and the names in each."""
    found = {}
    for line in text.splitlines():
        if re.fullmatch(r"[A-Z][a-z ]+:", line):
            names = found.setdefault(line[:-1], [])
        elif found and (match := re.match(r"  (?:-[a-z], )?(--[a-z-]+|[A-Z][A-Za-z.|]*(?= ))", line)):
            names.append(match[1])
    return found


def test_generate_has_its_options_in_panels(help_of):
    found = panels(help_of("generate"))
    assert list(found) == [
        "Prompt", "Given pictures and videos", "Guidance", "Sampling", "Model and weights", "Output", "Options",
    ]  # fmt: skip
    assert found["Given pictures and videos"] == [
        "--first-frame", "--last-frame", "--continue", "--connect-to", "--edit", "--edit-strength", "--loop",
        "--condition-frames", "--condition-edit", "--reference", "--mask-strategy",
    ]  # fmt: skip
    assert found["Prompt"] == [
        "PROMPT", "--prompts-file", "--class", "--random-prompt", "--force", "--negative-prompt", "--from",
    ]  # fmt: skip
    assert found["Guidance"] == [
        "--cfg-scale", "--cfg-channels", "--guidance", "--interval", "--ramp", "--oscillate", "--adaptive", "--reuse",
    ]  # fmt: skip
    assert {"--seed", "--steps", "--sampler", "--spacing", "--fast", "--size", "--frames"} <= set(found["Sampling"])
    assert {"--model", "--checkpoint", "--dtype", "--device"} <= set(found["Model and weights"])
    assert found["Output"] == ["--out", "--format", "--upscale", "--fps", "--trace"]
    assert found["Options"] == ["--help"]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_option_has_a_text_and_shows_its_default_on_its_own_line(help_of, words):
    lines = help_of(*words).splitlines()
    for param in command(words).params:
        name = param.opts[0] if param.param_type_name == "option" else param.metavar
        row = next(line for line in lines if re.match(rf"  (-[a-z], )?{re.escape(name)}( |/)", line))
        assert param.help, name
        assert param.help in row
        if param.param_type_name == "option" and not param.is_flag:
            assert "[default: " in row or "required]" in row, name
        for alias in param.opts[1:]:
            assert re.search(rf"[ ]{alias}\b", row)
        assert "[default: (" not in row


@pytest.mark.parametrize("words", [(), ("study",), *COMMANDS], ids=lambda words: " ".join(words) or "guidon")
def test_help_ends_with_an_example_that_is_in_one_piece(help_of, words):
    text = help_of(*words)
    assert text.startswith("Usage: ")
    if words not in ((), ("study",)):
        assert re.search(rf"\n  Example:\n\n  guidon {' '.join(words)}( .*)?\n$", text)


ALIASES = [
    ("generate", "--cfg-scale", "--guidance-scale"), ("generate", "--steps", "--num-inference-steps"),
    ("generate", "--frames", "--num-frames"), ("generate", "--cfg-channels", "--cfg-channel"),
    *((name, "--cfg-scale", "--guidance-scale") for name in ("evaluate", "spectrum", "match", "tune")),
    *((name, "--steps", "--num-inference-steps") for name in ("evaluate", "spectrum", "match", "tune")),
    *((name, "--cfg-channels", "--cfg-channel") for name in ("evaluate", "spectrum", "match", "tune")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "option", "alias"), ALIASES)
def test_other_programs_spellings_are_accepted(name, option, alias):
    assert any(param.opts == [option, alias] for param in command((name,)).params)


def test_a_terminal_wraps_the_help(monkeypatch, capsys):
    from guidon import cli

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        cli.main(["generate", "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    starts = {match.end() for line in lines if (match := re.match(r"  --[^ ]+( [A-Z]\S*)? {2,}", line))}
    assert len(starts) == 1  # the texts of all panels are in one column


def test_the_help_names_what_there_is(help_of):
    from guidon.guidance import RULES
    from guidon.media import FORMATS
    from guidon.models.registry import replays
    from guidon.request import DtypeName, SamplerName

    text = help_of("generate")

    def row(option):
        return next(line for line in text.splitlines() if line.startswith(f"  {option} "))

    for option, names in (
        ("--guidance", RULES), ("--format", FORMATS), ("--sampler", get_args(SamplerName)),
        ("--dtype", get_args(DtypeName)), ("--exact", replays()),
    ):  # fmt: skip
        for name in names:
            assert re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", row(option)), (option, name)


@pytest.mark.parametrize("words", [(), ("generate",), ("models",), ("study", "run")], ids=" ".join)
def test_help_imports_nothing_heavy(words):
    heavy = {"torch", "numpy", "diffusers", "pydantic", "yaml", "rich", "PIL"}
    code = f"import sys; sys.argv = ['guidon', *{words!r}, '--help']\nfrom guidon.cli import main\ntry: main()\nfinally: assert not {heavy!r} & set(sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "Usage: guidon" in result.stdout


def test_defaults_that_depend_on_the_model_name_those_of_the_package(help_of):
    from guidon.models.catalogue import presets

    small, text = presets()["guidon-small"], help_of("generate")
    for option, value in (
        ("--cfg-scale", f"{small.cfg_scale:g}"), ("--cfg-channels", small.cfg_channels), ("--seed", small.seed),
        ("--interval", small.timing.removeprefix("interval:")), ("--steps", small.steps), ("--fps", small.fps),
        ("--sampler", small.sampler), ("--dtype", small.dtype),
    ):  # fmt: skip
        row = next(line for line in text.splitlines() if line.startswith(f"  {option} "))
        assert f"[default: the model's: {value} for guidon-small" in row


def test_completions_are_what_there_is():
    from guidon.cli import options
    from guidon.cli.values import RAMPS
    from guidon.guidance import RULES
    from guidon.guidance.channels import ChannelChoice
    from guidon.media import FORMATS
    from guidon.models.text.t5 import DTYPES
    from guidon.request import DtypeName, SamplerName

    assert set(options.SAMPLERS) == set(get_args(SamplerName))
    assert set(options.RULES) == set(RULES)
    assert options.FORMATS == FORMATS
    assert options.RAMPS == RAMPS
    assert set(options.DTYPES) == set(get_args(DtypeName))
    assert set(options.TEXT_DTYPES) == set(DTYPES)
    for text in options.CHOICES_OF_CHANNELS:
        assert ChannelChoice.parse(text).indices_for(4) is not None


@pytest.mark.parametrize("columns", [60, 100, 200])
def test_the_help_is_as_wide_as_the_terminal(monkeypatch, capsys, columns):
    from guidon import cli

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit):
        cli.main(["generate", "-h"])
    lines = capsys.readouterr().out.splitlines()
    example = lines.index("  Example:")
    assert columns - 12 < max(map(len, lines[:example])) <= columns
