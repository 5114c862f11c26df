import math

import pytest
import torch

from guidon.guidance.rules import MagnitudeAware, SpatialAdaptive
from toy_network import branches, draw, of_images, plain


def test_mambo_g_lowers_the_scale_of_each_sample_by_how_far_its_branches_are_apart():
    uncond = torch.ones(2, 1, 2, 2)
    apart = torch.tensor([0.25, 1.0]).view(2, 1, 1, 1)  # r, as |uncond| is 2 and |cond - uncond| is 2 apart
    found = MagnitudeAware(alpha=2.0)(of_images(uncond + apart, uncond), 10.0)
    for sample, r in enumerate((0.25, 1.0)):
        scale = 1 + 9 * math.exp(-2 * r)
        assert torch.allclose(found[sample], torch.full((1, 2, 2), 1 + scale * r), atol=1e-5)


def test_mambo_g_equals_the_guider_of_diffusers_on_images():
    """On videos diffusers' own raises: torch.norm takes no four dimensions."""
    guiders = pytest.importorskip("diffusers.guiders.magnitude_aware_guidance")
    cond, uncond = draw(0, 1, shape=(1, 8, 6))  # its norm is that of a matrix
    expected = guiders.mambo_guidance(cond, uncond, 10.0, 1.5)
    assert torch.allclose(MagnitudeAware(alpha=1.5)(of_images(cond, uncond), 10.0), expected, atol=1e-4)


def test_mambo_g_of_a_branch_of_zeros_is_finite_and_conditional():
    b = branches(uncond=torch.zeros(2, 3, 2, 4, 4))
    assert torch.allclose(MagnitudeAware()(b, 5.0), b.cond)


def test_samg_gives_the_low_scale_where_energy_is_highest_and_the_high_one_where_it_is_lowest():
    update = torch.tensor([1.0, 2.0, 3.0]).view(1, 1, 1, 3)
    found = SpatialAdaptive(low=0.5, high=2.0)(of_images(update, torch.zeros_like(update)), 4.0)
    middle = 2 - 1.5 * (4 - 1) / (9 - 1)  # energies 1, 4 and 9
    assert torch.allclose(found.flatten(), torch.tensor([4 * 2.0, 2 * 4 * middle, 3 * 4 * 0.5]))


def test_samg_by_its_formula():
    b = branches()
    update = b.cond - b.uncond
    expected = torch.empty_like(update)
    for k in range(2):
        energy = (update[k] ** 2).mean(0)
        share = (energy - energy.min()) / (energy.max() - energy.min() + 1e-8)
        scale = 12 - share * (12 - 5)  # the authors' range at scale 7.5
        expected[k] = b.uncond[k] + scale * update[k]
    assert torch.allclose(SpatialAdaptive(high=1.6)(b, 7.5), expected, atol=1e-4)


def test_samg_of_an_even_update_has_the_high_scale_everywhere():
    even = of_images(torch.ones(1, 2, 4, 4), torch.zeros(1, 2, 4, 4))
    assert torch.allclose(SpatialAdaptive(high=1.25)(even, 4.0), plain(even, 5.0))
