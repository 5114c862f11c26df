import pytest
import torch
from safetensors.torch import save_file

from guidon.core.errors import InputError
from guidon.models.text.features import load_features, save_features

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


def test_a_bad_addition_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "captions.safetensors"
    prompts, features, mask = captions("one")
    save_features(path, prompts, features, mask, encoder=ENCODER)
    data = path.read_bytes()
    additions = {
        "not finite": (("two",), features * float("nan"), mask),
        "do not belong together": (("two", "three"), features, mask),
        "expected .prompts, tokens, width": (("two",), features, mask[:, :2]),
        "expected a list": ((), features[:0], mask[:0]),
        "write to a new file": (("two",), features.float(), mask),
        "these are": (("two",), features[..., :4], mask),
    }
    for match, addition in additions.items():
        with pytest.raises(InputError, match=match) as error:
            save_features(path, *addition, encoder=ENCODER)
        assert "\n" not in str(error.value)
        assert path.read_bytes() == data


def test_an_encoder_described_with_tuples_is_the_same_encoder(tmp_path):
    path = tmp_path / "captions.safetensors"
    for prompt in ("one", "two"):
        save_features(path, *captions(prompt), encoder=ENCODER | {"classes": ("T5EncoderModel",)})
    assert load_features(path).prompts == ["one", "two"]


def test_a_header_of_the_wrong_kind_is_damage(tmp_path):
    path = tmp_path / "captions.safetensors"
    header = {"format": "guidon captions", "prompts": "3", "encoder": "{}"}
    save_file({"features": torch.zeros(3, 3, 5), "mask": torch.zeros(3, 3)}, path, metadata=header)
    with pytest.raises(InputError, match="is damaged: its prompts are 3"):
        load_features(path)
