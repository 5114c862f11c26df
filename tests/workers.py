"""Run the tests in forks of one process, which has imported and collected once for all of them."""

import os
import signal
import traceback
import warnings
from collections import defaultdict
from contextlib import suppress
from importlib import import_module
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

import pytest

SHARED = (
    "diffusers",
    "diffusers.models.transformers",
    "diffusers.pipelines.pipeline_utils",
    "transformers.models.t5.modeling_t5",
)
"""Modules that tests of many files import, for seconds."""


class Worker:
    """A fork of the main process, and what it does."""

    def __init__(self, queue: int, session: pytest.Session, first: list[int]):
        """Fork. The worker runs the tests ``first``, then those of files whose numbers it takes from the pipe ``queue``."""
        self.reader, writer = Pipe(duplex=False)
        self.left = list(first)
        """The tests that it has taken and not begun."""
        self.test: int | None = None
        self.done = False
        self.process = os.fork()
        if self.process:
            writer.close()
            return
        status = 1
        try:
            self.reader.close()
            _work(session, queue, first, Sender(writer, session.config))
            status = 0
        except KeyboardInterrupt:
            session._setupstate.teardown_exact(None)
        except BaseException:
            writer.send([("broken", traceback.format_exc())])
        finally:
            os._exit(status)

    def receive(self) -> list[tuple[str, Any]]:
        """The next things that the worker tells: the kind of each, and what belongs to it."""
        try:
            return self.reader.recv()
        except EOFError:
            return [("end", None)]


class Sender:
    """A plugin of a worker: what its tests tell goes to the main process."""

    def __init__(self, writer: Connection, config: pytest.Config):
        self.writer, self.config = writer, config
        self.begun = False  # pytest tells a new plugin the warnings of before, which the main process knows
        self.kept: list[tuple[str, Any]] = []
        """What to send with the beginning of the next test."""

    def send(self, kind: str) -> None:
        self.writer.send([*self.kept, (kind, None)])
        self.kept.clear()

    def pytest_runtest_logreport(self, report):
        data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        self.kept.append(("report", data))

    def pytest_warning_recorded(self, warning_message, when, nodeid, location):
        if not self.begun:
            return
        seen = warning_message
        what = (str(seen.message), seen.category.__name__, seen.filename, seen.lineno)
        self.kept.append(("warning", (what, when, nodeid, location)))


def files_of(items: list[pytest.Item]) -> list[list[int]]:
    """The numbers of the tests of each file: files of many tests first, so that the last ones are short.

    Files that are marked ``together`` count as one: they share what is made once a process.
    """
    files = defaultdict[str, list[int]](list)
    for number, item in enumerate(items):
        mark = item.get_closest_marker("together")
        files[mark.args[0] if mark else item.nodeid.partition("::")[0]].append(number)
    return sorted(files.values(), key=len, reverse=True)


def import_shared() -> None:
    """Import once what each of many workers would import by itself."""
    for name in SHARED:
        with suppress(ImportError):  # an optional library
            import_module(name)


def run_in_workers(session: pytest.Session, count: int) -> None:
    """Run the collected tests in ``count`` workers. Each takes a file at a time, and so makes its fixtures once.

    A test in which a worker dies has failed; another worker goes on with what that one had taken.
    """
    hook, items, files = session.config.hook, session.items, files_of(session.items)
    session.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]  # before the forks: the same for all
    queue, writer = os.pipe()
    os.set_blocking(writer, False)  # a full pipe is an error: it holds 32,000 files
    os.write(writer, b"".join(number.to_bytes(2, "little") for number in range(len(files))))
    os.close(writer)
    workers = {worker.reader: worker for worker in (Worker(queue, session, []) for _ in range(count))}
    try:
        while workers:
            for reader in wait(list(workers)):
                worker = workers[reader]  # type: ignore[index]
                for kind, data in worker.receive():
                    if kind in ("test", "done") and worker.test is not None:
                        item = items[worker.test]
                        hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
                    if kind == "end":
                        del workers[worker.reader]
                        _, status = os.waitpid(worker.process, 0)
                        if not worker.done:
                            _mourn(session, worker, status)
                            another = Worker(queue, session, worker.left)
                            workers[another.reader] = another
                    elif kind == "file":
                        worker.left += files[data]
                    elif kind == "test":
                        worker.test = worker.left.pop(0)
                        item = items[worker.test]
                        hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
                    elif kind == "report":
                        report = hook.pytest_report_from_serializable(config=session.config, data=data)
                        hook.pytest_runtest_logreport(report=report)
                    elif kind == "warning":
                        _warn(hook, *data)
                    elif kind == "broken":
                        raise RuntimeError(data)
                    else:
                        worker.done = True
                if session.shouldfail:
                    raise session.Failed(session.shouldfail)
                if session.shouldstop:
                    raise session.Interrupted(session.shouldstop)
    finally:
        os.close(queue)
        for worker in workers.values():
            os.kill(worker.process, signal.SIGINT)
        for worker in workers.values():
            worker.reader.close()
            os.waitpid(worker.process, 0)


def _work(session: pytest.Session, queue: int, first: list[int], sender: Sender) -> None:
    """What a worker does: it alone captures what its tests print, and has its own temporary folder."""
    config, files = session.config, files_of(session.items)
    manager = config.pluginmanager
    manager.unregister(name="terminalreporter")
    manager.register(sender)
    sender.begun = True
    capture: Any = manager.getplugin("capturemanager")
    if capture is not None:
        capture.stop_global_capturing()
        capture.start_global_capturing()
    factory = config._tmp_path_factory  # type: ignore[attr-defined]
    factory._basetemp = factory.getbasetemp() / f"worker-{os.getpid()}"
    factory._basetemp.mkdir(mode=0o700)

    def numbers():
        yield from first
        while taken := os.read(queue, 2):
            file = int.from_bytes(taken, "little")
            sender.kept.append(("file", file))
            yield from files[file]

    coming = numbers()
    number = next(coming, None)
    while number is not None:
        following = next(coming, None)
        item, after = session.items[number], None if following is None else session.items[following]
        sender.send("test")
        config.hook.pytest_runtest_protocol(item=item, nextitem=after)
        number = following
    sender.send("done")


def _mourn(session: pytest.Session, worker: Worker, status: int) -> None:
    """Report the test in which a worker died."""
    if worker.test is None:
        raise RuntimeError(f"a worker ended with status {status} before its first test")
    item = session.items[worker.test]
    code = os.waitstatus_to_exitcode(status)
    died = f"signal {-code}" if code < 0 else f"exit code {code}"
    report = pytest.TestReport(item.nodeid, item.location, {}, "failed", f"the worker died: {died}", "call")
    session.config.hook.pytest_runtest_logreport(report=report)


def _warn(hook: Any, what: tuple[str, str, str, int], when: str, nodeid: str, location: Any) -> None:
    text, kind, file, line = what
    category = type(kind, (Warning,), {})
    message = warnings.WarningMessage(category(text), category, file, line)
    asked = {"warning_message": message, "when": when, "nodeid": nodeid, "location": location}
    hook.pytest_warning_recorded.call_historic(kwargs=asked)
