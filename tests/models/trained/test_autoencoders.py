"""Autoencoders that networks are trained on: what names them, and what is copied of them."""

import pytest
import torch

from guidon.models.trained.autoencoders import AutoencoderSource
from released import change_shard, into_shards, make_video_vae


@pytest.fixture
def index(tmp_path):
    return into_shards(make_video_vae(tmp_path / "vae") / "model.safetensors")


def test_other_shards_are_another_autoencoder(index):
    before = AutoencoderSource.find(index.parent).sha256
    change_shard(index)
    assert AutoencoderSource.find(index.parent).sha256 != before


def test_shards_are_copied_with_their_index(index, tmp_path):
    found = AutoencoderSource.find(index.parent)
    (tmp_path / "model").mkdir()
    found.copy_to(tmp_path / "model")
    copied = AutoencoderSource.find(tmp_path / "model" / "vae")
    assert copied.sha256 == found.sha256
    again = copied.load().state_dict()
    for name, value in found.load().state_dict().items():
        assert torch.equal(again[name], value)
