import copy
import pickle

import numpy as np
import pytest
import torch

import guidon
from guidon.core.errors import InputError
from guidon.pipeline.calls import read_call
from guidon.pipeline.diffusers_names import ATTRIBUTES, ELSEWHERE, RENAMED, own_names

PROMPT = "a red circle moves left on a white background"
OTHER = "a blue square moves up on a black background"


def generator(seed):
    return torch.Generator().manual_seed(seed)


def call(prompts=PROMPT, output_type=None, **options):
    return read_call(prompts, output_type, options)


@pytest.fixture(scope="module")
def pipe(tiny_model):
    return guidon.load(tiny_model, device="cpu")


def test_names_of_diffusers_are_our_settings():
    theirs = {"guidance_scale": 5.0, "num_inference_steps": 4, "num_frames": 32, "height": 48, "width": 64}
    ours = {"cfg_scale": 5.0, "steps": 4, "frames": 32, "size": (48, 64)}
    assert own_names(theirs) == ours == own_names(theirs | ours)
    assert own_names({"height": 48, "width": 64, "size": [48, 64]}) == {"size": (48, 64)}
    assert call([PROMPT], prompt=(PROMPT,)).prompts == (PROMPT,)
    assert call(num_videos_per_prompt=3).num_samples == call(num_images_per_prompt=3).num_samples == 3
    assert call(None, prompt=PROMPT).prompts == call(PROMPT).prompts == (PROMPT,)
    assert own_names({"dtype": torch.float16}) == own_names({"dtype": "fp16"})


@pytest.mark.parametrize("name", RENAMED)
def test_a_name_that_is_left_at_none_is_left_out(name):
    assert call(**{name: None} if name != "prompt" else {}).choices == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance_scale": 5, "cfg_scale": 3}, "guidance_scale 5 and cfg_scale 3 are one setting"), ({"num_inference_steps": 4, "steps": 5}, "are one setting"),
        ({"height": 48, "width": 64, "size": (64, 48)}, "are one setting"), ({"height": 48, "width": 64, "size": [64, 48]}, "are one setting"), ({"num_images_per_prompt": 2, "num_samples": 3}, "are one setting"),
        ({"prompt": OTHER}, "are one setting"), ({"generator": generator(0), "seed": 3}, "generator and seed both"), ({"generator": 3}, "give a torch.Generator"),
        ({"height": 48}, "height is given without width"), ({"width": 48}, "width is given without height"),
        ({"guidance_scale": 0.5}, "means no guidance in diffusers: give cfg_scale 1"), ({"guidance_scal": None}, "did you mean 'guidance_scale'"),
        ({"stepz": None}, "did you mean 'steps'"), ({"num_sample": 2}, "did you mean 'num_samples'"), ({"xyz": 3}, "valid: seed, "),
        ({"guidance_rescale": 0.4}, "guidance='rescale:phi=0.4'"), ({"ramp": "linear"}, "give timing='linear'"), ({"interval": (0, 0.5)}, "give timing='interval:0,0.5'"), ({"oscillate": 10}, "'oscillation:10'"), ({"max_sequence_length": 120}, "the model's own"), ({"output_typ": "np"}, "not a setting"),
        ({"num_samples": "2"}, "num_samples is '2'"), ({"num_samples": 0}, "at least 1"), ({"num_samples": 1.5}, "whole number"), ({"num_samples": True}, "at least 1"),
        ({"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}, "not 'prompt_embeds'"), ({"output_type": "numpy"}, "did you mean 'np'"), ({"output_type": 3}, "valid: np"),
    ],
)  # fmt: skip
def test_what_is_not_meant_here_is_refused_and_pointed_at(options, message):
    with pytest.raises(InputError) as error:
        call(**options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("prompts", [None, [], 3, [PROMPT, 3], b"a red circle", {}, torch.zeros(2, 2)])
def test_what_is_no_prompt_is_refused_in_one_line(prompts):
    with pytest.raises(InputError, match=r"no prompt was given|give a text") as error:
        call(prompts)
    assert "\n" not in str(error.value)


def test_every_name_that_is_refused_says_what_to_do():
    for name, hint in ELSEWHERE.items():
        with pytest.raises(InputError) as error:
            own_names({name: None})
        assert str(error.value) == f"{name!r} is not a setting here: {hint}"


def test_a_seed_is_drawn_from_a_generator_for_each_prompt():
    first, second = own_names({"generator": generator(0)}, prompts=[PROMPT, OTHER])["seed"]
    used = generator(0)
    assert [own_names({"generator": used})["seed"] for _ in range(2)] == [first, second]
    assert own_names({"generator": [generator(0), generator(1)]})["seed"] == [
        first,
        own_names({"generator": generator(1)})["seed"],
    ]
    assert first != second


def test_the_seed_of_a_generator_is_in_the_manifest_and_reproduces_the_clip(pipe):
    options = {"steps": 2, "cfg_scale": 3.0}
    videos = pipe([PROMPT, OTHER], generator=generator(0), **options)
    seeds = [video.manifest["generation"]["seed"] for video in videos]
    again = pipe([PROMPT, OTHER], seed=seeds, **options)
    assert videos == again
    assert videos == pipe([PROMPT, OTHER], generator=generator(0), **options)
    for array in (np.array(seeds), torch.tensor(seeds)):
        assert pipe.plan([PROMPT, OTHER], seed=array, **options) == pipe.plan([PROMPT, OTHER], seed=seeds, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: guidon.load(3), "model is 3"), (lambda: guidon.load(None), "model is None"), (lambda: guidon.load("nope"), "neither a preset nor a folder"),
        (lambda: guidon.load(device=3), "not a device"), (lambda: guidon.Guidance("3"), "is not a number"), (lambda: guidon.Guidance(3, object()), "not a choice of channels"),
        (lambda: guidon.load_checkpoint(3), "give the path"), (lambda: guidon.inspect_checkpoint(None), "give the path"),
    ],
)  # fmt: skip
def test_values_of_another_type_are_refused_in_one_line(call, message):
    with pytest.raises(InputError) as error:
        call()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_attributes_of_diffusers_say_what_to_do(pipe):
    for name, hint in ATTRIBUTES.items():
        with pytest.raises(AttributeError, match=name) as error:
            getattr(pipe, name)
        assert str(error.value).endswith(hint)
        with pytest.raises(AttributeError):  # it would have no effect
            setattr(pipe, name, None)
    assert not hasattr(pipe, "nothing")


def test_a_pipeline_moves_to_a_precision_and_to_a_device_that_is_there(pipe):
    half = copy.copy(pipe).to("cpu", torch.bfloat16)
    assert (half.plan(PROMPT).dtype, half.plan(PROMPT, dtype="fp16").dtype, pipe.plan(PROMPT).dtype) == (
        "bf16",
        "fp16",
        "fp32",
    )
    assert pipe.to(torch.device("cpu")) is pipe
    for where, message in (
        ("gpu", "not a device"),
        (torch.float64, "does not run in torch.float64"),
        (3, "not a device"),
    ):
        with pytest.raises(InputError, match=message):
            pipe.to(where)


def test_a_pickle_of_a_pipeline_loads_its_files_again(pipe):
    moved = copy.copy(pipe).to(torch.bfloat16)
    moved.set_progress_bar_config(disable=True)
    again = pickle.loads(pickle.dumps(moved))
    assert repr(again) == repr(moved)
    assert again(PROMPT, steps=2) == moved(PROMPT, steps=2) == copy.deepcopy(moved)(PROMPT, steps=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": "2"}, "batch_size is '2'"), ({"sequential": "no"}, "True or False"), ({"on_step": 3}, "on_step is 3"), ({"trace": len}, "GuidanceTrace"),
        ({"latents": "x"}, "latents is of type str"), ({"callback_on_step_end": 3}, "callback_on_step_end is 3"),
    ],
)  # fmt: skip
def test_options_of_a_run_of_another_type_are_refused(pipe, options, message):
    with pytest.raises(InputError, match=message):
        pipe(PROMPT, steps=2, **options)
    with pytest.raises(InputError, match=r"make one with pipe\.plan"):
        pipe.generate(PROMPT)
    with pytest.raises(InputError, match="did you mean 'trace'"):
        pipe.generate(pipe.plan(PROMPT), trase=None)
    with pytest.raises(InputError, match="give sample indices"):
        pipe.plan(PROMPT, 3)


def test_what_means_nothing_in_diffusers_means_nothing_here(pipe):
    assert own_names({"guidance_rescale": 0.0}) == own_names({"guidance_rescale": None}) == {}
    assert pipe.to(device="cpu") is pipe


def test_scales_of_any_library_are_per_channel(pipe):
    for scales in (torch.tensor([4, 4, 4, 1.5]), np.array([4, 4, 4, 1.5])):
        for name in ("cfg_scale", "guidance_scale"):
            plan = pipe.plan(PROMPT, **{name: scales})
            assert plan == pipe.plan(PROMPT, cfg_scale=[4, 4, 4, 1.5])


def test_a_guidance_without_a_timing_has_the_models(pipe):
    own = pipe.plan(PROMPT, cfg_scale=3)
    assert own.guidance.timing.text == "interval:0,0.5"
    assert pipe.plan(PROMPT, guidance=guidon.Guidance(3)) == own
    constant = pipe.plan(PROMPT, guidance=guidon.Guidance(3, timing="constant"))
    assert constant == pipe.plan(PROMPT, cfg_scale=3, timing="constant")


def test_the_ways_in_of_diffusers_say_what_to_do():
    with pytest.raises(InputError, match="load has no 'torch_dtype': give dtype"):
        guidon.load(torch_dtype=torch.float16)
    with pytest.raises(InputError, match=r"load has no 'devic' .did you mean 'device'"):
        guidon.load(devic="cpu")
    with pytest.raises(AttributeError, match=r"has no attribute 'from_pretrained': call guidon.from_pretrained"):
        guidon.Pipeline.from_pretrained("a")
