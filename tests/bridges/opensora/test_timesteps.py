"""The draws of timesteps against those of improved-diffusion's samplers, as Open-Sora has them."""

import numpy as np
import pytest
import torch

from goldens import golden
from guidon import IDDPM, iddpm
from guidon.core.errors import InputError

LOSSES = [abs(np.sin(k + 1.0)) * (1 + k % 5) for k in range(60)]


def test_draws_by_loss_are_the_originals():
    g, _ = golden("iddpm/dropin")
    sampler = iddpm.create_named_schedule_sampler("loss-second-moment", IDDPM(timestep_respacing="5"))
    assert isinstance(sampler, iddpm.LossAwareSampler)
    sampler.update_with_local_losses(torch.tensor([k % 5 for k in range(60)]), torch.tensor(LOSSES))
    np.random.seed(3)  # noqa: NPY002
    t, weights = sampler.sample(20, "cpu")
    assert torch.equal(t, g["resampler.t"])
    assert torch.allclose(weights, g["resampler.weights"], rtol=1e-6)


def test_until_every_timestep_has_its_losses_all_are_as_likely():
    sampler = iddpm.LossSecondMomentResampler(IDDPM(timestep_respacing="3"), history_per_term=2)
    sampler.update_with_all_losses([0, 0, 1, 1, 2], [9.0, 9.0, 1.0, 1.0, 1.0])
    assert sampler.weights().tolist() == [1, 1, 1]
    sampler.update_with_all_losses([2, 0, 0], [1.0, 2.0, 2.0])  # the oldest are forgotten
    assert sampler.weights() == pytest.approx([0.5 * 0.999 + 0.001 / 3, *[0.25 * 0.999 + 0.001 / 3] * 2])


def test_uniform_draws_have_weights_of_one():
    np.random.seed(0)  # noqa: NPY002
    t, weights = iddpm.create_named_schedule_sampler("uniform", IDDPM(timestep_respacing="7")).sample(50, "cpu")
    assert t.dtype == torch.long
    assert set(t.tolist()) == set(range(7))
    assert torch.allclose(weights, torch.ones(50))


def test_an_unknown_name_is_refused():
    with pytest.raises(InputError, match="timestep sampler 'unifrom' does not exist"):
        iddpm.create_named_schedule_sampler("unifrom", IDDPM(5))
