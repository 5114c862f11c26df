import json

import pytest

from guidon.analysis.speed import parts
from released import make_checkpoints

QUICK = ("--rounds", 1, "--threads", 1, "--device", "cpu")


def rows(out):
    """The first cells of all rows of all tables."""
    lines = [line for line in out.splitlines() if line.startswith("| ")]
    return [line.split("|")[1].strip() for line in lines if not line.startswith("| arm")]


def test_every_part_is_measured_and_written(run, tiny_model, tmp_path):
    file = tmp_path / "speed.json"
    code, out, _ = run(
        "bench", tiny_model, *QUICK, "--parts", "step,outside,decode,clip,train", "--dtype", "fp32,bf16", "--steps",
        "2,1", "--json", file,
    )  # fmt: skip
    assert code == 0
    assert rows(out) == [
        "fp32, batched", "fp32, sequential", "fp32, conditional", "bf16, batched", "bf16, sequential",
        "bf16, conditional", "ddpm, guided", "ddim, guided", "ddpm, conditional", "16 frames at a time",
        "1 frame at a time", "ddpm, 2 steps, fp32", "ddpm, 2 steps, bf16", "ddpm, 1 steps, fp32",
        "ddpm, 1 steps, bf16", "fp32", "bf16",
    ]  # fmt: skip
    found = json.loads(file.read_text())
    assert found["machine"]["threads"] == 1
    tables = {table["title"]: {row["name"]: row for row in table["rows"]} for table in found["tables"]}
    step = next(iter(tables.values()))
    assert step["fp32, sequential"]["exact"]
    assert not step["fp32, conditional"]["exact"]
    assert not step["bf16, batched"]["exact"]
    assert step["fp32, conditional"]["counts"]["flops"] * 2 == step["fp32, batched"]["counts"]["flops"]
    assert step["fp32, sequential"]["counts"]["peak"] < step["fp32, batched"]["counts"]["peak"]
    outside = list(tables.values())[1]
    assert {row["counts"]["flops"] for row in outside.values()} == {0}
    assert "saves" in out or "costs" in out


def test_the_first_of_each_list_is_the_base(run, tiny_model):
    code, out, _ = run("bench", tiny_model, *QUICK, "--parts", "step", "--dtype", "bf16", "--branches", "sequential")
    assert code == 0
    assert rows(out) == ["bf16, sequential"]
    assert "the base" in out


def test_ctrl_c_keeps_what_was_measured(run, tiny_model, tmp_path, monkeypatch):
    measure = parts.measure_part

    def stopped(part, *arguments, **options):
        if part == "clip":
            raise KeyboardInterrupt
        return measure(part, *arguments, **options)

    monkeypatch.setattr(parts, "measure_part", stopped)
    file = tmp_path / "speed.json"
    code, out, err = run("bench", tiny_model, *QUICK, "--parts", "outside,clip", "--steps", "1", "--json", file)
    assert code == 130
    assert f"stopped; the tables above are kept in {file}" in err
    assert "ddpm, guided" in rows(out)
    assert len(json.loads(file.read_text())["tables"]) == 1
    code, _, err = run("bench", tiny_model, *QUICK, "--parts", "clip")
    assert (code, "nothing was measured" in err) == (130, True)


def test_of_a_checkpoint_alone_the_network_is_measured(run, refused, tmp_path):
    checkpoint = make_checkpoints(tmp_path) / "video.pth"
    code, out, _ = run("bench", "open-sora-1.0-16x256x256", "--checkpoint", checkpoint, *QUICK, "--dtype", "fp32")
    assert code == 0
    assert rows(out) == [
        "fp32, batched", "fp32, sequential", "fp32, conditional", "ddpm, guided", "ddim, guided", "ddpm, conditional",
    ]  # fmt: skip
    message = refused("bench", "open-sora-1.0-16x256x256", "--checkpoint", checkpoint, *QUICK, "--parts", "decode")
    assert "--vae" in message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing"], "is neither a preset nor a folder"),
        (["--parts", "steps"], "--parts 'steps' does not exist (did you mean 'step'?)"),
        (["--parts", "step,step"], "--parts names step twice"),
        (["--dtype", "fp8"], "--dtype 'fp8' does not exist"),
        (["--branches", "batched,"], "--branches '' does not exist"),
        (["--steps", "50;25"], "--steps '50;25' is no list of whole numbers"),
        (["--steps", "50,50"], "--steps names 50 twice"),
        (["--steps", "5000"], "--steps 5000 is more than guidon-small was trained for"),
        (["--sampler", "euler"], "--sampler euler does not go with guidon-small"),
        (["--size", "10x10"], "--size: height 10 is no multiple of 8"),
        (["--prompt", "a zebra drives a car"], "guidon-small"),
        (["--threads", "99999"], "--threads 99999 is too many"),
        (["--rounds", "0"], "--rounds"),
        (["--json", "."], "--json . is a folder"),
        (["diffusers:folder"], "diffusers:folder"),
        (["--checkpoint", "x.pth"], "checkpoint"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line(refused, words, message):
    assert message in refused("bench", *words)
