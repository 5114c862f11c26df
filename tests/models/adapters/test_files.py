"""Adapters' files: how they are named, and which settings are refused."""

import json

import pytest

from guidon.core.errors import InputError
from guidon.models.adapters.files import AdapterSource, adapter_in
from tiny_model import write_tiny_adapters


@pytest.fixture
def folder(tmp_path):
    return write_tiny_adapters(tmp_path / "style")


@pytest.mark.parametrize(
    ("scale", "written"), [(1.0, "1"), (0.8, "0.8"), (1e8, "1e+08"), (0.1234567, "0.1234567"), (1 / 3, repr(1 / 3))]
)
def test_the_name_of_adapters_holds_all_digits_of_their_scale(folder, scale, written):
    part = AdapterSource(path=folder, scale=scale).find().part(1)
    assert part == f"lora 1: style*{written}"
    name, found = adapter_in(part)
    assert (name, float(found)) == ("style", scale)


@pytest.mark.parametrize("kind", ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga", "PiSSA"])
def test_adapters_whose_start_changed_the_weights_under_them_are_refused(folder, kind):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"init_lora_weights": kind}))
    with pytest.raises(InputError, match=rf"init_lora_weights {kind}, .*: merge it with peft first"):
        AdapterSource(path=folder).find()


@pytest.mark.parametrize("kind", [True, False, "gaussian", "eva", "orthogonal"])
def test_adapters_that_started_beside_the_weights_are_read(folder, kind):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"init_lora_weights": kind}))
    assert AdapterSource(path=folder).find().config["init_lora_weights"] == kind
