"""A new family is one folder (``toy_family``) and one entry in ``registry.FAMILIES``; then all of Guidon works with it."""

import csv

import numpy as np
import pytest
import torch
import yaml

import guidon
from guidon import cli
from guidon.core.errors import InputError
from guidon.media.files import load_video
from guidon.models import registry
from guidon.models.catalogue import find_preset
from models.toy_family import FAMILY
from models.toy_family.network import ToyNetwork


@pytest.fixture(autouse=True)
def one_entry(monkeypatch):
    monkeypatch.setattr(registry, "FAMILIES", (*registry.FAMILIES, FAMILY))


@pytest.fixture
def weights(tmp_path):
    """A model folder of the toy family, and the checkpoint in it."""
    torch.manual_seed(0)
    network = ToyNetwork(6)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    torch.save(network.state_dict(), tmp_path / "toy.pt")
    return tmp_path / "toy.pt"


def test_it_is_inspected_and_loaded(weights):
    report = guidon.inspect_checkpoint(weights)
    assert (report.architecture, report.config, report.learned_variance) == ("Toy", {"width": 6}, False)
    assert "Toy, 567 parameters" in str(report)
    network = guidon.load_checkpoint(weights, architecture="Toy", dtype=torch.bfloat16)
    assert network.dtype == torch.bfloat16
    with pytest.raises(InputError, match="holds a Toy, expected a DiT"):
        guidon.load_checkpoint(weights, architecture="DiT")
    with pytest.raises(InputError, match="cannot be inflated"):
        guidon.load_checkpoint(weights, inflate=4)


def test_what_no_family_knows_names_it(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"unknown architecture.*; known are .*, Toy$"):
        guidon.load_checkpoint(tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"is not a model folder: it holds no .* and no toy\.pt"):
        find_preset(str(tmp_path))


def test_it_is_a_preset_and_a_model_folder(weights, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["models"])
    assert stop.value.code == 0
    assert "toy: coloured noise" in capsys.readouterr().out
    assert find_preset(str(weights.parent)).family == "Toy"
    with pytest.raises(InputError, match="did you mean 'toy'"):
        find_preset("toi")
    with pytest.raises(InputError, match="weights are missing: give them as checkpoint"):
        guidon.load("toy", device="cpu")


def test_it_is_sampled(weights):
    pipe = guidon.load("toy", checkpoint=weights, device="cpu")
    one = pipe("a red circle", seed=1)
    assert one.frames.shape == (4, 16, 16, 3)
    assert one.fps == 5
    with pytest.warns(UserWarning, match="trained on another size"):
        assert pipe("a red circle", seed=1, size=(8, 12)).frames.shape == (4, 8, 12, 3)
    both = pipe(["a red circle", "some blue squares move"], seed=1)
    assert np.abs(both[0].frames.astype(int) - one.frames).max() <= 1
    assert not np.array_equal(both[1].frames, one.frames)
    for choices in ({"cfg_scale": 5}, {"cfg_channels": "only:2"}, {"guidance": "apg"}, {"negative_prompt": "green"}):
        assert not np.array_equal(pipe("a red circle", seed=1, **choices).frames, one.frames), choices
    for sampler in ("ddpm", "dpm-solver"):
        assert pipe("a red circle", sampler=sampler, steps=4).frames.std() > 0
    replay = pipe("a red circle", seed=1, dtype="bf16", exact="toy-1.0")
    assert replay.manifest["generation"]["exact"] == "toy-1.0"
    with pytest.raises(InputError, match="cannot replay exact 'dit'"):
        pipe("a red circle", exact="dit")
    with pytest.raises(InputError, match="leave out frames"):
        pipe("a red circle", frames=8)


def test_it_is_generated_on_the_command_line_and_from_its_manifest(weights, tmp_path):
    def run(line):
        with pytest.raises(SystemExit) as stop:
            cli.main(line.split())
        assert stop.value.code == 0, line

    run(f"generate circle --model {weights.parent} --trace --device cpu --format webp --out {tmp_path}/first")
    (video,) = (tmp_path / "first").glob("circle*.webp")
    run(f"generate --from {video}.json --device cpu --format webp --out {tmp_path}/again")
    assert (tmp_path / "again" / video.name).read_bytes() == video.read_bytes()
    assert load_video(video)[0].shape == (4, 16, 16, 3)


def test_it_is_studied(weights, tmp_path):
    pytest.importorskip("cv2")
    study = {
        "model": "toy", "sources": {"checkpoint": str(weights)}, "prompts": ["a red circle", "some blue squares"],
        "steps": 2,
        "settings": [{"cfg_scale": 1}, {"cfg_scale": 3}],
        "primary": {"metric": "clipped", "baseline": "no guidance", "against": "scale 3"},
    }  # fmt: skip
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    with pytest.raises(SystemExit) as stop:
        cli.main(["study", "run", f"{tmp_path}/study.yaml", "--out", f"{tmp_path}/out", "--device", "cpu"])
    assert stop.value.code == 0
    with (tmp_path / "out" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert {row["setting"] for row in rows} == {"no guidance", "scale 3"}
