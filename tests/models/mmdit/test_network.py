import dataclasses

import pytest
import torch
from safetensors.torch import save_file

import guidon
from goldens import golden, relative_error
from guidon.core.errors import InputError
from guidon.models import MMDiT, MMDiTConfig
from guidon.models.mmdit.network import pack, positions, unpack

GOLDENS = "open_sora_1_1_to_2_0/mmdit"
ARGUMENTS = ("img", "img_ids", "txt", "txt_ids", "timesteps", "y_vec", "cond", "guidance")


def original(name):
    """A network with the weights of a golden, what it is called with, and what it gives."""
    numbers, case = golden(f"{GOLDENS}/{name}")
    network = MMDiT(MMDiTConfig(**case["config"])).eval().requires_grad_(False)
    network.load_state_dict(
        {key.removeprefix("weights."): numbers[key] for key in numbers if key.startswith("weights.")}
    )
    return network, {key: numbers[key] for key in ARGUMENTS if key in numbers}, numbers["out"]


@pytest.mark.parametrize("name", ["a_liger", "b_flux"])
def test_the_numbers_of_the_original(name):
    network, called_with, expected = original(name)
    assert relative_error(network(**called_with), expected) < 1e-5


def test_the_pairs_that_are_rotated_matter():
    network, called_with, expected = original("a_liger")
    other = MMDiT(dataclasses.replace(network.config, use_liger_rope=False))
    other.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert relative_error(other(**called_with), expected) > 1e-3


def test_tokens_are_whole_patches_in_the_order_of_their_positions():
    latents = torch.arange(2 * 3 * 2 * 4 * 6).float().view(2, 3, 2, 4, 6)
    tokens, ids = pack(latents), positions((2, 4, 6))
    assert tokens.shape == (2, 12, 12)
    assert ids.shape == (12, 3)
    t, y, x = (int(number) for number in ids[7])
    assert torch.equal(tokens[1, 7], latents[1, :, t, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].flatten())
    assert torch.equal(unpack(tokens, (2, 4, 6)), latents)
    with pytest.raises(InputError, match="no whole patches of 2x2"):
        pack(latents[..., :3])


def test_what_the_network_needs_is_asked_for():
    network, called_with, _ = original("a_liger")
    with pytest.raises(InputError, match="is given an image in cond: give zeros for none"):
        network(**called_with | {"cond": None})
    with pytest.raises(InputError, match="ids have 2 and 3 coordinates, this network 3"):
        network(**called_with | {"img_ids": called_with["img_ids"][..., :2]})
    told, called_with, _ = original("b_flux")
    with pytest.raises(InputError, match="is told the guidance scale"):
        told(**called_with | {"guidance": None})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fused_qkv": True}, "does not tell which pairs it rotates: give use_liger_rope"),
        ({"axes_dim": [16, 56, 54]}, "does not share out the 128 values of a head"),
        ({"num_heads": 7}, "cannot be shared by 7 heads"),
        ({"in_channels": 63}, "no whole latent pixels of a patch of 2x2"),
        ({"depth": -1}, "cannot be made"),
    ],
)
def test_shapes_that_cannot_be_made_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        MMDiTConfig(**settings)


def test_a_checkpoint_is_told_and_read(tmp_path):
    network, called_with, expected = original("a_liger")
    place = tmp_path / "Open_Sora_v2.safetensors"
    save_file(network.state_dict(), place)
    report = guidon.inspect_checkpoint(place)
    assert report.architecture == "MMDiT"
    assert "its autoencoder and its text encoders are not read" in report.remarks[0]
    assert "heads of 16 values: give axes_dim" in report.remarks[1]
    read = guidon.load_checkpoint(place, axes_dim=(4, 6, 6))
    assert read.config == network.config
    assert relative_error(read(**called_with), expected) < 1e-5


def test_a_fused_checkpoint_does_not_tell_which_pairs_it_rotates(tmp_path):
    network, called_with, expected = original("b_flux")
    save_file(network.state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="does not tell which pairs it rotates: give use_liger_rope"):
        guidon.load_checkpoint(tmp_path / "a.safetensors", axes_dim=(4, 4, 4))
    read = guidon.load_checkpoint(tmp_path / "a.safetensors", axes_dim=(4, 4, 4), use_liger_rope=False)
    assert relative_error(read(**called_with), expected) < 1e-5
    assert (
        "it is given no image, as FLUX's networks are"
        in guidon.inspect_checkpoint(tmp_path / "a.safetensors").remarks[-1]
    )


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("txt_in.weight", None, "txt_in.weight is missing"),
        ("final_layer.linear.bias", None, "does not fit MMDiT: missing .*final_layer.linear.bias"),
        ("blocks.0.attn.qkv.weight", torch.zeros(1, 1), "does not fit MMDiT"),
        ("img_in.bias", torch.full((32,), float("nan")), "tensors hold NaN"),
    ],
)
def test_an_incomplete_mixed_or_broken_checkpoint_is_refused(tmp_path, name, value, message):
    tensors = original("a_liger")[0].state_dict()
    tensors.pop(name, None)
    save_file(tensors if value is None else tensors | {name: value}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=message) as error:
        guidon.load_checkpoint(tmp_path / "a.safetensors", axes_dim=(4, 6, 6))
    assert "\n" not in str(error.value)
