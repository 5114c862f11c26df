"""What all families have in common, and what is found by name."""

import subprocess
import sys

import pytest
import torch

from guidon import load_checkpoint
from guidon.core.errors import InputError
from guidon.metrics.bench import BENCHES
from guidon.models.catalogue import find_preset, presets
from guidon.models.registry import FAMILIES, find_family, find_replay, replays


def test_names_are_unique_and_every_preset_belongs_to_its_family():
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    assert len(presets()) == sum(len(family.presets) for family in FAMILIES)
    assert len(replays()) == sum(len(family.replays) for family in FAMILIES)
    for family in FAMILIES:
        for preset in family.presets:
            assert find_family(preset.family) is family
            assert preset.bench in BENCHES
            assert set(preset.originals) <= set(replays())
            assert find_preset(preset.name) is preset


def test_the_exact_replays_and_how_they_sample():
    assert list(replays()) == ["open-sora-1.0", "open-sora-1.1", "open-sora-1.2", "dit", "pixart"]
    rounded = [name for name, exact in replays().items() if exact.single_precision or exact.noise_in_dtype]
    assert rounded == ["open-sora-1.1", "open-sora-1.2"]
    assert find_replay("dit") is replays()["dit"]


@pytest.mark.parametrize(
    ("find", "name", "message"),
    [
        (find_preset, "guidon-smal", "neither a preset nor a folder.*did you mean 'guidon-small'"),
        (find_family, "DiTT", "did you mean 'DiT'"),
        (find_replay, "open-sora-1", "exact 'open-sora-1' does not exist.*did you mean 'open-sora-1.2'"),
    ],
)
def test_a_name_that_does_not_exist_is_answered_with_the_nearest(find, name, message):
    with pytest.raises(InputError, match=message):
        find(name)


def test_a_relative_that_no_family_reads_is_named(tmp_path):
    torch.save({"x_embedder_cond.proj.weight": torch.zeros(1)}, tmp_path / "later.pt")
    with pytest.raises(InputError, match=r"this is the STDiT3 of Open-Sora 1.3.*; known are .*PixArt in diffusers'"):
        load_checkpoint(tmp_path / "later.pt")


def test_listing_presets_does_not_import_torch():
    line = "from guidon.models.catalogue import presets; presets(); import sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", line], capture_output=True, text=True).stdout == "False\n"
