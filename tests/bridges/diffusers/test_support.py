"""The support matrix in the docs says what is measured here."""

from __future__ import annotations

import json
from dataclasses import asdict
from importlib.metadata import version

import pytest

from diffusers_support import EXACT, MEASURED, PAGE, measure, page
from tiny_pipelines import PIPELINES, TinyPipeline

pytestmark = pytest.mark.together("tiny pipelines")
RECORDED = json.loads(MEASURED.read_text())


@pytest.mark.parametrize("tiny", PIPELINES, ids=str)
def test_the_matrix_holds(tiny: TinyPipeline) -> None:
    found = measure(tiny, steps=3 if tiny.tolerance else 2)  # what a pipeline converts it rounds anew in every step
    assert found.own == found.removed == EXACT
    recorded = RECORDED.get(version("diffusers"), RECORDED[max(RECORDED)])
    assert asdict(found) == recorded[tiny.name]


def test_the_page_is_written_from_what_was_measured() -> None:
    assert PAGE.read_text() == page(RECORDED)
