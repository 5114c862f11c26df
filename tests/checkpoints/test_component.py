import shutil

import pytest
import torch
from safetensors.torch import save_file

import guidon
from guidon.checkpoints import load_component, load_weights, save_component
from guidon.core.errors import InputError


def write(path, weights=None, kind="text", **header):
    save_component(path, kind, {"a": 1}, weights or {"w": torch.arange(6.0).view(2, 3)}, {"loss": 0.5} | header)
    return path


def test_a_component_comes_back_with_its_configuration_and_record(tmp_path):
    component = load_component(write(tmp_path / "c.safetensors"), "text")
    assert (component.config, component.record) == ({"a": 1}, {"loss": 0.5})
    assert torch.equal(component.weights["w"].float(), torch.arange(6.0).view(2, 3))
    assert len(component.sha256) == 64


def test_every_truncation_is_refused_in_one_line(tmp_path):
    data = write(tmp_path / "c.safetensors").read_bytes()
    for length in range(len(data)):
        (tmp_path / "cut.safetensors").write_bytes(data[:length])
        with pytest.raises(InputError, match=r"cut\.safetensors") as error:
            load_component(tmp_path / "cut.safetensors", "text")
        assert "\n" not in str(error.value)


def test_foreign_wrong_missing_and_broken_files_are_refused(tmp_path):
    foreign = tmp_path / "foreign.safetensors"
    save_file({"w": torch.zeros(2)}, foreign)
    with pytest.raises(InputError, match="not one of Guidon's"):
        load_component(foreign, "vae")
    with pytest.raises(InputError, match="holds a 'text', expected a 'vae'"):
        load_component(write(tmp_path / "c.safetensors"), "vae")
    with pytest.raises(InputError, match="is not there"):
        load_component(tmp_path / "none.safetensors", "vae")
    with pytest.raises(InputError, match="NaN or infinity, the first is 'w'"):
        load_component(write(tmp_path / "nan.safetensors", {"w": torch.tensor([float("nan")])}), "text")


def test_weights_are_filled_strictly(tmp_path):
    module, path = torch.nn.Linear(3, 2), tmp_path / "c.safetensors"
    good = module.state_dict()
    load_weights(module, load_component(write(path, good), "text"))
    for weights, message in (
        ({"weight": good["weight"]}, r"missing \['bias'\]"),
        (good | {"extra": torch.zeros(1)}, r"unexpected \['extra'\]"),
        (good | {"bias": torch.zeros(5)}, r"mis-shaped \['bias \(5,\) for \(2,\)'\]"),
    ):
        with pytest.raises(InputError, match=message):
            load_weights(module, load_component(write(path, weights), "text"))


@pytest.mark.parametrize("part", ["denoiser", "text"])
def test_a_model_folder_with_a_damaged_part_is_refused(tiny_model, tmp_path, part):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    path = folder / f"{part}.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="truncated or damaged"):
        guidon.load(folder, device="cpu")


def test_the_vae_is_checked_before_frames_are_wanted(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    shutil.copy(folder / "text.safetensors", folder / "vae.safetensors")
    with pytest.raises(InputError, match="expected a 'vae'"):
        guidon.load(folder, device="cpu")
