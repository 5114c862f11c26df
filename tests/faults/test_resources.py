"""Requests for more than any machine has: refused in one line with the estimate, quickly and in little memory."""

import json
import re
import resource
from functools import partial

import pytest
import torch

import guidon
from faults.harness import child, trials
from guidon.cli import main
from guidon.core.limits import attempt, available_memory
from guidon.request import Computation, Request

PROMPT = "a red circle moves left on a white background"
SECONDS = 2.0  # of CPU, after the imports
MEMORY = 200 << 20  # bytes, above those of the process
BILLION = 10**9
DIGITS = "9" * 5000  # Python does not turn so long a text into a number, nor back
HUGE = 10**5000


def refused(what, work, *arguments, limit=None):
    """Assert that ``work`` is refused in one line, in time and memory. Returns the line."""
    with trials("requests beyond the machine") as found:
        ended = child(work, *arguments, memory=limit, cpu=20)
        held = ended.one_line and ended.cpu < SECONDS and ended.memory < MEMORY
        case = f"{what}: {ended}, {ended.cpu:.1f} s, {ended.memory >> 20} MB"
        (found.refused if held else found.failed)(case, ended)
    return (ended.message or ended.output).strip()


@pytest.fixture(scope="module")
def pipe(tiny_model):
    """The model, loaded, with the libraries that the decoder imports: what is measured is the request alone."""
    pipe = guidon.load(tiny_model, device="cpu")
    pipe(PROMPT, steps=1, timing="constant")
    return pipe


# The command line

LINES = {
    "num-samples": (["--num-samples", BILLION], r"1,000,000,000 clips of 16 frames of 64x64 pixels need at least \d+ TB of memory, .* free: lower --num-samples"),
    "num-samples beyond len": (["--num-samples", 10**19], r"over 10\^18 clips .* lower --num-samples"),
    "num-samples of frames": (["--num-samples", BILLION, "--format", "frames"], r"at least \d+ TB of memory"),
    "num-samples and trace": (["--num-samples", BILLION, "--trace"], r"at least \d+ TB of memory"),
    "size": (["--size", "1000000x1000000"], r"16 frames of 1000000x1000000 pixels need at least \d+ TB of memory, .* lower --size or --frames"),
    "height and width": (["--height", 1000000, "--width", 1000000], r"at least \d+ TB of memory, .* lower --height"),
    "width": (["--size", f"64x{2 * BILLION}"], r"at least [\d.]+ TB of memory"),
    "size beyond 2^31": (["--size", "64x10000000000"], r"less than 2147483648"),
    "size of thousands of digits": (["--size", f"{DIGITS}x{DIGITS}"], "is not a size"),
    "frames": (["--frames", 1600000000], r"1600000000 frames of 64x64 pixels need at least \d+ TB of memory, .* lower --size or --frames"),
    "frames beyond 2^31": (["--frames", 10**12], "less than 2147483648"),
    "frames of thousands of digits": (["--frames", DIGITS], "--frames"),
    "steps": (["--steps", BILLION], "was trained for: give at most 1000"),
    "steps of ddim": (["--steps", BILLION, "--sampler", "ddim"], "was trained for: give at most 1000"),
    "steps of dpm-solver": (["--steps", BILLION, "--sampler", "dpm-solver"], "was trained for: give at most 1000"),
    "batch-size": (["--batch-size", BILLION], r"the latents of 1,000,000,000 clips that are denoised together need at least [\d.]+ TB of memory, .* lower --batch-size"),
    "batch-size beyond 2^64": (["--batch-size", 10**30], "lower --batch-size"),
    "channels of thousands of digits": (["--cfg-channels", DIGITS], "--cfg-channels"),
    "range of channels": (["--cfg-channels", f"0-{BILLION}"], "no latent has so many"),
    "scale of thousands of digits": (["--cfg-scale", DIGITS], "--cfg-scale"),
    "a million scales": (["--cfg-scale", ",".join(["4"] * 50_000)], "4 latent channels"),
}  # fmt: skip


@pytest.mark.parametrize("what", LINES)
def test_a_command_beyond_the_machine_is_refused(pipe, tiny_model, tmp_path, what):
    words, message = LINES[what]
    command = ["generate", PROMPT, "--model", tiny_model, "--device", "cpu", "--out", tmp_path / "outputs", *words]
    line = refused(what, main, list(map(str, command)))
    assert_says(line, message)
    assert not (tmp_path / "outputs").exists()


def assert_says(line, message):
    assert re.search(message, line), line[:500]


@pytest.mark.parametrize(
    ("lines", "length", "message"),
    [
        (10**6, 10, r"1,000,001 clips of 16 frames of 64x64 pixels need at least \d+ GB of memory, .* fewer prompts"),
        (10**6, 60, "the limit is"),
        (8 * 10**6, 1, "over 1,048,576 prompts"),
        (3 * 10**6, 3, "over 1,048,576 prompts"),
    ],
)
def test_a_file_of_a_million_prompts_is_refused(pipe, tiny_model, tmp_path, lines, length, message):
    if available_memory() > 200 * BILLION:
        pytest.skip("this machine can hold a million clips")
    path = tmp_path / "prompts.txt"
    thousand = "".join(f"{k:{length}}"[-length:].replace(" ", "a") + "\n" for k in range(1000))
    path.write_text(thousand * (lines // 1000))
    command = ["generate", PROMPT, "--prompts-file", path, "--model", tiny_model, "--device", "cpu"]
    line = refused(f"{lines} prompts", main, list(map(str, [*command, "--out", tmp_path / "outputs"])))
    assert_says(line, message)
    assert not (tmp_path / "outputs").exists()


MANIFESTS = {
    "frames": ({"frames": 1600000000}, {}, r"at least \d+ TB of memory"),
    "size": ({"size": [1000000, 1000000]}, {}, r"at least \d+ TB of memory"),
    "steps": ({"steps": BILLION}, {}, "at most 1000"),
    "samples": ({"samples": list(range(600_000))}, {}, r"600,000 clips .* at least \d+ GB of memory"),
    "batch": ({}, {"batch": BILLION}, r"the latents of 1,000,000,000 clips .* TB of memory"),
    "threads": ({}, {"threads": BILLION}, "threads is 1000000000: expected at most 4096"),
    "micro-batch": ({}, {"micro_batch": 10**12}, "less than 2147483648"),
}


@pytest.mark.parametrize("what", MANIFESTS)
def test_a_manifest_beyond_the_machine_is_refused(pipe, tiny_model, tmp_path, what):
    own, computed, message = MANIFESTS[what]
    generation = {"prompts": [PROMPT], "model": str(tiny_model)} | own
    path = tmp_path / "clip.mp4.json"
    path.write_text(json.dumps({"generation": generation, "computed": {"batch": 1} | computed}))
    command = ["generate", "--from", path, "--device", "cpu", "--out", tmp_path / "outputs"]
    limit = 8 << 30 if what == "samples" else None
    assert_says(refused(f"manifest: {what}", main, list(map(str, command)), limit=limit), message)
    assert not (tmp_path / "outputs").exists()


# Python

CALLS = {
    "num_samples": ({"num_samples": BILLION}, r"1,000,000,000 clips .* TB of memory, .* lower num_samples"),
    "num_samples beyond len": ({"num_samples": 10**19}, r"over 10\^18 clips .* lower num_samples"),
    "num_samples of thousands of digits": ({"num_samples": HUGE}, r"over 10\^18 clips"),
    "size": ({"size": (10**6, 10**6)}, r"TB of memory, .* lower size or frames"),
    "size of thousands of digits": ({"size": (HUGE, 64)}, "size"),
    "frames": ({"frames": 1600000000}, r"TB of memory, .* lower size or frames"),
    "frames of thousands of digits": ({"frames": HUGE}, "frames"),
    "steps": ({"steps": BILLION}, "at most 1000"),
    "steps of thousands of digits": ({"steps": HUGE}, "steps"),
    "batch_size": ({"batch_size": BILLION}, r"the latents of 1,000,000,000 clips .* lower batch_size"),
    "batch_size of thousands of digits": ({"batch_size": HUGE}, r"over 10\^18 clips that are denoised together"),
    "cfg_scale": ({"cfg_scale": HUGE}, "cfg_scale"),
    "cfg_channels": ({"cfg_channels": HUGE}, "cfg_channels"),
    "seed": ({"seed": HUGE}, "seed"),
    "trace": ({"num_samples": BILLION, "trace": guidon.GuidanceTrace()}, "TB of memory"),
}


@pytest.mark.parametrize("what", CALLS)
def test_a_call_beyond_the_machine_is_refused(pipe, what):
    choices, message = CALLS[what]
    assert_says(refused(f"call: {what}", partial(pipe, PROMPT, **choices)), message)


REQUESTS = {
    "frames": {"frames": 1600000000},
    "size": {"size": (10**6, 10**6)},
    "samples": {"samples": tuple(range(600_000))},
    "prompts": {"prompts": (PROMPT,) * 600_000},
}


@pytest.mark.parametrize("what", REQUESTS)
def test_a_request_beyond_the_machine_is_refused(pipe, what):
    request = Request(**{"prompts": (PROMPT,), "model": pipe.preset.name} | REQUESTS[what])
    assert_says(refused(f"request: {what}", pipe.generate, request, limit=8 << 30), r"at least \d+ [GT]B of memory")


def test_more_rows_than_the_machine_holds_are_refused(pipe):
    request, like = pipe.plan(PROMPT, steps=2), Computation(batch=BILLION)
    assert_says(refused("rows of a manifest", partial(pipe.generate, request, like=like)), "TB of memory")
    assert_says(refused("a list", partial(pipe, [PROMPT] * 600_000), limit=8 << 30), r"600,000 clips .* GB of memory")
    assert_says(refused("a plan", pipe.plan, [PROMPT], range(BILLION)), "TB of memory")


# The limit of this process counts


def test_a_smaller_machine_refuses_a_smaller_request(pipe):
    """A gigabyte of address space holds no clip that needs two, which this machine holds."""
    side = 2048  # 16 frames of 2048 x 2048: 1.8 GB as the decoder gives them
    if available_memory() < 4 * BILLION:
        pytest.skip("this machine is a small one")
    line = refused("within RLIMIT_AS", partial(pipe, PROMPT, size=(side, side), steps=1), limit=1 << 30)
    assert_says(line, r"16 frames of 2048x2048 pixels need at least 1\.\d+ GB of memory, [\d.]+ [GM]B are free")


def test_a_real_allocation_that_fails_is_one_line_and_exit_code_2(pipe, tiny_model, tmp_path):
    """The request passes the estimate, and the memory is full afterwards: the old output stays."""
    out = tmp_path / "outputs"
    out.mkdir()
    (out / "mine.txt").write_text("mine")

    def work():
        real = type(pipe.model.schedule).respaced

        def respaced(schedule, steps):
            left = available_memory()
            if left < 1 << 40:  # take all memory but 64 MB, in the pieces of no one
                held.append(bytearray(max(0, left - (64 << 20))))
                torch.empty(1 << 30, dtype=torch.uint8).fill_(1)
            return real(schedule, steps)

        held = []
        type(pipe.model.schedule).respaced = respaced
        main(["generate", PROMPT, "--model", str(tiny_model), "--steps", "1", "--device", "cpu", "--out", str(out)])

    with trials("an allocation that fails on the CPU") as found:
        ended = child(work, memory=1 << 30, cpu=20)
        held = ended.one_line and re.search("memory (of cpu )?is full", ended.output)
        (found.refused if held else found.failed)(f"in the pipeline: {ended}", ended)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


def test_a_failed_attempt_of_a_large_tensor_can_be_tried_smaller():
    def work():
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        assert limit != resource.RLIM_INFINITY
        assert attempt(lambda: torch.ones(1 << 29)) is None
        assert attempt(lambda: torch.ones(1 << 20)) is not None
        assert attempt(lambda: bytearray(4 << 30)) is None

    assert child(work, memory=1 << 30).how == "returned"
