"""The table of verdicts: gathered from all workers, printed, and written to the file that GUIDON_FAULTS_TABLE names."""

import os
from pathlib import Path

import pytest

from faults import report, shim
from faults.harness import KINDS, as_plain, merge


@pytest.fixture(autouse=True)
def drawn(pictures):
    """What is read of a damaged log is drawn too."""


@pytest.fixture(scope="session", autouse=True)
def much_memory():
    """Here the memory of this machine counts."""


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    """End the server of I/O faults. In a worker of pytest-xdist: hand the verdicts to the main process."""
    shim.end_server()
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["faults"] = as_plain(KINDS)


class Gather:
    """Hooks of pytest-xdist, which exist only where it is in use."""

    def pytest_testnodedown(self, node, error):
        merge(KINDS, getattr(node, "workeroutput", {}).get("faults", []))


def pytest_configure(config):
    if config.pluginmanager.hasplugin("dsession"):
        config.pluginmanager.register(Gather())


def pytest_terminal_summary(terminalreporter):
    if not KINDS:
        return
    terminalreporter.section("faults")
    found = report.measured(KINDS)
    terminalreporter.write_line(report.table(found))
    if path := os.environ.get("GUIDON_FAULTS_TABLE"):
        report.write(found, Path(path))
        terminalreporter.write_line(f"written to {path}")
