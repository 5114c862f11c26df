"""Two networks that share the timesteps, alone and in a model folder."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch

import guidon
from guidon.checkpoints import load_component, save_component
from guidon.core.errors import InputError
from guidon.diffusion import NoiseLevel
from guidon.models.small.experts import Experts
from guidon.models.stdit.network import STDiT, STDiTConfig

SHAPE = STDiTConfig(
    (2, 4, 4), patch_size=(1, 2, 2), hidden_size=16, depth=1, num_heads=2, caption_channels=8, model_max_length=4
)
PROMPT = "a red circle moves left on a white background"


def network(seed, config=SHAPE):
    torch.manual_seed(seed)
    model = STDiT(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


@torch.inference_mode()
def test_each_side_of_the_boundary_has_its_network():
    high, low = network(0), network(1)
    experts = Experts(high, low, 350)
    x, features = torch.randn(1, 4, 2, 4, 4), torch.randn(1, 4, 8)
    caption = experts.prepare(features).cat(experts.null(1))
    both = torch.cat([x, x])
    for timestep, expected in ((0.0, low), (349.9, low), (350.0, high), (999.0, high)):
        found = experts(both, NoiseLevel(timestep, 0.5, 0.8, 0.5), caption)
        t = torch.full((2,), timestep)
        assert torch.equal(found, expected(both, t, expected.prepare(features).cat(expected.null(1))))
    assert (experts.latent_shape, experts.dtype) == ((4, 2, 4, 4), torch.float32)
    with pytest.raises(InputError, match="one noise level for the whole batch"):
        experts(both, NoiseLevel(torch.tensor([0.0, 999.0]), 0.5, 0.8, 0.5), caption)


def test_networks_of_different_latents_are_refused():
    with pytest.raises(InputError, match=r"low-noise network's input_size is \(4, 4, 4\), the other's \(2, 4, 4\)"):
        Experts(network(0), network(1, dataclasses.replace(SHAPE, input_size=(4, 4, 4))), 350)


def folder_with_low(model, place, change=lambda name, value: value, **config):
    """The model with a copy of its denoiser, changed by ``change``, for low noise."""
    shutil.copytree(model, place)
    denoiser = load_component(place / "denoiser.safetensors", "denoiser")
    weights = {name: change(name, value) for name, value in denoiser.weights.items()}
    values = denoiser.config | {"boundary": 350} | config
    given = {name: value for name, value in values.items() if value is not None}
    save_component(place / "denoiser-low.safetensors", "denoiser", given, weights, {})
    return place


def frames(folder, **choices):
    return guidon.load(folder, device="cpu")(PROMPT, seed=0, **{"steps": 4, "cfg_scale": 2} | choices).frames


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm-solver"])
def test_two_alike_are_one_and_another_one_for_low_noise_changes_the_last_steps(tmp_path, tiny_model, sampler):
    alone = frames(tiny_model, sampler=sampler)
    assert np.array_equal(frames(folder_with_low(tiny_model, tmp_path / "alike"), sampler=sampler), alone)
    other = folder_with_low(tiny_model, tmp_path / "other", lambda _, value: value * 0.5)
    assert not np.array_equal(frames(other, sampler=sampler), alone)


def test_a_network_below_every_step_but_the_last_changes_that_one_alone(tmp_path, tiny_model, monkeypatch):
    seen, forward = [], STDiT.forward

    def recorded(self, *arguments):
        seen.append(forward(self, *arguments))
        return seen[-1].clone()

    monkeypatch.setattr(STDiT, "forward", recorded)
    other = folder_with_low(tiny_model, tmp_path / "other", lambda _, value: value * 0.5, boundary=1)
    for folder in (tiny_model, other):
        frames(folder)
    same = [torch.equal(a, b) for a, b in zip(seen[:4], seen[4:], strict=True)]
    assert same == [True, True, True, False]


def test_the_manifest_tells_both_networks(tmp_path, tiny_model):
    hashes = guidon.load(folder_with_low(tiny_model, tmp_path / "m"), device="cpu").hashes
    assert set(hashes) == {"denoiser", "denoiser-low", "text", "vae"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"boundary": None}, "its boundary is None"),
        ({"boundary": 1000}, "its boundary is 1000, an expert for low noise has a timestep between 0 and 1000"),
        ({"boundary": "350"}, "its boundary is '350'"),
        ({"prediction": "v"}, "its prediction is 'v', that of denoiser.safetensors 'eps'"),
        ({"noise_schedule": "squaredcos_cap_v2"}, "its noise_schedule is 'squaredcos_cap_v2'"),
    ],
)
def test_a_network_that_does_not_belong_is_refused(tmp_path, tiny_model, config, message):
    with pytest.raises(InputError, match=message):
        guidon.load(folder_with_low(tiny_model, tmp_path / "m", **config), device="cpu")


def test_an_expert_for_low_noise_is_no_denoiser(tmp_path, tiny_model):
    folder = folder_with_low(tiny_model, tmp_path / "m")
    (folder / "denoiser-low.safetensors").replace(folder / "denoiser.safetensors")
    with pytest.raises(InputError, match="is an expert for low noise: it belongs beside a denoiser"):
        guidon.load(folder, device="cpu")
