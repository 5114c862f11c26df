import signal

import pytest
import torch

from guidon.core.errors import InputError
from guidon.training import run_recipe
from recipes import assert_equal_weights, at_step, denoiser_recipe, vae_recipe, weights_of


def test_a_damaged_checkpoint_is_refused_not_trained_over(tmp_path):
    config = vae_recipe(tmp_path)
    run_recipe(config)
    checkpoint = tmp_path / "vae" / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-50])
    with pytest.raises(InputError, match=r"cannot go on from .*it is damaged"):
        run_recipe(config)


def test_a_changed_recipe_does_not_go_on_from_another_ones_weights(tmp_path, tiny_model):
    vae = tiny_model / "vae.safetensors"
    run_recipe(denoiser_recipe(tmp_path, vae, steps=2))
    for change, message in (
        ({"prediction": "v"}, "the recipe's prediction changed since"),
        ({"seed": 3, "noise_schedule": "squaredcos_cap_v2"}, "the recipe's noise_schedule and seed changed since"),
        ({"terms": {"mse": {"weighting": "balanced"}, "area": {"weight": 1}}}, r"missing \['terms.area"),
        ({"optimiser": {"name": "adamw"}}, "it was trained with another optimiser"),
    ):
        changed = denoiser_recipe(tmp_path, vae, steps=4, **change)
        for export_only in (True, False):
            with pytest.raises(InputError, match=message):
                run_recipe(changed, export_only=export_only)
    assert run_recipe(denoiser_recipe(tmp_path, vae, steps=4, caption_dropout=0.2)) is not None


@pytest.mark.parametrize("area", [False, True])
def test_a_checkpoint_of_an_earlier_version_is_resumed_to_the_same_weights(tmp_path, tiny_model, monkeypatch, area):
    """It kept the loss levels at the top, used or not."""
    terms = {"mse": {"weighting": "balanced"}} | ({"area": {"weight": 0.5}} if area else {})
    values = {"batch_size": 4, "clips": 4, "prediction": "x0", "terms": terms}
    vae = tiny_model / "vae.safetensors"
    whole = run_recipe(denoiser_recipe(tmp_path, vae, **values, out=str(tmp_path / "whole"), cache=str(tmp_path)))
    config = denoiser_recipe(tmp_path, vae, **values, cache=str(tmp_path))
    with monkeypatch.context() as patch:
        at_step(patch, 2, lambda: signal.raise_signal(signal.SIGINT))
        assert run_recipe(config) is None
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    state = torch.load(checkpoint, weights_only=True)
    for part in ("module", "ema"):
        state[part] = {
            name.replace("terms.mse.loss_level.", "level.").replace("terms.area.loss_level.", "area_level."): value
            for name, value in state[part].items()
        }
        state[part] = {"area_level.level": torch.zeros(50), "area_level.seen": torch.zeros(50)} | state[part]
        assert not any(name.startswith("terms.") for name in state[part])
    torch.save(state, checkpoint)
    assert_equal_weights(weights_of(run_recipe(config)), weights_of(whole))
