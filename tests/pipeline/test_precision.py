"""Precisions: what a caller chooses, what a machine chooses, and what manifests say of it."""

import copy
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import guidon
from guidon.core.devices import bf16_unit
from guidon.core.errors import InputError
from guidon.models.trained.config import TextSource
from guidon.pipeline import precision
from tiny_model import write_named_t5, write_tiny_trained

PROMPT = "a red circle moves left on a white background"
CPU = torch.device("cpu")


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Sets whether this machine has a unit for bf16, and what errors its checks find; counts the checks."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    checks = []

    def become(unit="amx_bf16", step=None, decode=None):
        monkeypatch.setattr(precision, "bf16_unit", lambda device: unit)
        for name, error in (("step_error", step), ("decode_error", decode)):
            found = getattr(precision, name) if error is None else lambda *_, error=error: error
            monkeypatch.setattr(precision, name, lambda *a, name=name, found=found: checks.append(name) or found(*a))

    become.checks = checks
    return become


@pytest.fixture(scope="module")
def pipe(tiny_model):
    return guidon.load(tiny_model, device="cpu")


@pytest.mark.parametrize(
    ("found", "unit"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, "amx_bf16"),
        ({"amx_bf16": False, "avx512_bf16": True}, "avx512_bf16"),
        ({"avx512_f": True}, None),
    ],
)
def test_the_unit_is_what_torch_says(monkeypatch, found, unit):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert bf16_unit(CPU) == unit
    assert bf16_unit(torch.device("mps")) is None
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert bf16_unit(CPU) is None


def test_decoding_in_bf16_changes_pixels_little_and_fp32_not_at_all(pipe):
    plain, said, half = (
        pipe(PROMPT, steps=2, **own) for own in ({}, {"decode_dtype": "fp32"}, {"decode_dtype": "bf16"})
    )
    assert np.array_equal(plain.frames, said.frames)
    assert "decode_dtype" not in plain.manifest["generation"]  # as earlier versions wrote it
    assert plain.manifest["generation"] == said.manifest["generation"]
    difference = np.abs(half.frames.astype(int) - plain.frames)
    assert 0 < difference.max() <= 4
    assert half.manifest["generation"]["decode_dtype"] == "bf16"
    assert half.manifest["generation"]["dtype"] == "fp32"
    assert np.array_equal(guidon.reproduce(half.manifest, device="cpu").frames, half.frames)


def test_latents_of_any_use_are_decoded_in_the_requests_precision(pipe):
    latents = torch.randn(1, *pipe.model.facts.latent_shape)
    decoded = []
    for dtype in ("fp32", "bf16"):
        with pipe.decoder(pipe.plan(PROMPT, decode_dtype=dtype)) as decode:
            decoded.append(decode(latents))
    assert decoded[1].dtype == torch.float32
    assert 0 < (decoded[0] - decoded[1]).square().mean().sqrt() * 127.5 < 2  # level of 255


def test_what_load_is_told_holds_for_every_call_that_does_not_choose(tiny_model):
    pipe = guidon.load(tiny_model, device="cpu", dtype="bf16", decode_dtype=torch.bfloat16)
    for each in (pipe, copy.copy(pipe), copy.deepcopy(pipe)):
        request = each.plan(PROMPT)
        assert (request.dtype, request.decode_dtype) == ("bf16", "bf16")
    assert pipe.plan(PROMPT, dtype="fp32", decode_dtype="fp32").dtype == "fp32"


def test_what_a_machine_chooses_and_what_to_says_hold_for_fast_settings(machine, capsys):
    machine(unit=None)
    pipe = guidon.load("guidon-small", device="cpu", dtype="auto")
    assert pipe.plan(PROMPT, fast=True).dtype == "fp32"
    assert pipe.to(torch.bfloat16).plan(PROMPT, fast=True).dtype == "bf16"


def test_a_machine_with_the_unit_and_a_small_error_computes_in_bf16(machine, tiny_model, capsys):
    machine(step=0.01, decode=0.2)
    pipe = guidon.load(tiny_model, device="cpu", dtype="auto", decode_dtype="auto")
    assert capsys.readouterr().err.splitlines() == [
        "guidon: dtype auto is bf16: this machine has amx_bf16, and the error of a guided step in it is 1.0%, at most 5% "
        "is allowed",
        "guidon: decode_dtype auto is bf16: this machine has amx_bf16, and the error of decoded pixels in it is 0.20 levels "
        "of 255, at most 1 is allowed",
    ]
    video = pipe(PROMPT, steps=2)
    said = video.manifest["generation"]
    assert (said["dtype"], said["decode_dtype"]) == ("bf16", "bf16")
    machine(unit=None)  # another machine follows the manifest
    assert np.array_equal(guidon.reproduce(video.manifest, device="cpu").frames, video.frames)


def test_a_checkpoint_without_a_null_caption_is_checked_too(machine, tmp_path, capsys):
    machine()
    folder = write_tiny_trained(tmp_path / "model", TextSource(kind="t5", folder=write_named_t5(tmp_path / "t5")))
    weights = load_file(folder / "model.safetensors")
    del weights["y_embedder.y_embedding"]
    save_file(weights, folder / "model.safetensors")
    guidon.load(folder, device="cpu", dtype="auto")
    assert "guidon: dtype auto is bf16: this machine has amx_bf16, and the error of a guided step in it is" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("unit", "error", "reason"),
    [
        (None, 0.0, "this cpu has no unit for bf16"),
        ("amx_bf16", 0.06, "but the error of a guided step in it is 6.0%"),
        ("amx_bf16", float("nan"), "but the error of a guided step in it is nan%"),
    ],
)
def test_any_other_machine_computes_in_fp32_and_says_why(machine, tiny_model, capsys, unit, error, reason):
    machine(unit, step=error)
    plain = guidon.load(tiny_model, device="cpu", dtype="auto").plan(PROMPT)
    assert reason in capsys.readouterr().err
    assert plain == guidon.load(tiny_model, device="cpu").plan(PROMPT)
    assert machine.checks == ([] if unit is None else ["step_error"])


def test_a_check_is_done_once_for_a_model_and_a_machine(machine, tiny_model, tiny_flow, tmp_path, monkeypatch):
    def chosen(model):
        return guidon.load(model, device="cpu", dtype="auto").preset.dtype

    machine(step=0.01)
    assert [chosen(tiny_model), chosen(tiny_model)] == ["bf16", "bf16"]
    assert len(machine.checks) == 1
    chosen(tiny_flow)
    assert len(machine.checks) == 2
    machine(unit="avx512_bf16", step=0.01)
    chosen(tiny_model)
    assert len(machine.checks) == 3
    monkeypatch.setattr(torch, "__version__", "99.0.0")
    chosen(tiny_model)
    assert len(machine.checks) == 4
    for path in (tmp_path / "cache").rglob("*.json"):  # damaged
        path.write_text(json.dumps({"error": "0.01"}))
    chosen(tiny_model)
    assert len(machine.checks) == 5
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")  # it cannot be written
    assert chosen(tiny_model) == "bf16"
    assert len(machine.checks) == 6


def test_the_checks_compare_bf16_with_fp32(pipe):
    step = precision.step_error(pipe.preset, pipe.model, CPU)
    pixels = precision.decode_error(pipe.preset, pipe.model, CPU)
    assert 0 < step < precision.STEP_TOLERANCE
    assert 0 < pixels < 2  # random weights err more than trained ones


def test_what_no_machine_can_choose_is_refused(tiny_model, tmp_path):
    with pytest.raises(InputError, match="dtype auto is for Guidon's own models: give fp32 or bf16"):
        guidon.load(f"diffusers:{tmp_path}", dtype="auto")
    with pytest.raises(InputError, match="decode_dtype is 'fp16'"):
        guidon.load(tiny_model, decode_dtype="fp16")
    with pytest.raises(InputError, match="dtype is the manifest's: leave it out"):
        guidon.reproduce({"generation": {"prompts": [PROMPT]}}, dtype="bf16")
