import multiprocessing
from collections import Counter

import pytest
import torch

from guidon import world
from guidon.core.errors import InputError
from guidon.core.limits import available_memory
from guidon.training import run_recipe
from guidon.training.demand import COPIES, FLOAT, _network
from guidon.training.tasks import prepare
from recipes import CPU, SHAPE, TEXT, VAE, VAE_SHAPE, denoiser_recipe, denoiser_task, vae_recipe, vae_task, write_recipe

HUGE = 10**9


@pytest.fixture
def made(monkeypatch):
    """Counts the layers that are built and the clips that are drawn. More than those of a tiny model are an error."""
    counts = Counter()

    def limit(owner, name, most):
        make = getattr(owner, name)

        def counted(*args, **kwargs):
            counts[name] += 1
            assert counts[name] <= most, f"{name} was called more than {most} times"
            return make(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    limit(torch.nn.Module, "__init__", 500)
    limit(world, "render", 1)
    return counts


def test_workers_are_refused_at_once_where_processes_cannot_fork(tmp_path, monkeypatch, made):
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    with pytest.raises(InputError, match=r"^workers is 2, but this system cannot fork processes: give 0$"):
        run_recipe(vae_recipe(tmp_path, workers=2))
    assert not made
    assert not (tmp_path / "vae").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": HUGE}, "batches of 1000000000 frames need at least .* lower batch_size"),
        ({"model": VAE_SHAPE | {"layers_per_block": HUGE}}, "make model, text or finisher smaller"),
        ({"model": VAE_SHAPE | {"layers_per_block": 10**90}}, "at least 1000 EB of memory"),
        ({"model": VAE_SHAPE | {"block_out_channels": [4 * HUGE]}}, "make model, text or finisher smaller"),
    ],
)
def test_an_autoencoder_that_cannot_fit_is_refused_at_once(tmp_path, values, message, made):
    with pytest.raises(InputError, match=message):
        run_recipe(vae_recipe(tmp_path, **values))
    assert not made
    assert not (tmp_path / "vae").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": HUGE}, "batches of 1000000000 clips"),
        ({"clips": 10**13}, "the latents of 10000000000000 clips need at least .* lower clips"),
        ({"model": SHAPE | {"depth": HUGE}}, "make model, text or finisher smaller"),
        ({"model": SHAPE | {"hidden_size": 4 * HUGE}}, "make model, text or finisher smaller"),
        ({"model": SHAPE | {"mlp_ratio": 1e300}}, "make model, text or finisher smaller"),
        ({"model": SHAPE | {"refiner_channels": HUGE}}, "make model, text or finisher smaller"),
        ({"text": TEXT | {"layers": HUGE}}, "make model, text or finisher smaller"),
        ({"text": TEXT | {"max_length": HUGE * HUGE}}, "make model, text or finisher smaller"),
    ],
)
def test_a_denoiser_that_cannot_fit_is_refused_at_once(tmp_path, tiny_model, values, message, made):
    with pytest.raises(InputError, match=message):
        run_recipe(denoiser_recipe(tmp_path, tiny_model / "vae.safetensors", **values))
    assert bool(made) == ("clips" in message)  # what a clip takes is known when the network's latents are


def test_rollouts_that_cannot_fit_are_refused(tmp_path, tiny_model, made):
    values = {"task": "rollout", "out": str(tmp_path / "run"), "start": str(tiny_model), "steps": 1, "device": "cpu"}
    with pytest.raises(InputError, match="make model, text or finisher smaller"):
        run_recipe(write_recipe(tmp_path / "r.yaml", values | {"finisher": {"depth": HUGE}}))


def test_a_stage_that_cannot_fit_is_refused_before_the_first_one_is_trained(tmp_path, made):
    stages = {"eye": dict(VAE), "base": {"task": "denoiser", "vae": "eye", "steps": 1, "model": {"depth": HUGE}}}
    values = {"out": str(tmp_path / "runs"), "stages": stages, "export": {"stage": "base"}}
    with pytest.raises(InputError, match="make model, text or finisher smaller"):
        run_recipe(write_recipe(tmp_path / "r.yaml", values))
    assert not (tmp_path / "runs").exists()


def test_the_estimate_is_a_lower_bound(tmp_path, tiny_model):
    """It is below what a network takes, but of its size."""
    wide = {"hidden_size": 64, "depth": 4, "refiner_channels": 32}
    for task in (vae_task(tmp_path), denoiser_task(tmp_path, tiny_model / "vae.safetensors", model=SHAPE | wide)):
        taken = COPIES * FLOAT * sum(parameter.numel() for parameter in task.module.parameters())
        layers = 10_000 * 20
        assert 0.3 * taken < _network(task.recipe) < taken + layers
    assert _network(vae_task(tmp_path).recipe) < available_memory(torch.device("cpu"))
    assert prepare(vae_task(tmp_path).recipe, CPU) is not None
