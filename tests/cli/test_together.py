import contextlib
import io
import json
import os
import signal

import pytest

from guidon import cli
from guidon.cli import together
from guidon.core.devices import cpu_threads
from ranks import on_ranks

PROMPT, OTHER = "a red circle moves left on a white background", "a blue square moves up on a black background"


@pytest.fixture
def on_two(monkeypatch, tiny_model):
    """What each of two ranks says: (exit code, stdout, stderr)."""
    import guidon.analysis.evaluate
    import guidon.pipeline  # noqa: F401 - here, so that not every fork imports it

    monkeypatch.setattr(together, "GRACE", 0.0)

    def on_two(*words, before=lambda: None, **environment):
        def work():
            before()
            with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
                try:
                    cli.main([str(word) for word in (*words, "--model", tiny_model, "--device", "cpu")])
                except SystemExit as stop:
                    return stop.code, out.getvalue(), err.getvalue()

        return on_ranks(work, **environment)

    return on_two


@pytest.fixture
def one(run, tiny_model):
    """What one process prints, with as many threads as a rank."""

    def one(*words):
        with cpu_threads(1):
            code, out, err = run(*words, "--model", tiny_model, "--device", "cpu")
        assert code == 0, err
        return out

    return one


def files(folder):
    """The files of a folder by name; of a manifest without the command, which names the folder."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {
        name: json.loads(data) | {"command": ""} if name.endswith(".json") else data for name, data in found.items()
    }  # fmt: skip


def test_two_ranks_write_the_files_of_one_process_once(on_two, one, tmp_path):
    words = ("generate", PROMPT, "--steps", 2, "--seed", 7, "--format", "webp", "--interval", "0,1")
    first, second = on_two(*words, "--out", tmp_path / "two")
    assert first[0] == second[0] == 0
    assert first[1].count("\n") == 3
    assert "2 ranks worked together by gloo: 32.8 kB of latents went to other branches and 24.6 kB of" in first[2]
    assert second[1:] == ("", "")
    one(*words, "--sequential", "--out", tmp_path / "one")
    assert files(tmp_path / "two") == files(tmp_path / "one")


def test_a_list_of_prompts_is_shared(on_two, one, tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text(f"{PROMPT}\n{OTHER}\n")
    words = ("generate", "--prompts-file", listed, "--num-samples", 2, "--steps", 2, "--format", "webp")
    first, _ = on_two(*words, "--out", tmp_path / "two")
    assert "latents" not in first[2]
    one(*words, "--batch-size", 2, "--out", tmp_path / "one")
    assert files(tmp_path / "two") == files(tmp_path / "one")


def test_an_evaluation_is_shared_and_its_tables_are_those_of_one_process(on_two, one, tmp_path):
    words = ("evaluate", "--prompts", 3, "--steps", 2, "--batch-size", 2, "--cfg-scale", 3, "--cfg-scale", 1)
    (code, out, err), second = on_two(*words, "--out", tmp_path / "two")
    assert (code, second) == (0, (0, "", ""))
    expected = one(*words, "--out", tmp_path / "one")
    assert out.replace(str(tmp_path / "two"), "") == expected.replace(str(tmp_path / "one"), "")
    assert files(tmp_path / "two") == files(tmp_path / "one")
    assert "2 ranks worked together" in err


def test_bad_input_is_said_once(on_two, tmp_path):
    first, second = on_two("generate", PROMPT, "--cfg-channels", 9, "--out", tmp_path)
    assert first[0] == second[0] == 2
    assert first[2].count("\n") == 1
    assert second[1:] == ("", "")
    first, _ = on_two("generate", PROMPT, "--branch-ranks", 3, "--out", tmp_path)
    assert first[2] == (
        "guidon: --branch-ranks 3 does not divide the 2 ranks: start a multiple of 3, torchrun --nproc-per-node N\n"
    )
    assert not [*tmp_path.iterdir()]


def _fails(error):
    """Let the network of the second rank fail at its second call."""

    def before():
        from guidon.models.stdit.network import STDiT

        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
        if os.environ["RANK"] != "1":
            return
        calls, call = [], STDiT.__call__

        def failing(*words, **named):
            calls.append(1)
            if len(calls) == 2:
                error()
            return call(*words, **named)

        STDiT.__call__ = failing

    return before


def _raises():
    raise KeyError("absent")


@pytest.mark.parametrize(
    ("error", "said", "codes"),
    [
        (_raises, "guidon: rank 1: KeyError: 'absent'\n", (2, 70)),
        (lambda: os.kill(os.getpid(), signal.SIGINT), "guidon: stopped; nothing was written\n", (130, 130)),
        (lambda: os._exit(3), "guidon: rank 1 ended, or sent nothing for 1800 s", (2, None)),
    ],
    ids=["error", "Ctrl-C", "lost"],
)
def test_what_happens_on_one_rank_ends_all_and_nothing_is_written(on_two, tmp_path, error, said, codes, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a report of the defect is written here
    words = ("generate", PROMPT, "--steps", 3, "--interval", "0,1", "--out", tmp_path / "out")
    first, second = on_two(*words, before=_fails(error))
    assert first[0] == codes[0]
    assert said in first[2]
    assert second[0] == codes[1] if codes[1] else isinstance(second.status, int)
    assert not (tmp_path / "out").exists()


def test_ctrl_c_that_torchrun_repeats_is_heard_once(monkeypatch):
    from guidon.core import interrupts

    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setattr(interrupts, "once", interrupts._Once())
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    heard = []
    try:
        interrupts.hear_once()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # the repetition
        interrupts.once.heard -= interrupts.REPEAT
        with pytest.raises(KeyboardInterrupt):
            _interrupted_thrice(interrupts, heard)
        assert sorted(heard) == ["finished", "told"]
        interrupts.once.heard -= interrupts.REPEAT
        with pytest.raises(KeyboardInterrupt):  # the second one of the user
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupted_thrice(interrupts, heard):
    with interrupts.finished_first(lambda: heard.append("told")):
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
        heard.append("finished")
