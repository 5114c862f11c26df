import dataclasses

import pytest
import torch

from guidon.core.errors import InputError
from guidon.diffusion import CLEAN, FlowPath, NoiseLevel
from guidon.guidance import START, Guidance, GuidedDenoiser, WithoutFrames, parse_rule, rule_text
from guidon.guidance.rules import ThreeWay
from toy_network import COND, NEGATIVE, UNCOND, Network, branches, denoiser, latents, level_at, normal, plain


def test_it_is_the_formula_of_three_branches():
    b = branches()
    expected = b.imageless + 2.5 * (b.uncond - b.imageless) + 5 * (b.cond - b.uncond)
    assert torch.allclose(ThreeWay(image=2.5)(b, 5.0), expected, atol=1e-5)
    each = torch.tensor([1.0, 2.0, 5.0]).view(3, 1, 1, 1)
    expected = b.imageless + 2.5 * (b.uncond - b.imageless) + each * (b.cond - b.uncond)
    assert torch.allclose(ThreeWay(image=2.5)(b, each), expected, atol=1e-5)


@pytest.mark.parametrize(("number", "text", "image"), [(9, 5, 3), (10, 5, 3), (11, 1, 1), (12, 5, 3), (13, 1, 1)])
def test_one_scale_oscillates(number, text, image):
    b = branches(number=number)
    by_image, by_text = (ThreeWay(3.0, name)(b, 5.0) for name in ("image", "text"))
    assert torch.allclose(by_image, plain(b, 5.0) + (image - 1) * (b.uncond - b.imageless), atol=1e-5)
    assert torch.allclose(by_text, plain(b, float(text)) + 2 * (b.uncond - b.imageless), atol=1e-5)


def test_it_oscillates_from_the_step_that_is_named():
    b = branches(number=7)
    assert torch.allclose(ThreeWay(3.0, "image", start=7)(b, 5.0), plain(b, 5.0), atol=1e-5)
    assert torch.equal(ThreeWay(3.0, "image", start=8)(b, 5.0), ThreeWay(3.0)(b, 5.0))


def test_both_oscillate_by_the_timing():
    """Where both scales are 1, three-way guidance is the conditional prediction, which the timing gives."""
    b = branches(number=11)
    text_alone = ThreeWay(1.0, "text")(b, 5.0)
    assert torch.allclose(text_alone, b.cond, atol=1e-6)
    parts, memory = (b.cond, b.uncond, b.negative), dataclasses.replace(START, calls=11)
    found, _ = Guidance(5.0, "all", "three-way:image=1,oscillate=text").combine(*parts, level_at(9), memory)
    assert torch.allclose(found, b.cond, atol=1e-5)
    assert Guidance(5.0, "all", "three-way", "oscillation:10").acts(level_at(9), START, 4)
    assert not Guidance(5.0, "all", "three-way", "oscillation:10").acts(
        level_at(9), dataclasses.replace(START, calls=11), 4
    )


@pytest.mark.parametrize(("share", "last"), [(0.0, 4.0), (0.5, 2.5), (0.75, 1.75)])
def test_a_ramp_lets_the_images_scale_grow_over_the_frames(share, last):
    b = branches(share=share)
    scale = torch.tensor([1.0, last]).view(2, 1, 1)  # of two frames
    expected = plain(b, 5.0) + (scale - 1) * (b.uncond - b.imageless)
    assert torch.allclose(ThreeWay(4.0, ramp=1)(b, 5.0), expected, atol=1e-5)
    with pytest.raises(InputError, match="ramp=1 is over the frames of a video"):
        ThreeWay(ramp=1)(branches(cond=b.cond[:, :, 0], uncond=b.uncond[:, :, 0], imageless=b.imageless[:, :, 0]), 5.0)


def test_an_images_scale_of_1_or_less_has_no_ramp():
    b = branches(share=0.25)
    assert torch.equal(ThreeWay(0.5, ramp=1)(b, 5.0), ThreeWay(0.5)(b, 5.0))


def test_the_share_of_a_run_is_counted_in_steps_whatever_the_timesteps_are():
    levels = FlowPath(steps=4, shift=5.0).levels
    assert [level.steps_left for level in levels] == [4, 3, 2, 1]
    assert CLEAN.steps_left == 0
    assert NoiseLevel(500.0, 0.5, 0.5, 0.5).steps_left is None
    seen = []

    class Noted(ThreeWay):
        def __call__(self, branches, scale):
            seen.append((branches.number, branches.share))
            return super().__call__(branches, scale)

    guidance, memory = Guidance(5.0, "all", Noted(), "interval:0.01,1"), START
    parts = [normal(2, 4, 2, 4, 4, seed=seed) for seed in range(4)]
    for level in levels:
        _, memory = guidance.combine(*parts[:3], level, memory, imageless=parts[3], parameterization="flow")
    assert seen == [(1, 0.25), (2, 0.5), (3, 0.75)]  # guidance does not act at the first step
    alone = NoiseLevel(300.0, 0.7, 0.3, 0.7)  # nobody knows the step after
    guidance.combine(*parts[:3], alone, imageless=parts[3], parameterization="flow")
    assert seen[-1] == (0, 0.7)


@pytest.mark.parametrize("image", [2, 0.5])
def test_scale_one_still_guides_by_the_image_and_unguided_channels_are_left_alone(image):
    run = denoiser(Guidance(1.0, 3, f"three-way:image={image}"), Network(learned=False))
    cond, uncond, imageless = (Network(learned=False)(latents(), level_at(5), c) for c in (COND, UNCOND, NEGATIVE))
    found = run(latents(), level_at(5))
    assert torch.allclose(found[:, :3], (cond + (image - 1) * (uncond - imageless))[:, :3], atol=1e-5)
    assert torch.equal(found[:, 3:], cond[:, 3:])
    assert not Guidance(1.0, 3, "three-way").is_conditional
    assert Guidance(1.0, 3, "three-way:image=1").is_conditional


def test_three_branches_run_in_one_batch_or_one_after_the_other():
    together, apart = Network(), Network()
    guidance = Guidance(5.0, "all", "three-way")
    a = denoiser(guidance, together)(latents(), level_at(5))
    b = denoiser(guidance, apart, batched=False)(latents(), level_at(5))
    assert (together.rows, apart.rows) == ([6], [2, 2, 2])
    assert torch.allclose(a, b, atol=1e-6)
    two = Network()
    denoiser(Guidance(5.0, "all", "three-way:image=1"), two)(latents(), level_at(5))
    assert two.rows == [4]


class AnyLength:
    """A network that is told which frames are clean, and notes how many it is given."""

    def __init__(self):
        self.frames = []

    def __call__(self, x, level, cond):
        self.frames.append((x.shape[2], level.noisy))
        return x * cond.value.view(-1, 1, 1, 1, 1)


def noisy(*frames, rows=2):
    return torch.tensor([frames] * rows, dtype=torch.bool)


def test_the_branch_without_the_image_is_the_other_frames_alone():
    network, x, uncond = AnyLength(), normal(2, 4, 5, 2, 2), normal(2, 4, 5, 2, 2, seed=1)
    branch = WithoutFrames(network, NEGATIVE)
    level = dataclasses.replace(level_at(5), noisy=noisy(0, 1, 1, 1, 0))
    found = branch(x, level, uncond)
    assert network.frames == [(3, None)]
    assert torch.equal(found[:, :, 1:4], x[:, :, 1:4] * NEGATIVE.value.view(-1, 1, 1, 1, 1))
    assert torch.equal(found[:, :, ::4], uncond[:, :, ::4])  # the image has no part in the given frames
    for all_alike in (None, noisy(1, 1, 1, 1, 1), noisy(0, 0, 0, 0, 0)):
        assert branch(x, dataclasses.replace(level, noisy=all_alike), uncond) is uncond
    assert len(network.frames) == 1
    for bad, message in (
        (noisy(1, 0, 1, 1, 1), "the others must be next to each other"),
        (torch.cat([noisy(0, 1, 1, 1, 1, rows=1), noisy(1, 1, 1, 1, 0, rows=1)]), "given the same frames"),
    ):
        with pytest.raises(InputError, match=message):
            branch(x, dataclasses.replace(level, noisy=bad), uncond)


def test_a_denoiser_asks_without_the_frames_beside_its_batch():
    network, guidance = AnyLength(), Guidance(5.0, "all", "three-way:image=2")
    run = GuidedDenoiser(network, guidance, COND, UNCOND, imageless=WithoutFrames(network, UNCOND))
    x, level = normal(2, 4, 4, 2, 2), dataclasses.replace(level_at(5), noisy=noisy(0, 1, 1, 1))
    found = run(x, level)
    assert [frames for frames, _ in network.frames] == [4, 3]
    values = [c.value.view(-1, 1, 1, 1, 1) for c in (COND, UNCOND)]
    assert torch.allclose(found, x * (values[1] + 5 * (values[0] - values[1])), atol=1e-5)  # it gives the same alone


def test_where_there_is_no_image_it_is_refused():
    with pytest.raises(InputError, match="needs an image to guide by, and none was given"):
        GuidedDenoiser(Network(), Guidance(5.0, "all", "three-way"), COND, UNCOND)
    x, cond, uncond = (normal(1, 4, 2, 2, seed=seed) for seed in range(3))
    with pytest.raises(InputError, match="needs the unconditional prediction without the image: give imageless"):
        Guidance(5.0, "all", "three-way").combine(cond, uncond, x, level_at(5))
    with pytest.raises(InputError, match="the imageless prediction is"):
        Guidance(5.0, "all", "three-way").combine(cond, uncond, x, level_at(5), imageless=x[:, :2])


def test_its_text_is_read_strictly():
    assert parse_rule("three-way:image=2.5,ramp=1") == ThreeWay(2.5, ramp=1)
    assert rule_text(ThreeWay()) == "three-way:image=3,oscillate=none,start=10,ramp=0"
    for text, message in (
        ("three-way:oscillate=both", "oscillate=both does not exist: give image, text or none; for both at once give"),
        ("three-way:image=-1", "image is -1: give a number at least 0"),
        ("three-way:ramp=2", "ramp is 2: give a whole number from 0 to 1"),
        ("three-way:start=0.5", "cannot be read"),
        ("three-way:scale=3", "'scale' is not a setting: three-way has image, oscillate, start, ramp"),
    ):
        with pytest.raises(InputError, match=message):
            parse_rule(text)
    with pytest.raises(InputError, match="no ramp"):
        Guidance(0.5, "all", "cfg++", "linear")
    assert Guidance(5.0, "all", "three-way", "linear").timing.text == "linear"
