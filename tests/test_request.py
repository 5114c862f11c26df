import json
from pathlib import Path

import pytest

from guidon.core.errors import InputError
from guidon.core.settings import validated
from guidon.guidance import Guidance
from guidon.request import Request

EARLIER = json.loads((Path(__file__).parent / "goldens" / "frames" / "requests.json").read_text())
NAMES = [name for name in EARLIER if not name.endswith(" text")]


@pytest.mark.parametrize("name", NAMES)
def test_requests_that_an_earlier_version_wrote_are_read_and_written_the_same(name):
    request = validated(Request, EARLIER[name], "manifest.json")
    assert request.model_dump(mode="json") == EARLIER[name]
    assert request.model_dump_json() == EARLIER[f"{name} text"]


def test_guidance_is_one_object_or_its_parts():
    whole = Guidance(3, "all", "apg", "interval:0,0.5")
    parts = {"cfg_scale": 3, "cfg_channels": "all", "guidance": "apg", "timing": "interval:0,0.5"}
    assert validated(Request, {"prompts": ("a",)} | parts, None).guidance == whole
    assert validated(Request, {"prompts": ("a",), "guidance": whole}, None).guidance == whole
    assert validated(Request, {"prompts": ("a",), "cfg_channel": 2}, None).guidance == Guidance(1.0, 2)
    with pytest.raises(InputError, match="guidance holds the timing already"):
        validated(Request, {"prompts": ("a",), "guidance": whole, "timing": "constant"}, None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cfg_scal": 3}, "unknown key 'cfg_scal' (did you mean 'cfg_scale'?)"),
        ({"timings": "linear"}, "did you mean 'timing'"),
        ({"eta": 0.5}, "eta 0.5 is for ddim, the sampler is ddpm: leave it out, or give sampler ddim"),
        ({"eta": 0.5, "sampler": "euler"}, "eta 0.5 is for ddim, the sampler is euler: leave it out"),
        ({"size": 64}, "size is 64: give (height, width) in pixels, such as (64, 64)"),
        ({"size": (64,)}, "size is (64,): give (height, width)"),
        ({"size": "64x64"}, "size is '64x64': give (height, width)"),
        ({"size": (64, "x")}, "size, item 2 is 'x': expected a whole number"),
        ({"guidance": "cfg++", "cfg_scale": 0.6}, "cfg++ needs sampler ddim with eta 0"),
        ({"guidance": "cfg++", "cfg_scale": 0.6, "sampler": "ddim", "timing": "linear"}, "give no ramp (linear)"),
        ({"guidance": "cfg++", "cfg_scale": 0.6, "sampler": "heun"}, "or euler on a rectified flow: give one of them"),
        ({"timing": "oscillation:2", "sampler": "heun"}, "sampler heun calls twice a step: give euler"),
        (
            {"guidance": "three-way:oscillate=text", "sampler": "heun"},
            "three-way with oscillate changes at every second",
        ),
        ({"guidance": "perp-neg"}, "perp-neg needs a negative prompt"),
        ({"cfg_scale": -1}, "cfg_scale -1 is not valid"),
        ({"cfg_channels": "0,x"}, "cfg_channels '0,x' cannot be read"),
        ({"exact": "dti"}, "exact 'dti' does not exist (did you mean 'dit'?)"),
        ({"exact": "dit", "seed_per_prompt": True}, "leave out seed_per_prompt"),
        ({"exact_noise": "cuda"}, "has an effect only with exact"),
        ({"exact": "dit", "exact_noise": "cuda:h101"}, "did you mean 'cuda:h100'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(values, message):
    with pytest.raises(InputError) as error:
        validated(Request, {"prompts": ("a",)} | values, None)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_clip_alone_has_a_request_of_its_own():
    request = validated(Request, {"prompts": ("a", "b"), "samples": (0, 3), "seed": 5, "seed_per_prompt": True}, None)
    alone = request.alone(1, 3)
    assert (alone.prompts, alone.samples, alone.seed, alone.seed_per_prompt) == (("b",), (3,), 6, False)
    replay = validated(Request, {"prompts": ("a", "b"), "exact": "dit"}, None)
    assert replay.alone(1, 0) is replay


def several(**values):
    return validated(Request, {"prompts": ("a", "b"), "samples": (0, 1)} | values, None)


def test_several_seeds_are_one_for_each_prompt_or_one_for_each_clip():
    clips = [(prompt, sample) for prompt in (0, 1) for sample in (0, 1)]
    assert [several(seed=[7, 9]).noise_of(*clip) for clip in clips] == [(7, 0), (7, 1), (9, 0), (9, 1)]
    assert [several(seed=(7, 9, 7, 3)).noise_of(*clip) for clip in clips] == [(7, 0), (9, 0), (7, 0), (3, 0)]
    assert [several(seed=7).noise_of(*clip) for clip in clips] == [(7, 0), (7, 1), (7, 0), (7, 1)]
    for prompt, sample in clips:
        alone = several(seed=[4, 5, 6, 7], negative_prompt=["c", "d"]).alone(prompt, sample)
        one = {"prompts": ("ab"[prompt],), "seed": 4 + 2 * prompt + sample, "negative_prompt": "cd"[prompt]}
        assert alone == validated(Request, one, None)


def test_every_prompts_own_seed_is_one():
    """A manifest of the last prompt must be read back."""
    with pytest.raises(InputError, match=r"seed 9223372036854775807 with seed_per_prompt .* at most 2\^63 - 2"):
        several(seed=2**63 - 1, seed_per_prompt=True)
    last = several(seed=2**63 - 2, seed_per_prompt=True).alone(1, 0)
    assert validated(Request, json.loads(last.model_dump_json()), "manifest.json").seed == 2**63 - 1
    assert several(seed=2**63 - 1).seed == 2**63 - 1


def test_a_request_with_lists_is_read_back_from_its_json():
    request = several(seed=[7, 9], negative_prompt=["c", "d"])
    assert validated(Request, json.loads(request.model_dump_json()), "manifest.json") == request


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seed": [1, 2, 3]}, "seed holds 3 seeds: give one, or one for each of 2 prompts or 4 clips"),
        ({"seed": []}, "holds 0 seeds"), ({"seed": [1, -2]}, "give a whole number from 0"), ({"seed": 1.5}, "seed 1.5 is no seed: give a whole"), ({"seed": 2**63}, "2^63 - 1"),
        ({"seed": "7"}, "seed '7' is no seed: give a whole"), ({"seed": [1, 2], "seed_per_prompt": True}, "seed_per_prompt needs one"), ({"seed": [1, 2], "exact": "dit"}, "exact needs one"),
        ({"samples": [2, 0, 0]}, "samples hold 0 2 times: give each sample index once"), ({"samples": (1, 1), "seed": [1, 2, 3, 4]}, "samples hold 1 2 times"),
        ({"negative_prompt": ["c"]}, "negative_prompt holds 1 text for 2 prompts"), ({"negative_prompt": ["c", 3]}, "give a text"), ({"negative_prompt": 3}, "give a text"),
    ],
)  # fmt: skip
def test_lists_that_fit_nothing_are_refused(values, message):
    with pytest.raises(InputError) as error:
        several(**values)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompts": ["a"], "steps": 0}, "steps is 0"),
        ({"prompts": ["a"], "stepz": 5}, "unknown key 'stepz' .did you mean 'steps'"),
        ({}, "the key 'prompts' is missing"),
        ({"guidon": "0.1", "generation": {"prompts": ["a"]}}, "a whole manifest: give its part 'generation'"),
    ],
)
def test_a_request_that_is_made_by_hand_is_refused_in_one_line(values, message):
    for make in (lambda: Request(**values), lambda: validated(Request, values, None)):
        with pytest.raises(InputError, match=message) as error:
            make()
        assert "\n" not in str(error.value)
