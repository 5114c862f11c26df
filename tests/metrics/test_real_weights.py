"""Learned metrics with released weights: what random networks cannot show. ``make test-weights WEIGHTS=FOLDER``.

The folder holds ``clip`` (openai/clip-vit-large-patch14), ``dino`` (facebook/dinov2-base), ``lpips``
(alexnet-owt-7be5be79.pth and alex.pth) and ``aesthetic-model.pth`` (trl-lib/ddpo-aesthetic-predictor).
"""

import os
from pathlib import Path

import numpy as np
import pytest

from guidon import world
from guidon.metrics.bench import open_bench
from guidon.metrics.choice import BenchChoice

FOLDER = os.environ.get("GUIDON_WEIGHTS", "")
pytestmark = [
    pytest.mark.real_weights,
    pytest.mark.skipif(not FOLDER, reason="needs released weights: make test-weights WEIGHTS=FOLDER"),
]
COUNT = 8
CAPTIONS = [world.clip("L0", 5, k).caption for k in range(COUNT)]


@pytest.fixture(scope="module")
def bench():
    folder = Path(FOLDER)
    parts = {name: folder / name for name in ("clip", "dino", "lpips")}
    return open_bench(BenchChoice(**parts, aesthetic=folder / "aesthetic-model.pth"), "video")


@pytest.fixture(scope="module")
def clips():
    return np.stack([(world.clip("L0", 5, k).frames() * 255).round().astype(np.uint8) for k in range(COUNT)])


@pytest.fixture(scope="module")
def truth(bench, clips):
    return bench.measure(clips, CAPTIONS)


def test_a_wrong_caption_fits_less(bench, clips, truth):
    wrong = bench.measure(clips, CAPTIONS[1:] + CAPTIONS[:1])
    assert wrong["text_alignment"].mean() < truth["text_alignment"].mean()
    assert (wrong["text_alignment"] < truth["text_alignment"]).mean() > 0.7


def test_faults_are_ranked_below_truth(bench, clips, truth):
    order = np.random.default_rng(0).permutation(clips.shape[1])
    odd = np.arange(clips.shape[1])[:, None, None, None] % 2
    for fault, frames in {"shuffled": clips[:, order], "flicker": np.where(odd, clips // 2, clips)}.items():
        found = bench.measure(frames, CAPTIONS)
        assert found["lpips_next"].mean() > truth["lpips_next"].mean(), fault
        for name in ("subject_consistency", "background_consistency"):
            assert found[name].mean() < truth[name].mean(), (fault, name)


def test_a_photograph_is_known_and_noise_is_ugly(bench):
    data = pytest.importorskip("skimage.data")
    photo = np.stack([data.astronaut()[k : k + 400, k : k + 400] for k in range(4)])
    noise = np.random.default_rng(0).integers(0, 256, photo.shape, np.uint8)
    both = np.stack((photo, noise, photo))
    found = bench.measure(both, ["a portrait of an astronaut", "a portrait of an astronaut", "a bowl of noodles"])
    right, on_noise, wrong = found["text_alignment"]
    assert right > max(on_noise, wrong) + 0.05
    assert found["aesthetic"][0] > found["aesthetic"][1]
    assert 3 < found["aesthetic"][0] < 8
