import io
import time

import pytest

from guidon.core import progress as module
from guidon.core.progress import as_time, late_progress, lines, progress


@pytest.fixture
def soon(monkeypatch):
    """Lines come a hundred times sooner."""
    for name, seconds in {"QUICK": 0.02, "BETWEEN": 0.3, "SILENT": 6.0, "_LOOK": 0.0025}.items():
        monkeypatch.setattr(module, name, seconds)


def wait_for(capsys, text):
    """Everything that was printed on stderr until ``text`` came."""
    said, end = "", time.monotonic() + 20
    while text not in said:
        assert time.monotonic() < end, said
        time.sleep(0.005)
        said += capsys.readouterr().err
    return said


def test_short_work_says_nothing_where_stderr_is_no_terminal(capsys):
    with progress("denoising", "steps") as on_step:
        on_step(1, 2)
    assert capsys.readouterr() == ("", "")


def test_long_work_says_that_it_begins_how_long_it_takes_and_that_it_is_done(soon, capsys):
    with progress("denoising 4 clips", "steps") as on_step:
        assert wait_for(capsys, "\n").startswith("guidon: denoising 4 clips: ")
        on_step(1, 20)
        on_step(5, 20)
        assert "denoising 4 clips: 5 of 20 steps, about " in wait_for(capsys, "left\n")
        on_step(6, 20)  # too little for another line
        on_step(15, 20)
        assert wait_for(capsys, "15 of 20").count("6 of 20") == 0
    assert "guidon: denoising 4 clips: done in 1 s\n" in capsys.readouterr().err


def test_work_without_a_unit_shows_per_cent_and_a_failure_is_not_done(soon, capsys):
    def fail():
        with progress("evaluating") as on_step:
            on_step(0, 1000)
            on_step(250, 1000)
            assert "evaluating: 25%, about " in wait_for(capsys, "left")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert "done" not in capsys.readouterr().err


def test_other_ranks_are_silent(soon, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with progress("training") as on_step:
        on_step(1, 2)
        time.sleep(0.1)
    assert capsys.readouterr().err == ""


class Screen(io.StringIO):
    def isatty(self):
        return True

    def lines(self):
        """What a terminal shows in the end: writing goes on from the start of the line after a carriage return."""
        lines = []
        for line in self.getvalue().split("\n"):
            cells = ""
            for part in line.split("\r"):
                cells = part + cells[len(part) :]
            lines.append(cells.rstrip())
        return lines


@pytest.fixture
def terminal(monkeypatch):
    """Makes stderr a terminal, 60 letters wide. It is called in the test: pytest sets stderr after the fixtures."""

    def terminal():
        monkeypatch.setenv("COLUMNS", "60")
        monkeypatch.setattr("sys.stderr", screen := Screen())
        return screen

    return terminal


def test_a_terminal_shows_a_bar_from_the_beginning(terminal):
    screen = terminal()
    with progress("denoising", "steps") as on_step:
        assert screen.lines() == ["denoising"]
        on_step(0, 4)
        time.sleep(0.1)
        on_step(1, 4)
        assert screen.lines() == ["denoising [#####               ] 1/4, 1 s left"]
        on_step(4, 4)
    assert screen.lines() == ["denoising [####################] 4/4", ""]


def test_work_that_is_not_counted_is_named(soon, capsys, terminal):
    with lines("denoising", "steps", "decoding") as on_step:
        on_step(0, 4)
        on_step(1, 4)
        assert "1 of 4 steps, about 1 s left, then decoding\n" in wait_for(capsys, "left")
        on_step(4, 4)
        assert "4 of 4 steps, decoding\n" in wait_for(capsys, "4 of 4")
    screen = terminal()
    with progress("denoising", then="decoding") as on_step:
        on_step(0, 4)
        time.sleep(0.1)
        on_step(1, 4)
        assert screen.lines() == ["denoising [#####               ] 1/4, 1 s left, then decodi"]
        on_step(4, 4)
        assert screen.lines() == ["denoising [####################] 4/4, decoding"]
    assert screen.lines() == ["denoising [####################] 4/4", ""]


def test_a_message_takes_the_place_of_the_bar_which_goes_on_below(terminal):
    screen = terminal()
    with progress("denoising", "steps") as on_step:
        on_step(1, 2)
        print(f"{'guidon: a message':<59}", file=screen)
        on_step(2, 2)
    assert screen.lines() == ["guidon: a message", "denoising [####################] 2/2", ""]


def test_a_bar_stays_in_its_line(terminal):
    screen = terminal()
    with progress("denoising " * 10, "steps") as on_step:
        on_step(1, 2)
    assert max(map(len, screen.lines())) == 59


def test_a_call_shows_its_bar_for_long_work_alone(terminal):
    screen = terminal()
    with late_progress("denoising", after=60) as on_step:
        on_step(1, 2)
    assert screen.getvalue() == ""
    with late_progress("denoising", after=0) as on_step:
        on_step(4, 4)
    assert screen.lines() == ["denoising [####################] 4/4", ""]


def test_a_call_writes_no_bar_to_a_file(capsys):
    with late_progress("denoising", after=0) as on_step:
        on_step(1, 4)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (89, "89 s"), (150, "2 min"), (3600, "60 min"), (11100, "3 h 5 min")]
)
def test_a_duration_is_written_for_people(seconds, text):
    assert as_time(seconds) == text
