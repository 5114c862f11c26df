import io

from rich.console import Console

from guidon.core.progress import late_progress, progress


def test_where_stderr_is_no_terminal_nothing_is_shown(capsys):
    with progress("denoising") as on_step:
        on_step(1, 2)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_shows_what_is_done(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr("rich.console.Console", lambda stderr: Console(file=screen, force_terminal=True, width=80))
    with progress("denoising") as on_step:
        on_step(3, 7)
    assert "denoising" in screen.getvalue()
    assert "3/7" in screen.getvalue()


class Screen(io.StringIO):
    def isatty(self):
        return True


def test_a_line_of_progress_is_shown_for_long_work_alone(monkeypatch):
    screen = Screen()
    monkeypatch.setattr("sys.stderr", screen)
    with late_progress("denoising", after=60) as on_step:
        on_step(1, 2)
    assert screen.getvalue() == ""
    with late_progress("denoising", after=0) as on_step:
        on_step(1, 4)
        on_step(4, 4)
    assert "\rdenoising [#####               ] 1/4, 0:00 left" in screen.getvalue()
    assert "4/4" in screen.getvalue()
    assert screen.getvalue().endswith("\n")


def test_a_line_of_progress_is_not_written_to_a_file(capsys):
    with late_progress("denoising", after=0) as on_step:
        on_step(1, 4)
    assert capsys.readouterr() == ("", "")
