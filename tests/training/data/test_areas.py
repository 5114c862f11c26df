"""The gradient of a decoded object's area: it foretells what evaluation reads, and goes with its clip."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import guidon
from guidon import world
from guidon.metrics.reading import read_clips
from guidon.training.data.areas import area_gradient
from guidon.training.data.latents import LatentClips, shuffled

CLIPS = 2  # of which some are played backwards, and some are not


@pytest.fixture(scope="module")
def vae():
    with guidon.load("guidon-small", device="cpu").model.vae.in_use() as found:
        yield found


def areas(vae, latents):
    frames = ((vae.decode(latents[None]) + 1) / 2).permute(0, 2, 3, 4, 1).numpy()
    return read_clips(frames).area[0]


@pytest.mark.parametrize("index", [0, pytest.param(1, marks=pytest.mark.long)])
def test_it_foretells_how_errors_of_the_latents_change_the_area(vae, index):
    clip = world.clip("L0", 5, index)
    latents = vae.encode(torch.from_numpy(clip.frames()).permute(3, 0, 1, 2)[None] * 2 - 1)[0]
    error = 0.1 * torch.randn(latents.shape, generator=torch.Generator().manual_seed(index))
    found = areas(vae, latents + error) / areas(vae, latents) - 1
    foretold = (area_gradient(vae, latents, clip.scene) * error).sum((0, 2, 3)).numpy()
    assert np.corrcoef(found, foretold)[0, 1] > 0.85
    assert 0.7 < np.std(found) / np.std(foretold) < 1.4


def test_it_is_kept_beside_the_latents_and_played_backwards_with_them(tmp_path, vae):
    clips = LatentClips.prepare(tmp_path, vae, "", CLIPS, 0, family_size=1, areas=True)
    batch = clips.batch(0, CLIPS)
    assert batch.area_gradients is not None
    backwards = 0
    for k, index in enumerate(shuffled(0, 0, CLIPS)):
        scene = clips.scene(int(index))
        reversed_ = world.read_caption(batch.captions[k]).motion != scene.things[0].motion
        backwards += reversed_
        for shown in (scene, scene.reversed()) if reversed_ else (scene,):
            gradient = area_gradient(vae, batch.latents[k], shown)
            alike = F.cosine_similarity(gradient.flatten(), batch.area_gradients[k].flatten(), 0)
            is_wrong = reversed_ and shown is scene
            assert alike < 0.9 if is_wrong else alike > 0.99
    assert 0 < backwards < CLIPS
    nothing = cast("Any", SimpleNamespace(config=vae.config))  # nothing is encoded again
    again = LatentClips.prepare(tmp_path, nothing, "", CLIPS, 0, family_size=1, areas=True)
    assert torch.equal(cast("torch.Tensor", again.area_gradients), cast("torch.Tensor", clips.area_gradients))
    without = LatentClips.prepare(tmp_path, nothing, "", CLIPS, 0, family_size=1, areas=False)
    assert without.batch(0, CLIPS).area_gradients is None
