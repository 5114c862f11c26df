"""Checkpoints of PixArt: diffusers' layout, positions, and what cannot be inflated to video."""

import pytest
import torch

from goldens import relative_error
from guidon import inspect_checkpoint, load_checkpoint
from guidon.core.errors import InputError
from guidon.models.pixart.network import PixArt, PixArtConfig

SMALL = {"hidden_size": 24, "depth": 2, "num_heads": 4, "caption_channels": 10, "model_max_length": 5}


def test_diffusers_pixart_is_translated_and_equals_diffusers(tmp_path):
    from diffusers import PixArtTransformer2DModel

    for size in (16, 128):  # diffusers adds the size embedders at 128
        torch.manual_seed(0)
        theirs = PixArtTransformer2DModel(
            num_attention_heads=3, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=2, sample_size=size,
            cross_attention_dim=48, caption_channels=10, patch_size=8 if size == 128 else 2,
        )  # fmt: skip
        for parameter in theirs.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        folder = tmp_path / str(size)
        theirs.eval().save_pretrained(folder)
        ours = load_checkpoint(folder)
        assert ours.config.micro_condition == (size == 128)
        x, t = torch.randn(2, 4, size, size), torch.tensor([5, 999])
        y, mask = torch.randn(2, 6, 10), torch.tensor([[1, 1, 1, 0, 0, 0], [1] * 6])
        sizes = {"resolution": torch.tensor([[1024.0, 1024.0]] * 2), "aspect_ratio": torch.ones(2, 1)}
        kwargs = sizes if size == 128 else {"resolution": None, "aspect_ratio": None}
        with torch.no_grad():
            expected = theirs(
                x, encoder_hidden_states=y, encoder_attention_mask=mask, timestep=t, added_cond_kwargs=kwargs
            ).sample
            assert relative_error(ours(x, t, y, mask), expected) < 1e-5
        assert "it has no null caption" in str(inspect_checkpoint(folder))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_scales_are_read_off_rounded_positions(tmp_path, dtype, scale):
    model = PixArt(PixArtConfig(16, lewei_scale=scale, hidden_size=48, depth=1, num_heads=4, caption_channels=8))
    torch.save({name: value.to(dtype) for name, value in model.state_dict().items()}, tmp_path / "half.pth")
    config = load_checkpoint(tmp_path / "half.pth", num_heads=4).config
    assert (config.lewei_scale, config.input_size) == (scale, 16)


@torch.no_grad()
def test_an_image_model_inflated_to_frames_paints_every_frame_alone(tmp_path):
    image = PixArt(PixArtConfig(8, **SMALL)).eval()
    for parameter in image.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    torch.save({"state_dict": image.state_dict()}, tmp_path / "image.pth")
    with pytest.raises(InputError, match="expected a STDiT"):
        load_checkpoint(tmp_path / "image.pth", num_heads=4, architecture="STDiT")
    before = torch.get_rng_state()
    video = load_checkpoint(tmp_path / "image.pth", num_heads=4, inflate=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    again = load_checkpoint(tmp_path / "image.pth", num_heads=4, inflate=3)
    assert all(torch.equal(again.state_dict()[name], value) for name, value in video.state_dict().items())
    assert video.config.input_size == (3, 8, 8)
    x, y, t = torch.randn(2, 4, 3, 8, 8), torch.randn(2, 5, 10), torch.tensor([3, 700])
    frames = [image(x[:, :, k], t, y) for k in range(3)]
    assert relative_error(video(x, t, y), torch.stack(frames, dim=2)) < 1e-5


def test_an_image_model_without_positions_is_inflated_at_the_size_assumed(tmp_path):
    weights = {k: v for k, v in PixArt(PixArtConfig(8, **SMALL)).state_dict().items() if k != "pos_embed"}
    torch.save(weights, tmp_path / "bare.pth")
    video = load_checkpoint(
        tmp_path / "bare.pth", num_heads=4, inflate=3, assumed={"input_size": 8, "lewei_scale": 0.5}
    )
    assert video.config.input_size == (3, 8, 8)
    assert video.config.space_scale == 0.5


def test_size_embedders_have_no_place_in_a_video_network(tmp_path):
    torch.save(PixArt(PixArtConfig(8, micro_condition=True, **SMALL)).state_dict(), tmp_path / "sizes.pth")
    with pytest.raises(InputError, match="is the multi-scale PixArt, whose size embedders have no place in STDiT"):
        load_checkpoint(tmp_path / "sizes.pth", num_heads=4, inflate=3)
