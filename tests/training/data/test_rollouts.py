"""Rollouts are sampled once, block by block, and hold pairs of what was drawn and what should have been."""

import os

import numpy as np
import pytest
import torch
from safetensors import safe_open

from guidon import world
from guidon.core import ranks as ranks_module
from guidon.core import workspaces
from guidon.core.errors import InputError
from guidon.core.ranks import ALONE, Ranks
from guidon.models.small import FAMILY
from guidon.models.small.folder import find_model
from guidon.models.sources import Sources
from guidon.training.data import cache, rollouts
from guidon.training.data.cache import store
from guidon.training.data.redraw import Redrawn
from guidon.training.data.rollouts import Rollouts
from guidon.training.recipe import Sampling
from ranks import on_ranks
from recipes import CPU, redraw_truth

SAMPLING = Sampling(steps=2, block=4)
BLOCK = SAMPLING.block


@pytest.fixture(scope="module")
def model(tiny_model):
    return find_model(FAMILY.adopt(tiny_model), Sources(), CPU)


@pytest.fixture
def readable(monkeypatch):
    """The tiny model draws nothing that can be read: as if it had drawn every second clip well."""
    monkeypatch.setattr(rollouts, "redraw", redraw_truth)


def prepare(folder, model, count=BLOCK + 2, weights="w", sampling=SAMPLING, seed=0, ranks=ALONE):
    return Rollouts.prepare(folder, model, weights, count, seed, sampling, CPU, ranks)


def test_a_rollout_is_a_pair_of_latents_with_its_caption(tmp_path, model, readable):
    found = prepare(tmp_path, model)
    assert found.captions == [world.clip("train", 0, number).caption for number in range(0, BLOCK + 2, 2)]
    assert found.drawn.shape == found.clean.shape == (len(found), *model.facts.latent_shape)
    assert found.objects.shape == (len(found), *model.facts.latent_shape[1:])
    for index in range(len(found)):
        clip = world.clip("train", 0, 2 * index)
        with model.vae.in_use() as vae:
            frames = torch.from_numpy(clip.frames()).permute(3, 0, 1, 2)[None]
            assert torch.allclose(found.clean[index].float(), vae.encode(frames * 2 - 1)[0], atol=1e-2)
        covered = torch.from_numpy(world.foreground(clip.scene)) > 0.5
        cells = torch.nn.functional.max_pool2d(covered.float(), world.SIZE // found.objects.shape[-1]) > 0
        assert (found.objects[index] | ~cells).all()
        assert not found.objects[index].all()


def test_a_clip_is_told_backwards_where_training_holds_that(tmp_path, model, readable):
    found = prepare(tmp_path, model)
    assert len(found.backwards) == len(found)
    for index, text in enumerate(found.backwards):
        clip = world.clip("train", 0, 2 * index)
        assert (text is None) == (not world.holds("train", clip.scene.reversed()))
        if text is not None:
            said, before = world.read_caption(text), world.read_caption(clip.caption)
            assert said.motion == clip.scene.reversed().things[0].motion
            assert (said.size, said.shape, said.colour) == (before.size, before.shape, before.colour)
            assert said.speed == before.speed


def test_an_interrupted_run_goes_on_with_the_next_block(tmp_path, model, readable, monkeypatch):
    whole = prepare(tmp_path / "whole", model, 3 * BLOCK)
    sample, asked = rollouts._sample, []

    def counted(model, seed, numbers, sampling, device):
        asked.append(numbers[0])
        if len(asked) == 2:
            raise KeyboardInterrupt
        return sample(model, seed, numbers, sampling, device)

    monkeypatch.setattr(rollouts, "_sample", counted)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "cut", model, 3 * BLOCK)
    again = prepare(tmp_path / "cut", model, 3 * BLOCK)
    assert asked == [0, BLOCK, BLOCK, 2 * BLOCK]
    for name in ("drawn", "clean", "objects"):
        assert torch.equal(getattr(again, name), getattr(whole, name)), name
    assert again.captions == whole.captions
    (path, *_) = sorted((tmp_path / "cut").rglob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:100])  # a damaged block is sampled again
    assert torch.equal(prepare(tmp_path / "cut", model, 3 * BLOCK).drawn, whole.drawn)
    assert asked[4:] == [0]
    with safe_open(path, framework="pt") as file:  # and so is one of another form
        key, block = file.metadata()["key"], {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for change in (
        {"numbers": block["numbers"] - 1},
        {"drawn": block["drawn"][:, :1].contiguous()},
        {"more": block["numbers"].clone()},
    ):
        store(path, key, block | change)
        assert torch.equal(prepare(tmp_path / "cut", model, 3 * BLOCK).drawn, whole.drawn)
    assert asked[5:] == [0, 0, 0]


def test_ranks_divide_the_blocks(tmp_path, model, readable, monkeypatch):
    """Each block is sampled once, and all ranks get all of them. Three ranks, five blocks: two turns."""
    whole = prepare(tmp_path / "whole", model, 5 * BLOCK)
    sample, asked = rollouts._sample, []

    def counted(model, seed, numbers, sampling, device):
        asked.append(numbers[0] // BLOCK)
        return sample(model, seed, numbers, sampling, device)

    monkeypatch.setattr(rollouts, "_sample", counted)

    def work():
        with Ranks.join() as ranks:
            found = prepare(tmp_path / "divided", model, 5 * BLOCK, ranks=ranks)
        return found.drawn, found.clean, found.objects, found.captions, asked

    results = on_ranks(work, 3)
    assert [own for *_, own in results] == [[0, 3], [1, 4], [2]]
    for drawn, clean, objects, captions, _ in results:
        assert torch.equal(drawn, whole.drawn)
        assert torch.equal(clean, whole.clean)
        assert torch.equal(objects, whole.objects)
        assert captions == whole.captions


def test_a_complete_folder_is_read_and_not_written(tmp_path, model, readable):
    whole = prepare(tmp_path, model)
    (folder,) = tmp_path.iterdir()
    before = folder.stat().st_mtime_ns
    assert torch.equal(prepare(tmp_path, model).drawn, whole.drawn)
    assert folder.stat().st_mtime_ns == before


def test_what_a_killed_run_left_in_the_folder_is_deleted(tmp_path, model, readable):
    prepare(tmp_path, model)
    (folder,) = tmp_path.iterdir()
    left = folder / workspaces._workspace_name(folder / "000000.safetensors")
    left.mkdir()
    prepare(tmp_path, model)
    assert not left.exists()


def test_a_block_that_another_machine_sees_late_is_waited_for(tmp_path, model, readable, monkeypatch):
    read, asked = cache.stored, []

    def late(path, *more):
        asked.append(path.name)
        own = f"{BLOCK:06}.safetensors" if os.environ["RANK"] == "0" else "000000.safetensors"  # the other one's
        return None if path.name == own and asked.count(own) < 4 else read(path, *more)

    monkeypatch.setattr(cache, "stored", late)
    monkeypatch.setattr(ranks_module, "LOOK", 0.01)

    def work():
        with Ranks.join() as ranks:
            return len(prepare(tmp_path, model, 2 * BLOCK, ranks=ranks))

    assert on_ranks(work) == [BLOCK, BLOCK]  # every second one can be read


def test_an_error_of_one_rank_while_it_samples_ends_all(tmp_path, model, readable, monkeypatch):
    """At once, with its own words, and what others stored is kept."""
    sample = rollouts._sample

    def fails(model, seed, numbers, sampling, device):
        if numbers[0] == 3 * BLOCK:  # the second block of rank 1
            raise InputError("no such model")
        return sample(model, seed, numbers, sampling, device)

    monkeypatch.setattr(rollouts, "_sample", fails)

    def work():
        with Ranks.join() as ranks:
            try:
                prepare(tmp_path, model, 8 * BLOCK, ranks=ranks)
            except InputError as error:
                return str(error)

    assert on_ranks(work) == ["rank 1: no such model", "no such model"]
    stored = sorted(path.name for path in tmp_path.rglob("*.safetensors"))
    assert stored == [f"{k * BLOCK:06}.safetensors" for k in range(3)]


def test_ranks_that_share_no_folder_are_refused(tmp_path, model, readable, monkeypatch):
    monkeypatch.setattr(ranks_module, "SEEN_AFTER", 0.1)

    def work():
        with Ranks.join() as ranks:
            try:
                prepare(tmp_path / str(ranks.index), model, 2 * BLOCK, ranks=ranks)
            except InputError as error:
                return str(error)

    said = on_ranks(work)
    assert all(
        "which another rank stored, cannot be read here: all ranks must share its folder" in line for line in said
    )


def test_other_weights_or_settings_are_other_rollouts(tmp_path, model, readable):
    first = prepare(tmp_path, model, 4)
    for changes in (
        {"weights": "v"},
        {"sampling": Sampling(steps=3, block=BLOCK)},
        {"sampling": Sampling(steps=2, block=BLOCK, guided=0)},
    ):
        prepare(tmp_path, model, 4, **changes)
    assert len(list(tmp_path.iterdir())) == 4
    guided = prepare(tmp_path, model, 4, sampling=Sampling(steps=2, block=BLOCK, guided=1, cfg_scale=1))
    unguided = prepare(tmp_path, model, 4, sampling=Sampling(steps=2, block=BLOCK, guided=0))
    assert torch.equal(guided.drawn, unguided.drawn)
    assert not torch.equal(
        prepare(tmp_path, model, 4, sampling=Sampling(steps=2, block=BLOCK, guided=1)).drawn, unguided.drawn
    )
    assert torch.equal(prepare(tmp_path, model, 4).drawn, first.drawn)


def test_another_seed_is_other_rollouts(tmp_path, model, monkeypatch):
    def blank(frames, wanted):
        return Redrawn(
            np.zeros_like(frames, np.float32), np.zeros(frames.shape[:-1], np.float32), np.ones(len(frames), bool)
        )

    monkeypatch.setattr(rollouts, "redraw", blank)
    first, other = (prepare(tmp_path, model, BLOCK, seed=seed) for seed in (0, 1))
    assert len(list(tmp_path.iterdir())) == 2
    assert other.captions == [world.clip("train", 1, number).caption for number in range(BLOCK)]
    assert not torch.equal(first.drawn, other.drawn)


def test_a_share_of_the_rollouts_is_guided_when_and_where_the_recipe_says(tmp_path, model, readable):
    def drawn(**values):
        own = {"steps": 2, "block": 16, "guided": 1.0, "timing": "constant", "cfg_channels": "all"} | values
        return prepare(tmp_path, model, 16, sampling=Sampling(**own)).drawn.float()

    guided, half, unguided = (drawn(guided=share) for share in (1.0, 0.5, 0.0))
    away = [(half - other).abs().amax((1, 2, 3, 4)) < 0.02 for other in (guided, unguided)]
    assert torch.equal(away[0], ~away[1])  # each is one or the other
    assert 0 < away[0].sum() < len(half)
    for own in ({"timing": "interval:0.5,1"}, {"cfg_channels": "3"}, {"cfg_scale": 2.0}):
        assert not torch.allclose(drawn(**own), guided, atol=0.02), own


def test_blocks_of_another_size_are_stored_apart(tmp_path, model, readable):
    whole = prepare(tmp_path, model, 2 * BLOCK, sampling=Sampling(steps=2, block=2 * BLOCK))
    smaller = prepare(tmp_path, model, 2 * BLOCK)
    assert len(list(tmp_path.iterdir())) == 2
    assert smaller.captions == whole.captions
    assert torch.allclose(smaller.drawn.float(), whole.drawn.float(), atol=1e-2)


def test_a_model_that_draws_nothing_readable_is_refused(tmp_path, model):
    with pytest.raises(InputError, match="no clip of 4 that the model sampled can be read: train it further"):
        prepare(tmp_path, model, 4)


def test_captions_do_not_depend_on_each_other(tmp_path, model, readable):
    few, many = prepare(tmp_path / "a", model, BLOCK), prepare(tmp_path / "b", model, BLOCK + 2)
    assert few.captions == many.captions[: len(few)]
    assert torch.equal(few.drawn, many.drawn[: len(few)])
