"""What a model folder says about prompts, before it is loaded."""

import shutil

import pytest
import torch

from guidon import world
from guidon.checkpoints import load_component, save_component
from guidon.core.errors import InputError
from guidon.models.small.words import Words
from guidon.models.text.captions import CaptionEncoder, CaptionEncoderConfig
from guidon.pipeline.planner import Planner

PROMPT = "a red circle moves left on a white background"


def planner(folder, words):
    """The planner of a copy of a model folder whose text encoder knows these words."""
    config = CaptionEncoderConfig(words, features=16, layers=1, heads=2)
    path = folder / "text.safetensors"
    own = load_component(path, "text").config | {"vocabulary": words}
    save_component(path, "text", own, CaptionEncoder(config).state_dict(), {}, torch.float32)
    return Planner.find(str(folder))


@pytest.fixture
def folder(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / "model")


def test_a_model_of_the_world_is_asked_what_it_can_follow(folder, recwarn):
    plan = planner(folder, world.vocabulary()).plan
    assert plan([PROMPT]).read_as == {}
    assert not recwarn
    with pytest.raises(InputError, match=r"'a blue square' is a second object.*`guidon models /.*force samples it"):
        plan([PROMPT, "a red circle and a blue square"])


def test_a_model_of_fewer_words_is_asked_in_its_own(folder):
    words = {word: meaning for word, meaning in world.vocabulary().items() if meaning != "red"}
    with pytest.raises(InputError, match=r"unknown word 'red'\. It knows colours: green, blue"):
        planner(folder, words).plan([PROMPT])


def test_of_other_words_only_the_unknown_ones_are_named(folder):
    plan = planner(folder, {"cat": "cat", "cats": "cat", "and": "and", "dog": "dog"}).plan
    with pytest.warns(UserWarning, match=r"followed in part: unknown words 'two', 'dogs' \(nearest: dog\), 'no'"):
        assert plan(["two cats and dogs no cats"], force=False).read_as == {
            "two cats and dogs no cats": "cats and cats"
        }
    with pytest.raises(InputError, match="cannot be followed: unknown words 'a', 'red', 'circle'"):
        plan([PROMPT])


def test_a_prompt_of_which_nothing_can_be_read_is_refused_even_by_force(folder):
    plan = planner(folder, world.vocabulary()).plan
    for prompt in ("xyzzy", "", "🐱", "a " * 30):
        with pytest.raises(InputError) as error:
            plan([prompt], force=True)
        assert "force samples it" not in str(error.value)
    with pytest.warns(UserWarning, match="cannot be followed: unknown word 'cat'.*sampled anyway"):
        assert plan(["a red cat"], force=True).read_as == {"a red cat": "a red"}


def test_many_prompts_are_warned_of_in_few_lines(folder, recwarn):
    planner(folder, world.vocabulary()).plan([f"a {colour} circle" for colour in world.COLOURS] + ["a red cross"])
    messages = [str(each.message) for each in recwarn]
    assert len(messages) == 6
    assert messages[-1] == "2 more prompts are not wholly followed"


def test_captions_of_a_bench_are_not_asked_about(folder, recwarn):
    assert planner(folder, world.vocabulary()).complete(["a cat", ""]).read_as == {}
    assert not recwarn


@pytest.mark.parametrize(
    "config", [{}, {"vocabulary": 3}, {"vocabulary": {"a": 3}}, {"vocabulary": {}, "max_length": "x"}]
)
def test_configurations_that_are_not_valid_are_left_to_the_loader(config):
    assert Words.of(config) is None
