"""Every command that samples a released model takes what loads it."""

from pathlib import Path

import pytest

PROMPT = "a red circle moves left on a white background"
FILES = {"checkpoint": Path("c"), "text_encoder": Path("t"), "vae": Path("v"), "features": Path("f")}


@pytest.mark.parametrize(
    "command",
    [
        ["generate", PROMPT], ["evaluate"], ["match", PROMPT], ["tune", PROMPT], ["spectrum", PROMPT],
        ["calibrate-fast", PROMPT, "--out", "none"],
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_a_command_takes_files_the_precision_of_t5_and_download(parts_asked, command):
    words = [f"--{name.replace('_', '-')}={path}" for name, path in FILES.items()]
    parts = parts_asked(*command, *words, "--text-dtype", "int8", "--download")
    assert parts == FILES | {"text_dtype": "int8", "download": True}
