"""Folders in the Hub's form, and what is sent to the Hub."""

import json
import shutil
import sys
import types
from contextlib import nullcontext

import numpy as np
import pytest
import torch

import guidon
from guidon.core.errors import InputError
from guidon.models.text.features import save_features
from released import make_checkpoints, make_sized_checkpoints, make_vae
from tiny_model import write_tiny_adapters, write_tiny_distilled

FEW = {"steps": 2, "cfg_scale": 2, "cfg_channels": "all", "seed": 1, "dtype": "fp32"}
PROMPT = "a red circle moves left on a white background"


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    folder = tmp_path_factory.mktemp("released")
    make_vae(folder / "vae")
    make_checkpoints(folder)
    make_sized_checkpoints(folder)
    for tokens in (120, 200):
        features = torch.randn((1, tokens, 24), generator=torch.Generator().manual_seed(tokens))
        mask = torch.ones((1, tokens), dtype=torch.long)
        save_features(folder / f"{tokens}.safetensors", [PROMPT], features, mask, encoder={"encoder": "stand-in"})
    return folder


def test_a_model_folder_is_saved_as_it_is(tiny_model, tmp_path):
    pipe = guidon.load(tiny_model, device="cpu")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "notes.txt").write_text("mine")
    saved = pipe.save_pretrained(tmp_path / "saved")
    names = {"README.md", "config.json", "denoiser.safetensors", "text.safetensors", "vae.safetensors", "notes.txt"}
    assert {path.name for path in saved.iterdir()} == names
    again = guidon.from_pretrained(saved, device="cpu")
    assert again.hashes == pipe.hashes
    assert (again.planner.bench, again.preset.timing) == (pipe.planner.bench, pipe.preset.timing)
    assert (saved / "README.md").read_text().startswith("---\nlibrary_name: guidon\n")


def test_adapters_are_saved_merged(tiny_model, tmp_path):
    pipe = guidon.load(tiny_model, device="cpu", lora=write_tiny_adapters(tmp_path / "adapter"))
    saved = pipe.save_pretrained(tmp_path / "saved")
    frames = [each(PROMPT, **FEW).frames.astype(int) for each in (pipe, guidon.load(saved, device="cpu"))]
    assert np.abs(frames[0] - frames[1]).max() <= 2  # stored in 16 bits
    assert np.abs(frames[0] - guidon.load(tiny_model, device="cpu")(PROMPT, **FEW).frames).max() > 2


@pytest.mark.parametrize("fast", [{"distilled": True}, {"distilled": False}, None])
def test_a_distilled_network_is_not_saved_with_merged_adapters(tiny_model, tmp_path, fast):
    folder = write_tiny_distilled(shutil.copytree(tiny_model, tmp_path / "model"))
    if fast is not None:
        steps = {"sampler": "consistency" if fast["distilled"] else "ddim", "steps": 2, "measured": "nothing"}
        (folder / "Guidon.fast.json").write_text(json.dumps(steps | fast))
    kept = guidon.load(folder, device="cpu").save_pretrained(tmp_path / "kept")
    assert (kept / "denoiser-fast.safetensors").is_file()
    pipe = guidon.load(folder, device="cpu", lora=write_tiny_adapters(tmp_path / "adapter"))
    saved = pipe.save_pretrained(tmp_path / "kept")  # what was there goes, too
    assert not (saved / "denoiser-fast.safetensors").exists()
    assert (saved / "Guidon.fast.json").exists() == (fast == {"distilled": False})
    again = guidon.load(saved, device="cpu")
    if fast == {"distilled": False}:
        assert again.plan(PROMPT, fast=True).sampler == "ddim"
    else:
        with pytest.raises(InputError, match="fast is for a model whose settings were calibrated"):
            again.plan(PROMPT, fast=True)


RELEASED = {
    "open-sora-1.0-16x256x256": ("video.pth", 120), "pixart-xl-2-256": ("image.pth", 120), "dit-xl-2-256": ("class.pt", None),
    "open-sora-1.1": ("OpenSora-STDiT-v2-stage3", 200),
}  # fmt: skip


@pytest.mark.parametrize(
    "preset",
    [pytest.param(name, marks=pytest.mark.long) if "dit" in name or "1.1" in name else name for name in RELEASED],
)
def test_a_released_model_is_saved_with_all_that_it_needs(released, tmp_path, preset):
    file, tokens = RELEASED[preset]
    features = {} if tokens is None else {"features": released / f"{tokens}.safetensors"}
    pipe = guidon.load(preset, device="cpu", checkpoint=released / file, vae=released / "vae", **features)
    saved = pipe.save_pretrained(tmp_path / "saved")
    again = guidon.from_pretrained(saved, device="cpu")
    for name in ("sampler", "steps", "cfg_scale", "cfg_channels", "timing", "fps", "source_fps", "is_image"):
        assert getattr(again.preset, name) == getattr(pipe.preset, name), name
    prompt = "207" if tokens is None else PROMPT
    small = {"size": (64, 64), "frames": 2} if preset == "open-sora-1.1" else {}
    with pytest.warns(UserWarning, match=r"makes latents of|null caption") if tokens != 200 else nullcontext():
        frames = [each(prompt, **FEW, **small).frames for each in (pipe, again)]
    if preset == "open-sora-1.1":  # it is stored in the precision of the preset
        assert np.abs(frames[0].astype(int) - frames[1]).mean() < 3
    else:
        assert np.array_equal(frames[0], frames[1])


def test_it_is_sent_to_the_hub_and_taken_from_there(tiny_model, tmp_path, monkeypatch):
    sent = {}

    class HfApi:
        def __init__(self, token=None):
            sent["token"] = token

        def create_repo(self, repository, private, exist_ok):
            sent["repo"] = repository, private, exist_ok

        def upload_folder(self, repo_id, folder_path, commit_message):
            shutil.copytree(folder_path, tmp_path / "hub")
            return types.SimpleNamespace(commit_url=f"https://hub/{repo_id}")

    taken = list[str]()
    hub = types.ModuleType("huggingface_hub")
    hub.HfApi = HfApi
    errors = types.ModuleType("huggingface_hub.errors")
    for name in ("HfHubHTTPError", "HFValidationError", "LocalEntryNotFoundError"):
        setattr(errors, name, type(name, (Exception,), {}))
    hub.errors = errors

    def snapshot(repository, allow_patterns, local_files_only):
        if local_files_only:
            raise errors.LocalEntryNotFoundError("not cached")
        taken.extend(allow_patterns)
        return str(tmp_path / "hub")

    hub.snapshot_download = snapshot
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)
    pipe = guidon.load(tiny_model, device="cpu")
    assert pipe.push_to_hub("me/circles", private=True, token="secret") == "https://hub/me/circles"
    assert sent == {"token": "secret", "repo": ("me/circles", True, True)}
    assert json.loads((tmp_path / "hub" / "config.json").read_text()) == {"model_type": "guidon"}
    again = guidon.from_pretrained("me/circles", device="cpu", download=True)
    assert again.hashes == pipe.hashes
    assert {"config.json", "denoiser.safetensors", "model.safetensors", "vae/*"} <= set(taken)
    assert not {"*", "checkpoints", "training.pt"} & set(taken)  # a model's own files alone
    with pytest.raises(InputError, match=r"weights are missing: me/circles .*or set download to fetch it"):
        guidon.from_pretrained("me/circles", device="cpu")
    shutil.rmtree(tmp_path / "hub")
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "model_index.json").write_text("{}")
    with pytest.raises(InputError, match="me/circles is a pipeline of diffusers: download all of it"):
        guidon.from_pretrained("me/circles", device="cpu", download=True)


@pytest.mark.parametrize("name", ["nothing-here", "a/b/c", 3])
def test_what_is_neither_a_folder_nor_a_repository_is_refused(name):
    with pytest.raises(InputError, match=r"give user/repository|give a folder, or user/repository"):
        guidon.from_pretrained(name)
