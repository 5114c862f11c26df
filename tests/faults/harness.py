"""What the tests of faults share: how many cases run, a child process with limits, folders as bytes, the verdicts.

``GUIDON_FAULTS=long`` runs every case, as ``make test-faults`` does. Without it, a test runs a seeded sample.
``GUIDON_FAULTS_SEED`` is another seed of the cases and of the moments of kills; the default is 0.
"""

from __future__ import annotations

import gc
import os
import pickle
import random
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from guidon.core.errors import InputError

LONG = os.environ.get("GUIDON_FAULTS") == "long"
SEED = int(os.environ.get("GUIDON_FAULTS_SEED", "0"))
CPU_LIMIT = 10.0  # seconds of CPU that one damaged input may cost
MEMORY_LIMIT = 1 << 30  # bytes that one damaged input may cost, above what the process holds before
LOCK = ".guidon.lock"

T = TypeVar("T")


# Cases


def chance(name: str) -> random.Random:
    """The random numbers of a test: the same in every run with the same seed."""
    return random.Random(f"{SEED} {name}")


def count(long: int, in_ci: int) -> int:
    """How many times a loop runs: ``long`` in the long run, ``in_ci`` else."""
    return long if LONG else in_ci


def sample(cases: Sequence[T], in_ci: int) -> list[T]:
    """All cases in the long run; else ``in_ci`` of them, chosen by the seed, in their order."""
    if LONG or len(cases) <= in_ci:
        return list(cases)
    chosen = random.Random(SEED).sample(range(len(cases)), in_ci)
    return [cases[number] for number in sorted(chosen)]


# A child process


@dataclass(frozen=True)
class Ended:
    """How a child process ended, and what it cost."""

    how: Literal["returned", "refused", "raised", "killed", "timeout"]
    """``refused``: an ``InputError``, or the exit code 2. ``killed``: by a signal, a CPU limit's one included."""
    value: Any
    """What the function returned; None if it did not return, or if that cannot be pickled."""
    message: str
    """The text of an ``InputError``, or the traceback of another exception."""
    signal: int
    """The signal that killed it; 0 if none did."""
    output: str
    """All that it wrote to stdout and stderr."""
    cpu: float
    """Seconds of CPU."""
    memory: int
    """The largest number of resident bytes, above those with which it began."""
    seconds: float
    """Wall clock."""

    @property
    def kept_limits(self) -> bool:
        """Whether it stayed under ``CPU_LIMIT`` and ``MEMORY_LIMIT``."""
        return self.cpu <= CPU_LIMIT and self.memory <= MEMORY_LIMIT

    @property
    def one_line(self) -> bool:
        """Whether it was refused in one line, without a traceback."""
        text = self.message or self.output.strip()
        return self.how == "refused" and "\n" not in self.message and "Traceback" not in self.output and bool(text)

    def __str__(self) -> str:
        lines = (self.message or self.output).strip().splitlines()
        told = f" ({lines[-1][:200]})" if lines else ""
        return f"{self.how}{f' by signal {self.signal}' if self.signal else ''}{told}"


class Child:
    """A function that runs in a forked process, so that nothing is imported again. ``wait`` tells how it ended.

    Args:
        work: the function. It is called with ``arguments``.
        memory: bytes of address space that it may take, above those of this process; None for no limit.
        cpu: seconds of CPU that it may take; None for no limit.
    """

    def __init__(
        self, work: Callable[..., Any], *arguments: Any, memory: int | None = None, cpu: float | None = None
    ) -> None:
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  (closed by wait)
        self._reader, writer = os.pipe()
        sys.stdout.flush(), sys.stderr.flush()
        self._began = time.monotonic()
        self.process = os.fork()
        if self.process == 0:
            _be_child(work, arguments, memory, cpu, self._output.fileno(), writer)
        os.close(writer)

    def kill(self, signal_number: int = signal.SIGKILL) -> None:
        """Send a signal to the process. It is not waited for."""
        os.kill(self.process, signal_number)

    def has_ended(self) -> bool:
        """Whether the process has ended. ``wait`` must still be called."""
        return os.waitid(os.P_PID, self.process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def wait(self, timeout: float = 600) -> Ended:
        """How it ended. After ``timeout`` seconds of wall clock it is killed."""
        parts, late = [], False
        while True:
            left = timeout - (time.monotonic() - self._began)
            if not late and not select.select([self._reader], [], [], max(0.0, left))[0]:
                late = True
                self.kill()
            if not (block := os.read(self._reader, 1 << 20)):
                break
            parts.append(block)
        os.close(self._reader)
        _, status, usage = os.wait4(self.process, 0)
        seconds = time.monotonic() - self._began
        with self._output as file:
            file.seek(0)
            output = file.read().decode(errors="replace")
        sent = b"".join(parts)
        before = int.from_bytes(sent[:8], "little") or usage.ru_maxrss * 1024
        memory = max(0, usage.ru_maxrss * 1024 - before)
        how, value, message = pickle.loads(sent[8:]) if sent[8:] else ("raised", None, "")
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        if number:
            how = "timeout" if late else "killed"
        cpu = usage.ru_utime + usage.ru_stime
        return Ended(how, value, message, number, output, cpu, memory, seconds)


def child(
    work: Callable[..., Any],
    *arguments: Any,
    memory: int | None = MEMORY_LIMIT,
    cpu: float | None = 2 * CPU_LIMIT,
    timeout: float = 600,
) -> Ended:
    """Run a function in a forked process to its end; see ``Child``."""
    return Child(work, *arguments, memory=memory, cpu=cpu).wait(timeout)


def _pages() -> tuple[int, int]:
    """The address space and the resident memory of this process, in bytes."""
    size, resident = Path("/proc/self/statm").read_text().split()[:2]
    return int(size) * resource.getpagesize(), int(resident) * resource.getpagesize()


def _be_child(
    work: Callable[..., Any], arguments: Sequence[Any], memory: int | None, cpu: float | None, output: int, writer: int
) -> None:
    """Run the function, send how it ended, and end this process. Nothing of the parent's is run at the end."""
    gc.freeze()  # a collection would write to the pages of all that the parent holds, and so copy them
    how, value, message = "raised", None, ""
    os.write(writer, _pages()[1].to_bytes(8, "little"))
    try:
        os.dup2(output, 1), os.dup2(output, 2)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        if memory is not None:
            limit = _pages()[0] + memory
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        if cpu is not None:
            resource.setrlimit(resource.RLIMIT_CPU, (max(1, round(cpu)), resource.RLIM_INFINITY))
        how, value = "returned", work(*arguments)
    except InputError as error:
        how, message = "refused", str(error)
    except SystemExit as stop:
        how, value = {0: "returned", None: "returned", 2: "refused"}.get(stop.code, "raised"), stop.code
    except BaseException:
        how, message = "raised", traceback.format_exc()
    try:
        sent = pickle.dumps((how, value, message))
    except Exception:
        sent = pickle.dumps((how, None, message))
    with os.fdopen(writer, "wb") as file:
        file.write(sent)
    os._exit(0)


# Folders


def tree(folder: Path) -> dict[str, bytes]:
    """The bytes of every file under a folder, hidden ones included, by relative path. Lock files are left out."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != LOCK)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def leftovers(folder: Path) -> list[str]:
    """Hidden files and folders under a folder: what an ended writer left. Lock files are left out."""
    return [str(p.relative_to(folder)) for p in sorted(folder.rglob(".*")) if p.name != LOCK]


# Verdicts


@dataclass
class Kind:
    """The verdicts on one kind of fault."""

    what: str
    """What was tried: one line of the table."""
    refused: int = 0
    """Refused in one line that names the cause."""
    survived: int = 0
    """Done with the right result, or done again with the right result."""
    failed: int = 0
    """The promise was broken."""
    cpu: float = 0.0
    """Seconds of CPU of the costliest case; 0 where it is not measured."""
    memory: int = 0
    """Bytes of the largest case, above the base; 0 where it is not measured."""
    seconds: float = 0.0
    """Wall clock of all cases."""
    cases: list[str] = field(default_factory=list)
    """What was tried, a line for each case that is worth recording, such as the moment of a kill."""
    failures: list[str] = field(default_factory=list)
    """A line for each failure."""

    @property
    def tried(self) -> int:
        """How many cases have a verdict."""
        return self.refused + self.survived + self.failed


class Trials:
    """Gives the verdicts on one kind of fault; see ``trials``."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self._failed: list[str] = []
        self.here = 0
        """How many cases of this block have a verdict."""

    def _add(self, verdict: Literal["refused", "survived", "failed"], case: str, ended: Ended | None) -> None:
        setattr(self._kind, verdict, getattr(self._kind, verdict) + 1)
        self.here += 1
        if case:
            self._kind.cases.append(f"{verdict}: {case}")
        if ended is not None:
            self._kind.cpu, self._kind.memory = max(self._kind.cpu, ended.cpu), max(self._kind.memory, ended.memory)

    def refused(self, case: str = "", ended: Ended | None = None) -> None:
        """It was refused in one line that names the cause."""
        self._add("refused", case, ended)

    def survived(self, case: str = "", ended: Ended | None = None) -> None:
        """It was done with the right result."""
        self._add("survived", case, ended)

    def failed(self, case: str, ended: Ended | None = None) -> None:
        """The promise was broken. The other cases are still tried; the test fails at the end of the block."""
        self._add("failed", case, ended)
        self._failed.append(case)
        self._kind.failures.append(case)

    def check(self, promise_held: bool, case: str, ended: Ended | None = None) -> bool:
        """``survived`` if the promise held, else ``failed``; returns whether it held."""
        (self.survived if promise_held else self.failed)(case, ended)
        return promise_held


KINDS: dict[str, Kind] = {}
"""The verdicts of this process, by what was tried."""


@contextmanager
def trials(what: str) -> Iterator[Trials]:
    """Collect verdicts on one kind of fault for the table, under the line ``what``.

    Raises:
        AssertionError: at the end of the block, if a case failed or none was tried.
    """
    kind = KINDS.setdefault(what, Kind(what))
    found, began = Trials(kind), time.monotonic()
    try:
        yield found
    finally:
        kind.seconds += time.monotonic() - began
    if found._failed:
        some = "\n".join(found._failed[:20])
        raise AssertionError(f"{what}: {len(found._failed)} of {found.here} failed:\n{some}")
    assert found.here, f"{what}: nothing was tried"


def as_plain(kinds: dict[str, Kind]) -> list[dict[str, Any]]:
    """Verdicts as plain data, ordered by what was tried."""
    return [asdict(kinds[what]) for what in sorted(kinds)]


def merge(kinds: dict[str, Kind], others: list[dict[str, Any]]) -> None:
    """Add the verdicts of another process."""
    for values in others:
        kind, other = kinds.setdefault(values["what"], Kind(values["what"])), Kind(**values)
        for name in ("refused", "survived", "failed", "seconds", "cases", "failures"):
            setattr(kind, name, getattr(kind, name) + getattr(other, name))
        kind.cpu, kind.memory = max(kind.cpu, other.cpu), max(kind.memory, other.memory)
