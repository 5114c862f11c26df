import pytest
import torch
from torch.nn import functional as F

from guidon.core.devices import autocast
from guidon.core.errors import InputError
from guidon.models.vae import frames
from guidon.models.vae.frames import FrameVAE, FrameVAEConfig


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return FrameVAE(FrameVAEConfig(block_out_channels=(8, 8, 8), norm_num_groups=4, scaling_factor=0.5)).eval()


def test_shapes_there_and_back(vae):
    latents = vae.encode(torch.rand(2, 3, 5, 64, 48) * 2 - 1)
    assert vae.config.downsampling == 8
    assert latents.shape == (2, 4, 5, 8, 6)
    frames = vae.decode(latents)
    assert frames.shape == (2, 3, 5, 64, 48)
    assert frames.abs().max() <= 1


def test_micro_batches_change_nothing_and_frames_do_not_see_each_other(vae):
    frames = torch.rand(1, 3, 5, 64, 64) * 2 - 1
    whole = vae.encode(frames)
    assert torch.allclose(vae.encode(frames, micro_batch=2), whole, atol=1e-5)
    assert torch.allclose(vae.encode(frames[:, :, 3:4]), whole[:, :, 3:4], atol=1e-5)
    assert torch.allclose(vae.decode(whole, micro_batch=1), vae.decode(whole), atol=1e-5)


def test_latents_carry_the_scaling_factor(vae):
    image = torch.rand(1, 3, 1, 64, 64) * 2 - 1
    with torch.no_grad():
        mean, _ = vae.posterior(image[:, :, 0])
        assert torch.allclose(vae.encode(image)[:, :, 0], 0.5 * mean)
        assert torch.allclose(vae.decode(vae.encode(image))[:, :, 0], vae.reconstruct(mean).clamp(-1, 1), atol=1e-5)


def test_our_own_are_built_without_the_library_and_without_memory(monkeypatch):
    monkeypatch.setattr(frames, "require", None)
    with torch.device("meta"):
        vae = FrameVAE(FrameVAEConfig(block_out_channels=(8, 8), norm_num_groups=4))
    assert {value.device.type for value in vae.parameters()} == {"meta"}


def test_the_library_is_imported_on_a_real_device_where_a_module_is_built_without_memory(monkeypatch):
    seen, require = [], frames.require

    def noted(*arguments):
        seen.append(torch.empty(0).device.type)
        return require(*arguments)

    monkeypatch.setattr(frames, "require", noted)
    with torch.device("meta"):
        frames.autoencoder_kl()
    assert seen == ["cpu"]


@torch.no_grad()
@pytest.mark.parametrize(
    "shape",
    [
        {"block_out_channels": (8, 12), "layers_per_block": 2, "latent_channels": 3},
        {"block_out_channels": (8, 8, 16), "mid_block_attention": True, "pixel_unshuffle": 1},
        {"block_out_channels": (8,), "mid_block_attention": True},
    ],
)
def test_weights_and_bits_are_those_of_the_library(shape):
    from diffusers import AutoencoderKL

    config = FrameVAEConfig(norm_num_groups=4, **shape)
    levels, pixels = len(config.block_out_channels), 3 * config.pixel_unshuffle**2
    torch.manual_seed(0)
    theirs = AutoencoderKL(
        in_channels=pixels,
        out_channels=pixels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=4,
        mid_block_add_attention=config.mid_block_attention,
    )
    torch.manual_seed(0)
    ours, wrapped = FrameVAE(config).eval(), FrameVAE(config, theirs).eval()
    assert list(ours.state_dict()) == list(wrapped.state_dict())
    for name, value in wrapped.state_dict().items():  # made in the same order, so the same numbers were drawn
        assert torch.equal(ours.state_dict()[name], value), name
    images = torch.rand(2, 3, 16, 32) * 2 - 1
    for one, other in zip(ours.posterior(images), wrapped.posterior(images), strict=True):
        assert torch.equal(one, other)
    latents = torch.randn(2, config.latent_channels, 4, 8)
    assert torch.equal(ours.reconstruct(latents), wrapped.reconstruct(latents))
    exact = ours.reconstruct(latents)
    with autocast("bf16", latents.device):
        rounded = [each.reconstruct(latents) for each in (ours, wrapped)]
    for each in rounded:
        assert 0 < (each - exact).abs().max() < 0.03 * exact.abs().max()


@torch.no_grad()
def test_a_plain_frame_has_no_ticks_where_borders_are_replicated():
    """Every convolution then sees the same everywhere, so a plain frame stays plain, whatever the weights."""
    torch.manual_seed(0)
    shape = {"block_out_channels": (8, 8, 8), "norm_num_groups": 4}
    plain = torch.tensor([0.3, -0.6, 0.1])[None, :, None, None].expand(1, 3, 64, 48)

    def spread(padding):
        vae = FrameVAE(FrameVAEConfig(**shape, padding=padding)).eval()
        mean, _ = vae.posterior(plain)
        drawn = vae.reconstruct(mean.mean((2, 3), keepdim=True).expand_as(mean))
        cells = F.pixel_unshuffle(
            drawn, vae.config.pixel_unshuffle
        )  # within a cell of 2x2 pixels, each has its weights
        return mean.std((2, 3)).max(), cells.std((2, 3)).max()

    assert max(spread("replicate")) < 1e-5
    assert min(spread("zeros")) > 1e-3


def test_the_padding_changes_neither_shapes_nor_names():
    shape = {"block_out_channels": (8, 8, 8), "norm_num_groups": 4}
    zeros, replicate = (FrameVAE(FrameVAEConfig(**shape, padding=name)) for name in ("zeros", "replicate"))
    ours, theirs = ({k: v.shape for k, v in vae.state_dict().items()} for vae in (zeros, replicate))
    assert ours == theirs
    assert replicate.encode(torch.zeros(1, 3, 2, 64, 48)).shape == (1, 4, 2, 8, 6)
    with torch.device("meta"):
        FrameVAE(FrameVAEConfig(**shape, padding="replicate"))  # as it is built to load weights
    with pytest.raises(InputError, match="padding is 'zero', expected zeros or replicate"):
        FrameVAE(FrameVAEConfig(**shape, padding="zero"))
