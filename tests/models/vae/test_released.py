import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from guidon.core.errors import InputError
from guidon.models.vae.frames import FrameVAE
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
    with pytest.raises(InputError, match="hub repository, such as stabilityai/sd-vae-ft-ema"):
        FrameVAE.load(tmp_path)
    folder = make_vae(tmp_path / "root" / "vae")
    assert FrameVAE.load(tmp_path / "root").config.latent_channels == 4
    weights = folder / "diffusion_pytorch_model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:1000])
    with pytest.raises(InputError, match=r"cannot be read as safetensors: its header .*truncated or damaged") as error:
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


@torch.no_grad()
def test_files_as_old_releases_have_them(tmp_path):
    expected = FrameVAE.load(make_vae(tmp_path))
    weights, config = tmp_path / "diffusion_pytorch_model.safetensors", tmp_path / "config.json"
    tensors, stored = load_file(weights), json.loads(config.read_text())
    stored.pop("scaling_factor")  # sd-vae-ft-ema was released without one
    config.write_text(json.dumps(stored))
    torch.save(tensors, tmp_path / "diffusion_pytorch_model.bin")
    weights.unlink()
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    found = FrameVAE.load(tmp_path)
    assert found.config.scaling_factor == 0.18215
    assert torch.equal(found.encode(image), expected.encode(image))

    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, name in old.items():
        tensors = {key.replace(f"attentions.0.{new}", f"attentions.0.{name}"): t for key, t in tensors.items()}
    assert any("proj_attn" in key for key in tensors)
    save_file(tensors, weights)
    assert torch.equal(FrameVAE.load(tmp_path).encode(image), expected.encode(image))


def test_what_would_be_filled_with_random_numbers_or_decoded_wrongly_is_refused(tmp_path, capfd):
    folder = make_vae(tmp_path)
    weights, config = folder / "diffusion_pytorch_model.safetensors", folder / "config.json"
    tensors, stored = load_file(weights), json.loads(config.read_text())
    save_file({key: t for key, t in tensors.items() if "mid_block" not in key}, weights)
    capfd.readouterr()
    with pytest.raises(InputError, match=r"incomplete.* such as decoder\.mid_block"):
        FrameVAE.load(folder)
    assert capfd.readouterr().err == ""
    save_file(tensors, weights)
    config.write_text(json.dumps(stored | {"scaling_factor": 1.5305, "shift_factor": 0.0609}))
    with pytest.raises(InputError, match="has a shift_factor"):
        FrameVAE.load(folder)
    config.write_text(json.dumps(stored | {"scaling_factor": 0.5}))
    assert FrameVAE.load(folder).config.scaling_factor == 0.5


def test_half_precision_takes_what_the_samplers_give(tmp_path):
    folder, latents = make_vae(tmp_path), torch.randn(1, 4, 2, 2, 2)
    half, full = FrameVAE.load(folder, torch.bfloat16), FrameVAE.load(folder)
    assert half.decode(latents).dtype == torch.bfloat16
    assert torch.allclose(half.decode(latents).float(), full.decode(latents), atol=0.1)
    assert half.encode(torch.zeros(1, 3, 2, 16, 16)).dtype == torch.bfloat16
