"""Several ranks train as one process does; a rank that ends or fails stops all, and the checkpoint is kept."""

import contextlib
import io

import pytest
import torch
import torch._dynamo
from torch.distributed import checkpoint, fsdp  # noqa: F401

from guidon.analysis import evaluate  # noqa: F401
from guidon.core.errors import InputError
from guidon.core.ranks import Ranks
from guidon.training import run_recipe
from ranks import on_ranks
from recipes import denoiser_recipe, rows_of, weights_of

ADAMW = {"name": "adamw", "warmup_steps": 2}
SHARDED = {"shard_above": 1, "optimiser": ADAMW}
EVERYTHING = {
    "terms": {"mse": {"weighting": "balanced", "foreground": 4}, "shape_contrast": {"weight": 4}, "area": {"weight": 1}},
    "shape_weights": {"cross": 3}, "shape_swap": 0.5, "batch_size": 12, "clips": 12, "caption_noise": 0.5,
}  # fmt: skip


@pytest.fixture
def vae(tiny_model):
    return tiny_model / "vae.safetensors"


def recipe(folder, name, vae, **values):
    (folder / name).mkdir()
    return denoiser_recipe(folder / name, vae, **{"log_every": 1} | values)


def run_on_ranks(config, count=2, before=lambda: None, **environment):
    """Run a recipe on ranks. Returns what each says: the error, or where its result is."""

    def work():
        before()
        with contextlib.redirect_stderr(io.StringIO()), Ranks.join() as ranks:
            try:
                return str(run_recipe(config, ranks=ranks))
            except InputError as error:
                return f"{type(error).__name__}: {error}"

    return on_ranks(work, count, **environment)


def assert_same_run(one, other, close=1e-4):
    """Two runs logged the same losses and have the same weights, but for rounding."""
    ours, theirs = rows_of(one), rows_of(other)
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"seconds"}:
            assert (a[name] == b[name] == "") or float(a[name]) == pytest.approx(float(b[name]), rel=close, abs=1e-6), (
                name, a["step"],
            )  # fmt: skip
    ours, theirs = weights_of(one / "model"), weights_of(other / "model")
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], rtol=close, atol=1e-4) for name in ours)


@pytest.mark.parametrize(
    "more", [EVERYTHING | {"optimiser": ADAMW}, pytest.param({"optimiser": ADAMW}, marks=pytest.mark.long)]
)
def test_two_ranks_have_the_losses_of_one_process_over_50_steps(tmp_path, vae, more):
    run_recipe(recipe(tmp_path, "one", vae, steps=50, **more))
    assert len(set(run_on_ranks(recipe(tmp_path, "two", vae, steps=50, **more)))) == 1
    assert_same_run(tmp_path / "one" / "run", tmp_path / "two" / "run")


def test_three_ranks_cut_families_and_lose_nothing(tmp_path, vae):
    more = EVERYTHING | {"steps": 4, "optimiser": {"name": "muon", "warmup_steps": 2}}
    run_recipe(recipe(tmp_path, "one", vae, **more))
    run_on_ranks(recipe(tmp_path, "three", vae, **more), 3)
    assert_same_run(tmp_path / "one" / "run", tmp_path / "three" / "run")
