"""PixArt: released names load strictly, and outputs are those of the original."""

import pytest
import torch

from goldens import golden, relative_error
from guidon.diffusion import NoiseLevel
from guidon.models.pixart.network import PixArt, PixArtConfig


@pytest.fixture(params=["a", "b"])
def released(request):
    """A golden's tensors, and the model with its weights."""
    g, case = golden(f"pixart/{request.param}")
    model = PixArt(PixArtConfig(**case["config"]))
    model.load_state_dict({k.removeprefix("weights."): v for k, v in g.items() if k.startswith("weights.")})
    return g, model.eval()


@torch.no_grad()
def test_outputs_are_the_originals(released):
    g, model = released
    assert torch.allclose(PixArt(model.config).pos_embed, g["weights.pos_embed"], atol=1e-6)
    assert relative_error(model(g["x"], g["timestep"], g["y"], g["mask"]), g["out.mask"]) < 1e-5
    assert relative_error(model(g["x"], g["timestep"], g["y"]), g["out.no_mask"]) < 1e-5
    assert relative_error(model(g["x"], g["timestep"], model.prepare(g["y"], g["mask"])), g["out.mask"]) < 1e-5


@torch.no_grad()
def test_a_noise_level_stands_for_its_timestep(released):
    g, model = released
    level = NoiseLevel(timestep=321.0, alpha=0.5, sigma=0.8, progress=0.6)
    t = torch.full((len(g["x"]),), 321.0)
    assert torch.equal(model(g["x"], level, model.prepare(g["y"])), model(g["x"], t, g["y"]))
