import json

import pytest
import torch

from guidon.errors import InputError
from guidon.models.vae import FrameVAE
from released import make_vae


@torch.no_grad()
def test_a_released_autoencoder_codes_video_and_images_as_diffusers_does(tmp_path):
    from diffusers import AutoencoderKL

    vae, theirs = FrameVAE.load(make_vae(tmp_path)), AutoencoderKL.from_pretrained(tmp_path)
    assert vae.config.downsampling == 8
    assert vae.config.scaling_factor == 0.18215
    frames = torch.rand(2, 3, 3, 32, 16) * 2 - 1
    latents = vae.encode(frames)
    assert latents.shape == (2, 4, 3, 4, 2)
    for k in range(3):
        expected = theirs.encode(frames[:, :, k]).latent_dist.mean * 0.18215
        assert torch.allclose(latents[:, :, k], expected, atol=1e-5)
        shown = theirs.decode(latents[:, :, k] / 0.18215).sample.clamp(-1, 1)
        assert torch.allclose(vae.decode(latents, micro_batch=1)[:, :, k], shown, atol=1e-5)
        assert torch.allclose(vae.decode(latents[:, :, k]), shown, atol=1e-5)
        assert torch.allclose(vae.encode(frames[:, :, k]), expected, atol=1e-5)


def test_what_is_missing_or_damaged_is_named_in_one_line(tmp_path):
    with pytest.raises(InputError, match="download the hub repository stabilityai/sd-vae-ft-ema"):
        FrameVAE.load(tmp_path)
    folder = make_vae(tmp_path / "root" / "vae")
    assert FrameVAE.load(tmp_path / "root").config.latent_channels == 4
    weights = folder / "diffusion_pytorch_model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:1000])
    with pytest.raises(InputError, match="cannot be read as an autoencoder") as error:
        FrameVAE.load(folder)
    assert "\n" not in str(error.value)
    weights.unlink()
    with pytest.raises(InputError, match="holds no autoencoder"):
        FrameVAE.load(folder)
    weights.write_bytes(data)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"_class_name": "UNet2DModel"}))
    with pytest.raises(InputError, match="expected an AutoencoderKL"):
        FrameVAE.load(folder)
