"""A pipeline's folder: what its small files say, what is missing, and another checkpoint."""

import json
import shutil

import pytest
import torch

import guidon
from guidon.bridges.diffusers.folder import class_numbers, read_folder, variant_of
from guidon.bridges.diffusers.hashes import hash_pipeline
from guidon.core.errors import InputError
from tiny_pipelines.whole import make_pipeline, write_pipeline


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    return write_pipeline("flux", tmp_path_factory.mktemp("folders") / "flux")


@pytest.fixture
def copy(flux, tmp_path):
    return shutil.copytree(flux, tmp_path / "copy")


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_folder_says_its_class_channels_and_precision(flux):
    found = read_folder(flux)
    assert (found.pipeline, found.family.name, found.channels, found.dtype) == ("FluxPipeline", "Flux", 4, "fp32")


def test_the_precision_is_that_of_the_denoiser(tmp_path):
    pipe = make_pipeline("wan")
    pipe.transformer.to(torch.bfloat16)
    pipe.save_pretrained(tmp_path / "wan")
    found = read_folder(tmp_path / "wan")
    assert (found.pipeline, found.channels, found.dtype) == ("WanPipeline", 4, "bf16")


def test_a_folder_of_a_variant_alone_is_loaded(tmp_path):
    pipe = make_pipeline("pixart")
    pipe.transformer.to(torch.float16)
    pipe.save_pretrained(tmp_path / "half", variant="fp16")
    found = read_folder(tmp_path / "half")
    assert (found.dtype, variant_of(found.path, found.family)) == ("fp16", "fp16")
    model = guidon.load(f"diffusers:{tmp_path / 'half'}", device="cpu", dtype="fp32")
    assert model.hashes["vae"] == hash_pipeline(pipe)["vae"]
    pipe.transformer.to(torch.float32)
    pipe.save_pretrained(tmp_path / "half")
    assert variant_of(found.path, found.family) is None
    assert read_folder(found.path).dtype == "fp32"


def test_what_is_no_pipeline_is_refused(copy, tmp_path):
    def refused(message, folder=copy):
        with pytest.raises(InputError, match=message) as caught:
            read_folder(folder)
        assert "\n" not in str(caught.value)

    refused("is no folder", tmp_path / "absent")
    refused("holds no model_index.json", tmp_path)
    (copy / "vae" / "config.json").write_text("{}")
    refused("names no latent_channels")
    (copy / "vae" / "config.json").unlink()
    refused("cannot be read as the configuration of an autoencoder: it is not there")
    weights = next((copy / "transformer").glob("*.safetensors"))
    (copy / "vae" / "config.json").write_text('{"latent_channels": 4}')
    weights.write_bytes(b"\xff" * 9)
    refused("is not a safetensors file")
    shutil.rmtree(copy / "tokenizer_2")
    refused("misses the folder tokenizer_2")
    change(copy / "model_index.json", tokenizer_2=[None, None])
    shutil.rmtree(copy / "transformer")
    change(copy / "model_index.json", transformer=[None, None])
    refused("has no transformer")
    for name in ("StableCascadePipeline", ["module", "Mine"], 3):
        change(copy / "model_index.json", _class_name=name)
        refused("whose guidance Guidon does not know")
    change(copy / "model_index.json", _class_name=None)
    refused("names no pipeline")
    (copy / "model_index.json").write_text("[]")
    refused("expected keys with values")


def test_names_of_classes_are_read():
    assert class_numbers({"207": "golden retriever, retriever", "3": "tiger shark"}) == {
        "golden retriever": 207, "retriever": 207, "tiger shark": 3,
    }  # fmt: skip
    assert class_numbers(None) == {}


def test_every_part_has_a_hash_that_its_weights_and_settings_decide(tmp_path):
    pipe = make_pipeline("pixart")
    before = hash_pipeline(pipe)
    assert before == guidon.load(f"diffusers:{write_pipeline('pixart', tmp_path / 'saved')}", device="cpu").hashes
    assert before.keys() == {"scheduler", "text_encoder", "tokenizer", "transformer", "vae"}

    def changed():
        return {name for name, found in hash_pipeline(pipe).items() if found != before[name]}

    with torch.no_grad():
        next(iter(pipe.vae.decoder.parameters())).add_(1e-3)
    assert changed() == {"vae"}
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, solver_order=1)
    assert changed() == {"vae", "scheduler"}
    pipe.transformer.to("meta")
    with pytest.raises(InputError, match="the weights of transformer are not in memory"):
        hash_pipeline(pipe)
