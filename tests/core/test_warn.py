import sys
import warnings
from pathlib import Path

import pytest
import torch

from guidon.core import warn as module
from guidon.core.errors import setting
from guidon.core.warn import warn

INNER = {"warn": warn, "__name__": "guidon.inner"}
exec(compile("def call(): warn('look')", str(Path(module.__file__).parents[1] / "inner.py"), "exec"), INNER)


@pytest.mark.parametrize("call", [INNER["call"], torch.inference_mode()(INNER["call"])])
def test_a_warning_points_at_the_nearest_line_outside_of_guidon(call):
    with pytest.warns(UserWarning, match="look") as seen:
        call()
    assert (Path(seen[0].filename), seen[0].lineno) == (Path(__file__), sys._getframe().f_lineno - 1)


def test_a_warning_is_shown_once_for_each_line_that_calls():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        for _ in range(3):
            warn("twice")
        warn("twice")
    assert len(seen) == 2


def test_a_setting_is_named_without_its_marks():
    with pytest.warns(UserWarning, match="^give upscale 4$"):
        warn(f"give {setting('upscale')} 4")
