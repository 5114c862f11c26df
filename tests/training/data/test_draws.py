import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guidon.training.data.draws import draw_timesteps, swap_siblings


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@given(st.integers(0, 1000), st.sampled_from([(0, 1000), (0, 350), (350, 1000)]), st.sampled_from([1, 4, 50]))
def test_timesteps_cover_their_range_evenly(seed, ends, count):
    first, end = ends
    t = draw_timesteps(seeded(seed), count, first, end, None)
    assert first <= t.min() <= t.max() < end
    share = ((t.double() + 0.5 - first) / (end - first) * count).long()  # one in each of ``count`` equal parts
    assert sum(abs(a - b) > 1 for a, b in zip(sorted(share.tolist()), range(count), strict=True)) == 0


def test_timesteps_of_a_logit_normal_distribution():
    t = torch.cat([draw_timesteps(seeded(seed), 64, 0, 1000, (0.9, 1.2)) for seed in range(4)]).double()
    assert t.median() == pytest.approx(1000 / (1 + math.exp(-0.9)), abs=15)  # the median of sigmoid(normal)
    assert ((t >= 450) & (t < 900)).double().mean() == pytest.approx(0.69, abs=0.06)
    assert 0 <= t.min() < 250 < 950 < t.max() < 1000


EVERY = torch.ones(400, dtype=torch.bool)


def swap(x_0, allowed, size_told, seed, *, shape_share=0.0, size_share=0.0):
    return swap_siblings(
        x_0, allowed, size_told, seeded(seed), shapes=4, shape_share=shape_share, size_share=size_share
    )


def test_a_sibling_shows_through_where_it_may():
    x_0 = torch.arange(8.0).view(8, 1, 1, 1, 1).expand(8, 4, 16, 8, 8)
    allowed = torch.tensor([True, False, False, True, True, True, False, False])
    shown, swapped = swap(x_0, allowed, EVERY[:8], 0, shape_share=1.0)
    assert torch.equal(swapped, allowed)
    assert torch.equal(shown[~swapped], x_0[~swapped])
    moved = (shown - x_0)[swapped].flatten(1)
    assert (moved.std(1) == 0).all()
    assert (moved[:, 0] != 0).all()
    low, high = torch.tensor([0, 0, 4, 4]), torch.tensor([3, 3, 7, 7])  # of each one's family
    values = shown[swapped].flatten(1)[:, 0]
    assert ((values >= low) & (values <= high)).all()


@pytest.mark.parametrize(("shape", "size"), [(0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (0.5, 0.5)])
def test_a_sibling_differs_in_what_is_swapped(shape, size):
    """Clips are marked by shape, size and family: what shows through tells the sibling's."""
    families = 50
    of_shape = torch.eye(4).repeat(2 * families, 1)
    of_size = torch.eye(2).repeat_interleave(4, 0).repeat(families, 1)
    family = torch.arange(float(families)).repeat_interleave(8)[:, None]
    x_0 = torch.cat([of_shape, of_size, family], 1)
    told = torch.arange(len(x_0)) % 3 > 0
    shown, swapped = swap(x_0, EVERY, told, 1, shape_share=shape, size_share=size)
    assert torch.allclose(shown[:, 6], x_0[:, 6])  # one of its own family
    moved = (shown - x_0).abs()[:, :6] > 1e-6
    by_shape, by_size = moved[:, :4].any(1), moved[:, 4:].any(1)
    assert torch.equal(by_shape | by_size, swapped)
    assert not by_size[~told].any()
    assert by_shape.float().mean() == pytest.approx(shape, abs=0.07)
    assert by_size[told].float().mean() == pytest.approx(size, abs=0.07)
    assert torch.allclose(shown[:, :4].sum(1), torch.ones(len(x_0)))  # a mixture of two clips
    assert torch.allclose(shown[:, 4:6].sum(1), torch.ones(len(x_0)))
    both = by_shape & by_size
    other = (x_0 - shown)[both]  # as much of the other shape as of the other size: one sibling that differs in both
    assert torch.allclose(other[:, :4].amax(1), other[:, 4:6].amax(1))
    assert both.any() == (shape * size > 0)


def test_swaps_are_as_many_as_asked_for():
    _, swapped = swap(torch.zeros(400, 1), EVERY, EVERY, 0, shape_share=0.3)
    assert swapped.float().mean() == pytest.approx(0.3, abs=0.07)


def test_every_other_clip_of_a_family_shows_through_by_any_share():
    family = torch.eye(4)
    shown = torch.stack([swap(family, EVERY[:4], EVERY[:4], seed, shape_share=1.0)[0] for seed in range(60)])
    others = shown * (1 - family)
    assert ((others > 0).sum(0) + 60 * family.int() > 8).all()  # each of three, in a third of the draws
    shares = others.amax(2).flatten()
    assert shares.mean() == pytest.approx(0.5, abs=0.07)
    assert shares.min() < 0.1 < 0.9 < shares.max()
