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


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("height", "tall", "a whole number of at least 1"), ("num_frames", 0, "a whole number of at least 1"),
        ("width", 32.0, "a whole number of at least 1"), ("height", True, "a whole number of at least 1"),
        ("num_inference_steps", "many", "a whole number of at least 1"), ("guidance_scale", [1], "a number"),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_refused(name, value, expected):
    for arguments in (read_arguments("WanPipeline"), arguments_of(object.__new__(diffusers.WanPipeline))):
        with pytest.raises(InputError, match=f"call gives {name} the value .*: give {expected}"):
            arguments.check_value(name, value)


def test_true_or_false_is_expected_where_the_pipeline_says_so():
    arguments = read_arguments("PixArtSigmaPipeline")
    with pytest.raises(InputError, match="call gives clean_caption the value 'no': give true or false"):
        arguments.check_value("clean_caption", "no")
    for name, value in {"clean_caption": False, "height": None, "timesteps": [9, 3], "eta": 1}.items():
        arguments.check_value(name, value)


def test_every_own_default_passes():
    for name in CLASSES:
        if hasattr(diffusers, name):
            found = read_arguments(name)
            for argument, value in found.plain.items():
                found.check_value(argument, value)


def test_neither_torch_nor_diffusers_is_imported():
    code = (
        "import sys; from guidon.pipeline.diffusers_planner import read_arguments; read_arguments('WanPipeline');"
        "print([name for name in ('torch', 'diffusers', 'numpy', 'transformers') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
