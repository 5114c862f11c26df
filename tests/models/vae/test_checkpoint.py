import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from guidon import inspect_checkpoint
from guidon.core.errors import InputError
from guidon.models import VideoVAE
from released import make_vae, make_video_vae


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_video_vae(tmp_path_factory.mktemp("vae"))


def test_the_released_file_is_read_with_all_its_settings(folder):
    vae = VideoVAE.load(folder)
    stored = load_file(folder / "model.safetensors")
    assert vae.state_dict().keys() == stored.keys()
    assert all(torch.equal(value, stored[name]) for name, value in vae.state_dict().items())
    assert vae.get_latent_size([51, 240, 426]) == [15, 30, 53]
    assert vae.shift.flatten().tolist() == pytest.approx([-0.10, 0.34, 0.27, 0.98])
    assert vae.posterior == "mean"
    frames = torch.rand(1, 3, 5, 16, 24) * 2 - 1
    latents = vae.encode(frames)
    assert torch.equal(latents, vae.encode(frames))
    assert latents.shape == (1, 4, 2, 2, 3)
    assert vae.decode(latents, 2, 5).shape == frames.shape
    assert VideoVAE.load(folder / "model.safetensors", torch.bfloat16).encode(frames).dtype == torch.bfloat16


def test_inspect_says_what_it_is(folder):
    report = inspect_checkpoint(folder)
    assert report.architecture == "autoencoder of Open-Sora 1.2 (VideoVAE)"
    assert report.config["channel_multipliers"] == (1, 2, 2, 4)
    assert report.config["temporal_downsample"] == (False, True, True)
    assert report.remarks == ("Open-Sora 1.2 takes its folder as its autoencoder",)


def _without(*prefixes):
    def change(tensors):
        for name in [name for name in tensors if name.startswith(prefixes)]:
            del tensors[name]

    return change


def _put(name, value):
    def change(tensors):
        tensors[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("spatial_vae"), "spatial_vae.module.encoder.conv_in.weight is not there; download hpcai-tech"),
        (_without("temporal_vae"), "temporal_vae.encoder.conv_in.conv.weight is not there"),
        (_without("scale"), "scale is not there"),
        (_without("temporal_vae.decoder.norm1"), "does not fit .* missing .*temporal_vae.decoder.norm1.bias"),
        (_put("temporal_vae.encoder.x", torch.zeros(1)), "does not fit .* unexpected .*temporal_vae.encoder.x"),
        (_put("blocks.0.attn.qkv.weight", torch.zeros(1, 1)), "does not fit .* unexpected .*blocks.0.attn.qkv"),
        (_put("shift", torch.zeros(3)), r"shift has the shape \(3,\)"),
        (_put("shift", torch.zeros(1, dtype=torch.int64)[0]), r"'shift' holds torch.int64"),
        (_put("scale", torch.full((1, 4, 1, 1, 1), float("nan"))), "tensors hold NaN or infinity"),
        (_put("temporal_vae.quant_conv.conv.weight", torch.zeros(8, 8)), "is damaged: temporal_vae.quant_conv"),
    ],
)
def test_a_damaged_incomplete_or_mixed_file_is_refused_in_one_line(folder, tmp_path, change, message):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(InputError, match=message) as error:
        VideoVAE.load(tmp_path)
    assert "\n" not in str(error.value)
    assert inspect_checkpoint(tmp_path).remarks  # the same as a remark


def test_another_autoencoder_a_bad_configuration_and_a_cut_file_are_refused(folder, tmp_path):
    make_vae(tmp_path / "sd")
    with pytest.raises(InputError, match=r"holds no autoencoder of Open-Sora 1\.2"):
        VideoVAE.load(tmp_path / "sd")
    with pytest.raises(InputError, match="it is not there"):
        VideoVAE.load(tmp_path / "none")
    data, config = (folder / "model.safetensors").read_bytes(), json.loads((folder / "config.json").read_text())
    place = tmp_path / "model.safetensors"
    place.write_bytes(data[:-100])
    with pytest.raises(InputError, match="truncated or damaged"):
        VideoVAE.load(tmp_path)
    place.write_bytes(data)
    for bad, message in (
        ({}, r"cannot be normalised in 32 groups \(num_groups\)"),
        (config | {"micro_frame_size": "17"}, "micro_frame_size '17'"),
        (config | {"vae_2d": {"norm_num_groups": 3}}, "cannot be read as a checkpoint"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(bad))
        with pytest.raises(InputError, match=message):
            VideoVAE.load(place)
