import shutil
from contextlib import suppress
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import save_file

import guidon
from guidon.checkpoints import load_component, load_weights, make_config, on_meta, save_component
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


@dataclass(frozen=True)
class Shape:
    width: int
    sizes: tuple[int, ...] = (1, 2)
    scale: float = 1.0
    deep: bool = False


def test_a_configuration_is_what_was_written():
    shape = make_config(Shape, {"width": 3, "sizes": [4, 5], "scale": 2, "deep": True}, "a")
    assert (shape.width, shape.sizes, shape.scale, shape.deep) == (3, (4, 5), 2.0, True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widht": 3}, "unknown key 'widht' .did you mean 'width'"),
        ({"width": "wide"}, "width is 'wide'"),
        ({"width": -1}, "width is -1, expected a number above 0"),
        ({"width": 2**31}, "expected a number above 0"),
        ({"sizes": [1, -2]}, "sizes is"),
        ({"sizes": [8] * 100}, "sizes has 100 numbers"),
        ({"scale": 0.0}, "scale is 0.0"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"scale": float("inf")}, "scale is inf"),
        ({"sizes": None}, "sizes is 'None'"),
    ],
)
def test_a_configuration_without_sense_is_refused(changes, message):
    with pytest.raises(InputError, match=f"^it does not fit: .*{message}"):
        make_config(Shape, {"width": 3} | changes, "it does not fit")


def test_a_module_is_not_made_to_its_end_if_it_has_many_more_parameters_than_there_are_tensors():
    def network(depth):
        return torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(depth))

    with on_meta(20):
        assert network(10)[0].weight.is_meta
    with pytest.raises(ValueError, match="more than 104 parameters, there are 20 tensors"), on_meta(20):
        network(10**9)
    assert not network(60)[0].weight.is_meta


def test_damage_of_every_byte_is_refused_or_changes_nothing(tmp_path):
    path = write(tmp_path / "c.safetensors")
    data, good = path.read_bytes(), load_component(path, "text")
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with suppress(InputError):
            found = load_component(path, "text")
            assert (found.config, found.record) == (good.config, good.record)
            assert torch.equal(found.weights["w"], good.weights["w"])


def test_inspect_checks_the_digest(tmp_path):
    path = write(tmp_path / "c.safetensors")
    assert "Guidon's own text" in str(guidon.inspect_checkpoint(path))
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 64]))
    with pytest.raises(InputError, match="its content is not what was written"):
        guidon.inspect_checkpoint(path)


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
