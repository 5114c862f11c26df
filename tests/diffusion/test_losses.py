import math

import pytest
import torch

from goldens import golden, relative_error
from guidon.core.errors import InputError
from guidon.diffusion import NoiseSchedule, Process, bits_per_dimension, q_sample, training_losses
from guidon.diffusion.losses import discretised_log_likelihood, prior_bits

KINDS = {
    "mse": "mse",
    "mse_fixed": "mse",
    "mse_xstart": "mse",
    "rescaled_kl": "rescaled_kl",
    "rescaled_mse": "rescaled_mse",
}


def losses_of(name, kind):
    g, case = golden(f"loss/{name}")
    process = Process(
        "x0" if case.get("predict_xstart") else "eps",
        "learned_range" if case.get("learn_sigma", True) else "fixed_large",
    )
    tables = NoiseSchedule.named().tables()
    x_t = q_sample(g["x_start"], g["t"], g["noise"], tables)
    return g, training_losses(g["model_output"], g["x_start"], x_t, g["t"], g["noise"], tables, process, kind=kind)


@pytest.mark.parametrize("name", KINDS)
def test_losses_equal_the_originals_term_by_term(name):
    g, terms = losses_of(name, KINDS[name])
    expected = {key.removeprefix("out."): value for key, value in g.items() if key.startswith("out.")}
    assert expected.keys() == terms.keys()
    for key, value in expected.items():
        assert relative_error(terms[key], value) < 1e-5, key


def test_the_velocity_loss_is_the_eps_loss_over_the_signal():
    tables = NoiseSchedule.named().tables()
    x_0, noise, eps = torch.randn(3, 4, 2, 5, 5).unbind(0)
    step = torch.tensor([3, 200, 600, 900])
    kept = tables.alphas_cumprod[step].view(-1, 1, 1, 1)
    x_t = q_sample(x_0, step, noise, tables)
    x_0_of_eps = (x_t - (1 - kept).sqrt() * eps) / kept.sqrt()
    v = kept.sqrt() * eps - (1 - kept).sqrt() * x_0_of_eps
    fixed = "fixed_small"
    by_eps = training_losses(eps, x_0, x_t, step, noise, tables, Process("eps", fixed))["loss"]
    by_v = training_losses(v, x_0, x_t, step, noise, tables, Process("v", fixed))["loss"]
    assert relative_error(by_v, by_eps / kept.flatten()) < 1e-3


def test_the_plain_bound_is_the_rescaled_one_over_t():
    _, plain = losses_of("rescaled_kl", "kl")
    _, rescaled = losses_of("rescaled_kl", "rescaled_kl")
    assert torch.allclose(plain["loss"] * 1000, rescaled["loss"])


def test_the_bound_does_not_train_the_mean():
    tables = NoiseSchedule.named().tables()
    x_0, noise, step = torch.randn(2, 4, 3), torch.randn(2, 4, 3), torch.tensor([0, 700])
    prediction = torch.randn(2, 8, 3, requires_grad=True)
    terms = training_losses(prediction, x_0, q_sample(x_0, step, noise, tables), step, noise, tables, Process())
    (gradient,) = torch.autograd.grad(terms["vb"].sum(), prediction)
    assert gradient[:, :4].abs().max() == 0
    assert gradient[:, 4:].abs().min() > 0


def test_bits_per_dimension_equal_the_originals():
    g, case = golden("bpd/toy25")
    schedule = NoiseSchedule.named().respaced(case["timestep_respacing"])
    draws = iter(g["noise"])

    def toy(x, step):
        mixed = torch.einsum("oc,bcthw->bothw", g["weight"], x) * (1 + schedule.timestep_map[step] / 1000)
        return mixed + g["bias"].view(-1, 1, 1, 1)

    result = bits_per_dimension(
        toy, g["x_start"], lambda _: next(draws), schedule.tables(), Process(clip_denoised=True)
    )
    for name in ("vb", "xstart_mse", "mse", "prior_bpd", "total_bpd"):
        assert relative_error(getattr(result, name), g[name]) < 1e-5, name


def test_the_prior_is_almost_noise():
    assert prior_bits(torch.rand(2, 3, 4), NoiseSchedule.named().tables()).max() < 1e-4


@pytest.mark.parametrize("log_scale", [-4.0, -2.0])
def test_the_discretised_likelihood_sums_to_one_over_the_256_values(log_scale):
    values = torch.arange(256) / 127.5 - 1
    total = (
        discretised_log_likelihood(values, torch.tensor(0.3), torch.full_like(values, log_scale)).double().exp().sum()
    )
    assert total.item() == pytest.approx(1, abs=1e-4)
    assert math.isfinite(total)


def test_an_unknown_loss_is_refused():
    x = torch.zeros(1, 4, 2)
    with pytest.raises(InputError, match="valid: mse"):
        training_losses(x, x, x, torch.tensor([1]), x, NoiseSchedule.named().tables(), Process(), kind="huber")
