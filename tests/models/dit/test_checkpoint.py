"""Checkpoints of DiT in diffusers' layout."""

import pytest
import torch
from safetensors.torch import save_file

from goldens import relative_error
from guidon import inspect_checkpoint, load_checkpoint
from guidon.core.errors import InputError
from guidon.models.dit.classes import ClassLabels


def test_diffusers_dit_is_translated_and_equals_diffusers_once_its_timestep_frequencies_are_dits(tmp_path):
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    theirs = DiTTransformer2DModel(
        num_attention_heads=3, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        num_embeds_ada_norm=7, norm_eps=1e-6,
    )  # fmt: skip
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    first = theirs.transformer_blocks[0].norm1.emb
    for block in theirs.transformer_blocks:
        block.norm1.emb.load_state_dict(first.state_dict())  # as in a converted checkpoint
    theirs.eval().save_pretrained(tmp_path)
    ours = load_checkpoint(tmp_path)
    x, t, y = torch.randn(3, 4, 8, 8), torch.tensor([5, 300, 999]), torch.tensor([0, 6, 7])
    with torch.no_grad():
        wrong = theirs(x, timestep=t, class_labels=y).sample
        for block in theirs.transformer_blocks:  # diffusers hard-codes 1 here, DiT has 0
            block.norm1.emb.time_proj.downscale_freq_shift = 0
        right = theirs(x, timestep=t, class_labels=y).sample
        assert relative_error(ours(x, t, y), right) < 1e-5
        assert relative_error(wrong, right) > 1e-3
    weights = theirs.state_dict()
    weights["transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias"] += 1
    save_file(weights, tmp_path / "diffusion_pytorch_model.safetensors")
    # blocks whose embedders differ were trained in diffusers, with its frequencies and its epsilon
    own = load_checkpoint(tmp_path)
    for block in theirs.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 1
    theirs.load_state_dict(weights)
    with torch.no_grad():
        assert relative_error(own(x, t, y), theirs(x, timestep=t, class_labels=y).sample) < 1e-5
    assert "embedders of its own" in str(inspect_checkpoint(tmp_path))
    del weights["transformer_blocks.1.norm1.emb.timestep_embedder.linear_2.bias"]
    save_file(weights, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(InputError, match=r"blocks\.1\.t_embedder\.mlp\.2\.bias"):
        load_checkpoint(tmp_path)


def test_the_name_of_a_class_may_be_a_number_and_stands_for_its_own_class():
    names = ClassLabels(3, {"10": 0, "2": 1, "cat": 2})
    labels, _ = names.encode(["10", "2", "cat", "0", " 2 "])
    assert labels.tolist() == [0, 1, 2, 0, 1]
    with pytest.raises(InputError, match="'3' is not a class of this model"):
        names.check(["3"])
