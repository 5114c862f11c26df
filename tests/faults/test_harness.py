"""The harness itself: it must tell a good end from a bad one."""

import json
import re
import signal
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from faults import report
from faults.harness import KINDS, Child, Kind, as_plain, child, leftovers, merge, sample, tree, trials
from guidon.core.errors import InputError
from guidon.core.reading import Limit


def refuse():
    raise InputError("this is not a clip: give one")


def test_a_child_tells_how_it_ended():
    assert (child(lambda a, b: a + b, 1, 2).how, child(lambda a, b: a + b, 1, 2).value) == ("returned", 3)
    refused = child(refuse)
    assert (refused.how, refused.message, refused.one_line) == ("refused", "this is not a clip: give one", True)
    raised = child(lambda: 1 / 0)
    assert raised.how == "raised"
    assert "ZeroDivisionError" in raised.message
    assert (child(signal.raise_signal, signal.SIGTERM).how) == "killed"
    assert child(lambda: print("said")).output == "said\n"
    assert child(time.sleep, 30, timeout=0.3).how == "timeout"


def test_a_child_has_limits_and_tells_what_it_took():
    def allocate(size):
        return int(np.ones(size, np.uint8).sum())

    took = child(allocate, 200 << 20, memory=1 << 30)
    assert took.value == 200 << 20
    assert 190 << 20 < took.memory < 400 << 20
    assert "MemoryError" in child(allocate, 2 << 30, memory=1 << 30).message

    def spin():
        while True:
            pass

    ended = child(spin, cpu=1)
    assert (ended.how, ended.signal) == ("killed", signal.SIGXCPU)
    assert 0.5 < ended.cpu < 3


def test_a_child_can_be_killed_while_it_works():
    running = Child(time.sleep, 30)
    running.kill()
    assert running.wait().signal == signal.SIGKILL


def test_a_failed_case_fails_its_test_and_the_others_are_tried(monkeypatch):
    monkeypatch.setattr("faults.harness.KINDS", own := {})

    def three():
        with trials("bits") as found:
            found.refused()
            found.failed("bit 2")
            found.check(True, "bit 3")

    with pytest.raises(AssertionError, match=r"bits: 1 of 3 failed:\nbit 2"):
        three()
    with pytest.raises(AssertionError, match="nothing was tried"), trials("none"):
        pass
    kind = own["bits"]
    assert (kind.refused, kind.survived, kind.failed, kind.failures) == (1, 1, 1, ["bit 2"])
    assert "bits" not in KINDS
    merge(own, as_plain(own))
    assert own["bits"].tried == 6


def test_a_sample_is_seeded_and_in_order(monkeypatch):
    monkeypatch.setattr("faults.harness.LONG", False)
    some = sample(range(100), in_ci=5)
    assert some == sample(range(100), in_ci=5) == sorted(some)
    assert len(some) == 5
    monkeypatch.setattr("faults.harness.LONG", True)
    assert sample(range(100), in_ci=5) == list(range(100))


def test_folders_are_compared_without_their_locks(tmp_path):
    for name in ("a", ".guidon.lock", ".a.1.tmp"):
        (tmp_path / name).write_text(name)
    assert tree(tmp_path) == {"a": b"a", ".a.1.tmp": b".a.1.tmp"}
    assert leftovers(tmp_path) == [".a.1.tmp"]


def test_a_page_gets_the_table_of_a_run():
    found = report.measured({"bits": Kind("bits", refused=2, survived=1, cpu=1.25, memory=3 << 20)})
    text = report.page(f"before\n{report.START}\nold\n{report.END}\nafter\n", found)
    assert re.search(r"^\| bits \| (sample|long)(, seed \d+)? \| 3 \| 2 \| 1 \| 0 \| 1\.2 \| 3 \|$", text, re.MULTILINE)
    assert "| all | | 3 | 2 | 1 | 0 | | |" in text
    assert "old" not in text
    assert report.page(text, found) == text
    with pytest.raises(ValueError, match="0 places"):
        report.page("no table", found)


def test_a_run_of_one_part_keeps_the_rows_of_the_others(tmp_path):
    for kinds in ({"a": Kind("a", refused=1), "b": Kind("b", refused=1)}, {"b": Kind("b", survived=5)}):
        report.write(report.measured(kinds), tmp_path / "found.json")
    rows = json.loads((tmp_path / "found.json").read_text())["kinds"]
    assert [(row["what"], row["refused"], row["survived"]) for row in rows] == [("a", 1, 0), ("b", 0, 5)]


def test_the_page_has_the_table_of_the_last_run_and_every_limit():
    found, text = json.loads(report.MEASURED.read_text()), report.PAGE.read_text()
    assert report.page(text, found) == text, "run `PYTHONPATH=tests python tests/faults/report.py`"
    assert {"what", "refused", "survived", "failed", "cpu", "memory", "cases", "failures"} <= found["kinds"][0].keys()
    assert all(row["failed"] == len(row["failures"]) == 0 for row in found["kinds"])
    rows = dict(re.findall(r"^\| .* \| `(GUIDON_MAX_\w+)` \| ([\d,]+) \|$", text, re.MULTILINE))
    limits = [
        value
        for module in ("core.reading", "core.settings", "metrics.metric", "studies.study")
        for value in vars(import_module(f"guidon.{module}")).values()
        if isinstance(value, Limit)
    ]
    assert rows == {limit.variable: f"{limit.default:,}" for limit in limits}


def test_the_page_names_every_test():
    named = set(re.findall(r"`(test_\w+\.py)`", report.PAGE.read_text()))
    assert named == {path.name for path in Path(__file__).parent.glob("test_*.py")}
