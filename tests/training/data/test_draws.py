import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guidon.training.data.draws import draw_timesteps, swap_shapes


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


def test_a_sibling_shows_through_where_it_may():
    x_0 = torch.arange(8.0).view(8, 1, 1, 1, 1).expand(8, 4, 16, 8, 8)
    allowed = torch.tensor([True, False, False, True, True, True, False, False])
    shown, swapped = swap_shapes(x_0, allowed, 1.0, 4, seeded(0))
    assert torch.equal(swapped, allowed)
    assert torch.equal(shown[~swapped], x_0[~swapped])
    moved = (shown - x_0)[swapped].flatten(1)
    assert (moved.std(1) == 0).all()
    assert (moved[:, 0] != 0).all()
    low, high = torch.tensor([0, 0, 4, 4]), torch.tensor([3, 3, 7, 7])  # of each one's family
    values = shown[swapped].flatten(1)[:, 0]
    assert ((values >= low) & (values <= high)).all()


def test_swaps_are_as_many_as_asked_for():
    x_0, allowed = torch.zeros(400, 1), torch.ones(400, dtype=torch.bool)
    _, swapped = swap_shapes(x_0, allowed, 0.3, 4, seeded(0))
    assert swapped.float().mean() == pytest.approx(0.3, abs=0.07)
