"""ComfyUI's sigma as a noise level."""

import math
from types import SimpleNamespace

import pytest
import torch

from guidon.bridges.comfyui.level import level_at, progress_at
from guidon.diffusion import convert

PERCENTS = (0.001, 0.1, 0.25, 0.5, 0.77, 0.999)


def test_progress_is_the_inverse_of_percent_to_sigma(comfy):
    for kind in comfy.samplings:
        sampling = comfy.sampling(kind)
        for percent in PERCENTS:
            sigma = float(torch.tensor(float(sampling.percent_to_sigma(percent))))  # as samplers have it, in float32
            assert progress_at(sampling, sigma) == pytest.approx(percent, abs=2e-5), kind


def test_progress_ends_at_0_and_1(comfy):
    for kind in comfy.samplings:
        sampling = comfy.sampling(kind)
        assert progress_at(sampling, 999999999.9) == 0
        assert progress_at(sampling, 0.0) == 1
        highest = float(getattr(sampling, "sigma_max", sampling.percent_to_sigma(1e-9)))
        assert progress_at(sampling, highest) == pytest.approx(0, abs=1e-5)


def test_a_level_lies_on_the_path_of_its_kind(comfy):
    for kind in comfy.samplings:
        sampling = comfy.sampling(kind)
        for percent in PERCENTS:
            sigma = float(sampling.percent_to_sigma(percent))
            level, factor = level_at(sampling, sigma)
            assert level.progress == pytest.approx(percent, abs=2e-5)
            if kind in ("flow", "flux", "cosmos"):
                assert level.alpha + level.sigma == pytest.approx(1)
            else:
                assert level.alpha**2 + level.sigma**2 == pytest.approx(1)
            # x_0 and noise in ComfyUI's x, brought to the level
            clean, noise = (1 - sigma, sigma) if kind in ("flow", "flux") else (1, sigma)
            assert (clean * factor, noise * factor) == pytest.approx((level.alpha, level.sigma))
    silent = SimpleNamespace(percent_to_sigma=comfy.sampling("eps").percent_to_sigma)  # some nodes' samplings are
    assert level_at(silent, 2.0)[0].alpha == pytest.approx(1 / math.sqrt(5))


@pytest.mark.parametrize("comfy", [pytest.param("checkout", marks=pytest.mark.comfyui)], indirect=True)
def test_a_level_agrees_with_what_comfyui_does(comfy):
    """A network's own output, as ComfyUI makes x_0 of it, is the level's eps, v or flow of that x_0."""
    x, output = torch.randn(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    own = {"eps": "eps", "v": "v", "flow": "flow", "flux": "flow", "cosmos": "flow"}
    for kind, parameterization in own.items():
        sampling = comfy.sampling(kind)
        for sigma in (0.05, 0.5, 0.95) if kind in ("flow", "flux") else (0.05, 1.0, 9.0):
            level, factor = level_at(sampling, sigma)
            x_0 = sampling.calculate_denoised(torch.tensor([sigma]), output, x)
            found = convert(x_0, x * factor, level, "x0", parameterization)
            torch.testing.assert_close(found, output, rtol=2e-4, atol=2e-4, msg=f"{kind} at {sigma}")
            scaled = sampling.calculate_input(torch.tensor([sigma]), x)
            torch.testing.assert_close(scaled, x * factor)  # the network's input is x_t
            assert math.isfinite(level.timestep)
