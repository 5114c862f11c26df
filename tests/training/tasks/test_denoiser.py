"""A step of the denoiser's task: what is drawn, what the network is shown, what is exported."""

import dataclasses

import pytest
import torch

from guidon import world
from guidon.diffusion import convert
from guidon.training import run_recipe
from guidon.training.recipe import Expert
from guidon.training.tasks import denoiser as denoiser_file
from guidon.training.tasks.denoiser import caption_counts
from recipes import HIGH, LOW, assert_rows_are_those_of_the_batch, denoiser_recipe, denoiser_task, step_of

FAMILIES = {"terms": {"shape_contrast": {"weight": 4}}, "batch_size": 8, "clips": 8}


@pytest.fixture
def vae(tiny_model):
    return tiny_model / "vae.safetensors"


def test_a_model_of_one_network_leaves_no_expert_of_an_earlier_run(tmp_path, vae):
    folder = tmp_path / "run" / "model"
    folder.mkdir(parents=True)
    (folder / "denoiser-low.safetensors").write_bytes(b"")
    run_recipe(denoiser_recipe(tmp_path, vae, steps=1))
    assert {path.stem for path in folder.iterdir()} == {"denoiser", "text", "vae"}


def test_another_seed_begins_with_other_weights_and_other_clips(tmp_path, vae):
    first, again, other = (denoiser_task(tmp_path, vae, seed=seed, cache=str(tmp_path)) for seed in (0, 0, 1))
    for name in ("denoiser.x_embedder.proj.weight", "text.embedding.weight"):
        weights = [task.module.state_dict()[name] for task in (first, again, other)]
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])
    assert not torch.equal(first.clips.latents, other.clips.latents)


def test_an_experts_timesteps_fill_its_side(tmp_path, vae, trained):
    low = denoiser_task(tmp_path, vae, start=str(trained), expert=LOW, batch_size=64)
    t = torch.cat([low.draw(step, torch.Generator().manual_seed(step)).t for step in range(4)])
    assert 0 <= t.min() < 10
    assert 340 <= t.max() < 350
    assert low.validate(low.module.state_dict()).keys() == {"val_low", "val_mid", "val_high"}
    assert low.recipe.model_copy(update={"expert": type(low.recipe.expert)(**HIGH)}).timestep_range == (350, 1000)


def test_an_expert_is_measured_in_the_middle_of_each_third_of_its_side(tmp_path, vae, monkeypatch):
    task, measured = denoiser_task(tmp_path, vae), []
    monkeypatch.setattr(denoiser_file, "validation_errors", lambda *given: measured.append(given[3]) or {})
    for expert in (None, Expert(**LOW), Expert(**HIGH)):
        recipe = task.recipe.model_copy(update={"expert": expert})
        dataclasses.replace(task, recipe=recipe).validate(task.module.state_dict())
    assert measured == [[167, 500, 833], [58, 175, 292], [458, 675, 892]]


def test_drawing_changes_nothing(tmp_path, vae):
    """A thread calls it."""
    task = denoiser_task(tmp_path, vae, **FAMILIES, shape_swap=0.5, caption_noise=0.25)
    before = {name: value.clone() for name, value in task.module.state_dict().items()}
    state = torch.get_rng_state()
    first, again = (task.draw(3, torch.Generator().manual_seed(3)) for _ in range(2))
    assert first.clips.captions == again.clips.captions
    for name in ("noise", "t", "dropped", "shown", "swapped"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert all(torch.equal(before[name], value) for name, value in task.module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "more", [{}, FAMILIES, FAMILIES | {"shape_swap": 1.0}, FAMILIES | {"size_swap": 1.0}, {"prediction": "flow"}]
)
def test_a_rank_draws_its_rows_of_the_batch(tmp_path, vae, more):
    values = {"batch_size": 8, "clips": 8, "caption_noise": 0.5, "caption_dropout": 0.5} | more
    assert_rows_are_those_of_the_batch(denoiser_task(tmp_path, vae, **values), 8)


def test_a_family_shares_what_hides_its_shapes(tmp_path, vae, monkeypatch):
    """One noise, timestep and dropout for a family: only the latents and the captions' shapes differ."""
    task = denoiser_task(tmp_path, vae, **FAMILIES, caption_dropout=0.5)
    batch = task.draw(0, torch.Generator().manual_seed(0))
    assert batch.clips.captions != task.draw(1, torch.Generator().manual_seed(1)).clips.captions
    for k in (0, 4):
        wanted = [world.read_caption(caption) for caption in batch.clips.captions[k : k + 4]]
        assert len({w.shape for w in wanted}) > 1
        assert len({(w.colour, w.motion, w.background) for w in wanted}) == 1
    seen = {}
    monkeypatch.setattr(
        task.module.denoiser, "forward", lambda x, t, y, mask: seen.update(x=x, t=t, y=y) or torch.cat([x, x], 1)
    )
    step = task.predict(batch)
    noise = (seen["x"] - step.level.alpha * batch.clips.latents).unflatten(0, (2, 4))
    assert torch.allclose(noise, noise[:, :1].expand_as(noise), atol=1e-5)
    assert not torch.allclose(noise[0], noise[1])
    assert (seen["t"].view(2, 4) == seen["t"].view(2, 4)[:, :1]).all()
    null = (seen["y"] == task.module.denoiser.y_embedder.y_embedding).all(-1).all(-1).view(2, 4)
    assert (null == null[:, :1]).all()
    assert torch.equal(null.flatten(), batch.dropped)


def test_swaps_are_where_noise_hides_shapes_and_a_caption_tells_them(tmp_path, vae):
    task = denoiser_task(
        tmp_path, vae, **FAMILIES | {"batch_size": 64, "clips": 64}, shape_swap=1.0, caption_dropout=0.5
    )
    batch = task.draw(0, torch.Generator().manual_seed(0))
    assert torch.equal(batch.swapped, (batch.t >= 350) & ~batch.dropped)
    assert 0 < batch.swapped.sum() < 64
    moved = (batch.shown != batch.clips.latents).flatten(1).any(1)
    assert not (moved & ~batch.swapped).any()


def test_a_size_is_swapped_where_the_caption_tells_it(tmp_path, vae):
    task = denoiser_task(
        tmp_path, vae, **FAMILIES | {"batch_size": 64, "clips": 64}, size_swap=1.0, caption_dropout=0.5
    )
    batch = task.draw(0, torch.Generator().manual_seed(0))
    told = torch.tensor([world.read_caption(caption).size is not None for caption in batch.clips.captions])
    assert 0 < told.sum() < 64
    assert torch.equal(batch.swapped, (batch.t >= 350) & ~batch.dropped & told)
    moved = (batch.shown != batch.clips.latents).flatten(1).any(1)
    assert torch.equal(moved, batch.swapped)
    assert task.predict(batch).family_size == 4  # shapes are compared in one size


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
@pytest.mark.parametrize("swap", ["shape_swap", "size_swap"])
def test_a_swapped_sample_is_still_to_be_denoised_to_its_own_clip(tmp_path, vae, monkeypatch, swap, prediction):
    """A network that answers with the captioned clip has no loss, whatever shows through and whatever it predicts."""
    values = FAMILIES | {swap: 1.0, "prediction": prediction, "caption_dropout": 0.0}
    task = denoiser_task(tmp_path, vae, **values)
    batch = task.draw(0, torch.Generator().manual_seed(0))
    assert batch.swapped.any()

    def answer(x, t, y, mask):
        level = task.schedule.at(t, like=x)
        return torch.cat([convert(batch.clips.latents, x, level, "x0", prediction), torch.zeros_like(x)], 1)

    monkeypatch.setattr(task.module.denoiser, "forward", answer)
    _, logs = task.loss(task.predict(batch))
    assert logs["mse"] < 1e-4


def test_captions_of_a_shape_count_as_the_recipe_says():
    captions = ["a red cross moves left", "a red circle moves left", "a blue plus stays still", "a blue plus"]
    dropped = torch.tensor([False, False, False, True])
    assert caption_counts(captions, dropped, {"cross": 3}).tolist() == pytest.approx([2, 2 / 3, 2, 1])
    assert caption_counts(captions, dropped, {}).tolist() == [1, 1, 1, 1]


def test_they_count_in_every_term(tmp_path, vae):
    values = FAMILIES | {
        "terms": {"mse": {"weighting": "balanced"}, "shape_contrast": {"weight": 3}, "area": {"weight": 1}}
    }
    task = denoiser_task(tmp_path, vae, **values, shape_weights={"cross": 3}, caption_dropout=0.0)
    step, losses = step_of(task), {}
    assert step.counts.unique().tolist() == pytest.approx([2 / 3, 2])
    even = torch.ones_like(step.counts)
    for name, term in task.recipe.terms.build().items():
        losses[name] = term(step, losses)
    plain = {}
    for name, term in task.recipe.terms.build().items():
        plain[name] = term(dataclasses.replace(step, counts=even), plain)
    for name, loss in losses.items():
        assert torch.allclose(loss.weights, plain[name].weights * step.counts)
