"""What a run takes from an earlier one: weights, an expert's other side, a network that a refiner is trained on."""

import pytest
import torch

import guidon
from guidon.checkpoints import load_component
from guidon.core.errors import InputError
from guidon.training import run_recipe
from guidon.training.optimisers import make_optimisers
from guidon.training.recipe import Optimiser
from guidon.training.tasks import denoiser as denoiser_file
from recipes import HIGH, LOW, SHAPE, denoiser_recipe, denoiser_task, vae_recipe


@pytest.fixture
def vae(tiny_model):
    return tiny_model / "vae.safetensors"


@pytest.fixture(scope="module")
def low(tmp_path_factory, tiny_model, trained):
    """A model folder with an expert for low noise beside the network that it came from."""
    values = {"start": str(trained), "expert": LOW, "steps": 2}
    return run_recipe(denoiser_recipe(tmp_path_factory.mktemp("low"), tiny_model / "vae.safetensors", **values))


def test_a_run_starts_from_the_weights_of_an_earlier_one(tmp_path, vae, trained):
    task = denoiser_task(tmp_path, vae, start=str(trained))
    kept = load_component(trained / "denoiser.safetensors", "denoiser").weights
    assert all(torch.equal(task.module.denoiser.state_dict()[name], value.float()) for name, value in kept.items())
    with pytest.raises(InputError, match="does not fit its denoiser: missing"):
        denoiser_task(tmp_path, vae, start=str(trained), model=SHAPE | {"depth": 2})
    with pytest.raises(InputError, match="predicts eps, the recipe says v"):
        denoiser_task(tmp_path, vae, start=str(trained), prediction="v")


def test_an_expert_trains_one_side_and_takes_the_rest_over(tmp_path, vae, trained, low):
    """First the network for low noise leaves the common one, then the other goes on without it."""

    def content(folder):
        return {path.stem: path.read_bytes() for path in folder.iterdir()}

    both = run_recipe(denoiser_recipe(tmp_path, vae, start=str(low), expert=HIGH, steps=2))
    before, first, second = content(trained), content(low), content(both)
    assert first.keys() == second.keys() == {"denoiser", "denoiser-low", "text", "vae"}
    assert {name for name in before if first[name] != before[name]} == set()
    assert {name for name in first if second[name] != first[name]} == {"denoiser"}
    common = load_component(trained / "denoiser.safetensors", "denoiser").weights
    ours = load_component(low / "denoiser-low.safetensors", "denoiser")
    assert not all(torch.equal(ours.weights[name], value) for name, value in common.items())
    assert ours.config["boundary"] == 350
    assert ours.record["timesteps"] == [0, 350]
    assert load_component(both / "denoiser.safetensors", "denoiser").record["timesteps"] == [350, 1000]
    pipe = guidon.load(both, device="cpu")
    assert pipe("a red circle moves left on a white background", steps=2).frames.shape == (16, 64, 64, 3)
    for noise in (LOW, HIGH):
        with pytest.raises(InputError, match="meet at 350, the recipe says 300"):
            denoiser_task(tmp_path, vae, start=str(both), expert=noise | {"boundary": 300})
    other = run_recipe(vae_recipe(tmp_path))
    with pytest.raises(InputError, match="experts share their latents"):
        denoiser_task(tmp_path, other, start=str(both), expert=LOW)


def test_an_expert_goes_on_from_its_own_side(tmp_path, vae, low):
    task = denoiser_task(tmp_path, vae, start=str(low), expert=LOW)
    weights = load_component(low / "denoiser-low.safetensors", "denoiser").weights
    assert all(torch.equal(task.module.denoiser.state_dict()[name], value.float()) for name, value in weights.items())
    assert not any(parameter.requires_grad for parameter in task.module.text.parameters())
    optimisers = make_optimisers(task.module, Optimiser(name="muon"))
    adjusted = {p.data_ptr() for o in optimisers for group in o.param_groups for p in group["params"]}
    assert adjusted == {p.data_ptr() for p in task.module.denoiser.parameters()}


@pytest.mark.parametrize(("expert", "file"), [(None, "denoiser"), (LOW, "denoiser-low")])
def test_a_refiner_is_trained_on_a_network_that_stays(tmp_path, vae, trained, expert, file, monkeypatch):
    values = {"start": str(trained), "train": "refiner", "model": SHAPE | {"refiner_channels": 8}, "optimiser": {}}
    folder = run_recipe(denoiser_recipe(tmp_path, vae, **values, expert=expert, steps=2))
    before = load_component(trained / "denoiser.safetensors", "denoiser").weights
    after = load_component(folder / f"{file}.safetensors", "denoiser").weights
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert {name.split(".")[0] for name in after.keys() - before.keys()} == {"refiner"}
    assert after["refiner.exit.weight"].abs().max() > 0
    more = denoiser_task(tmp_path, vae, **values | {"start": str(folder)}, expert=expert)
    assert torch.equal(more.module.denoiser.state_dict()["refiner.exit.weight"], after["refiner.exit.weight"].float())
    monkeypatch.setattr(denoiser_file, "LatentClips", None)  # what does not fit is refused before clips are encoded
    with pytest.raises(InputError, match="refiner"):
        denoiser_task(
            tmp_path, vae, **values | {"start": str(folder), "model": SHAPE | {"refiner_channels": 4}}, expert=expert
        )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"expert": HIGH}, "holds no denoiser-low.safetensors: train the expert for low"),
        ({"expert": LOW, "noise_schedule": "squaredcos_cap_v2"}, "has the noise_schedule"),
        ({"expert": LOW, "text": {"features": 8, "layers": 1, "heads": 1}}, "another encoder"),
    ],
)
def test_an_expert_that_would_not_fit_the_others_is_refused(tmp_path, vae, trained, values, message):
    with pytest.raises(InputError, match=message):
        denoiser_task(tmp_path, vae, start=str(trained), **values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"expert": HIGH | {"boundary": 400}}, "meet at 350, the recipe says 400"),
        ({}, "holds two experts: say which one"),
    ],
)
def test_experts_meet_at_one_boundary_and_one_is_named(tmp_path, vae, low, values, message):
    with pytest.raises(InputError, match=message):
        denoiser_task(tmp_path, vae, start=str(low), **values)
