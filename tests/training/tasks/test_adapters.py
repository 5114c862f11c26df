"""Adapters of low rank: trained, saved, and merged into a network's weights."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import guidon
from guidon.core.errors import InputError
from guidon.models.adapters.files import AdapterSource
from guidon.models.adapters.merging import changes_of, merge
from guidon.models.dit.network import DiT, DiTConfig
from guidon.models.pixart.network import PixArt, PixArtConfig
from guidon.models.stdit.network import STDiT, STDiTConfig
from guidon.models.text.features import save_features
from guidon.pipeline import Pipeline
from guidon.training import load_recipe, run_recipe
from guidon.training.tasks.adapters import Adapters, RowDropout
from guidon.training.tasks.videos import VideosTask
from own_clips import CAPTIONS, videos_recipe, write_clips
from recipes import CPU
from released import make_checkpoints, make_vae
from training.conftest import tiny_runs

FEW = {"steps": 3, "cfg_scale": 2, "cfg_channels": "all", "seed": 1}
STRONG = {"steps": 3, "evaluate_every": 0, "ema_decay": 0, "optimiser": {"lr": 0.03, "warmup_steps": 1}}
FAMILIES = ("stdit", "stdit3", "dit", "pixart")


def recipe_of(folder, places, family, **values):
    clips = places["pictures" if family in ("dit", "pixart") else "videos"]
    return videos_recipe(folder, clips, places["vae"], family, cache=str(places["cache"]), **values)


@pytest.fixture(scope="module")
def places(tmp_path_factory, tiny_model):
    folder = tmp_path_factory.mktemp("places")
    write_clips(folder / "videos")
    write_clips(folder / "pictures", frames=1)
    return {name: folder / name for name in ("videos", "pictures", "cache")} | {"vae": tiny_model / "vae.safetensors"}


@pytest.fixture(scope="module")
def bases(tmp_path_factory, places):
    """The model folder that adapters are trained for, by network."""
    with tiny_runs():
        return {
            network: run_recipe(recipe_of(tmp_path_factory.mktemp(network), places, network, **STRONG))
            for network in FAMILIES
        }


@pytest.fixture(scope="module")
def adapters(tmp_path_factory, places, bases):
    """The task of adapters, and the folder that it exported, by network. Their matrices are random."""
    found = {}
    for network in FAMILIES:
        folder = tmp_path_factory.mktemp(f"adapters-{network}")
        lora = {"rank": 3, "alpha": 6}
        task = VideosTask.prepare(
            load_recipe(recipe_of(folder, places, network, start=str(bases[network]), lora=lora)), CPU
        )
        torch.manual_seed(0)
        for parameter in task.module.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        found[network] = task, task.export(task.module.state_dict(), {"steps": 0})
    return found


@pytest.mark.parametrize("network", FAMILIES)
def test_merged_adapters_give_the_samples_of_unmerged_ones(adapters, bases, network):
    task, folder = adapters[network]
    prompt = "blue" if network == "dit" else "a blue wave pans left"
    merged = guidon.load(bases[network], device="cpu", lora=folder)
    plain = guidon.load(bases[network], device="cpu")
    with task.preview(task.module.state_dict()) as preview:
        apart = Pipeline(preview.preset, preview.model, CPU)
        latents = [pipe(prompt, output_type="latent", **FEW).frames[0] for pipe in (apart, merged, plain)]
    # networks of two steps draw large values: errors are relative to the largest
    error, change = ((latents[0] - other).abs().max() / latents[0].abs().max() for other in latents[1:])
    assert error < 1e-5
    assert change > 1e-4


def test_training_changes_the_adapters_alone_and_goes_on(places, bases, tmp_path):
    lora = {"rank": 2, "dropout": 0.3, "targets": ["qkv", "fc1"]}
    own = {"start": str(bases["stdit"]), "lora": lora, "batch_size": 2, "log_every": 4}
    (tmp_path / "whole").mkdir()
    whole = run_recipe(recipe_of(tmp_path / "whole", places, "stdit", steps=4, **own))
    weights = load_file(whole / "adapter_model.safetensors")
    assert all(value.abs().max() > 0 for value in weights.values())
    layers = {name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in weights}
    assert layers == {"blocks.0.attn.qkv", "blocks.0.attn_temp.qkv", "blocks.0.mlp.fc1", "y_embedder.y_proj.fc1"}
    config = json.loads((whole / "adapter_config.json").read_text())
    assert (config["r"], sorted(config["target_modules"])) == (2, sorted(layers))
    # a run that was stopped after two steps reaches the same bytes
    halves = tmp_path / "halves"
    halves.mkdir()
    decay = {"optimiser": {"decay": 0, "warmup_steps": 1}}
    run_recipe(recipe_of(halves, places, "stdit", steps=2, **own | decay))
    again = run_recipe(recipe_of(halves, places, "stdit", steps=4, **own | decay))
    at_once = tmp_path / "once"
    at_once.mkdir()
    once = run_recipe(recipe_of(at_once, places, "stdit", steps=4, **own | decay))
    assert (again / "adapter_model.safetensors").read_bytes() == (once / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_run_of_an_earlier_version_is_told_that_its_dropout_is_another(
    places, bases, tmp_path, monkeypatch, capsys, dropout
):
    own = {"start": str(bases["stdit"]), "lora": {"rank": 2, "dropout": dropout}, "batch_size": 2}
    identity = VideosTask.identity.fget
    with monkeypatch.context() as earlier:
        without = property(lambda task: {name: of for name, of in identity(task).items() if name != "dropout_masks"})
        earlier.setattr(VideosTask, "identity", without)
        run_recipe(recipe_of(tmp_path, places, "stdit", steps=1, **own))
    capsys.readouterr()
    run_recipe(recipe_of(tmp_path, places, "stdit", steps=2, **own))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "goes on with other settings" in line]
    assert ("dropout_masks not given, now for each row" in line) == bool(dropout)
    run_recipe(recipe_of(tmp_path, places, "stdit", steps=3, **own))
    assert "dropout_masks" not in capsys.readouterr().err


@pytest.mark.parametrize("network", FAMILIES)
def test_a_row_drops_the_same_inputs_alone_and_in_its_batch(places, bases, tmp_path, network):
    lora = {"rank": 3, "dropout": 0.5, "targets": ["qkv", "proj", "fc1", "kv_linear"][: 4 - (network == "dit")]}
    own = {"start": str(bases[network]), "lora": lora, "batch_size": 4, "gradient_checkpointing": network == "dit"}
    task = VideosTask.prepare(load_recipe(recipe_of(tmp_path, places, network, **own)), CPU)
    task.module.train()
    torch.manual_seed(0)
    for parameter in task.module.parameters():
        torch.nn.init.normal_(parameter, std=0.2)

    def predicted(rows):
        return task.predict(task.draw(0, torch.Generator().manual_seed(0), rows)).prediction

    whole = predicted(slice(0, 4))
    for rows in (slice(0, 2), slice(2, 4), slice(3, 4)):
        assert torch.allclose(predicted(rows), whole[rows], rtol=1e-3, atol=1e-3 * float(whole.abs().max()))


class Largest(TorchDispatchMode):
    """The most numbers that an operator gave."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        self.most = max([self.most, *(each.numel() for each in tree_leaves(found) if isinstance(each, torch.Tensor))])
        return found


def test_masks_are_drawn_for_the_rows_that_are_computed_alone():
    network = torch.nn.Sequential(RowDropout(0.25), RowDropout(0.25))
    adapters, x = Adapters(network, {}), torch.ones(64 * 3, 5, 7)

    def masked(rows, given):
        adapters.drop(1, torch.arange(64)[rows], 64)
        return [layer(given) for layer in network]

    first, second = masked(slice(0, 64), x)
    assert first.unique().tolist() == [0, pytest.approx(4 / 3)]
    assert float(first.mean()) == pytest.approx(1, abs=0.05)
    assert not torch.equal(first, second)
    rows = first.unflatten(0, (64, 3)).flatten(1)
    assert len(rows.unique(dim=0)) == 64
    with Largest() as largest:
        part, _ = masked(slice(62, 64), x[-6:])
    assert torch.equal(part, first[-6:])
    assert largest.most == part.numel()
    assert torch.equal(masked(slice(0, 64), x[:5])[0], masked(slice(0, 2), x[:5])[0])  # the same for all rows


def test_peft_reads_what_is_written(adapters, bases):
    peft = pytest.importorskip("peft")
    _, folder = adapters["stdit"]
    with guidon.load(bases["stdit"], device="cpu").model.network.in_use(torch.float32) as network:
        model = peft.PeftModel.from_pretrained(network, folder)
    found = peft.get_peft_model_state_dict(model)
    assert found.keys() == load_file(folder / "adapter_model.safetensors").keys()
    assert model.peft_config["default"].lora_alpha == 6


def test_the_scale_and_the_hash_are_in_the_manifest(adapters, bases):
    _, folder = adapters["stdit"]
    prompt = "a blue wave pans left"
    frames = {}
    for scale in ("0", "0.5", "1"):
        pipe = guidon.load(bases["stdit"], device="cpu", lora=[f"{folder}={scale}"])
        clip = pipe(prompt, **FEW)
        frames[scale] = clip.frames
        name = f"lora 1: adapter*{scale}"
        assert len(clip.manifest["weights"][name]) == 64
        assert np.array_equal(pipe.reproduce(clip.manifest)[0].frames, clip.frames)
    plain = guidon.load(bases["stdit"], device="cpu")(prompt, **FEW)
    assert np.array_equal(plain.frames, frames["0"])
    assert not np.array_equal(frames["0.5"], frames["1"])
    twice = guidon.load(bases["stdit"], device="cpu", lora=[f"{folder}=0.5", f"{folder}=0.5"])(prompt, **FEW)
    assert np.abs(twice.frames.astype(int) - frames["1"]).max() <= 1
    assert np.array_equal(
        guidon.load(bases["stdit"], device="cpu", lora={folder: 0.5})(prompt, **FEW).frames, frames["0.5"]
    )


def test_adapters_of_diffusers_change_the_joined_layers(tmp_path):
    """to_q, to_k and to_v are rows of one layer here."""
    torch.manual_seed(0)
    for network, prefix in (
        (
            PixArt(PixArtConfig(4, hidden_size=16, depth=2, num_heads=2, caption_channels=8, model_max_length=4)),
            "transformer.",
        ),
        (DiT(DiTConfig(4, hidden_size=16, depth=2, num_heads=2)), "base_model.model."),
    ):
        name = "transformer_blocks.1.attn1"
        parts = {part: (torch.randn(2, 16), torch.randn(16, 2)) for part in ("to_q", "to_v", "to_out.0")}
        tensors = {}
        for part, (down, up) in parts.items():
            tensors[f"{prefix}{name}.{part}.lora_A.weight"], tensors[f"{prefix}{name}.{part}.lora_B.weight"] = down, up
        path = tmp_path / "pytorch_lora_weights.safetensors"
        save_file(
            tensors, path, {"lora_adapter_metadata": json.dumps({"transformer.r": 2, "transformer.lora_alpha": 4})}
        )
        found = changes_of(network, AdapterSource(path=path).find())
        wanted = {part: 2 * up @ down for part, (down, up) in parts.items()}
        qkv = torch.cat([wanted["to_q"], torch.zeros(16, 16), wanted["to_v"]])
        assert found.keys() == {"blocks.1.attn.qkv.weight", "blocks.1.attn.proj.weight"}
        assert torch.allclose(found["blocks.1.attn.qkv.weight"], qkv)
        assert torch.allclose(found["blocks.1.attn.proj.weight"], wanted["to_out.0"])
        # peft names the network of diffusers that it was trained for
        theirs = f"{type(network).__name__}Transformer2DModel"
        settings = {"r": 2, "lora_alpha": 4, "auto_mapping": {"base_model_class": theirs}}
        folder = tmp_path / theirs
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps(settings | {"peft_type": "LORA"}))
        peft = {f"base_model.model.{name.removeprefix(prefix)}": tensor for name, tensor in tensors.items()}
        save_file(peft, folder / "adapter_model.safetensors")
        before = network.blocks[1].attn.proj.weight.clone()
        merge(network, AdapterSource(path=folder).find())
        assert torch.allclose(network.blocks[1].attn.proj.weight, before + wanted["to_out.0"])


def test_what_a_caption_keeps_is_computed_again_after_a_merge(tmp_path):
    """A wide network keeps tables of its weights and a caption, which a merge must invalidate."""
    torch.manual_seed(0)
    config = STDiTConfig((1, 16, 16), hidden_size=256, depth=1, num_heads=2, caption_channels=8, model_max_length=4)
    network = STDiT(config).eval().requires_grad_(False)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    down, up = torch.randn(2, 256), torch.randn(256, 2)
    name = "base_model.model.blocks.0.cross_attn.q_linear"
    save_file({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, tmp_path / "adapter_model.safetensors")
    x, t = torch.randn(1, 4, 1, 16, 16), torch.tensor([500.0])
    with torch.no_grad():
        caption = network.prepare(torch.randn(1, 4, 8), torch.ones(1, 4))
        before = network(x, t, caption)
        merge(network, AdapterSource(path=tmp_path).find())
        after = network(x, t, caption)
        caption.kept.clear()
        assert torch.equal(network(x, t, caption), after)
    assert caption.kept
    assert not torch.allclose(before, after)


@pytest.fixture
def damaged(adapters, tmp_path):
    """Writes a folder of adapters with other settings or tensors."""
    _, folder = adapters["stdit"]

    def write(config=None, **tensors):
        weights = load_file(folder / "adapter_model.safetensors")
        place = tmp_path / "other"
        place.mkdir(exist_ok=True)
        save_file({**weights, **tensors}, place / "adapter_model.safetensors")
        own = json.loads((folder / "adapter_config.json").read_text()) | (config or {})
        (place / "adapter_config.json").write_text(json.dumps(own))
        return place

    return write


NAME = "base_model.model.blocks.{}.attn.qkv.lora_{}.weight"


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        ({"use_dora": True}, {}, "has use_dora, which is not read: merge it with peft first"),
        ({"lora_alpha": "two"}, {}, "its lora_alpha is 'two', expected a number"),
        ({"auto_mapping": {"base_model_class": "PixArt"}}, {}, "holds adapters of a PixArt, the network is a STDiT"),
        ({}, {NAME.format(9, "A"): (3, 32), NAME.format(9, "B"): (96, 3)}, "blocks.9.attn.qkv, which is no linear layer"),
        ({}, {NAME.format(0, "B"): (80, 3)}, r"\(80, 32\) for blocks.0.attn.qkv.weight, which is \(96, 32\)"),
        ({}, {NAME.format(0, "B"): (96, 4)}, "are of ranks 3 and 4"),
        ({}, {NAME.format(9, "A"): (3, 32)}, "is no pair of matrices"),
        ({}, {"bias": (3,)}, "holds 'bias', which is no adapter of low rank"),
    ],
)  # fmt: skip
def test_adapters_that_do_not_fit_are_refused_in_one_line(damaged, bases, config, tensors, message):
    place = damaged(config, **{name: torch.zeros(shape) for name, shape in tensors.items()})
    with pytest.raises(InputError, match=message) as error:
        guidon.load(bases["stdit"], device="cpu", lora=place)("a blue wave pans left", **FEW)
    assert "\n" not in str(error.value)


def test_what_is_no_adapter_is_refused_before_the_model_is_loaded(bases, tmp_path):
    (tmp_path / "empty").mkdir()
    for lora, message in (
        (tmp_path / "absent", "absent is not there: give a folder with adapter_model.safetensors"),
        (tmp_path / "empty", "holds no adapter_model.safetensors"),
        (f"{bases['stdit']}=much", "'much' is no number: give FOLDER, or FOLDER=0.8"),
        (bases["stdit"] / "config.json", "is no safetensors file"),
    ):
        with pytest.raises(InputError, match=message):
            guidon.load(bases["stdit"], device="cpu", lora=lora)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lora": {"rank": 2, "targets": ["qvk"]}}, "targets names 'qvk', which no linear layer is called .did you mean 'qkv'"),
        ({"lora": {"rank": 2}, "network": {"family": "stdit"}}, "give one of them"),
        ({"lora": {"rank": 2}, "optimiser": {"name": "muon"}}, "adapters are trained by adamw"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused(places, bases, tmp_path, values, message):
    with pytest.raises(InputError, match=message):
        VideosTask.prepare(load_recipe(recipe_of(tmp_path, places, "stdit", start=str(bases["stdit"]), **values)), CPU)


def test_adapters_are_not_sharded(places, bases, tmp_path):
    own = {"start": str(bases["stdit"]), "lora": {"rank": 2}, "shard_above": 1}
    with pytest.raises(InputError, match="but this run cannot be sharded: raise shard_above"):
        run_recipe(recipe_of(tmp_path, places, "stdit", **own))


def test_a_word_that_the_encoder_does_not_know_is_refused(places, bases, tmp_path):
    write_clips(tmp_path / "clips")
    rows = (tmp_path / "clips" / "metadata.jsonl").read_text().replace("green", "violet")
    (tmp_path / "clips" / "metadata.jsonl").write_text(rows)
    recipe = recipe_of(
        tmp_path, places | {"videos": tmp_path / "clips"}, "stdit", start=str(bases["stdit"]), lora={"rank": 2}
    )
    with pytest.raises(InputError, match="lora trains no new words, and captions say 'violet'"):
        VideosTask.prepare(load_recipe(recipe), CPU)


def test_adapters_of_released_weights_are_merged_into_them(tmp_path, places):
    """Of a released checkpoint, with T5 and Stable Diffusion's autoencoder left to their stand-ins."""
    make_checkpoints(tmp_path)
    make_vae(tmp_path / "sd")
    features = torch.randn((len(CAPTIONS), 120, 24), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(features.shape[:2], dtype=torch.long)
    kept = save_features(tmp_path / "captions.safetensors", CAPTIONS, features, mask, encoder={"encoder": "stand-in"})
    own = {"start": str(tmp_path / "video.pth"), "text": {"features": str(kept)}}
    path = recipe_of(tmp_path, places | {"vae": tmp_path / "sd"}, "stdit", **own | {"lora": {"rank": 2}}, steps=1)
    folder = run_recipe(path)
    assert f'checkpoint="{tmp_path / "video.pth"}", lora=' in (folder / "README.md").read_text()
    parts = {"checkpoint": tmp_path / "video.pth", "vae": tmp_path / "sd", "features": kept}
    with pytest.warns(UserWarning, match="makes latents of"):
        clip = guidon.load("open-sora-1.0-16x256x256", device="cpu", lora=folder, **parts)(CAPTIONS[1], **FEW)
    assert "lora 1: adapter*1" in clip.manifest["weights"]
