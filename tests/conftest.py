import gc
import math
import os
import resource
import sys
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path
from time import process_time  # by name: tests put clocks of their own into the module

import pytest
from hypothesis import settings

from workers import files_of, import_shared, run_in_workers

settings.register_profile("repeatable", max_examples=50, derandomize=True, deadline=None)  # no test measures time
settings.load_profile("repeatable")
gc.set_threshold(50_000, 20)  # collect garbage more rarely than Python would: models make many objects and few cycles

CPU_LIMIT = 20.0  # seconds that one test may take; the summary names the tests above it
CPU_SHOWN = 10
CPU_BUDGET = 300.0  # seconds that `make test` may take; the summary warns above it
FEW_FILES = 50  # a run of fewer may not need what most workers of a larger one import

_set_aside = {"modules": 0}
_clock = {"mark": 0.0}
_CHILDREN = Path("/proc/thread-self/children")
_cpu_of_test: Counter[str] = Counter()


def _cpu_seconds() -> float:
    """CPU time so far of this process and of its children. Of children that still run, it counts where Linux tells it.

    It is asked three times a test, and so it looks at the children of the main thread alone.
    """
    ended, running = resource.getrusage(resource.RUSAGE_CHILDREN), ()
    with suppress(FileNotFoundError), _CHILDREN.open("rb", buffering=0) as file:
        running = file.read().decode().split()
    return process_time() + ended.ru_utime + ended.ru_stime + sum(map(_cpu_seconds_of, running))


def _cpu_seconds_of(process: str) -> float:
    """CPU time so far of another process and of its children that have ended: fields 14 to 17 of proc(5)."""
    ticks = Path("/proc", process, "stat").read_text().rpartition(")")[2].split()[11:15]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def pytest_addoption(parser):
    parser.addoption("--workers", default="0", help="run the tests in so many forks; auto: one for each core of Linux")


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session):
    """Elsewhere than on Linux, a fork of a process that has imported torch may not work."""
    wish, cores = session.config.getoption("workers"), len(os.sched_getaffinity(0)) if sys.platform == "linux" else 0
    count = cores if wish == "auto" else int(wish)
    if not count or session.testsfailed or session.config.option.collectonly:
        return None
    if len(files_of(session.items)) > FEW_FILES:
        import_shared()
        _set_modules_aside()
    run_in_workers(session, count)
    return True


def pytest_sessionstart(session):
    """Networks are tiny. The main process of pytest-xdist, which runs no test, does without torch."""
    if session.config.getoption("dist", "no") == "no":
        import torch

        torch.set_num_threads(1)


def pytest_collection_finish():
    _set_modules_aside()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown():
    """diffusers and transformers are imported by the first test that uses them."""
    if len(sys.modules) > _set_aside["modules"] + 50:
        _set_modules_aside()


def _set_modules_aside():
    """Take the modules and tests, which live until the end, out of garbage collection: Guidon collects after each stage."""
    gc.collect()
    gc.freeze()
    _set_aside["modules"] = len(sys.modules)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol():
    _clock["mark"] = _cpu_seconds()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Add to the report of each phase the CPU time since the one before. It reaches the main process with the report."""
    report = yield
    now = _cpu_seconds()
    report.user_properties.append(("cpu", now - _clock["mark"]))
    _clock["mark"] = now
    return report


def pytest_runtest_logreport(report):
    _cpu_of_test[report.nodeid] += dict(report.user_properties).get("cpu", 0.0)  # a worker that died told nothing


def pytest_terminal_summary(terminalreporter):
    """Show the tests that took the most CPU time. Wall time depends on what else the machine does."""
    if not _cpu_of_test:
        return
    terminalreporter.section("slowest tests by CPU time, children included")
    for test, seconds in _cpu_of_test.most_common(CPU_SHOWN):
        above = f"  above the limit of {CPU_LIMIT:g} s" if seconds > CPU_LIMIT else ""
        terminalreporter.write_line(f"{seconds:8.1f} s  {test}{above}")
    tests = sum(_cpu_of_test.values())
    terminalreporter.write_line(f"{tests:8.1f} s  all {len(_cpu_of_test)} tests")
    total, has_budget = _cpu_seconds(), "not long" in terminalreporter.config.option.markexpr
    allowed = f", of {CPU_BUDGET:g} s allowed" if has_budget else ""
    terminalreporter.write_line(f"{total:8.1f} s  with start and collection{allowed}")
    if has_budget and total > CPU_BUDGET:
        terminalreporter.write_line(
            f"Warning: {total - CPU_BUDGET:.0f} s above the budget. Make the slowest tests cheaper.", yellow=True
        )


@pytest.fixture(scope="session", autouse=True)
def same_on_every_machine():
    """A slow machine prints no line of progress. A study takes a thread for each core: threads that wait for each other
    cost more CPU time than a tiny model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("guidon.core.progress.QUICK", math.inf)
        patch.setattr("os.cpu_count", lambda: 1)
        yield


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind(tmp_path_factory):
    """What a process that is killed or crashes leaves among temporary files is deleted with the other files of tests.
    What torch compiles is kept for the next run."""
    with pytest.MonkeyPatch.context() as patch:
        if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
            patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir(), f"guidon-tests-{os.getuid()}")))
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("temporary")))
        patch.setattr("tempfile.tempdir", None)
        yield


@pytest.fixture(scope="session", autouse=True)
def much_memory():
    """What other programs leave of memory does not decide how many clips a test may ask for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("guidon.pipeline.sizes.available_memory", lambda device="cpu": 16 << 30)
        yield


@pytest.fixture(scope="session", autouse=True)
def quick_webp():
    """A lossless WebP takes 30 times as long to write in as few bytes as Guidon asks for. Its pixels are the same."""
    from PIL import Image, WebPImagePlugin

    def save_all(image, file, name):
        image.encoderinfo["method"] = 0
        WebPImagePlugin._save_all(image, file, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(Image.SAVE_ALL, "WEBP", save_all)
        yield


@pytest.fixture(scope="session", autouse=True)
def no_pictures():
    """A picture of curves takes longer to draw than a tiny model to sample. Tests that take ``pictures`` draw them."""
    from matplotlib.figure import Figure

    draw = Figure.savefig
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda figure, file, **how: Path(file).write_bytes(b"no picture"))
        yield draw


@pytest.fixture
def pictures(no_pictures, monkeypatch):
    """Pictures of curves are drawn in this test."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", no_pictures)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A model folder of small random weights, whose output depends on its caption."""
    from tiny_model import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_flow(tmp_path_factory):
    """The same of a rectified flow."""
    from tiny_model import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("tiny-flow"), flows=True)
