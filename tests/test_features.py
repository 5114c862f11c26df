import pytest
import torch
from safetensors.torch import save_file

from guidon.errors import InputError
from guidon.features import load_features, save_features

ENCODER = {"max_length": 3, "clean": True}


def captions(*prompts):
    torch.manual_seed(len(prompts))
    return prompts, torch.randn(len(prompts), 3, 5, dtype=torch.bfloat16), torch.ones(len(prompts), 3, dtype=torch.long)


def test_features_come_back_by_prompt_and_files_grow(tmp_path):
    path = tmp_path / "sub" / "captions.safetensors"
    prompts, features, mask = captions("one", "two", "")
    assert save_features(path, prompts, features, mask, encoder=ENCODER) == path
    more, extra, extra_mask = captions("three")
    save_features(path, more, extra, extra_mask, encoder=ENCODER)
    kept = load_features(path)
    assert kept.prompts == ["one", "two", "", "three"]
    found, found_mask = kept.encode(["three", "one", "one"])
    assert torch.equal(found, torch.stack([extra[0], features[0], features[0]]))
    assert found.dtype == torch.bfloat16
    assert found_mask.shape == (3, 3)


def test_what_is_not_there_is_asked_for(tmp_path):
    path = tmp_path / "captions.safetensors"
    with pytest.raises(InputError, match="make it with `guidon encode"):
        load_features(path)
    save_features(path, *captions("one"), encoder=ENCODER)
    with pytest.raises(InputError, match=r"no features of 'two': add them with `guidon encode"):
        load_features(path).encode(["one", "two"])
    with pytest.raises(InputError, match="made by another encoder"):
        save_features(path, *captions("one"), encoder=ENCODER | {"max_length": 4})


def test_foreign_and_damaged_files_are_refused(tmp_path):
    path = tmp_path / "captions.safetensors"
    save_features(path, *captions("one"), encoder=ENCODER)
    data = path.read_bytes()
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(InputError) as error:
            load_features(path)
        assert "\n" not in str(error.value)
    save_file({"w": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="holds no caption features"):
        load_features(path)
