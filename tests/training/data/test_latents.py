import os
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors import safe_open

from guidon import world
from guidon.core.errors import InputError
from guidon.core.ranks import ALONE, Ranks
from guidon.training.data.cache import store
from guidon.training.data.latents import LatentClips, touched
from ranks import on_ranks


class Blank(torch.nn.Linear):
    """An autoencoder of nothing, for what batches say."""

    config = SimpleNamespace(latent_channels=4, downsampling=world.SIZE // 2)

    def encode(self, video):
        return video.new_zeros(1, 4, video.shape[2], 2, 2)


class Mean(Blank):
    """An autoencoder whose latents tell clips apart. It counts the clips that it encodes."""

    encoded = 0

    def encode(self, video):
        self.encoded += 1
        return video.mean((1, 3, 4))[:, None, :, None, None].expand(1, 4, -1, 2, 2)


def clips_of(folder, count, *, seed=0, family_size=1, vae_hash="", vae=None, ranks=ALONE):
    vae = cast("Any", vae or Blank(1, 1))
    return LatentClips.prepare(folder, vae, vae_hash, count, seed, family_size=family_size, areas=False, ranks=ranks)


def on_both(folder, count, encode=Mean.encode, *, unseen=False):
    """What two ranks that encode together give: of each its latents and how many clips it encoded, or its error."""

    def work():
        vae = Mean(1, 1)
        with Ranks.join() as ranks:
            vae.encode = partial(encode, vae)
            own = folder / "unseen" if unseen and not ranks.first else folder
            try:
                return clips_of(own, count, vae=vae, ranks=ranks).latents, vae.encoded
            except InputError as error:
                return str(error)

    return on_ranks(work)


@pytest.mark.parametrize("family_size", [1, 4, 8])
def test_no_clip_shows_and_no_caption_names_what_is_held_out(tmp_path, family_size):
    clips = clips_of(tmp_path, 120, family_size=family_size)
    held = {(a.shape, a.colour, a.motion) for a in world.combinations("train")}
    for noise in (0.0, 1.0):
        for step in range(5):
            for caption in clips.batch(step, 48, caption_noise=noise).captions:
                read = world.read_caption(caption)
                assert (read.shape, read.colour, read.motion) in held, caption
    firsts = range(0, 120, clips.family_size)
    assert 0.3 < sum(clips.reversible(first) for first in firsts) / len(firsts) < 0.99


def test_every_clip_is_drawn_once_before_any_is_drawn_twice(tmp_path):
    clips = clips_of(tmp_path, 24, family_size=4)
    numbered = LatentClips(0, 4, torch.arange(24.0).view(24, 1, 1, 1, 1).expand(24, 4, 16, 2, 2), None)
    assert numbered.family_size == clips.family_size
    epochs = [
        [int(v) for step in range(3) for v in numbered.batch(3 * e + step, 8).latents[:, 0, 0, 0, 0]] for e in (0, 1)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(24))
    assert epochs[0] != epochs[1]
    assert all(order[k : k + 4] == list(range(order[k], order[k] + 4)) for order in epochs for k in range(0, 24, 4))


def test_a_clip_that_is_drawn_again_is_told_anew_and_may_be_turned():
    latents = (torch.arange(24.0)[:, None] + torch.arange(16) / 32).view(24, 1, 16, 1, 1)
    clips, told, turned = LatentClips(0, 1, latents, None), {k: set() for k in range(24)}, {k: set() for k in range(24)}
    for epoch in range(8):
        batch = clips.batch(epoch, 24)
        for row, caption in zip(batch.latents[:, 0, :, 0, 0], batch.captions, strict=True):
            told[int(row.min())].add(caption)
            turned[int(row.min())].add(bool(row[0] > row[-1]))
    assert sum(len(captions) > 2 for captions in told.values()) > 20
    for index, ways in turned.items():
        assert ways == ({False, True} if clips.reversible(index) else {False})


def test_a_batch_depends_on_its_step_alone(tmp_path):
    clips = clips_of(tmp_path, 24)
    later = clips.batch(7, 8)
    assert clips.batch(6, 8).captions != later.captions
    again = clips_of(tmp_path, 24).batch(7, 8)
    assert again.captions == later.captions
    assert torch.equal(again.objects, later.objects)


def test_clips_are_encoded_once_for_each_autoencoder_and_kind(tmp_path, monkeypatch):
    kinds = ({}, {"family_size": 4}, {"family_size": 8}, {"vae_hash": "other"}, {"count": 12}, {"seed": 1})
    for values in kinds:
        clips_of(tmp_path, **{"count": 8} | values)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(files) == 6
    monkeypatch.setattr(Blank, "encode", None)
    for values in kinds:
        clips_of(tmp_path, **{"count": 8} | values)
    monkeypatch.undo()
    damaged = next(iter(files))
    damaged.write_bytes(damaged.read_bytes()[:-50])
    for values in kinds:
        clips_of(tmp_path, **{"count": 8} | values)
    assert {path for path, at in files.items() if path.stat().st_mtime_ns != at} == {damaged}


@pytest.mark.parametrize(("count", "shares"), [(9, (5, 4)), (1, (1, 0))])
def test_ranks_encode_a_share_of_the_clips_each(tmp_path, count, shares):
    whole = clips_of(tmp_path / "alone", count, vae=Mean(1, 1)).latents
    assert len(whole.unique(dim=0)) == count
    for wanted in (shares, (0, 0)):  # the second time, they are stored
        for (latents, encoded), share in zip(on_both(tmp_path / "both", count), wanted, strict=True):
            assert torch.equal(latents, whole)
            assert encoded == share
    (alone,), (both,) = ((tmp_path / name).iterdir() for name in ("alone", "both"))
    assert alone.read_bytes() == both.read_bytes()


def test_ranks_encode_again_what_one_of_them_does_not_see(tmp_path):
    clips_of(tmp_path, 4, vae=Mean(1, 1))
    assert [encoded for _, encoded in on_both(tmp_path, 4, unseen=True)] == [2, 2]


def test_a_share_that_is_not_finite_is_an_error_on_all_ranks(tmp_path):
    def encode(vae, video):
        return Mean.encode(vae, video) / (os.environ["RANK"] == "0")

    first, second = on_both(tmp_path, 4, encode)
    assert second.startswith("the latents of clips hold NaN or infinity: the autoencoder is broken")
    assert first == f"rank 1: {second}"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("other", [torch.zeros(8), torch.zeros(8, 4, 16, 2, 3).half(), torch.zeros(8, 4, 16, 2, 2)])
def test_stored_latents_of_another_form_are_made_again(tmp_path, capsys, other):
    clips_of(tmp_path, 8)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    with safe_open(path, framework="pt") as file:
        key = file.metadata()["key"]
    store(path, key, {"latents": other})
    assert clips_of(tmp_path, 8).latents.shape == (8, 4, 16, 2, 2)
    assert path.read_bytes() == whole
    assert "not of the shapes that are needed; they are made again" in capsys.readouterr().err


def test_wrong_captions_are_as_many_as_asked_for(tmp_path):
    """And everything else stays as it is."""
    clips = clips_of(tmp_path, 64)
    right, noisy = clips.batch(3, 64), clips.batch(3, 64, caption_noise=0.25)
    pairs = [tuple(map(world.read_caption, both)) for both in zip(right.captions, noisy.captions, strict=True)]
    what = ("shape", "colour", "motion", "background")
    differences = [sum(getattr(a, name) != getattr(b, name) for name in what) for a, b in pairs]
    assert max(differences) == 1
    assert abs(sum(differences) - 16) <= 3 * (64 * 0.25 * 0.75) ** 0.5
    assert torch.equal(right.objects, noisy.objects)


def test_cells_of_latents_that_an_object_touches():
    clip = world.clip("train", 0, 7)
    cells = touched(clip.scene, 16)
    covered = world.foreground(clip.scene).reshape(16, 16, 4, 16, 4).max((2, 4)) > 0.5
    assert (cells.numpy() >= covered).all()
    assert cells.float().mean() < 4 * covered.mean()
