import io

from rich.console import Console

from guidon.core.progress import progress


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
