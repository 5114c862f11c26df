import copy
import pickle
import resource
import shutil
import signal
import zipfile

import pytest
import torch
from pydantic import BaseModel

from guidon.checkpoints import files
from guidon.core.errors import InputError
from guidon.training import load_recipe, run_recipe, state
from guidon.training.ema import EMA
from guidon.training.recipe import Optimiser
from guidon.training.recipe.section import completed
from guidon.training.state import Checkpoint, Progress, read_state
from guidon.training.terms.settings import MSESettings
from recipes import ROLLOUT, assert_equal_weights, at_step, denoiser_recipe, rows_of, weights_of, write_recipe
from recipes import vae_recipe as recipe_of

MODEL = {"block_out_channels": [8], "norm_num_groups": 4, "pixel_unshuffle": 4}  # few tensors: they are what takes time


def vae_recipe(folder, **values):
    return recipe_of(folder, **{"model": MODEL} | values)


@pytest.fixture(scope="module")
def vae_run(tmp_path_factory):
    """The folder of a finished run of an autoencoder."""
    folder = tmp_path_factory.mktemp("whole")
    run_recipe(vae_recipe(folder))
    return folder / "vae"


@pytest.fixture(scope="module")
def content(vae_run):
    """What the checkpoint of that run holds, but for its digest."""
    whole = torch.load(vae_run / "checkpoint.pt", weights_only=True)
    del whole["digest"]
    return whole


@pytest.fixture
def finished(vae_run, tmp_path):
    """The recipe of that run and its checkpoint, in a copy for one test."""
    shutil.copytree(vae_run, tmp_path / "vae")
    return vae_recipe(tmp_path), tmp_path / "vae" / "checkpoint.pt"


@pytest.fixture
def reads_once(monkeypatch):
    """For tests of what is compared with a checkpoint: one of the same bytes is not read again."""
    known = {}

    def read(path):
        content = path.read_bytes()
        if content not in known:
            known[content] = read_state(path)
        return copy.deepcopy(known[content])

    monkeypatch.setattr(state, "read_state", read)


def refused(config, match):
    with pytest.raises(InputError, match=match) as error:
        run_recipe(config)
    assert "\n" not in str(error.value)


def test_a_damaged_checkpoint_is_refused_not_trained_over(finished):
    config, checkpoint = finished
    checkpoint.write_bytes(checkpoint.read_bytes()[:-50])
    refused(config, r"checkpoint.pt cannot be read as a checkpoint: .*; delete it to train again")


def test_damage_with_good_checksums_is_refused_by_the_digest(finished):
    config, checkpoint = finished
    whole = torch.load(checkpoint, weights_only=True)
    assert read_state(checkpoint).step == 4
    weight = next(iter(whole["module"]))
    changes = (
        {"step": 3},
        {"seconds": 7.0},
        {"skipped": 1},
        {"log": whole["log"][:1]},
        {"identity": whole["identity"] | {"seed": 1}},
        {"module": whole["module"] | {weight: whole["module"][weight] + 1e-6}},
        {"ema": dict(reversed(whole["ema"].items())) | {weight: whole["ema"][weight] * 1.001}},
        {"optimisers": [whole["optimisers"][0] | {"param_groups": [{}]}]},
        {"digest": "0" * 64},
    )
    for change in changes:
        torch.save(whole | change, checkpoint)
        with pytest.raises(InputError, match="its content is not what was written; delete it"):
            read_state(checkpoint)
    refused(config, "its content is not what was written; delete it")


@pytest.mark.parametrize(
    "change",
    [
        lambda optimiser: optimiser["state"][0].update(step=torch.zeros(3)),
        lambda optimiser: optimiser["state"][0].update(exp_avg=torch.zeros(3)),
        lambda optimiser: optimiser["state"][0].pop("exp_avg_sq"),
        lambda optimiser: optimiser["param_groups"][0].update(betas=("x", 0.9)),
        lambda optimiser: optimiser["param_groups"][0].update(eps=None),
    ],
)
def test_an_optimiser_that_could_not_do_a_step_is_refused(tmp_path, change):
    module = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Linear(4, 2))
    weights = list(module.parameters())
    optimiser = torch.optim.AdamW(weights, fused=True)
    sum(weight.sum() for weight in weights).backward()
    optimiser.step()
    kept = Checkpoint(tmp_path / "checkpoint.pt", {}, dict, frozenset(), module, EMA(module, 0.9), [optimiser])
    kept.save(Progress(1))
    kept.load()
    whole = torch.load(kept.path, weights_only=True)
    del whole["digest"]
    change(whole["optimisers"][0])
    torch.save(whole, kept.path)
    with pytest.raises(InputError, match=r"the state of its optimiser does not fit: its .* is"):
        kept.load()


EMPTY = {"step": 0, "seconds": 0.0, "identity": {}, "module": {}, "ema": {}, "optimisers": []}


def nested(make, depth=24):
    """A value that holds another one twice, which holds a third one twice, and so on."""
    value = make(())
    for _ in range(depth):
        value = make((value, value))
    return value


@pytest.mark.parametrize("name", ["list", "tuple", "tensor"])
def test_a_small_checkpoint_that_asks_for_much_is_refused(tmp_path, name):
    one = torch.zeros(100_000)
    content = {
        "list": {"optimisers": nested(list)},
        "tuple": {"identity": {"a": nested(tuple)}},
        "tensor": {"module": {str(k): one for k in range(1000)}},
    }[name]
    torch.save(EMPTY | content, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match=r"repeats its content|holds a tuple"):
        read_state(tmp_path / "checkpoint.pt")


def test_a_log_may_be_longer_than_the_pickle_of_foreign_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MOST_STEPS", 100)
    monkeypatch.setenv("GUIDON_MAX_TEXT_BYTES", "1000")
    log = [{"step": str(k), "loss": str(k / 64)} for k in range(200)]
    torch.save(EMPTY | {"log": log}, tmp_path / "checkpoint.pt")
    assert len(read_state(tmp_path / "checkpoint.pt").log) == len(log)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"log": [{"step": "x"}]}, "row 2 has no step"), ({"log": [{"step": "1", "loss": "x"}]}, "could not convert"),
        ({"step": "x"}, "step"), ({"step": -1}, "step"), ({"step": None}, "step"), ({"seconds": float("nan")}, "seconds"),
        ({"module": [1]}, "module"), ({"module": {"a": 1}}, "module.a"), ({"ema": {}}, "its weights do not fit the recipe"),
        ({"optimisers": {}}, "optimisers"), ({"optimisers": []}, "another optimiser"), ({"more": 1}, "unknown key 'more'"),
        ({"identity": None}, "identity"), ({"log": [{"step": 3}]}, "log"), ({"optimisers": [{"state": {}}]}, "does not load"),
        ({"optimisers": [{"state": 3, "param_groups": [{"params": [0]}]}]}, "another optimiser"),
        ({"module": {"a": torch.zeros(1).expand(10**6, 10**6)}}, "repeats its content"),
        ({"ema": {"a": torch.tensor([1.0, float("inf")])}}, "its ema.a holds NaN or infinity"),
    ],
)  # fmt: skip
def test_fields_that_no_run_wrote_are_refused_in_one_line(finished, content, change, message):
    config, checkpoint = finished
    torch.save(content | change, checkpoint)
    refused(config, message)


def test_what_is_no_checkpoint_is_refused_in_one_line(finished):
    config, checkpoint = finished
    for content in ([], {}, {"step": 3}, "text", torch.zeros(3), {"digest": 3}):
        torch.save(content, checkpoint)
        refused(config, "cannot be read as a checkpoint")
    compressed = zipfile.ZipFile(checkpoint, "w", zipfile.ZIP_DEFLATED)
    with compressed:
        compressed.writestr("a/data.pkl", b"0" * 10**6)
    refused(config, "PyTorch never packs a checkpoint")
    checkpoint.unlink()
    checkpoint.mkdir()
    refused(config, "it is a folder")


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, finished):
    _, checkpoint = finished
    before = checkpoint.read_bytes()
    longer = vae_recipe(tmp_path, steps=6)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (len(before) // 2, len(before) - 100):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            with pytest.raises(OSError, match="File too large"):
                run_recipe(longer)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert checkpoint.read_bytes() == before
    assert run_recipe(longer) is not None
    assert read_state(checkpoint).step == 6


def test_a_changed_recipe_does_not_go_on_from_another_ones_weights(tmp_path, tiny_model, reads_once):
    vae = tiny_model / "vae.safetensors"
    run_recipe(denoiser_recipe(tmp_path, vae, steps=2))
    for change, message in (
        ({"prediction": "v"}, r"the recipe's prediction changed since \(eps, now v\)"),
        ({"seed": 3, "noise_schedule": "squaredcos_cap_v2"}, "the recipe's noise_schedule and seed changed since"),
        ({"terms": {"mse": {"weighting": "balanced"}, "area": {"weight": 1}}}, r"the recipe's .*terms.area.weight"),
        ({"optimiser": {"name": "adamw", "warmup_steps": 2}}, "optimiser.name changed since"),
        ({"caption_dropout": 0.2}, r"caption_dropout changed since \(0.1, now 0.2\)"),
        ({"shape_weights": {"cross": 3}}, "shape_weights"),
    ):
        changed = denoiser_recipe(tmp_path, vae, steps=4, **change)
        for export_only in (True, False):
            with pytest.raises(InputError, match=message):
                run_recipe(changed, export_only=export_only)


def leaves(section, before=""):
    """The names of all settings in a section of a recipe."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from leaves(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", field


OTHER = {
    "batch_size": 3, "precision": "bf16", "ema_decay": 0.5, "seed": 1, "foreground_weight": 3.0, "kl_weight": 0.1,
    "optimiser.weight_decay": 0.1, "optimiser.betas": [0.5, 0.9], "optimiser.name": "muon", "start": "x.safetensors",
    "model.layers_per_block": 2, "model.latent_channels": 3, "model.norm_num_groups": 2, "model.padding": "replicate",
    "model.block_out_channels": [16], "model.mid_block_attention": True, "model.pixel_unshuffle": 1,
    "model.decoder_padding": "replicate", "train": "decoder",
    "steps": 6, "optimiser.lr": 0.5, "optimiser.muon_lr": 0.5, "optimiser.warmup_steps": 3, "optimiser.decay": 0.5,
    "optimiser.grad_clip": 0.5, "log_every": 1, "checkpoint_every": 1, "evaluate_every": 0,
    "shard_above": 10**8, "workers": 1,
}  # fmt: skip
SAID = {"steps", *(f"optimiser.{name}" for name in ("lr", "muon_lr", "warmup_steps", "decay", "grad_clip"))}
EARLIER = {"start": "x.safetensors", "train": "give its start"}
"""What is refused before the checkpoint is read: a start that is missing."""
UNSEEN = {"log_every", "checkpoint_every", "evaluate_every", "shard_above", "workers"}


def test_each_setting_of_an_autoencoder_is_refused_said_or_does_not_matter(tmp_path, finished, reads_once, capsys):
    """The table above is complete: a new setting must be added to it."""
    config, checkpoint = finished
    names = {name for name, _ in leaves(load_recipe(config))} - {"task", "out", "device", "redraw", "data", "cache"}
    assert names == OTHER.keys()
    identity, before = read_state(checkpoint).identity, checkpoint.read_bytes()
    assert not UNSEEN & identity.keys()
    for name, value in OTHER.items():
        section, _, last = name.rpartition(".")
        own = MODEL if section == "model" else {}
        changed = vae_recipe(tmp_path, **({section: own | {last: value}} if section else {name: value}))
        checkpoint.write_bytes(before)
        capsys.readouterr()
        if name not in SAID | UNSEEN:
            refused(changed, EARLIER.get(name, f"the recipe's {name} changed since"))
            continue
        run_recipe(changed)
        said = [line for line in capsys.readouterr().err.splitlines() if "goes on with other settings" in line]
        assert len(said) == (name in SAID), name
        assert not said or f" {name} " in said[0]


@pytest.mark.parametrize(
    ("name", "value"), [("kl_weight", 0.1), ("optimiser.weight_decay", 0.1), ("model.mid_block_attention", True)]
)
def test_a_setting_that_did_not_exist_was_its_default(tmp_path, finished, capsys, name, value):
    """A checkpoint of an earlier version goes on in silence, unless the recipe gives the new setting another value."""
    config, checkpoint = finished
    whole = torch.load(checkpoint, weights_only=True)
    section, _, last = name.rpartition(".")
    del (whole["identity"][section] if section else whole["identity"])[last]
    del whole["digest"]
    torch.save(whole | {"digest": state._digest(whole)}, checkpoint)
    before = checkpoint.read_bytes()
    run_recipe(config)
    assert "goes on with other settings" not in capsys.readouterr().err
    checkpoint.write_bytes(before)
    own = MODEL if section == "model" else {}
    changed = vae_recipe(tmp_path, **({section: own | {last: value}} if section else {name: value}))
    refused(changed, f"the recipe's {name} changed since")


def test_a_setting_that_did_not_exist_and_is_not_its_default_is_refused(tmp_path, finished):
    config, checkpoint = finished
    whole = torch.load(checkpoint, weights_only=True)
    del whole["identity"]["model"]["block_out_channels"], whole["digest"]
    torch.save(whole | {"digest": state._digest(whole)}, checkpoint)
    refused(config, "the recipe's model.block_out_channels changed since")


def test_what_an_earlier_version_wrote_is_completed_by_defaults(tmp_path):
    """Those of the recipe, not of its sections; in optional sections only where the checkpoint has the section, too."""
    terms = {"mse": {"foreground": 4.0}, "area": {"weight": 0.5}}
    recipe = load_recipe(denoiser_recipe(tmp_path, "vae.safetensors", terms=terms))
    known = completed({"steps": 6, "terms": {"mse": {"foreground": 4.0}, "area": None}, "older": 1}, recipe)
    assert known["steps"] == 6
    assert known["older"] == 1
    assert "vae" not in known
    assert known["size_swap"] == 0.0
    assert known["optimiser"] == Optimiser().model_dump(mode="json")
    assert known["terms"]["mse"] == MSESettings(foreground=4).model_dump(mode="json")
    assert known["terms"]["area"] is known["terms"]["shape_contrast"] is known["expert"] is None
    rollout = load_recipe(write_recipe(tmp_path / "rollout.yaml", ROLLOUT | {"out": "x", "start": "y"}))
    wanted = MSESettings(weighting="balanced", foreground=4).model_dump(mode="json")
    assert completed({}, rollout)["terms"]["mse"] == wanted


@pytest.mark.parametrize("name", sorted(state.LATER))
def test_what_earlier_versions_did_not_write_is_not_compared(tmp_path, capsys, name):
    module = torch.nn.Linear(1, 1)
    parts = module, EMA(module, 0.9), [torch.optim.AdamW(module.parameters())]

    def checkpoint(**identity):
        return Checkpoint(tmp_path / "checkpoint.pt", {"seed": 1} | identity, dict, frozenset(), *parts)

    checkpoint().save(Progress(1))
    checkpoint(**{name: "a"}).load()
    assert not capsys.readouterr().err
    checkpoint(**{name: "a"}).save(Progress(1))
    with pytest.raises(InputError, match=f"the recipe's {name} changed since"):
        checkpoint(**{name: "b"}).load()


def test_a_run_does_not_go_on_past_its_recipe(tmp_path, finished):
    shorter = vae_recipe(tmp_path, steps=2)
    refused(shorter, "checkpoint.pt is of step 4, the recipe ends at step 2: raise steps, or export it")
    assert run_recipe(shorter, export_only=True) is not None


OLD = {"task", "model", "text", "prediction", "noise_schedule", "seed", "start", "train", "batch_size", "clips", "vae"}


def as_before_digests(state):
    """A checkpoint as versions wrote it that knew no digest, and compared few settings."""
    identity = {name: value for name, value in state["identity"].items() if name in OLD}
    return {"identity": identity} | {name: state[name] for name in ("step", "seconds", "module", "ema", "optimisers")}


def test_a_checkpoint_without_a_digest_goes_on_and_says_so(tmp_path, tiny_model, trained, monkeypatch, capsys):
    config = denoiser_recipe(tmp_path, tiny_model / "vae.safetensors", checkpoint_every=2)
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda: signal.raise_signal(signal.SIGINT))
        assert run_recipe(config) is None
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    torch.save(as_before_digests(torch.load(checkpoint, weights_only=True)), checkpoint)
    log = tmp_path / "run" / "log.csv"
    rows = log.read_bytes()
    log.write_bytes(rows[:-4] + b"?" + rows[-3:])
    refused(config, "log.csv cannot be read as the log of a run")
    log.write_bytes(rows)
    assert_equal_weights(weights_of(run_recipe(config)), weights_of(trained))
    assert "checkpoint.pt was written by an earlier version: it has no digest, and" in capsys.readouterr().err
    assert [row["step"] for row in rows_of(tmp_path / "run")] == ["2", "4", "6"]
    torch.save(as_before_digests(torch.load(checkpoint, weights_only=True)), checkpoint)
    refused(denoiser_recipe(tmp_path, tiny_model / "vae.safetensors", seed=3), "the recipe's seed changed since")


@pytest.mark.parametrize("area", [False, True])
def test_a_checkpoint_of_an_earlier_version_is_resumed_to_the_same_weights(tmp_path, tiny_model, monkeypatch, area):
    """It kept the loss levels at the top, used or not."""
    terms = {"mse": {"weighting": "balanced"}} | ({"area": {"weight": 0.5}} if area else {})
    values = {"batch_size": 4, "clips": 4, "prediction": "x0", "terms": terms}
    vae = tiny_model / "vae.safetensors"
    whole = run_recipe(denoiser_recipe(tmp_path, vae, **values, out=str(tmp_path / "whole"), cache=str(tmp_path)))
    config = denoiser_recipe(tmp_path, vae, **values, cache=str(tmp_path))
    with monkeypatch.context() as patch:
        at_step(patch, 2, lambda: signal.raise_signal(signal.SIGINT))
        assert run_recipe(config) is None
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    state = as_before_digests(torch.load(checkpoint, weights_only=True))
    for part in ("module", "ema"):
        state[part] = {
            name.replace("terms.mse.loss_level.", "level.").replace("terms.area.loss_level.", "area_level."): value
            for name, value in state[part].items()
        }
        state[part] = {"area_level.level": torch.zeros(50), "area_level.seen": torch.zeros(50)} | state[part]
        assert not any(name.startswith("terms.") for name in state[part])
    torch.save(state, checkpoint)
    assert_equal_weights(weights_of(run_recipe(config)), weights_of(whole))


def test_a_pickle_that_takes_years_is_refused_before_it_is_read(tmp_path):
    key: tuple = ("x",)
    for _ in range(60):
        key = (key, key)  # small in memory and in the file, but hashed along 2**60 paths
    with zipfile.ZipFile(tmp_path / "checkpoint.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps([{}, key], protocol=2))
    with pytest.raises(InputError, match="holds a tuple of more than"):
        read_state(tmp_path / "checkpoint.pt")
