import json

import pytest
import torch
from safetensors import safe_open

from guidon.checkpoints import save_component
from guidon.checkpoints.writing import safetensors_bytes
from guidon.core.errors import InputError

TENSORS = {"b": torch.arange(5, dtype=torch.float16), "a": torch.zeros(2, 3), "c": torch.tensor([True])}
FIELDS = {name: f'{name} é " \\' for name in "qwertzuiop"}


def test_the_bytes_are_those_of_a_safetensors_file_whose_fields_are_in_order(tmp_path):
    data = safetensors_bytes(TENSORS, dict(reversed(FIELDS.items())))
    assert data == safetensors_bytes(TENSORS, FIELDS)
    end = 8 + int.from_bytes(data[:8], "little")
    assert end % 8 == 0
    assert list(json.loads(data[8:end])["__metadata__"]) == sorted(FIELDS)
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == FIELDS
        assert set(file.keys()) == set(TENSORS)
        assert all(torch.equal(file.get_tensor(name), value) for name, value in TENSORS.items())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_a_weight_that_is_no_number_in_the_files_dtype_is_not_written(tmp_path, value):
    path = tmp_path / "vae.safetensors"
    weights = {"a": torch.ones(3), "b": torch.tensor([1.0, value])}
    with pytest.raises(InputError, match="hold NaN or infinity, the first is 'b'"):
        save_component(path, "vae", {}, weights, {})
    assert not list(tmp_path.iterdir())
