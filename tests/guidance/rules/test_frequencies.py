import pytest
import torch

from guidon.core.errors import InputError
from guidon.guidance.rules import CFG, TemporalFrequencies
from toy_network import branches, draw, of_images


def clips(update):
    return of_images(update, torch.zeros_like(update))


def test_what_does_not_change_is_guided_by_the_slow_scale_and_what_alternates_by_the_fast_one():
    rule = TemporalFrequencies(slow=0.25, fast=2.0)
    still = torch.rand(2, 3, 1, 4, 5).expand(2, 3, 8, 4, 5)
    alternating = still * torch.tensor([1.0, -1.0] * 4).view(8, 1, 1)
    assert torch.allclose(rule(clips(still), 5.0), still * (1 + 0.25 * 4), atol=1e-5)
    assert torch.allclose(rule(clips(alternating), 5.0), alternating * (1 + 2.0 * 4), atol=1e-5)
    both = rule(clips(still + alternating), 5.0)
    assert torch.allclose(both, 2 * still + 9 * alternating, atol=1e-4)


def test_more_levels_leave_less_to_the_slow_part():
    """Halved until one frame is left, the slow part is the mean of the clip."""
    b = branches()
    update = b.cond - b.uncond
    mean = update.mean(2, keepdim=True)
    for levels in (1, 16):
        found = TemporalFrequencies(slow=1.0, fast=0.0, levels=levels)(b, 3.0)  # two frames: one halving
        assert torch.allclose(found, b.cond + 2 * mean.expand_as(update), atol=1e-5)


def test_a_clip_is_halved_so_often_as_is_said():
    b = of_images(*draw(0, 1, shape=(1, 2, 16, 3, 4)))
    update = b.cond - b.uncond
    mean = update.mean(2, keepdim=True)  # halved four times, one frame is left
    found = TemporalFrequencies(slow=1.0, fast=0.0, levels=4)(b, 3.0)
    assert torch.allclose(found, b.cond + 2 * mean.expand_as(update), atol=1e-5)


def test_a_steady_change_holds_no_fast_part():
    update = torch.linspace(-1, 1, 18).view(18, 1, 1).expand(1, 1, 18, 2, 2)
    fast = TemporalFrequencies(slow=0.0, fast=1.0, levels=2)(clips(update), 2.0) - update
    assert fast[:, :, 3:-3].abs().max() < 0.05


def test_images_and_clips_of_one_frame_are_guided_plainly():
    for shape in ((2, 3, 8, 8), (2, 3, 1, 8, 8)):
        b = of_images(*draw(0, 1, shape=shape))
        assert torch.equal(TemporalFrequencies()(b, 3.0), CFG()(b, 3.0))


def test_frames_are_not_mixed_with_pixels_or_channels():
    """Only one pixel of one channel changes: all others are guided plainly by the slow scale."""
    update = torch.ones(1, 2, 4, 3, 3)
    update[0, 1, ::2, 2, 0] = -1
    found = TemporalFrequencies(slow=1.0, fast=0.0)(clips(update), 3.0)
    still = torch.ones(2, 3, 3, dtype=torch.bool)
    still[1, 2, 0] = False
    found = found.movedim(2, -1)[0]
    assert torch.allclose(found[still], torch.tensor(3.0))
    assert not torch.allclose(found[~still], torch.tensor(3.0))


def test_tokens_whose_frames_nobody_tells_are_refused():
    with pytest.raises(InputError, match=r"fdg-time: latents \(1, 2, 64\) do not show their frames"):
        TemporalFrequencies()(of_images(*draw(0, 1, shape=(1, 2, 64))), 3.0)
