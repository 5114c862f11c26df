"""Settings are checked before anything is loaded: without torch, with few imports, and leaving nothing behind."""

import json
import os
import subprocess
import sys

import pytest
import yaml

PROMPT = "a red circle moves left on a white background"
STUDY = {
    "prompts": 4,
    "settings": [{"name": "a", "cfg_scale": 2}, {"name": "b", "cfg_scale": 3}],
    "primary": {"metric": "joint", "baseline": "a", "against": "b"},
}
VIDEO = "open-sora-1.0-16x256x256"

# what is given, and a part of the line that answers
REFUSED = [
    *((["generate", PROMPT, *words.split()], answer) for words, answer in [
        ("--steps 0", "--steps"),
        ("--steps 5000", "--steps 5000 is more than guidon-small was trained for: give at most 1000"),
        ("--steps abc", "--steps"),
        ("--cfg-channels 9", "this model has 4 latent channels"),
        ("--cfg-scale -1", "--cfg-scale -1"),
        ("--cfg-scale 1,2,3", "--cfg-scale has 3 values"),
        ("--guidance nope", "--guidance"),
        ("--guidance fdg:levels=9", "latents of 16x16 cannot be halved 9 times"),
        ("--guidance stg:blocks=99", "blocks=99 names block 99, but the network's are numbered 0 to 5"),
        ("--guidance cfg++", "--guidance cfg++ takes a --cfg-scale from 0 to 1"),
        ("--interval 2,3", "--interval"),
        ("--sampler x", "--sampler"),
        ("--eta 2", "--eta"),
        ("--size 63x64", "63 is no multiple"),
        ("--size 4000000x4000000", "of memory"),
        ("--frames 3", "frames 3 is no multiple"),
        ("--model nope", "neither a preset nor a folder"),
        ("--format avi", "--format"),
        ("--format png", "--format png holds one image"),
        ("--exact dit", "guidon-small cannot replay --exact"),
        ("--exact dit --exact-noise nope", "--exact-noise 'nope' does not exist"),
        ("--device quantum", "is not a device"),
        ("--vae none", "brings its own weights: leave out --vae"),
        (f"--model {VIDEO}", "OpenSora-v1-HQ-16x256x256.pth of hpcai-tech/Open-Sora as --checkpoint, "
         "stabilityai/sd-vae-ft-ema as --vae, DeepFloyd/t5-v1_1-xxl as --text-encoder"),
        (f"--model {VIDEO} --checkpoint none.pth --vae none", "as --text-encoder"),
        (f"--model {VIDEO} --download --cfg-channels 5", "this model has 4 latent channels"),
        ("--model dit-xl-2-256 --download", "is not a class of this model"),
        ("--class 3", "--class is for a class-conditional model"),
        ("--out notes.txt/x", "cannot be written"),
    ]),
    (["generate", "two dogs"], "prompt"),
    (["evaluate", "--steps", "5000"], "at most 1000"),
    (["evaluate", "--cfg-channels", "9"], "--cfg-channels"),
    (["evaluate", "--split", "L9"], "L9"),
    (["evaluate", "--guidance", "nope"], "--guidance"),
    (["evaluate", "--model", "dit-xl-2-256"], "stabilityai/sd-vae-ft-mse as --vae"),
    (["evaluate", "none.mp4"], "none.mp4"),
    (["study", "run", "none.yaml", "--out", "r"], "none.yaml"),
    (["study", "run", "metric.yaml", "--out", "r"], "jiont"),
    (["study", "run", "scale.yaml", "--out", "r"], "'b'"),
    (["study", "run", "study.yaml", "--out", "notes.txt/r"], "cannot be written"),
    (["spectrum", PROMPT, "--cfg-scale", "1"], "guides nothing"),
    (["spectrum", PROMPT, "--looks", "0"], "--looks"),
    (["match", "--metric", "nope"], "nope"),
    (["match", "--to", "none"], "--to none"),
    (["tune", "--evaluations", "2"], "--evaluations 2"),
    (["tune", "--model", "dit-xl-2-256"], "does not say what good scales are"),
    (["tune", "--model", "dit-xl-2-256", "--clip", "none"], "--checkpoint"),
    (["train", "none.yaml"], "none.yaml"),
    (["prepare", "none.yaml"], "none.yaml"),
    (["train", "recipe.yaml"], "recipe.yaml"),
    (["encode", "a", "--text-encoder", "none", "--out", "f.safetensors"], "none is not a folder"),
    (["inspect", "none.pth"], "none.pth"),
    (["inspect", "notes.txt"], "is not a checkpoint"),
    (["audit", "none.py"], "none.py"),
]  # fmt: skip

RUN = """
import contextlib, io, json, sys
from guidon.cli import main

for words in json.load(sys.stdin):
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            main(words)
        except SystemExit as stop:
            print(json.dumps([words, stop.code, said.getvalue(), "torch" in sys.modules]))
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    wrong = {"jiont": STUDY | {"primary": STUDY["primary"] | {"metric": "jiont"}}}
    wrong["scale"] = STUDY | {"settings": [STUDY["settings"][0], {"name": "b", "cfg_channels": 9}]}
    for name, content in {"study": STUDY, "metric": wrong["jiont"], "scale": wrong["scale"]}.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"task": "vae", "stepz": 4}))
    return tmp_path


def start(words, folder, **options):
    environment = os.environ | {"HF_HOME": str(folder.parent / "hub"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(words, cwd=folder, env=environment, text=True, capture_output=True, check=False, **options)


def test_bad_settings_are_refused_in_one_line_without_torch_and_leave_nothing(folder):
    before = sorted(folder.rglob("*"))
    found = start([sys.executable, "-c", RUN], folder, input=json.dumps([words for words, _ in REFUSED]))
    rows = [json.loads(line) for line in found.stdout.splitlines()]
    assert len(rows) == len(REFUSED), found.stderr
    for (words, code, said, torch), (_, answer) in zip(rows, REFUSED, strict=True):
        assert code == 2, (words, said)
        assert answer in said, words
        assert said.count("\n") == 1, (words, said)
        assert not torch, f"{words} imported torch"
    assert sorted(folder.rglob("*")) == before


def test_a_refusal_imports_little(folder):
    # imports are nearly all of its time: 0.3 s of CPU with these modules, 0.1 s more with numpy
    words = json.dumps(["generate", PROMPT, "--steps", "5000"])
    found = start([sys.executable, "-c", f"{RUN}\nprint(json.dumps(sorted(sys.modules)))"], folder, input=f"[{words}]")
    modules = json.loads(found.stdout.splitlines()[-1])
    assert not {"numpy", "torch", "diffusers", "transformers", "av", "PIL"} & set(modules)
    assert len(modules) < 420, modules
