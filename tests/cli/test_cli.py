import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from guidon import cli
from guidon.media.files import load_video

PROMPT = "a red circle moves left on a white background"


@pytest.fixture
def guidon(tiny_model, capsys):
    """Runs a command line in this process: (exit code, stdout, stderr)."""

    def run(*arguments, model=True):
        words = [str(a) for a in arguments]
        if model and words[0] == "generate" and "--from" not in words:
            words += ["--model", str(tiny_model), *([] if "--device" in words else ["--device", "cpu"])]
        with pytest.raises(SystemExit) as stop:
            cli.main(words)
        out = capsys.readouterr()
        return stop.value.code, out.out, out.err

    return run


def paths(out):
    pairs = [line.split(":", 1) for line in out.splitlines()]
    return {name: path.strip() for name, path in pairs}


def test_generate_writes_video_manifest_and_sheet_and_the_manifest_reproduces(guidon, tmp_path):
    code, out, _ = guidon(
        "generate",
        PROMPT,
        "--steps",
        2,
        "--seed",
        7,
        "--out",
        tmp_path / "a",
        "--format",
        "webp",
        "--cfg-channels",
        "0,2",
    )
    assert code == 0
    found = paths(out)
    assert set(found) == {"video", "manifest", "contact sheet"}
    frames, fps = load_video(found["video"])
    assert frames.shape == (16, 64, 64, 3)
    assert fps == 8
    manifest = json.loads(Path(found["manifest"]).read_text())
    assert manifest["generation"]["cfg_channels"] == "0,2"
    assert manifest["generation"]["seed"] == 7
    code, out, _ = guidon(
        "generate", "--from", found["manifest"], "--out", tmp_path / "b", "--format", "webp", "--device", "cpu"
    )
    assert code == 0
    assert np.array_equal(load_video(paths(out)["video"])[0], frames)


def test_prompts_and_samples_come_together_in_one_sheet(guidon, tmp_path):
    (tmp_path / "prompts.txt").write_text("a blue square moves up on a black background\n\n")
    code, out, _ = guidon(
        "generate",
        PROMPT,
        "--prompts-file",
        tmp_path / "prompts.txt",
        "--num-samples",
        2,
        "--steps",
        2,
        "--out",
        tmp_path,
        "--format",
        "gif",
        "--interval",
        "0,1",
        "--trace",
    )
    assert code == 0
    assert out.count("video:") == 4
    assert out.count("contact sheet:") == 1
    trace = np.load(paths(out)["trace"])
    assert trace["difference"].shape == (4, 2, 4)


def test_other_settings_do_not_overwrite(guidon, tmp_path):
    for scale in ("2", "3", "2"):
        guidon("generate", PROMPT, "--steps", 2, "--out", tmp_path, "--format", "gif", "--cfg-scale", scale)
    assert len(list(tmp_path.glob("*.gif"))) == 2


BAD = {
    "unknown words only": (["xyzzy"], "no word of the prompt"),
    "empty prompt": ([""], "is empty"),
    "no prompt": ([], "no prompt was given"),
    "channels 5": ([PROMPT, "--cfg-channels", "5"], "4 latent channels"),
    "channels twice": ([PROMPT, "--cfg-channels", "0,0"], "twice"),
    "channels backwards": ([PROMPT, "--cfg-channels", "4-2"], "backwards"),
    "channels x": ([PROMPT, "--cfg-channels", "x"], "cannot be read"),
    "scale nan": ([PROMPT, "--cfg-scale", "nan"], "finite"),
    "scale negative": ([PROMPT, "--cfg-scale", "-1"], "at least 0"),
    "scale infinite": ([PROMPT, "--cfg-scale", "inf"], "finite"),
    "scale word": ([PROMPT, "--cfg-scale", "big"], "is not a number"),
    "scales of wrong length": ([PROMPT, "--cfg-scale", "1,2,3"], "4 latent channels"),
    "steps 0": ([PROMPT, "--steps", "0"], "steps"),
    "steps above T": ([PROMPT, "--steps", "1001"], "at most 1000"),
    "interval outside": ([PROMPT, "--interval", "0.5,1.5"], "leaves [0, 1]"),
    "interval reversed": ([PROMPT, "--interval", "0.8,0.2"], "backwards"),
    "interval and ramp": ([PROMPT, "--interval", "0,1", "--ramp", "linear"], "choose one"),
    "format": ([PROMPT, "--format", "mp5"], "did you mean 'mp4'"),
    "sampler": ([PROMPT, "--sampler", "euler"], "sampler"),
    "device": ([PROMPT, "--device", "quantum"], "not a device"),
    "option": ([PROMPT, "--sead", "1"], "--sead"),
    "manifest and prompt": ([PROMPT, "--from", "a.json"], "--from takes every setting"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line_and_exit_code_2(guidon, tmp_path, case):
    arguments, message = BAD[case]
    code, out, err = guidon("generate", *arguments, "--out", tmp_path / "out")
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert message in err
    assert not list(tmp_path.glob("out/*"))


def test_bad_models_manifests_and_folders(guidon, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "not.json").write_text("{}")
    for arguments, message in (
        (["generate", PROMPT, "--model", "guidon-smal", "--out", tmp_path], "did you mean 'guidon-small'"),
        (["generate", PROMPT, "--out", tmp_path / "file" / "sub"], "cannot be written"),
        (["generate", "--from", tmp_path / "not.json", "--out", tmp_path], "not a manifest"),
        (["generate", "--from", tmp_path / "none.json", "--out", tmp_path], "cannot read"),
        (["generate", "--prompts-file", tmp_path / "none.txt", "--out", tmp_path], "cannot read --prompts-file"),
        (["train", tmp_path / "none.yaml"], "cannot read"),
    ):
        code, _, err = guidon(*arguments, model=False)
        assert code == 2
        assert err.count("\n") == 1
        assert message in err


def test_models_lists_the_presets(guidon):
    code, out, _ = guidon("models")
    assert code == 0
    assert "guidon-small" in out


@pytest.mark.parametrize("command", [[], ["generate"], ["train"], ["models"]])
def test_help_shows_an_example_and_imports_nothing_heavy(command):
    code = f"import sys; sys.argv = ['guidon', *{command!r}, '--help']\nfrom guidon.cli import main\ntry: main()\nfinally: assert not {{'torch', 'diffusers', 'numpy'}} & set(sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "guidon" in result.stdout
    if command:
        assert "Example:" in result.stdout


def test_killed_at_any_moment_it_leaves_no_half_written_output(tiny_model, tmp_path):
    command = [
        sys.executable,
        "-m",
        "guidon",
        "generate",
        PROMPT,
        "--steps",
        "2",
        "--num-samples",
        "2",
        "--model",
        str(tiny_model),
        "--out",
        str(tmp_path),
        "--device",
        "cpu",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    finished = False
    for delay in (0.5, None):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        if delay is None:
            process.stdout.readline()  # the first video is written, the rest is under way
        else:
            time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        for path in tmp_path.iterdir():
            if path.name.startswith("."):
                continue
            if path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".mp4":
                assert load_video(path)[0].shape == (16, 64, 64, 3)
                finished = True
    assert finished
