import math
import sys

import pytest

from guidon.core.errors import InputError
from guidon.core.extras import require


def test_a_library_that_is_there_is_returned():
    assert require("math", "counting", "study") is math
    assert require("importlib.metadata", "counting", "study") is sys.modules["importlib.metadata"]


def test_a_missing_library_is_one_line_that_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError) as error:
        require("av", "writing mp4", "video")
    message = "writing mp4 needs av, which is not installed: pip install 'guidon-diffusion[video]'"
    assert str(error.value) == message


def test_the_package_is_named_as_pip_knows_it():
    with pytest.raises(InputError, match="measuring video needs opencv-of-nobody, which is not installed"):
        require("cv_of_nobody.part", "measuring video", "study", package="opencv-of-nobody")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("import nothing_of_this_name", "broken, which misses nothing_of_this_name: pip install"),
        ("raise ImportError('libGL.so.1: cannot open')", "broken, which cannot be loaded: libGL.so.1: cannot open"),
    ],
)
def test_a_library_that_is_broken_says_what_it_misses(tmp_path, monkeypatch, content, message):
    (tmp_path / "broken.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=message):
        require("broken", "drawing", "study")
