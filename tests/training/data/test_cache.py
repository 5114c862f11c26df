import os

import pytest
import torch

from guidon.core.errors import InputError
from guidon.training.data.cache import store, stored

TENSORS = {"a": torch.arange(6, dtype=torch.float16).view(2, 3), "b": torch.tensor([True, False])}


@pytest.fixture
def path(tmp_path):
    store(tmp_path / "x.safetensors", "key", TENSORS)
    return tmp_path / "x.safetensors"


def test_what_was_stored_is_read_again(path):
    found = stored(path, "key", "numbers")
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], value) for name, value in TENSORS.items())
    assert stored(path.with_name("other"), "key", "numbers") is None


def test_each_flipped_bit_is_noticed_or_changes_nothing(path, capsys):
    whole, noticed = path.read_bytes(), 0
    for position in range(len(whole)):
        for bit in (0, 5):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            found = stored(path, "key", "numbers")
            said = capsys.readouterr().err
            assert (found is None) == said.startswith(f"{path} cannot be read as stored numbers: ")
            assert said.count("\n") == (found is None)
            noticed += found is None
            assert found is None or all(torch.equal(found[name], value) for name, value in TENSORS.items())
    assert noticed > 1.8 * len(whole)


def test_what_was_made_otherwise_or_has_no_digest_is_made_again_and_says_so(path, capsys):
    assert stored(path, "other", "numbers") is None
    assert "it was made with other settings; they are made again" in capsys.readouterr().err
    from safetensors.torch import save

    path.write_bytes(save(TENSORS, metadata={"key": "key"}))
    assert stored(path, "key", "numbers") is None
    assert "without a digest" in capsys.readouterr().err


def test_what_is_no_file_is_refused(path):
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(InputError, match="named pipe"):
        stored(path, "key", "numbers")
