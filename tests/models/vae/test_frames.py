import pytest
import torch

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


def test_the_library_is_imported_on_a_real_device_where_the_module_is_built_without_memory(monkeypatch):
    seen, require = [], frames.require

    def noted(*arguments):
        seen.append(torch.empty(0).device.type)
        return require(*arguments)

    monkeypatch.setattr(frames, "require", noted)
    with torch.device("meta"):
        vae = FrameVAE(FrameVAEConfig(block_out_channels=(8, 8), norm_num_groups=4))
    assert seen == ["cpu"]
    assert {value.device.type for value in vae.parameters()} == {"meta"}
