"""What latent channels show: exact on linear decoders, and plausible on the published factors."""

import json
import subprocess
import sys

import numpy as np
import pytest

import guidon
from guidon.analysis.channels import AXES, Channel, Channels, families, fit, measure, measure_model, published
from guidon.core.errors import InputError

COUNTS = {
    "sd": 4,
    "sdxl": 4,
    "sd3": 16,
    "flux": 16,
    "wan2.1": 16,
    "wan2.2": 48,
    "ltx": 128,
    "hunyuan-video": 16,
    "hunyuan-image": 64,
    "mochi": 12,
    "cosmos": 16,
}


def of(*factors):
    return Channels("x", "x", "x", tuple(Channel(k, rgb, 1.0) for k, rgb in enumerate(factors)))


def test_axes_are_at_right_angles_so_that_shares_add_up():
    axes = np.array(list(AXES.values()))
    assert axes @ axes.T == pytest.approx(np.eye(3), abs=1e-12)


def test_shares_are_those_of_known_channels():
    grey, redder, blue = (0.5, 0.5, 0.5), (0.3, -0.3, 0.0), (-0.2, -0.2, 0.4)
    found = of(grey, redder, blue)
    assert found.brightness == pytest.approx((1, 0, 0))
    assert found.colour == pytest.approx((0, 0.18 / 0.42, 0.24 / 0.42))
    assert [own.carries for own in found.channels] == [("brightness",), ("red-green",), ("blue-yellow",)]
    assert [own.words for own in found.channels] == ["brighter", "redder", "bluer"]
    assert found.channels[0].swatch == ((0, 0, 0), (1, 1, 1))
    assert found.channels[1].swatch == ((0, 1, 0.5), (1, 0, 0.5))


def test_a_summary_says_what_is_left_out():
    found = of((0.5, 0.5, 0.5), (0.3, -0.3, 0.0), (0.0, 0.0, 0.0), (-0.2, -0.2, 0.4))
    assert found.summary(3) == (
        "cfg_channels 3 guides channels 0 to 2; left out: channel 3 (blue-yellow), with 0% of the brightness and 57% of the colour"
    )
    assert found.summary("all") == "cfg_channels all guides channels 0 to 3; nothing is left out"
    assert found.summary("none").startswith(
        "cfg_channels none guides no channel; left out: 4 of 4 channels, with 100% of"
    )
    assert "guides channel 2; left out: " in found.summary("only:2")
    with pytest.raises(InputError, match="this model has 4 latent channels"):
        found.summary(5)


@pytest.mark.parametrize("name", COUNTS)
def test_published_factors_have_a_row_for_each_channel_and_a_source(name):
    found = published(name)
    assert len(found.channels) == COUNTS[name]
    assert "ComfyUI" in found.source
    assert sum(found.brightness) == pytest.approx(1) == sum(found.colour)
    assert all(0 < max(map(abs, own.factors)) < 1.5 for own in found.channels)
    assert set(families()) == set(COUNTS)


def test_the_choice_of_three_leaves_out_colour_in_sd_and_brightness_in_sdxl():
    sd, sdxl = published("sd"), published("sdxl")
    assert sd.channels[3].carries == ("brightness", "blue-yellow")
    assert sdxl.channels[3].carries == ("brightness",)
    assert sd.colour[3] > 5 * sdxl.colour[3]


def test_an_autoencoder_is_found_by_model_class_and_folder(tmp_path):
    names = {
        "SD-1.5": "sd",
        "Qwen Image": "wan2.1",
        "open-sora-1.0-16x256x256": "sd",
        "WanPipeline": "wan2.1",
        "StableDiffusionXLPipeline": "sdxl",
        "StableDiffusion3Pipeline": "sd3",
        "StableDiffusionPipeline": "sd",
        "PixArtSigmaPipeline": "sdxl",
    }
    assert {name: published(name).name for name in names} == names
    for name in ("Flux2Pipeline", "HunyuanVideo15Pipeline", "LTX2Pipeline"):  # other autoencoders
        with pytest.raises(InputError, match="no latent channels of"):
            published(name)
    (tmp_path / "vae").mkdir()
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    for count, family in ((16, "wan2.1"), (48, "wan2.2")):
        (tmp_path / "vae" / "config.json").write_text(json.dumps({"z_dim": count}))
        assert published(str(tmp_path)).name == family
    (tmp_path / "vae" / "config.json").write_text(json.dumps({"z_dim": 5}))
    with pytest.raises(InputError, match="a WanPipeline with 5 latent channels"):
        published(str(tmp_path))
    (tmp_path / "vae" / "config.json").write_text(json.dumps({"z_dim": "many"}))
    with pytest.raises(InputError, match="cannot be read as the configuration of an autoencoder"):
        published(str(tmp_path))


def test_a_name_that_does_not_exist_is_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"'wann' are known \(did you mean 'wan'\?\); known: sd, sdxl, sd3"):
        published("wann")
    with pytest.raises(InputError, match="known: sd, sdxl, sd3"):
        published("xyz")


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("stabilityai/stable-diffusion-xl-base-1.0", "sdxl"), ("black-forest-labs/FLUX.1-dev", "flux"),
        ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "wan2.1"), ("Wan2.2-T2V-A14B-Diffusers", "wan2.1"),
        ("Wan-AI/Wan2.2-TI2V-5B", "wan2.2"),
    ],
)  # fmt: skip
def test_names_of_the_hub_are_known(name, family):
    assert published(name).name == family


@pytest.mark.parametrize("name", ["cogvideox", "adaptive"])
def test_a_name_that_is_like_none_gets_no_hint(name):
    with pytest.raises(InputError, match=f"{name}' are known; known: sd, sdxl"):
        published(name)


def test_the_fit_finds_a_linear_map():
    rng = np.random.default_rng(0)
    latents, factors = rng.normal(size=(500, 4)), rng.normal(size=(4, 3))
    found, constant, explained = fit(latents, latents @ factors + [0.1, 0.2, 0.3])
    assert found == pytest.approx(factors)
    assert constant == pytest.approx([0.1, 0.2, 0.3])
    assert explained == pytest.approx(1)
    noisy = latents @ factors + 2 * rng.normal(size=(500, 3))
    assert 0 < fit(latents, noisy)[2] < 0.8
    with pytest.raises(InputError, match="4 places are too few to fit 4 channels"):
        fit(latents[:4], noisy[:4])
    with pytest.raises(InputError, match="do not vary"):
        fit(latents, np.ones((500, 3)))


class Linear:
    """An autoencoder whose channels are brightness, red-green and an unused one, of blocks of 4 x 4 px."""

    factors = ((0.5, 0.5, 0.5), (0.4, -0.4, 0.0), (0.0, 0.0, 0.0))

    def encode(self, x):
        import torch

        small = torch.nn.functional.avg_pool3d(x, (1, 4, 4))
        noise = torch.randn(small[:, :1].shape, generator=torch.Generator().manual_seed(0))
        return torch.cat((small.mean(1, keepdim=True) * 2, (small[:, :1] - small[:, 1:2]) / 0.8, noise), dim=1)

    def decode(self, latents, micro_batch=1, frames=None):
        import torch

        shown = torch.einsum("bcthw,cr->brthw", latents, torch.tensor(self.factors))
        return shown.repeat_interleave(4, -1).repeat_interleave(4, -2)


def test_a_linear_decoder_is_measured_exactly():
    rng = np.random.default_rng(0)
    clips = [rng.integers(0, 256, (length, 22, 30, 3), np.uint8) for length in (1, 20)]  # cut to 20 x 28
    found = measure(Linear(), clips, step=4, device="cpu", name="mine", source="noise")
    assert np.array([own.factors for own in found.channels]) == pytest.approx(np.array(Linear.factors), abs=1e-6)
    assert found.explained == pytest.approx(1)
    assert found.channels[2].spread == pytest.approx(1, abs=0.1)
    with pytest.raises(InputError, match="a picture of 2x3 is too small: give at least 4x4"):
        measure(Linear(), [np.zeros((1, 3, 2, 3), np.uint8)], step=4, device="cpu", name="x", source="x")
    with pytest.raises(InputError, match="there is no picture"):
        measure(Linear(), [], step=4, device="cpu", name="x", source="x")


def test_the_shipped_model_is_measured_on_its_own_clips():
    found = measure_model(guidon.load("guidon-small", device="cpu"))
    assert len(found.channels) == 4
    assert found.source == "least squares on 8 clips of the bench world"
    assert 0.2 < found.explained < 1
    assert sum(found.colour) == pytest.approx(1)


def test_published_channels_need_no_torch():
    code = "import sys; from guidon.analysis.channels import published; published('wan').summary(3); print('torch' in sys.modules, 'numpy' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "False False\n"
    )
