"""Released checkpoints: recognised, inferred, translated, loaded strictly; and everything that is not one, refused."""

import argparse
import dataclasses
import json
import os

import pytest
import torch
from safetensors.torch import save_file

import guidon
from goldens import golden, relative_error
from guidon.core.errors import InputError
from guidon.models.checkpoint import inspect_checkpoint, load_checkpoint
from guidon.models.dit.network import DiT, DiTConfig
from guidon.models.pixart.network import PixArt, PixArtConfig
from guidon.models.stdit.network import STDiT, STDiTConfig
from guidon.models.stdit2.network import STDiT2, STDiT2Config
from guidon.models.stdit3.network import STDiT3, STDiT3Config

SMALL = {"hidden_size": 24, "depth": 2, "num_heads": 4}
CAPTIONS = {"caption_channels": 10, "model_max_length": 5}
MODELS = {
    "STDiT": lambda: STDiT(STDiTConfig((4, 6, 6), space_scale=0.5, time_scale=2.0, **SMALL, **CAPTIONS)),
    "PixArt": lambda: PixArt(PixArtConfig(8, lewei_scale=2.0, **SMALL, **CAPTIONS)),
    "PixArt-MS": lambda: PixArt(PixArtConfig(8, micro_condition=True, **SMALL, **CAPTIONS)),
    "STDiT2": lambda: STDiT2(STDiT2Config(**SMALL, **CAPTIONS)),
    "STDiT3": lambda: STDiT3(STDiT3Config(**SMALL, **CAPTIONS)),
    "DiT": lambda: DiT(DiTConfig(8, num_classes=3, **SMALL)),
}


def randomised(model, seed=0):
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.fixture
def stdit(tmp_path):
    model = randomised(MODELS["STDiT"]())
    return model, tmp_path / "stdit.pth"


def output(model):
    torch.manual_seed(1)
    x = torch.randn(2, *(min(length, 8) for length in model.latent_shape))
    y = torch.tensor([0, 2]) if isinstance(model, DiT) else torch.randn(2, 5, 10)
    with torch.no_grad():
        return model(x, torch.tensor([3, 800]), y)


FORMS = ("pth", "legacy", "safetensors", "sharded", "ema", "state_dict", "ddp")
CASES = [  # a form is read before its kind is known: CI tries every form of one kind, and every kind in one form
    pytest.param(form, kind, marks=() if kind == "STDiT" or form == "pth" else pytest.mark.long)
    for form in FORMS
    for kind in MODELS
]


@pytest.mark.parametrize(("form", "kind"), CASES)
def test_every_form_of_file_gives_the_model_back(kind, form, tmp_path):
    model = randomised(MODELS[kind]())
    weights = model.state_dict()
    path = tmp_path / "weights.pth"
    if form == "safetensors":
        path = tmp_path / "weights.safetensors"
        save_file(weights, path)
    elif form == "sharded":
        names = sorted(weights)
        places = {name: f"part-{k % 2}.safetensors" for k, name in enumerate(names)}
        for part in set(places.values()):
            save_file({name: weights[name] for name in names if places[name] == part}, tmp_path / part)
        path = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
        path.write_text(json.dumps({"weight_map": places}))
        path = tmp_path  # the folder itself
    elif form == "ema":  # as DiT's training saves
        torch.save({"model": {}, "ema": weights, "opt": {}, "args": argparse.Namespace(lr=1)}, path)
    elif form == "state_dict":
        torch.save({"state_dict": weights, "epoch": 3}, path)
    elif form == "ddp":
        torch.save({f"module.{name}": value for name, value in weights.items()}, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=form != "legacy")
    loaded = load_checkpoint(path, num_heads=4)
    assert loaded.config == model.config
    assert torch.equal(output(loaded), output(model))
    report = inspect_checkpoint(path, num_heads=4)
    assert report.architecture == kind.removesuffix("-MS")
    assert report.config == dataclasses.asdict(model.config)
    assert report.learned_variance
    assert report.wrapping == {"ema": ("ema",), "state_dict": ("state_dict",), "ddp": ("module.",)}.get(form, ())
    assert str(report).count("\n") >= 6


ORIGINALS = (
    "stdit/a",
    "stdit/b",
    "open_sora_1_1_to_2_0/stdit2/a",
    "open_sora_1_1_to_2_0/stdit3/a",
    "dit/a",
    "pixart/a",
)


@pytest.mark.parametrize("name", ORIGINALS)
def test_configurations_are_read_off_the_originals_weights(name, tmp_path):
    g, case = golden(name)
    weights = {k.removeprefix("weights."): v for k, v in g.items() if k.startswith("weights.")}
    save_file(weights, tmp_path / "w.safetensors")
    model = load_checkpoint(tmp_path / "w.safetensors", num_heads=case["config"]["num_heads"])
    for key, value in case["config"].items():
        expected = tuple(value) if isinstance(value, list) else value
        assert getattr(model.config, key) == expected, key


def test_positions_are_recomputed_and_may_be_missing(stdit):
    model, path = stdit
    weights = {k: v for k, v in model.state_dict().items() if not k.startswith("pos_embed")}
    torch.save(weights, path)
    with pytest.raises(InputError, match="give input_size"):
        load_checkpoint(path, num_heads=4)
    loaded = load_checkpoint(path, num_heads=4, input_size=(4, 6, 6), space_scale=0.5, time_scale=2.0)
    assert torch.equal(output(loaded), output(model))


def test_precision_is_the_one_asked_for(stdit):
    model, path = stdit
    torch.save({k: v.half() for k, v in model.state_dict().items()}, path)
    assert next(load_checkpoint(path, num_heads=4).parameters()).dtype == torch.float32
    half = load_checkpoint(path, num_heads=4, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert relative_error(output(half), output(model)) < 0.05
    assert "float16" in str(inspect_checkpoint(path, num_heads=4))


def refusal(path):
    try:
        load_checkpoint(path, num_heads=4)
    except InputError as error:
        return str(error)
    return None


class Bomb:
    def __reduce__(self):
        return os.mkdir, (Bomb.folder,)


def test_code_in_a_pickle_is_never_run(tmp_path):
    Bomb.folder = str(tmp_path / "ran")
    for zipped in (True, False):
        torch.save(
            {"state_dict": {"w": torch.zeros(1)}, "extra": Bomb()},
            tmp_path / "bomb.pth",
            _use_new_zipfile_serialization=zipped,
        )
        with pytest.raises(
            InputError, match=r"holds more than tensors \((posix|os|nt)\.mkdir\).*save its tensors alone"
        ) as error:
            load_checkpoint(tmp_path / "bomb.pth")
        assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_misfits_are_all_listed(stdit):
    model, path = stdit
    good = model.state_dict()
    bad = {name: value for name, value in good.items() if name not in ("t_block.1.bias", "final_layer.linear.bias")}
    bad |= {"surprise": torch.zeros(1), "blocks.1.attn.qkv.bias": torch.zeros(3)}
    torch.save(bad, path)
    with pytest.raises(InputError) as error:
        load_checkpoint(path, num_heads=4)
    for part in (
        "'t_block.1.bias'",
        "'final_layer.linear.bias'",
        "'surprise'",
        "blocks.1.attn.qkv.bias (3,) for (72,)",
    ):
        assert part in str(error.value)
    assert "surprise" in str(inspect_checkpoint(path, num_heads=4))
    torch.save(good | {"t_block.1.bias": good["t_block.1.bias"] * float("nan")}, path)
    with pytest.raises(InputError, match=r"NaN or infinity, the first is 't_block.1.bias'"):
        load_checkpoint(path, num_heads=4)
    assert "NaN" in str(inspect_checkpoint(path, num_heads=4))


@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_truncations_and_flipped_bits_are_refused_in_one_line(stdit, form):
    model, path = stdit
    path = path.with_suffix(f".{form}")
    if form == "pth":
        torch.save(model.state_dict(), path)
    else:
        save_file(model.state_dict(), path)
    data = path.read_bytes()
    header = 400 if form == "pth" else 8 + int.from_bytes(data[:8], "little")
    for length in [*range(0, header, 3), *range(header, len(data), len(data) // 20), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(InputError) as error:
            load_checkpoint(path, num_heads=4)
        assert "\n" not in str(error.value)
        assert path.name in str(error.value)
    if form == "pth":  # its archive has checksums
        for position in range(100, len(data), len(data) // 40):
            path.write_bytes(data[:position] + bytes([data[position] ^ 16]) + data[position + 1 :])
            found = refusal(path)
            assert found is None or "\n" not in found
            assert found or torch.equal(output(load_checkpoint(path, num_heads=4)), output(model))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "not a checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path, content, message):
    (tmp_path / "file.pt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_checkpoint(tmp_path / "file.pt")


def test_what_cannot_be_known_is_asked_for(tmp_path, stdit):
    model, path = stdit
    torch.save(model.state_dict(), path)
    with pytest.raises(
        InputError, match="hidden size of 24 does not tell the number of attention heads: give num_heads"
    ):
        load_checkpoint(path)
    with pytest.raises(InputError, match="did you mean 'num_heads'"):
        load_checkpoint(path, num_head=4, num_heads=4)
    with pytest.raises(InputError, match="is not there"):
        load_checkpoint(tmp_path / "none.pt")
    with pytest.raises(InputError, match="holds none of"):
        load_checkpoint(tmp_path / ".")
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="unknown architecture"):
        load_checkpoint(tmp_path / "other.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(InputError, match="holds list"):
        load_checkpoint(tmp_path / "list.pt")
    torch.save({"epoch": 3}, tmp_path / "epoch.pt")
    with pytest.raises(InputError, match="holds no state dict"):
        load_checkpoint(tmp_path / "epoch.pt")


def test_the_public_names():
    assert guidon.load_checkpoint is load_checkpoint
    assert guidon.inspect_checkpoint is inspect_checkpoint


@pytest.mark.parametrize(
    "missing",
    ["x_embedder.proj.weight", "final_layer.linear.weight", "blocks.0.mlp.fc1.weight", "y_embedder.y_proj.fc1.weight"],
)
def test_a_checkpoint_without_what_its_shape_is_read_off_is_incomplete(tmp_path, missing):
    weights = MODELS["STDiT"]().state_dict()
    del weights[missing]
    torch.save(weights, tmp_path / "part.pth")
    for read in (load_checkpoint, inspect_checkpoint):
        with pytest.raises(InputError, match=f"incomplete: it lacks {missing}"):
            read(tmp_path / "part.pth", num_heads=4)


@pytest.mark.parametrize("heads", [7, 0])
def test_heads_that_do_not_divide_the_width_are_refused(tmp_path, heads):
    torch.save(MODELS["DiT"]().state_dict(), tmp_path / "dit.pth")
    with pytest.raises(InputError, match="do not divide"):
        load_checkpoint(tmp_path / "dit.pth", num_heads=heads)


def test_shards_of_torch_files_are_read_and_only_the_indexs_are_hashed(tmp_path):
    model = randomised(MODELS["STDiT"]())
    weights, names = model.state_dict(), list(model.state_dict())
    halves = {"pytorch_model-1.bin": names[::2], "pytorch_model-2.bin": names[1::2]}
    for file, part in halves.items():
        torch.save({name: weights[name] for name in part}, tmp_path / file)
    places = {name: file for file, part in halves.items() for name in part}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    again = load_checkpoint(tmp_path, num_heads=4)
    assert all(torch.equal(again.state_dict()[name], weights[name]) for name in names)
    before = inspect_checkpoint(tmp_path, num_heads=4).sha256
    save_file({"x": torch.zeros(1)}, tmp_path / "another.safetensors")
    assert inspect_checkpoint(tmp_path, num_heads=4).sha256 == before
