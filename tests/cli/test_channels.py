import json

import pytest

from guidon.analysis.channels import families
from released import make_vae


def test_known_autoencoders_are_listed(run):
    code, out, err = run("channels")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == list(families())


def test_channels_are_shown_with_what_is_left_out(run):
    code, out, err = run("channels", "sdxl")
    assert (code, err) == (0, "")
    rows = out.splitlines()
    assert rows[4].split()[0] == "3"
    assert rows[4].split()[-2:] == ["left", "out"]
    assert "left out: channel 3 (brightness), with 28% of the brightness and 6% of the colour" in out
    assert "class SDXL, commit" in rows[-1]


def test_json_holds_the_same(run):
    code, out, _ = run("channels", "wan2.1", "--cfg-channels", "0-7", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["left_out"]["channels"] == list(range(8, 16))
    assert sum(own["colour"] for own in found["channels"]) == pytest.approx(1)


def test_an_autoencoder_is_measured_on_pictures(run, refused, tmp_path):
    vae, picture = make_vae(tmp_path / "vae"), tmp_path / "noise.png"
    import numpy as np
    from PIL import Image

    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(picture)
    assert "are measured on pictures: give some files after it" in refused("channels", vae)
    code, out, _ = run("channels", vae, picture, "--device", "cpu")
    assert code == 0
    assert "least squares on 1 file" in out
    assert "a linear map explains" in out


def test_what_cannot_be_shown_is_refused(refused, tmp_path):
    assert "(did you mean 'sdxl'?)" in refused("channels", "sdx")
    assert "--cfg-channels '9' asks for more channels" in refused("channels", "sdxl", "--cfg-channels", "9")
    assert "are published: leave out the files" in refused("channels", "sdxl", "a.png")
    assert f"{tmp_path} is no folder of a diffusers pipeline" in refused("channels", f"diffusers:{tmp_path}")
    assert "is not a model folder" in refused("channels", tmp_path, "a.png")
