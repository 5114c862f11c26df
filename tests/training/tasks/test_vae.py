import pytest
import torch

from guidon.checkpoints import load_component
from guidon.core.errors import InputError
from guidon.training import run_recipe
from guidon.training.tasks.vae import frames_of
from recipes import VAE_SHAPE, assert_rows_are_those_of_the_batch, rows_of, vae_recipe, vae_task


def test_it_is_trained_exported_and_logged(tmp_path):
    path = run_recipe(vae_recipe(tmp_path))
    component = load_component(path, "vae")
    assert component.record["steps"] == 4
    assert component.record["psnr"] > 0
    assert component.config["scaling_factor"] > 0
    assert [row["step"] for row in rows_of(tmp_path / "vae")] == ["2", "4"]


def test_a_rank_draws_its_rows_of_the_batch(tmp_path):
    assert_rows_are_those_of_the_batch(vae_task(tmp_path), 4)


def test_it_learns(tmp_path):
    run_recipe(vae_recipe(tmp_path, steps=30, batch_size=8, log_every=10, optimiser={"lr": 0.003, "warmup_steps": 1}))
    rows = rows_of(tmp_path / "vae")
    assert float(rows[-1]["psnr"]) > float(rows[0]["psnr"]) + 0.8


def test_it_starts_from_an_earlier_one_but_for_channels_drawn_anew(tmp_path, tiny_model):
    """Of the two 1x1 convolutions next to the latents, only what the redrawn channel's mean has of its own."""
    values = {"model": VAE_SHAPE, "start": str(tiny_model / "vae.safetensors")}
    old = load_component(tiny_model / "vae.safetensors", "vae").weights
    for redraw in ((), (3,)):
        task = vae_task(tmp_path, **values, redraw=list(redraw))
        changed = {name: value != old[name] for name, value in task.module.state_dict().items()}
        inward, outward, bias = (
            changed.pop(f"autoencoder.{name}")
            for name in ("quant_conv.weight", "post_quant_conv.weight", "quant_conv.bias")
        )
        assert not any(part.any() for part in changed.values())
        ours = [row for channel in redraw for row in (channel, 4 + channel)]  # mean and log variance
        assert inward.flatten(1).any(1).nonzero().flatten().tolist() == ours
        assert bias.nonzero().flatten().tolist() == ours
        assert outward.flatten(1).any(0).nonzero().flatten().tolist() == list(redraw)
    with torch.no_grad():
        mean, log_variance = task.module.posterior(frames_of(0, 4, 0)[0])
    assert float(mean[:, 3].std()) == pytest.approx(float(mean[:, :3].std()), rel=1e-3)
    assert float(mean[:, 3].mean()) == pytest.approx(0, abs=1e-3)
    assert float(log_variance[:, 3].mean()) == pytest.approx(float(log_variance[:, :3].mean()), abs=1e-3)


def test_a_foreground_that_counts_as_much_is_still_measured(tmp_path):
    path = run_recipe(vae_recipe(tmp_path, foreground_weight=1.0, steps=2))
    assert load_component(path, "vae").record["foreground_psnr"] > 0


def test_latents_without_spread_are_not_exported(tmp_path):
    task = vae_task(tmp_path)
    (tmp_path / "vae").mkdir()
    flat = {name: torch.zeros_like(value) for name, value in task.module.state_dict().items()}
    with pytest.raises(InputError, match=r"standard deviation of 0\.0, .* nothing was exported"):
        task.export(flat, {})
    assert not list((tmp_path / "vae").iterdir())


def test_the_global_generator_is_left_alone(tmp_path):
    before = torch.get_rng_state()
    vae_task(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
