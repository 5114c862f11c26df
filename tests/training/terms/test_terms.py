"""Each term of the loss on a step made by hand."""

import math

import pytest
import torch

from guidon.diffusion import NoiseSchedule, Process, convert, q_sample, training_losses
from guidon.training.terms import Terms, TrainingStep, total_loss
from guidon.training.terms.area import Area
from guidon.training.terms.bound import Bound
from guidon.training.terms.loss_level import LossLevel
from guidon.training.terms.mse import MSE
from guidon.training.terms.shape_contrast import ShapeContrast, within_family

SCHEDULE = NoiseSchedule.named("linear")


def step_at(t, *, error=0.0, kind="x0", size=(2, 16, 4, 4), **changes):
    """Samples at timesteps t whose predicted x_0 is wrong by ``error``."""
    generator = torch.Generator().manual_seed(0)
    t = torch.as_tensor(t)
    shape = (len(t), *size)
    x_0, noise = (torch.randn(shape, generator=generator) for _ in range(2))
    level = SCHEDULE.at(t, like=x_0)
    x_t = q_sample(x_0, level, noise)
    output = convert(x_0 + error, x_t, level, "x0", kind)
    values = {
        "prediction": torch.cat([output, torch.zeros(shape)], 1), "x_0": x_0, "x_t": x_t, "noise": noise, "t": t, "level": level,
        "process": Process.trained(kind), "objects": torch.zeros(len(t), 1, *size[1:], dtype=torch.bool),
        "swapped": torch.zeros(len(t), dtype=torch.bool), "counts": torch.ones(len(t)), "family_size": 1, "area_gradients": None,
    }  # fmt: skip
    return TrainingStep(**values | changes)


def test_the_importance_of_places_keeps_the_mean_and_waits_for_the_object_to_show():
    objects = torch.zeros(2, 1, 16, 4, 4, dtype=torch.bool)
    objects[..., :2, :2] = True
    early, late = MSE(foreground=5).importance(step_at([999, 10], objects=objects))
    assert early.std() < 1e-3
    assert late.mean() == pytest.approx(1)
    assert late.max() / late.min() == pytest.approx(5)


def test_an_error_counts_more_on_the_object():
    objects = torch.zeros(1, 1, 16, 4, 4, dtype=torch.bool)
    objects[..., :2, :2] = True
    step = step_at([10], error=objects.float(), objects=objects)
    assert MSE()(step, {}).values.item() == pytest.approx(0.25, rel=1e-4)
    assert MSE(foreground=5)(step, {}).values.item() == pytest.approx(0.25 * 5 / 2, rel=1e-3)  # mean weight 2


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_the_bound_is_the_one_of_the_loss_of_a_diffusion(kind):
    step = step_at([0, 50, 950], error=0.5, kind=kind)
    step.prediction[:, 2:] = torch.linspace(-0.5, 0.5, 3)[:, None, None, None, None]
    losses = training_losses(step.prediction, step.x_0, step.x_t, step.level, step.noise, step.process)
    assert torch.equal(Bound(0.1)(step, {}).values, losses["vb"])


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_an_error_of_x0_as_an_error_of_the_prediction(kind):
    step = step_at([50, 500, 950], error=1.0, kind=kind)
    assert torch.allclose(MSE()(step, {}).values, step.per_x0, rtol=1e-3)


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_min_snr_weighs_the_error_of_x0_by_a_clamped_snr(kind):
    step = step_at([0, 200, 500, 950], error=0.5, kind=kind)
    loss = MSE("min-snr")(step, {})
    assert torch.allclose(loss.weights * loss.values, step.snr.clamp(max=5) * 0.25, rtol=1e-2)


def test_balanced_weights_make_every_noise_level_count_alike():
    level, t = LossLevel(floor=0.01), torch.tensor([10, 500, 990])
    for _ in range(3):  # from the first step on, or another term would have the run to itself until then
        weights = level.weights(torch.tensor([0.8, 0.1, 0.001]), t, 1000)
        assert torch.allclose(weights, torch.tensor([1.25, 10.0, 100.0]), rtol=1e-5)
    for _ in range(500):
        weights = level.weights(torch.tensor([0.4]), t[:1], 1000)
    assert weights.item() == pytest.approx(2.5, rel=0.02)


def test_each_band_of_noise_has_a_mean_of_its_own():
    level = LossLevel(floor=1e-6)
    ends, middle = torch.tensor([0, 970, 999]), torch.tensor([500])
    assert level.weights(torch.tensor([0.8, 0.5, 0.1]), ends, 1000).tolist() == pytest.approx([1.25, 2, 10])
    for _ in range(30):  # a batch without a sample in a band leaves its mean as it is
        level.weights(torch.tensor([3.0]), middle, 1000)
    assert level.weights(torch.tensor([0.8, 0.5, 0.1]), ends, 1000).tolist() == pytest.approx([1.25, 2, 10])


def test_the_bound_trains_the_variance_alone_and_leaves_swapped_samples_out():
    step = step_at([5, 500, 900], error=0.1)
    prediction = step.prediction.clone().requires_grad_()
    swapped = torch.tensor([False, False, True])
    step = step_at([5, 500, 900], prediction=prediction, swapped=swapped)
    Bound(1.0)(step, {}).mean.backward()
    assert prediction.grad is not None
    assert (prediction.grad[:, :2] == 0).all()
    assert (prediction.grad[:, 2:].flatten(1).abs().amax(1) > 0).tolist() == [True, True, False]


def test_errors_that_let_a_decoded_area_vary_have_a_term_of_their_own():
    """None for errors across the areas' gradients, nor for areas that are wrong alike in all frames."""
    generator = torch.Generator().manual_seed(1)
    gradients, other = (torch.randn(3, 2, 16, 4, 4, generator=generator) for _ in range(2))
    unit = gradients / gradients.square().sum((1, 3, 4), keepdim=True)  # changes each frame's area by 1 of itself
    errors = {
        "across": other - (other * gradients).sum((1, 3, 4), keepdim=True) * unit,
        "alike": 0.01 * unit,
        "varying": 0.01 * unit * (torch.arange(16) % 2 * 2 - 1)[:, None, None],
    }
    found = {}
    for name, error in errors.items():
        step = step_at([100, 400, 700], error=error, area_gradients=gradients)
        loss = Area(1.0)(step, {})
        found[name] = loss.values.sqrt().tolist()
        cv = loss.by_noise["area_cv"](step.bands["mid"])
        assert cv.item() == pytest.approx(found[name][1], abs=1e-6)
    assert found["across"] == pytest.approx([0] * 3, abs=1e-5)
    assert found["alike"] == pytest.approx([0] * 3, abs=1e-5)
    assert found["varying"] == pytest.approx([0.01] * 3, rel=0.01)


def test_a_varying_area_counts_alike_at_all_noise_levels_that_show_the_object():
    gradients = torch.ones(3, 2, 16, 4, 4) / 32
    error = 0.01 * (torch.arange(16) % 2 * 2 - 1)[:, None, None].expand(3, 2, 16, 4, 4)
    step = step_at([100, 600, 990], error=error, area_gradients=gradients)
    loss = Area(1.0)(step, {})
    assert loss.values.tolist() == pytest.approx([1e-4] * 3, rel=0.05)
    assert torch.allclose(loss.weights * loss.values, step.visible, rtol=1e-4)
    assert step.visible[2] < 0.01


def test_what_a_family_has_in_common_is_not_counted_as_contrast():
    common, apart = torch.randn(2, 1, 5).expand(2, 4, 5), torch.tensor([1.0, -1.0, 1.0, -1.0]).view(1, 4, 1)
    assert torch.allclose(within_family((common + 2 * apart).flatten(0, 1), 4), torch.full((8,), 4.0))


def test_a_family_of_one_shape_misses_nothing():
    """In the training split, a purple object that stays still is always a triangle."""
    alike = torch.ones(4, 2, 16, 4, 4)
    step = step_at([700] * 4, error=torch.randn(4, 2, 16, 4, 4), family_size=4, x_0=alike)
    missed = ShapeContrast(1.0)(step, {"mse": MSE()(step, {})}).by_noise["missed"]
    assert missed(step.bands["high"]).isnan()
    assert missed(step.bands["mid"]).isnan()


def test_a_family_of_one_shape_is_left_out_of_what_others_miss():
    clips = step_at([700] * 8).x_0
    alike = torch.cat([clips[:4], torch.ones_like(clips[4:])])
    step = step_at([700] * 8, error=clips / 2, family_size=4, x_0=alike)
    missed = ShapeContrast(1.0)(step, {"mse": MSE()(step, {})}).by_noise["missed"]
    assert missed(step.bands["high"]).item() == pytest.approx(0.25, rel=1e-3)


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_differences_of_shapes_count_as_often_as_the_recipe_says(kind):
    """An error that differs within its family counts ``weight`` times, one that is common to it once."""
    apart = torch.tensor([1.0, -1.0, 1.0, -1.0]).view(4, 1, 1, 1, 1)
    for error, times in ((apart, 4.0), (torch.ones_like(apart), 1.0)):
        step = step_at([600] * 4, error=error, kind=kind, family_size=4)
        losses = {"mse": MSE()(step, {})}
        contrast = ShapeContrast(4.0 - 1)
        total = losses["mse"].mean + contrast.weight * contrast(step, losses).mean
        assert total.item() == pytest.approx(times * losses["mse"].mean.item(), rel=1e-3)


def test_the_loss_is_the_sum_of_what_the_recipe_names():
    settings = {"mse": {"weighting": "balanced"}, "bound": {"weight": 0.5}, "shape_contrast": {"weight": 3}}
    terms = Terms.model_validate(settings)
    step = step_at([600] * 4, error=torch.randn(4, 2, 16, 4, 4), family_size=4)
    total, logs = total_loss(terms.build(), step)
    losses = {}
    for name, term in terms.build().items():
        losses[name] = term(step, losses)
    parts = {name: loss.mean.item() for name, loss in losses.items()}
    assert total.item() == pytest.approx(parts["mse"] + 0.5 * parts["bound"] + 2 * parts["shape_contrast"])
    assert list(logs) == [
        "mse",
        "vb",
        *(f"{name}_{band}" for name in ("mse", "missed") for band in ("low", "mid", "high")),
    ]
    assert [name for name, value in logs.items() if math.isnan(value)] == [
        "mse_low",
        "mse_mid",
        "missed_low",
        "missed_mid",
    ]


def test_terms_say_what_data_they_need():
    assert not any(Terms().need(what) for what in ("areas", "families"))
    assert Terms.model_validate({"area": {"weight": 1}}).need("areas")
    assert Terms.model_validate({"shape_contrast": {"weight": 1}}).need("families")
