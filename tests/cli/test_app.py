"""The application: its commands, and how errors and warnings end up on stderr."""

import ast
import os
import re
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer
from typer.main import get_command

import guidon
from guidon import cli
from guidon.cli.app import app, main
from guidon.core.errors import InputError, setting
from guidon.core.warn import warn

SOURCE = Path(guidon.__file__).parent
WRITES_COMMANDS = {"studies/report/command.py"}  # a report shows the command that makes each clip again
WRITES_CSS = {"studies/report/page.py"}  # variables of a style begin with two dashes too


@pytest.fixture
def generate(monkeypatch):
    """Replaces the first thing that ``guidon generate`` does."""

    def generate(work):
        monkeypatch.setattr("guidon.cli.generate.read_prompts", lambda *_: work())

    return generate


def raises(error):
    def work():
        raise error

    return work


def test_the_version(run):
    assert run("--version") == (0, f"{guidon.__version__}\n", "")


@pytest.mark.parametrize("words", [(), ("study",)])
def test_without_a_command_the_help_is_shown(run, words):
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    assert out == run(*words, "--help")[1]
    assert re.search(r"^  (generate|run) ", out, re.M)


def test_there_is_a_file_for_every_command():
    files = {path.stem for path in (SOURCE / "cli").glob("*.py")}
    assert {name.replace("-", "_") for name in get_command(app).commands} <= files


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError(f"{setting('cfg_scale')} is\nbad"), 2, "--cfg-scale is bad"),
        (PermissionError(13, "Permission denied", "a.mp4"), 2, "Permission denied (a.mp4)"),
        (OSError("the disk is gone"), 2, "the disk is gone"),
        (type("OutOfMemoryError", (RuntimeError,), {})(), 2, "the device's memory is full: denoise fewer"),
        (MemoryError(), 2, "the device's memory is full"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 2, "the device's memory is full"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(run, generate, monkeypatch, error, code, message):
    monkeypatch.delenv("GUIDON_DEBUG", raising=False)
    generate(raises(error))
    found, out, err = run("generate", "x")
    assert (found, out) == (code, "")
    assert err.startswith(f"guidon: {message}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "error", [OSError("the disk is gone"), RuntimeError("shapes do not fit"), MemoryError("all of it")]
)
def test_debugging_shows_the_traceback(generate, monkeypatch, error):
    monkeypatch.setenv("GUIDON_DEBUG", "1")
    generate(raises(error))
    with pytest.raises(type(error), match=str(error)):
        cli.main(["generate", "x"])


def test_a_warning_that_every_part_of_a_run_gives_is_shown_once(run, generate):
    def work():
        for size in (8, 8, 4, 8):
            with warnings.catch_warnings():  # as libraries do, upon which Python forgets what it has shown
                warnings.simplefilter("ignore")
            warnings.warn(f"memory ran out: {size} denoised together", stacklevel=1)
        raise InputError("no more")

    generate(work)
    _, _, err = run("generate", "a")
    assert [line for line in err.splitlines() if "memory" in line] == [
        f"guidon: memory ran out: {size} denoised together" for size in (8, 4)
    ]


def test_warnings_are_one_line_on_stderr_and_shown_as_before_afterwards(run, generate):
    def work():
        warnings.warn("no step\nwas guided", stacklevel=1)
        raise typer.Exit

    generate(work)
    before = warnings.showwarning
    assert run("generate", "x") == (0, "", "guidon: no step was guided\n")
    assert warnings.showwarning is before
    with pytest.warns(UserWarning, match="still seen"):
        warnings.warn("still seen", stacklevel=1)


def test_a_warning_names_the_option_of_a_setting(run, generate):
    def work():
        warn(f"give {setting('upscale')} 4")
        raise typer.Exit

    generate(work)
    assert run("generate", "x") == (0, "", "guidon: give --upscale 4\n")


def test_importing_guidon_imports_nothing_heavy():
    code = "import sys, guidon; assert not {'torch', 'numpy', 'pydantic', 'typer'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("own", [{"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"}])
def test_how_threads_wait_is_left_to_the_user_who_says_it(own):
    environment = dict(own)
    cli.wait_briefly(environment)
    assert environment == own


def test_openmp_reads_how_long_threads_wait_in_a_loop():
    found = sorted((Path(find_spec("torch").origin).parent / "lib").glob("libgomp*"))
    if not found:
        pytest.skip("this torch has another OpenMP")
    code = f"import ctypes, os; from guidon import cli; cli.wait_briefly(os.environ); ctypes.CDLL({str(found[0])!r})"
    own = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_WAIT", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=own | {"OMP_DISPLAY_ENV": "verbose"}
    )
    assert f"GOMP_SPINCOUNT = '{cli.SPINS}'" in done.stderr


def flags():
    """Every option of every command."""
    found, rest = set(), [get_command(app)]
    while rest:
        command = rest.pop()
        rest += getattr(command, "commands", {}).values()
        found |= {spelling for param in command.params for spelling in (*param.opts, *param.secondary_opts)}
    return {flag for flag in found if flag.startswith("--")}


def test_below_the_command_line_no_text_spells_a_flag():
    """An error names the setting (``core.errors.setting``), and the command line spells it."""
    flag = re.compile(rf"(?<![\w-])({'|'.join(sorted(flags(), key=len, reverse=True))})(?![\w-])")
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).as_posix()
        if name.startswith("cli/") or name in WRITES_COMMANDS | WRITES_CSS:
            continue
        text = path.read_text()
        for node in ast.walk(ast.parse(text)) if "--" in text else ():
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and (spelled := flag.search(node.value)):
                found.append(f"{name}:{node.lineno} {spelled[1]}")
    assert not found, "\n".join(found)


def end_of(line, **more):
    """The exit code, stdout and stderr of a shell's command line."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG"))} | more
    done = subprocess.run(["sh", "-c", line, sys.executable], capture_output=True, text=True, env=environment)
    return done.returncode, done.stdout, done.stderr


def test_closed_and_full_streams_change_no_exit_code():
    assert end_of('"$0" -m guidon models >&-') == (0, "", "")
    assert end_of('"$0" -m guidon nonsense 2>&- 0<&-') == (2, "", "")
    assert end_of('"$0" -m guidon nonsense >&- 2>&- <&-') == (2, "", "")
    if Path("/dev/full").exists():
        assert end_of('"$0" -m guidon nonsense 2>/dev/full')[0] == 2


def test_stdout_escapes_what_it_cannot_encode(tmp_path):
    text = "eps, rest = out[:, :3], out[:, 3:]\ncond, uncond = torch.split(eps, len(eps) // 2, dim=0)\n"
    (tmp_path / "ñ.py").write_text(text + "half = uncond + cfg_scale * (cond - uncond)\n")
    code, out, error = end_of(f'"$0" -m guidon audit --all --exit-zero {tmp_path}', PYTHONIOENCODING="ascii")
    assert (code, error) == (0, "")
    assert "\\xf1.py" in out


def test_a_deleted_working_folder_is_refused_in_one_line(tmp_path):
    code, out, error = end_of(f'mkdir {tmp_path}/gone; cd {tmp_path}/gone; rmdir ../gone; "$0" -m guidon models')
    assert (code, out) == (2, "")
    assert error == "guidon: the working folder does not exist any more: go to another folder\n"


def test_ctrl_c_while_arguments_are_read_says_that_it_stopped(monkeypatch, capsys):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(get_command(app)), "make_context", stopped)
    with pytest.raises(SystemExit) as ended:
        main(["models"])
    assert ended.value.code == 130
    assert capsys.readouterr().err == "guidon: stopped\n"
