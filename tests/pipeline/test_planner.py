import warnings
from dataclasses import replace

import pytest
import torch

from guidon import Guidance
from guidon.core.errors import InputError
from guidon.models.text.features import save_features
from guidon.pipeline.planner import Planner

PROMPT = "a red circle moves left on a white background"
OTHER = "a blue square moves up on a black background"


@pytest.mark.parametrize(
    ("path", "sampler", "message"),
    [
        ("diffusion", "euler", "sampler euler does not go with guidon-small, which is a diffusion model: give ddpm or"),
        ("flow", "ddpm", "sampler ddpm does not go with guidon-small, which is a rectified flow: give euler or heun"),
        ("flow", "dpm-solver", "give euler or heun"),
        ("flow", "unipc", "give euler or heun"),
    ],
)
def test_a_sampler_of_the_other_path_is_refused_in_one_line(path, sampler, message):
    own = Planner.find("guidon-small")
    with pytest.raises(InputError) as error:
        replace(own, facts=replace(own.facts, path=path)).complete(["a red circle"], sampler=sampler)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_negative_prompt_by_loop_is_checked_and_read_part_by_part():
    own, checked = Planner.find("guidon-small"), []
    planner = replace(own, facts=replace(own.facts, check_prompts=checked.extend))
    by_loop = "|0|squares|1|circles"
    request = planner.plan([PROMPT, OTHER], loop=2, negative_prompt=[by_loop, "a triangle"])
    assert checked == [PROMPT, OTHER, "squares", "circles", "a triangle"]
    assert request.read_as == {"squares": "square", "circles": "circle"}
    assert [request.text_of(by_loop, loop) for loop in (0, 1)] == ["square", "circle"]
    assert request.alone(0, 0).read_as == request.read_as
    assert request.alone(1, 0).read_as == {}
    assert planner.complete([PROMPT, OTHER], loop=2, negative_prompt=[by_loop, "a triangle"]).read_as == request.read_as
    for negative, message in (
        ("|0|squares|1|qwerty", "unknown word 'qwerty'"),
        ("|0|squares|1|", "negative_prompt is empty"),
        ("|0|squares|2|circles", "has a text for loop 2, and loops are numbered 0 to 1"),
    ):
        with pytest.raises(InputError, match=message):
            planner.plan([PROMPT], loop=2, negative_prompt=negative)


def test_a_precision_that_load_was_told_holds_for_fast_settings_too():
    told = Planner.find("guidon-small", dtype="fp32", decode_dtype="bf16").plan([PROMPT], fast=True)
    assert (told.dtype, told.decode_dtype) == ("fp32", "bf16")
    own = Planner.find("guidon-small")
    assert own.plan([PROMPT], fast=True).dtype == own.preset.fast.dtype == "bf16"


def test_fast_stands_for_the_settings_of_the_preset():
    own = Planner.find("guidon-small")
    fast = own.preset.fast
    assert fast is not None
    asked = own.complete(["a red circle"], fast=True, seed=3, cfg_scale=2)
    given = {name: value for name, value in fast.settings.items() if name != "distilled"}
    same = own.complete(["a red circle"], seed=3, **given | {"cfg_scale": 2})
    assert asked == same.model_copy(update={"distilled": fast.distilled})
    scaled = replace(own, preset=replace(own.preset, fast=replace(fast, cfg_scale=5.0)))
    assert scaled.complete(["a red circle"], fast=True).guidance.scale == 5
    assert scaled.complete(["a red circle"], fast=True, cfg_scale=2) == asked.model_copy(update={"seed": 0})
    assert asked != own.complete(["a red circle"], seed=3, cfg_scale=2)
    assert own.complete(["a red circle"], fast=False) == own.complete(["a red circle"])
    assert "fast" not in asked.model_dump(mode="json")  # what it stands for is all that a manifest holds


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 10),
        ("sampler", "ddim"),
        ("spacing", "karras"),
        ("reuse", 2),
        ("timing", "constant"),
        ("eta", 1.0),
    ],
)
def test_fast_and_a_setting_that_it_decides_are_refused(name, value):
    with pytest.raises(InputError, match=f"^fast decides {name} itself: leave one of them out$"):
        Planner.find("guidon-small").complete(["a red circle"], fast=True, **{name: value})


@pytest.mark.parametrize(("name", "value"), [("edit", "clip.mp4"), ("last_frame", "cat.png"), ("loop", 2)])
def test_fast_refuses_given_frames_by_the_name_of_the_choice(name, value):
    with pytest.raises(InputError, match=f"^{name} needs two branches, the network of fast runs one"):
        Planner.find("guidon-small").complete(["a red circle"], fast=True, **{name: value})


def test_a_manifest_of_a_distilled_network_with_given_frames_is_refused():
    own = Planner.find("guidon-small")
    looped = own.complete(["a red circle"], loop=2).conditioning
    request = own.complete(["a red circle"], fast=True).model_copy(update={"conditioning": looped})
    with pytest.raises(InputError, match=r"^given frames and loops need two branches"):
        own.check(request)


def test_the_sampler_of_distilled_networks_warns_without_one():
    own = Planner.find("guidon-small")
    with pytest.warns(UserWarning, match="^sampler consistency is for distilled networks, .*: give fast$"):
        own.complete(["a red circle"], sampler="consistency", steps=4)
    with pytest.warns(UserWarning, match="give another sampler$"):
        replace(own, preset=replace(own.preset, fast=None)).complete(["a red circle"], sampler="consistency", steps=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own.complete(["a red circle"], fast=True)


def test_a_precision_may_be_given_beside_fast():
    own = Planner.find("guidon-small")
    asked = own.complete(["a red circle"], fast=True, dtype="fp32", decode_dtype="fp32")
    assert (asked.dtype, asked.decode_dtype, asked.steps) == ("fp32", "fp32", own.preset.fast.steps)


def test_a_request_names_its_lossy_settings():
    own = Planner.find("guidon-small")
    assert own.complete(["a red circle"]).lossy == []
    lossy = own.complete(["a red circle"], spacing="karras", reuse=2, adaptive=0.99, decode_dtype="bf16").lossy
    assert lossy == ["spacing", "adaptive", "reuse", "decode_dtype"]


def test_fast_needs_settings_that_were_calibrated():
    own = Planner.find("guidon-small")
    with pytest.raises(
        InputError, match="fast is for a model whose settings were calibrated, and those of guidon-small"
    ):
        replace(own, preset=replace(own.preset, fast=None)).complete(["a red circle"], fast=True)
    with pytest.raises(InputError, match="fast is 'yes': give True or False"):
        own.complete(["a red circle"], fast="yes")


def test_fast_times_guidance_but_a_guidance_with_a_timing_is_refused():
    own = Planner.find("guidon-small")
    assert (
        own.complete(["a red circle"], fast=True, guidance=Guidance(2)).guidance.timing.text == own.preset.fast.timing
    )
    assert own.complete(["a red circle"], guidance=Guidance(2)).guidance.timing.text == own.preset.timing
    with pytest.raises(InputError, match="fast decides timing itself"):
        own.complete(["a red circle"], fast=True, guidance=Guidance(2, timing="constant"))


def test_a_request_says_a_spacing_only_where_it_is_not_the_uniform_one():
    own = Planner.find("guidon-small")
    neutral = own.complete(["a red circle"])
    assert own.complete(["a red circle"], spacing="uniform") == neutral
    assert "spacing" not in neutral.model_dump(mode="json")
    assert own.complete(["a red circle"], spacing="power:2").model_dump(mode="json")["spacing"] == "quadratic"
    assert own.complete(["a red circle"], spacing="at:999,30,0").steps == 3


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"spacing": "at:999,30,0", "steps": 4}, "lists 3 timesteps, steps is 4"),
        ({"spacing": "at:1000,0"}, "the largest of the model is 999"),
        ({"spacing": "at:999,0.5"}, "this sampler takes whole ones"),
        ({"spacing": "karas"}, "did you mean 'karras'"),
    ],
)
def test_a_spacing_that_does_not_fit_is_refused(choices, message):
    with pytest.raises(InputError, match=message):
        Planner.find("guidon-small").complete(["a red circle"], **choices)


def test_stored_captions_are_looked_up_as_prompts_and_as_negative_prompts_are_read(tmp_path):
    """Open-Sora 1.2 reads prompts with a score, and negative prompts as they are."""
    stored = ["a cat aesthetic score: 6.5.", "a dog", "a fog aesthetic score: 6.5.", "blurry", " aesthetic score: 6.5."]
    features, mask = torch.randn(5, 300, 8), torch.ones(5, 300, dtype=torch.long)
    path = save_features(tmp_path / "captions.safetensors", stored, features, mask, encoder={})
    (tmp_path / "weights.safetensors").touch()
    weights = dict.fromkeys(("checkpoint", "vae"), tmp_path / "weights.safetensors")
    planner = Planner.find("open-sora-1.2", features=path, **weights)
    request = planner.plan(["a cat"], negative_prompt="blurry")
    planner.check(request)
    planner.check_prompts(["a cat", "a fog aesthetic score: 6.5."])
    with pytest.raises(InputError, match="holds no features of 'a fog':"):
        planner.plan(["a cat"], negative_prompt="a fog")
    with pytest.raises(InputError, match=r"holds no features of 'a dog aesthetic score: 6.5.':"):
        planner.plan(["a dog"])
    with pytest.raises(InputError, match="holds no features of 'a fog':"):
        planner.check(request.model_copy(update={"negative_prompt": "a fog"}))
    assert planner.complete([""]).read_as == planner.plan([""]).read_as == {"": " aesthetic score: 6.5."}
