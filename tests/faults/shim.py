"""I/O faults: makes one system call of a piece of work fail, or kills it there, and judges what is left.

A ``Target`` names the work. ``inject`` runs it in a child of a server, a process in which the shim (``shim.c``) is
preloaded, and which imports the libraries once. The child counts the calls, then forks a child of its own for each fault:

    inject("save_gif", "save_webp", folder=tmp_path, in_ci=20)
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from faults.harness import Ended, child, leftovers, sample, tree, trials
from guidon.core.errors import InputError, first_line

ACTIONS = {"ENOSPC": 1, "EIO": 2, "kill": 3, "full disk": 4}


def _nothing(folder: Path) -> None:
    """Nothing is prepared or healed."""


def _entries(folder: Path) -> dict[str, str]:
    """The digest of each file and each folder that lies directly in a folder. Hidden and empty ones are left out."""
    files: dict[str, dict[str, bytes]] = {}
    for name, content in tree(folder).items():
        parts = Path(name).parts
        if not any(part.startswith(".") for part in parts):
            files.setdefault(parts[0], {})[name] = content
    return {name: hashlib.sha256(repr(content).encode()).hexdigest() for name, content in files.items()}


@dataclass(frozen=True)
class Target:
    """Work that writes into a folder, and how to judge the folder."""

    what: str
    """The work, as a line of the table."""
    new: Callable[[Path], object]
    """Write the new content. An ``OSError`` or ``InputError``, or the exit code 2, refuses."""
    old: Callable[[Path], object] = _nothing
    """Write the old content, which the new one replaces."""
    heal: Callable[[Path], object] = _nothing
    """What a reader does before it reads."""
    parts: Callable[[Path], dict[str, str]] = _entries
    """Digests by name of what must be old or new each for itself."""
    warm: bool = False
    """Write the old content before the children are forked, so that they need not import what that imports."""


@cache
def library(folder: Path) -> Path:
    """Compile the shim into a folder."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if sys.platform != "linux" or compiler is None:
        pytest.skip("the shim of I/O faults needs Linux and a C compiler")
    built = folder / "shim.so"
    source = Path(__file__).with_name("shim.c")
    subprocess.run([compiler, "-O1", "-fPIC", "-shared", "-o", str(built), str(source), "-ldl"], check=True)
    return built


_servers: list[subprocess.Popen[str]] = []


def _server(folder: Path) -> subprocess.Popen[str]:
    """The server of this process, which is started where there is none. It ends when its input is closed."""
    if not _servers:
        environment = os.environ | {
            "LD_PRELOAD": str(library(folder)), "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0",
        }  # fmt: skip
        command = [sys.executable, "-m", "faults.shim"]
        _servers.append(
            subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
    return _servers[0]


def end_server() -> None:
    """End the server, if there is one."""
    while _servers:
        _servers.pop().communicate()


def inject(*targets: str, folder: Path, in_ci: int, module: str = "faults.targets") -> None:
    """Fault every call of some targets, or ``in_ci`` calls of each.

    Args:
        targets: the names of the targets.
        folder: an empty folder to work in.
        module: where the targets are.

    Raises:
        AssertionError: a fault left something between old and new, or was told in more than one line, or the next
            run did not mend it.
    """
    server, verdicts = _server(folder), folder / "verdicts"
    assert server.stdin
    assert server.stdout
    print(json.dumps([module, str(folder / "work"), str(verdicts), in_ci, *targets]), file=server.stdin, flush=True)
    how, told = json.loads(server.stdout.readline())
    assert how == "returned", told
    failed = []
    for target in targets:
        try:
            with trials(f"I/O faults: {getattr(importlib.import_module(module), target).what}") as found:
                for line in verdicts.read_text().splitlines():
                    name, verdict, case = json.loads(line)
                    if name == target:
                        getattr(found, verdict)(case)
        except AssertionError as error:
            failed.append(str(error))
    assert not failed, "\n".join(failed)


def _serve() -> None:
    """In the server: answer each line with how the child ended, and what it said."""
    importlib.import_module("faults.targets")
    for library, name in (("diffusers", "AutoencoderKL"), ("transformers", "T5EncoderModel")):
        with suppress(ImportError):  # they are loaded where they are first used
            getattr(importlib.import_module(library), name)
    for line in sys.stdin:
        ended = child(_write_verdicts, *json.loads(line), memory=None, cpu=None, timeout=1e6)
        print(json.dumps([ended.how, ended.message or ended.output]), flush=True)


def _write_verdicts(module: str, base: str, verdicts: str, in_ci: int, *targets: str) -> None:
    """In a child of the server: write a line of JSON for each fault, with the target, the verdict and the case."""
    with Path(verdicts).open("w", buffering=1) as file:
        for target in targets:
            work = getattr(importlib.import_module(module), target)
            for verdict, case in _fault_all(work, Path(base, target), in_ci):
                file.write(json.dumps([target, verdict, case]) + "\n")


def _fault_all(work: Target, base: Path, in_ci: int) -> Iterator[tuple[str, str]]:
    old, new = base / "old", base / "new"
    old.mkdir(parents=True)
    if work.warm:
        work.old(old)
    else:
        ended = child(work.old, old, memory=None, cpu=None)
        assert ended.how == "returned", str(ended)
    shutil.copytree(old, new, symlinks=True)
    ended = _run(work, new)
    assert ended.how == "returned", str(ended)
    calls = ended.value
    cases = [(action, at) for action in ACTIONS for at in range(1, len(calls) + 1)]
    for number, (action, at) in enumerate(sample(cases, in_ci)):
        here = base / str(number)
        shutil.copytree(old, here, symlinks=True)
        ended = _run(work, here, at, ACTIONS[action])
        verdict, reason = _judge(work, ended, here, work.parts(old), work.parts(new))
        yield verdict, f"{action} at call {at} of {len(calls)} ({calls[at - 1]}): {reason}"
        shutil.rmtree(here)


def _run(work: Target, folder: Path, at: int = 0, action: int = 0) -> Ended:
    """Do the work in a forked child. Its value is the list of calls."""
    return child(_work, work, str(folder), at, action, memory=None, cpu=None, timeout=120)


def _work(work: Target, folder: str, at: int, action: int) -> list[str]:
    shim = ctypes.CDLL(None)
    shim.faults_call.restype = ctypes.c_char_p
    shim.faults_arm(folder.encode(), ctypes.c_long(at), action)
    try:
        work.new(Path(folder))
    except OSError as error:
        raise InputError(first_line(error)) from None
    except SystemExit as stop:
        if stop.code not in (None, 0):
            raise
    count = shim.faults_count()
    return [shim.faults_call(ctypes.c_long(number)).decode() for number in range(1, count + 1)]


def _judge(work: Target, ended: Ended, folder: Path, old: dict[str, str], new: dict[str, str]) -> tuple[str, str]:
    """The verdict on a fault, and its reason."""
    work.heal(folder)
    found = work.parts(folder)
    between = [name for name in old.keys() | new.keys() | found.keys() if found.get(name) not in _both(name, old, new)]
    state = "new" if found == new else "old" if found == old else "old and new"
    told = str(ended)
    # The fault itself.
    if between:
        return "failed", f"{', '.join(between)} is neither old nor new; {told}"
    if ended.how == "returned" and found != new:
        return "failed", f"it ended as if nothing had happened, but the content is {state}"
    if ended.how in ("raised", "timeout") or (ended.how == "refused" and not ended.one_line):
        return "failed", f"it was not refused in one line: {told}"
    # The next run.
    again = _run(work, folder)
    if again.how != "returned" or work.parts(folder) != new:
        return "failed", f"{told}; the next run: {again}"
    if left := leftovers(folder):
        return "failed", f"{told}; the next run left {', '.join(left)}"
    return "refused" if ended.how == "refused" else "survived", f"{told}, {state}"


def _both(name: str, old: dict[str, str], new: dict[str, str]) -> tuple[str | None, str | None]:
    return old.get(name), new.get(name)


if __name__ == "__main__":
    _serve()
