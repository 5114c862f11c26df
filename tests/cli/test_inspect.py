import json
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from released import make_checkpoints


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.mark.parametrize(
    ("name", "architecture"), [("video.pth", "STDiT"), ("class.pt", "DiT"), ("image.pth", "PixArt")]
)
def test_a_checkpoint_is_described(run, folder, name, architecture):
    code, out, err = run("inspect", folder / name)
    assert (code, err) == (0, "")
    assert architecture in out


def test_heads_may_be_given(run, folder):
    assert "num_heads 12," in run("inspect", folder / "class.pt", "--num-heads", 12)[1]


def test_what_is_no_checkpoint_is_refused(refused, tmp_path):
    (tmp_path / "a.pt").write_bytes(b"nothing")
    assert "a.pt" in refused("inspect", tmp_path / "a.pt")
    assert "none.pt" in refused("inspect", tmp_path / "none.pt")


@pytest.mark.parametrize("name", ["guidon-small", "folder"])
def test_of_a_model_folder_every_file_is_described(run, tiny_model, name):
    code, out, err = run("inspect", tiny_model if name == "folder" else name)
    assert (code, err) == (0, "")
    for part in ("denoiser", "text encoder", "autoencoder"):
        assert f"Guidon's own {part}, " in out
    assert max(map(len, out.splitlines())) < 600  # a vocabulary is counted


PARTS = {
    "autoencoder (AutoencoderKL)": {"decoder.conv_in.weight": (8, 4, 3, 3), "encoder.conv_in.weight": (8, 3, 3, 3)},
    "T5 text encoder": {"encoder.block.1.layer.0.SelfAttention.q.weight": (8, 16)},
    "CLIP text encoder": {"text_model.embeddings.token_embedding.weight": (9, 8)},
    "U-Net of diffusers": {"down_blocks.0.resnets.0.conv1.weight": (8, 8, 3, 3)},
}


@pytest.mark.parametrize("kind", PARTS)
def test_a_part_of_a_model_is_told_for_what_it_is(run, refused, tmp_path, kind):
    save_file({name: torch.zeros(shape) for name, shape in PARTS[kind].items()}, tmp_path / "a.safetensors")
    code, out, err = run("inspect", tmp_path / "a.safetensors")
    assert (code, err) == (0, "")
    assert kind in out
    assert ("latent_channels 4" in out) == kind.startswith("auto")
    assert ("layers 2, d_model 16" in out) == kind.startswith("T5")


def _pickle(path):
    path.write_bytes(pickle.dumps({"a": 1}, protocol=5))


def _zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "x")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (_pickle, "it is a pickle that torch.save did not write"),
        (_zip, "is a zip file that torch.save did not write"),
        (lambda path: torch.save({"a": torch.zeros(1)}, path, pickle_protocol=4), "was pickled with protocol 4"),
        (lambda path: path.write_text("title: x"), "it is a text file"),
        (lambda path: path.write_text("{}"), "it is JSON"),
        (lambda path: path.write_bytes(b"\0\0\0 ftypisom"), "it is a video"),
    ],
)
def test_another_file_is_told_for_what_it_is(refused, tmp_path, write, message):
    write(tmp_path / "a.pt")
    assert message in refused("inspect", tmp_path / "a.pt")


def test_of_a_pipeline_of_diffusers_the_folders_are_named(refused, tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "DiTPipeline"}))
    (tmp_path / "transformer").mkdir()
    assert "is a pipeline of diffusers: give one of its folders, transformer" in refused("inspect", tmp_path)
