"""What a pipeline's call takes, from diffusers' source code: the same as Python says, without an import."""

import subprocess
import sys

import diffusers
import pytest

from guidon.bridges.diffusers.arguments import COMPUTED, arguments_of, read_arguments
from guidon.bridges.diffusers.families import FAMILIES
from guidon.core.errors import InputError

CLASSES = [pipeline for family in FAMILIES for pipeline in family.pipelines]


@pytest.mark.parametrize(
    "name", ["WanPipeline", "CogVideoXPipeline", "PixArtSigmaPipeline", "DiTPipeline", "FluxPipeline"]
)
def test_arguments_are_those_of_the_class(name):
    kind = getattr(diffusers, name)
    read, seen = read_arguments(name), arguments_of(object.__new__(kind))
    assert read.defaults.keys() == seen.defaults.keys()
    for argument, default in read.defaults.items():
        assert default == seen.defaults[argument] or default is COMPUTED
    assert read.example_fps == seen.example_fps


def test_every_known_pipeline_takes_what_guidon_gives_it():
    for name in CLASSES:
        if hasattr(diffusers, name):
            found = read_arguments(name)
            assert {"num_inference_steps", "generator", "output_type", "return_dict"} <= found.defaults.keys(), name
            assert ("prompt" in found) != ("class_labels" in found), name


def test_frames_per_second_are_those_of_the_example():
    assert {name: read_arguments(name).example_fps for name in ("WanPipeline", "LTXPipeline", "FluxPipeline")} == {
        "WanPipeline": 16, "LTXPipeline": 24, "FluxPipeline": None,
    }  # fmt: skip


def test_a_mistyped_argument_and_an_unknown_class_are_refused():
    with pytest.raises(InputError, match=r"WanPipeline takes no argument 'num_frame' \(did you mean 'num_frames'\?\)"):
        read_arguments("WanPipeline").check("num_frame")
    with pytest.raises(InputError, match=r"the installed diffusers \([\d.]+\) has no WaxPipeline: install"):
        read_arguments("WaxPipeline")


def test_neither_torch_nor_diffusers_is_imported():
    code = (
        "import sys; from guidon.pipeline.diffusers_planner import read_arguments; read_arguments('WanPipeline');"
        "print([name for name in ('torch', 'diffusers', 'numpy', 'transformers') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
