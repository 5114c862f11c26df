"""DiT: released names load strictly, and outputs are those of the original."""

import pytest
import torch

from goldens import golden, relative_error
from guidon.core.errors import InputError
from guidon.diffusion import NoiseLevel, NoiseSchedule
from guidon.guidance import Guidance, GuidedDenoiser
from guidon.models.dit.network import DiT, DiTConfig
from guidon.samplers import LegacyNoise, sample_ddim, sample_ddpm


def released(name):
    """The golden's tensors and the model with its weights."""
    g, case = golden(name)
    model = DiT(DiTConfig(**case["config"]))
    model.load_state_dict({k.removeprefix("weights."): v for k, v in g.items() if k.startswith("weights.")})
    return g, model.eval()


@torch.no_grad()
@pytest.mark.parametrize("name", ["a", "b"])
def test_dit_is_the_originals(name):
    g, model = released(f"dit/{name}")
    assert torch.allclose(DiT(model.config).pos_embed, g["weights.pos_embed"], atol=1e-6)
    assert relative_error(model(g["x"], g["t"], g["y"]), g["out"]) < 1e-5
    assert relative_error(model(g["x"], g["t"], model.prepare(g["y"])), g["out"]) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("batched", [True, False])
def test_guided_dit_is_the_originals(name, scale, batched):
    g, model = released(f"dit/{name}")
    for row in range(len(g["x"]) // 2):  # its rows have timesteps of their own
        cond, uncond = model.prepare(g["y"][row : row + 1]), model.null(1)
        denoiser = GuidedDenoiser(model, Guidance(scale, 3), cond, uncond, batched=batched)
        level = NoiseLevel(timestep=float(g["t_cfg"][row]), alpha=1.0, sigma=0.0, progress=0.5)
        out = denoiser(g["x"][row : row + 1], level)
        assert relative_error(out, g[f"out.cfg{scale}"][row : row + 1]) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("name", ["dit_a_ddpm10", "dit_b_ddpm10", "dit_a_ddim10", "dit_b_ddim10"])
def test_whole_runs_of_dit_are_the_originals(name):
    g, case = golden(f"sample/{name}")
    _, model = released(case["weights"])
    rows = len(g["z"])
    torch.manual_seed(case["seed"])
    noise = LegacyNoise(2)
    z = noise.initial(g["z"].shape)
    assert torch.equal(z, g["z"])
    schedule = NoiseSchedule.named("linear", 1000).respaced(case["respacing"])
    guidance = Guidance(case["cfg_scale"], case["cfg_channels"])
    denoiser = GuidedDenoiser(model, guidance, model.prepare(g["y"][:rows]), model.null(rows))
    sample = sample_ddpm if case["sampler"] == "ddpm" else sample_ddim
    assert relative_error(sample(denoiser, schedule, z, noise), g["sample"]) < 1e-4


@pytest.mark.parametrize(("labels", "wrong"), [([5, -1], -1), ([3, 11], 11)])
def test_a_label_that_is_no_class_is_named(labels, wrong):
    network = DiT(DiTConfig(4, hidden_size=32, depth=1, num_heads=2, num_classes=10))
    with pytest.raises(InputError, match=f"class {wrong} is not in this model: it has 0 to 9, and 10 for none"):
        network.prepare(torch.tensor(labels))
