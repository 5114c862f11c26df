"""Every command that samples a released model takes what loads it."""

from pathlib import Path

import pytest

from guidon import cli
from guidon.pipeline.planner import Planner

PROMPT = "a red circle moves left on a white background"
FILES = {"checkpoint": Path("c"), "text_encoder": Path("t"), "vae": Path("v"), "features": Path("f")}


class Asked(BaseException):
    """Ends a command where its work would begin. It is no Exception, which the command line would report."""


@pytest.mark.parametrize(
    "command",
    [
        ["generate", PROMPT], ["evaluate"], ["match", PROMPT], ["tune", PROMPT], ["spectrum", PROMPT],
        ["calibrate-fast", PROMPT, "--out", "none"],
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_a_command_takes_files_the_precision_of_t5_and_download(monkeypatch, command):
    def find(model, **parts):
        raise Asked(parts)

    monkeypatch.setattr(Planner, "find", find)
    words = [f"--{name.replace('_', '-')}={path}" for name, path in FILES.items()]
    with pytest.raises(Asked) as asked:
        cli.main([*command, *words, "--text-dtype", "int8", "--download"])
    assert asked.value.args[0] == FILES | {"text_dtype": "int8", "download": True}
