import math

import pytest
import torch

from goldens import golden, relative_error
from guidon.core.errors import InputError
from guidon.diffusion import NoiseSchedule, Process, bits_per_dimension, q_sample, training_losses
from guidon.diffusion.losses import discretised_log_likelihood, prior_bits
from toy_network import normal

FULL = NoiseSchedule.named()
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
    level = FULL.at(g["t"], g["x_start"])
    x_t = q_sample(g["x_start"], level, g["noise"])
    return g, training_losses(g["model_output"], g["x_start"], x_t, level, g["noise"], process, kind=kind)


@pytest.mark.parametrize("name", KINDS)
def test_losses_equal_the_originals_term_by_term(name):
    g, terms = losses_of(name, KINDS[name])
    expected = {key.removeprefix("out."): value for key, value in g.items() if key.startswith("out.")}
    assert expected.keys() == terms.keys()
    for key, value in expected.items():
        assert relative_error(terms[key], value) < 1e-5, key


def test_the_losses_of_the_parameterisations_differ_by_a_factor_of_the_level_alone():
    x_0, noise, eps = normal(3, 4, 2, 5, 5).unbind(0)
    level = FULL.at(torch.tensor([3, 200, 600, 900]), x_0)
    x_t = q_sample(x_0, level, noise)
    x_0_of_eps = (x_t - level.sigma * eps) / level.alpha
    outputs = {"eps": eps, "v": level.alpha * eps - level.sigma * x_0_of_eps, "flow": eps - x_0_of_eps}
    loss = {
        kind: training_losses(output, x_0, x_t, level, noise, Process(kind, "fixed_small"))["loss"]
        for kind, output in outputs.items()
    }
    alpha, sigma = level.alpha.flatten(), level.sigma.flatten()
    assert relative_error(loss["v"], loss["eps"] / alpha**2) < 1e-3
    assert relative_error(loss["flow"], loss["eps"] * (1 + sigma / alpha) ** 2) < 1e-3


def test_importance_weights_the_squared_errors():
    x_0, noise, output = normal(3, 2, 4, 6).unbind(0)
    level = FULL.at(torch.tensor([10, 700]), x_0)

    def loss(importance):
        process = Process(variance="fixed_small")
        x_t = q_sample(x_0, level, noise)
        return training_losses(output, x_0, x_t, level, noise, process, importance=importance)["loss"]

    first = torch.zeros(1, 1, 6)
    first[..., 0] = 6.0
    assert torch.allclose(loss(first), (noise - output)[..., 0].square().mean(1))
    assert torch.equal(loss(torch.ones(1, 1, 6)), loss(None))


def test_the_plain_bound_is_the_rescaled_one_over_t():
    _, plain = losses_of("rescaled_kl", "kl")
    _, rescaled = losses_of("rescaled_kl", "rescaled_kl")
    assert torch.allclose(plain["loss"] * 1000, rescaled["loss"])


@pytest.mark.parametrize("kind", ["mse", "rescaled_mse", "kl", "rescaled_kl"])
def test_every_loss_counts_the_frames_that_are_named(kind):
    x_0, noise, *output = normal(4, 2, 4, 3, 2, 2).unbind(0)
    prediction, steps = torch.cat(output, 1), (0, 700)
    frames = torch.tensor([[True, False, True], [False, True, False]])

    def losses(x_0, noise, prediction, steps, frames=None):
        level, process = FULL.at(torch.tensor(steps), x_0), Process()
        x_t = q_sample(x_0, level, noise)
        return training_losses(prediction, x_0, x_t, level, noise, process, kind=kind, frames=frames)

    found = losses(x_0, noise, prediction, steps, frames)
    for row, named in enumerate(frames):
        part = [value[row : row + 1, :, named] for value in (x_0, noise, prediction)]
        for name, value in losses(*part, steps[row : row + 1]).items():
            assert torch.allclose(found[name][row], value[0], rtol=1e-4), name


def test_the_rescaled_bounds_follow_the_number_of_steps():
    x_0, noise, *output = normal(4, 2, 4, 3).unbind(0)
    level = FULL.respaced(50).at(torch.tensor([3, 40]), x_0)
    given = torch.cat(output, 1), x_0, q_sample(x_0, level, noise), level, noise, Process()
    terms = {kind: training_losses(*given, kind=kind) for kind in ("mse", "rescaled_mse", "kl", "rescaled_kl")}
    assert torch.allclose(terms["rescaled_mse"]["vb"], terms["mse"]["vb"] * 50 / 1000)
    assert torch.allclose(terms["rescaled_kl"]["loss"], terms["kl"]["loss"] * 50)


def test_the_bound_does_not_train_the_mean():
    x_0, noise = normal(2, 2, 4, 3).unbind(0)
    level = FULL.at(torch.tensor([0, 700]), x_0)
    prediction = normal(2, 8, 3, seed=1).requires_grad_()
    terms = training_losses(prediction, x_0, q_sample(x_0, level, noise), level, noise, Process())
    (gradient,) = torch.autograd.grad(terms["vb"].sum(), prediction)
    assert gradient[:, :4].abs().max() == 0
    assert gradient[:, 4:].abs().min() > 0


def test_the_likelihood_is_computed_where_a_sample_is_at_step_0(monkeypatch):
    """It takes longer than all else. The other samples of the batch have the same loss and gradient with and without."""
    x_0, noise, *output = normal(4, 2, 4, 6).unbind(0)
    process = Process("eps", "learned_range")
    computed = []

    def counted(x, *more):
        computed.append(len(x))
        return discretised_log_likelihood(x, *more)

    monkeypatch.setattr("guidon.diffusion.losses.discretised_log_likelihood", counted)

    def bound_and_gradient(*steps):
        prediction = torch.cat(output, 1).requires_grad_(True)
        level = FULL.at(torch.tensor(steps), x_0)
        losses = training_losses(prediction, x_0, q_sample(x_0, level, noise), level, noise, process)
        losses["vb"].sum().backward()
        return losses["vb"].detach(), prediction.grad

    (without, own), (with_it, theirs) = bound_and_gradient(400, 7), bound_and_gradient(400, 0)
    assert computed == [2]
    assert torch.equal(without[0], with_it[0])
    assert torch.equal(own[0], theirs[0])
    assert not torch.equal(without[1], with_it[1])


def test_bits_per_dimension_equal_the_originals():
    g, case = golden("bpd/toy25")
    schedule = FULL.respaced(case["timestep_respacing"])
    draws = iter(g["noise"])

    def toy(x, level):
        mixed = torch.einsum("oc,bcthw->bothw", g["weight"], x) * (1 + level.timestep / 1000)
        return mixed + g["bias"].view(-1, 1, 1, 1)

    process = Process(clip_denoised=True)
    result = bits_per_dimension(toy, g["x_start"], lambda _: next(draws), schedule, process)
    for name in ("vb", "xstart_mse", "mse", "prior_bpd", "total_bpd"):
        assert relative_error(getattr(result, name), g[name]) < 1e-5, name


def test_the_prior_is_almost_noise():
    assert prior_bits(torch.rand(2, 3, 4), FULL).max() < 1e-4


@pytest.mark.parametrize("mean", [-0.98, 0.3, 0.98])
@pytest.mark.parametrize("log_scale", [-4.0, -2.0])
def test_the_discretised_likelihood_sums_to_one_over_the_256_values(log_scale, mean):
    values = torch.arange(256) / 127.5 - 1
    total = (
        discretised_log_likelihood(values, torch.tensor(mean), torch.full_like(values, log_scale)).double().exp().sum()
    )
    assert total.item() == pytest.approx(1, abs=1e-4)
    assert math.isfinite(total)


def test_an_unknown_loss_is_refused():
    x = torch.zeros(1, 4, 2)
    with pytest.raises(InputError, match="valid: mse"):
        training_losses(x, x, x, FULL.at(torch.tensor([1]), x), x, Process(), kind="huber")
