"""The gradient of a decoded object's area: it foretells what evaluation reads, and goes with its clip."""

import numpy as np
import torch

import guidon
from guidon import world
from guidon.evaluation.reading import read_clips
from guidon.training.areas import area_gradient
from guidon.training.data import LatentClips


def areas(vae, latents):
    frames = ((vae.decode(latents[None]) + 1) / 2).permute(0, 2, 3, 4, 1).numpy()
    return read_clips(frames).area[0]


def test_it_foretells_how_errors_of_the_latents_change_the_area():
    clips = [world.clip("L0", 5, index) for index in range(4)]
    generator = torch.Generator().manual_seed(0)
    with guidon.load("guidon-small").parts.vae.in_use() as vae:
        for clip in clips:
            latents = vae.encode(torch.from_numpy(clip.frames()).permute(3, 0, 1, 2)[None] * 2 - 1)[0]
            error = 0.1 * torch.randn(latents.shape, generator=generator)
            found = areas(vae, latents + error) / areas(vae, latents) - 1
            foretold = (area_gradient(vae, latents, clip.scene) * error).sum((0, 2, 3)).numpy()
            assert np.corrcoef(found, foretold)[0, 1] > 0.85
            assert 0.7 < np.std(found) / np.std(foretold) < 1.4


def test_it_is_kept_beside_the_latents_and_played_backwards_with_them(tmp_path):
    with guidon.load("guidon-small").parts.vae.in_use() as vae:
        clips = LatentClips(tmp_path, vae, "", 4, 0, families=True, areas=True)
        latents, captions, _, gradients = clips.batch(0, 4)
        for k in range(4):
            scene = clips.scene(k)
            backwards = world.read_caption(captions[k]).motion != scene.things[0].motion
            right = area_gradient(vae, latents[k], scene.reversed() if backwards else scene)
            assert torch.nn.functional.cosine_similarity(right.flatten(), gradients[k].flatten(), 0) > 0.99
    again = LatentClips(tmp_path, None, "", 4, 0, families=True, areas=True)  # nothing is coded again
    assert torch.equal(again.areas, clips.areas)
    assert LatentClips(tmp_path, None, "", 4, 0, families=True, areas=False).batch(0, 4).areas is None
