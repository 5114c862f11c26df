"""The distilled network of the shipped model is told how strongly each channel is guided, and draws at every strength."""

import numpy as np
import pytest

import guidon
from guidon import world
from guidon.metrics.bench import find_bench


@pytest.fixture(scope="module")
def pipe():
    return guidon.load("guidon-small", device="cpu")


@pytest.mark.parametrize(
    ("cfg_scale", "cfg_channels"), [(6, "only:3"), pytest.param(7, "only:1", marks=pytest.mark.long)]
)
def test_fast_draws_an_object_at_strengths_far_from_the_usual_one(pipe, cfg_scale, cfg_channels):
    prompts = [world.clip("L0", 55, index).caption for index in range(12, 20)]
    videos = pipe(prompts, seed=1, fast=True, cfg_scale=cfg_scale, cfg_channels=cfg_channels)
    found = find_bench("world").measure(np.stack([video.frames for video in videos]), prompts)
    assert found["one_object"].mean() >= 0.75  # networks that had forgotten what strengths mean drew half, or none
