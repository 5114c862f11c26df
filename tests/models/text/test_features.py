import json
from contextlib import suppress

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


def test_damage_of_every_byte_is_refused_or_changes_nothing(tmp_path):
    path = tmp_path / "captions.safetensors"
    save_features(path, *captions("one", "two"), encoder=ENCODER)
    data, good = path.read_bytes(), load_features(path)
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with suppress(InputError):
            found = load_features(path)
            assert (found.prompts, found.encoder) == (good.prompts, good.encoder)
            assert torch.equal(found.features, good.features)


def test_a_file_of_an_earlier_version_has_no_digest_and_gets_one_with_the_next_caption(tmp_path):
    path = tmp_path / "captions.safetensors"
    _, features, mask = captions("one")
    header = {"format": "guidon captions", "prompts": '["one"]', "encoder": json.dumps(ENCODER)}
    save_file({"features": features, "mask": mask}, path, metadata=header)
    assert load_features(path).prompts == ["one"]
    save_features(path, *captions("two"), encoder=ENCODER)
    kept = load_features(path)
    assert kept.prompts == ["one", "two"]
    assert torch.equal(kept.features[:1], features)
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(InputError, match="not what was written"):
        load_features(path)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.complex64])
def test_features_of_other_types_are_refused(tmp_path, dtype):
    prompts, features, mask = captions("one")
    with pytest.raises(InputError, match="expected 16-bit floats and integers"):
        save_features(tmp_path / "a.safetensors", prompts, features.to(dtype), mask, encoder=ENCODER)
