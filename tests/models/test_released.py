"""Released models: what names their weights."""

import torch
from safetensors.torch import save_file

from guidon.core.hashing import hash_samples
from guidon.models.released import weight_files
from released import change_shard, into_shards


def test_other_shards_of_a_checkpoint_have_another_hash(tmp_path):
    save_file({name: torch.ones(2) for name in "abc"}, tmp_path / "model.safetensors")
    index = into_shards(tmp_path / "model.safetensors")
    before = hash_samples(weight_files(index))
    change_shard(index)
    assert hash_samples(weight_files(index)) != before
