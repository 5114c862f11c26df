"""Losses of the version that had no terms yet, whose settings were flat: the same recipes give them."""

import pytest

from guidon.models.vae.frames import FrameVAEConfig
from guidon.training import run_recipe
from recipes import denoiser_recipe, rows_of
from tiny_model import write_tiny_model

BALANCED = {"weighting": "balanced", "foreground": 4}
FAMILIES = {"batch_size": 8, "clips": 8}
RECIPES = {
    "min-snr": {"prediction": "v", "terms": {"mse": {"weighting": "min-snr"}}},
    "area": {"prediction": "x0", "caption_noise": 0.25, "terms": {"mse": BALANCED, "area": {"weight": 0.5}}},
    "timesteps": FAMILIES | {"shape_swap": 0.7, "timesteps": [0.9, 1.2], "terms": {"mse": {"weighting": "min-snr"}, "shape_contrast": {"weight": 2}}},
    "all": FAMILIES | {
        "prediction": "v", "shape_swap": 0.5, "shape_weights": {"cross": 3},
        "terms": {"mse": BALANCED, "shape_contrast": {"weight": 4}, "area": {"weight": 0.3}},
    },
}  # fmt: skip
LOSSES = {
    "min-snr": [0.133182, 0.112137, 0.115927],
    "area": [1.23063, 1.29426, 6.74485],
    "timesteps": [1.01055, 1.0031, 0.987429],
    "all": [1.50298, 1.51666, 1.47741],
}


@pytest.fixture(scope="module")
def model_of_before(tmp_path_factory):
    vae = FrameVAEConfig(block_out_channels=(8, 8, 8), norm_num_groups=4, scaling_factor=1.0)
    return write_tiny_model(tmp_path_factory.mktemp("before"), blots=False, vae=vae)


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_recipe_has_the_losses_of_before(tmp_path, model_of_before, name):
    run_recipe(denoiser_recipe(tmp_path, model_of_before / "vae.safetensors", **RECIPES[name]))
    found = [float(row["loss"]) for row in rows_of(tmp_path / "run")]
    assert found == pytest.approx(LOSSES[name], rel=1e-3)
