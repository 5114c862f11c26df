"""Numbers that are not finite, and memory that runs out, planted in the network and in the decoder."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from functools import cache, partial
from itertools import product

import numpy as np
import pytest
import torch

import guidon
from faults.harness import LONG, child, sample, trials
from guidon.cli import main
from guidon.core.errors import InputError
from guidon.diffusion import NoiseSchedule
from guidon.guidance import Guidance, GuidanceTrace, GuidedDenoiser
from guidon.models.stdit.network import STDiT
from guidon.models.vae.frames import FrameVAE, FrameVAEConfig
from guidon.request import Computation
from guidon.samplers import sample_ddim, sample_ddpm, sample_dpm_solver
from tiny_model import write_tiny_model
from toy_network import COND, NEGATIVE, SHAPE, UNCOND, Network, normal

PROMPT = "a red circle moves left on a white background"
PROMPTS = [PROMPT, "a blue square moves up on a black background", "a green triangle moves right on a white background"]
SAMPLERS = ("ddpm", "ddim", "dpm-solver")
STEPS = 5
CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79 GiB")
CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory")
FULL = {"cuda": CUDA, "cpu": CPU, "numpy": MemoryError()}


@pytest.fixture(scope="module")
def pipe(tiny_model):
    return guidon.load(tiny_model, device="cpu")


@contextmanager
def planted(monkeypatch, method, change):
    """In the block, ``method`` of a class gives ``change(call, output, *arguments)``; calls are counted from 1."""
    owner, name = method
    real, calls = getattr(owner, name), []

    def planted(self, *arguments, **named):
        calls.append(arguments)
        return change(len(calls), lambda: real(self, *arguments, **named), *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, planted)
        yield calls


# Not finite: the pipeline

BROKEN = [
    (value, where, sampler, how)
    for value, where in product((float("nan"), float("inf"), -float("inf")), ("all", "one", "second"))
    for sampler, how in product(SAMPLERS, ("conditional", "guided", "sequential", "negative"))
]


@pytest.mark.parametrize(("value", "where", "sampler", "how"), sample(BROKEN, in_ci=18))
def test_a_prediction_that_is_not_finite_ends_its_step(pipe, monkeypatch, value, where, sampler, how):
    """At call 3: the error names step, timestep and branch, and no further call is made."""
    rule = {"guidance": "perp-neg", "negative_prompt": "a blue square"} if how == "negative" else {}
    scale = 1.0 if how == "conditional" else 4.0
    rows = {"conditional": 1, "guided": 2, "sequential": 1, "negative": 3}[how]
    broken_call = 3
    timesteps = []

    def change(call, run, x, level, *_):
        timesteps.append(float(level.timestep))
        out = run()
        if call != broken_call:
            return out
        out = out.clone()
        row = {"all": slice(None), "one": 0, "second": rows - 1}[where]
        out[row, 0, 0, 0, 0] = value
        return out

    seen = []
    with planted(monkeypatch, (STDiT, "forward"), change) as calls, pytest.raises(InputError) as refused:
        pipe(
            PROMPT, steps=STEPS, sampler=sampler, cfg_scale=scale, timing="constant", sequential=how == "sequential",
            on_step=lambda *done: seen.append(done), **rule,
        )  # fmt: skip
    step = 2 if how == "sequential" else 3
    names = ["cond", "uncond", "negative"][: {"conditional": 1, "guided": 2, "sequential": 2, "negative": 3}[how]]
    if how == "sequential":
        names = names[:1]  # call 3 is the conditional branch of step 2
        broken_calls = 4  # the second branch of the step has run, too
    else:
        names = {"all": names, "one": names[:1], "second": names[-1:]}[where]
        broken_calls = 3
    message = str(refused.value)
    with trials("NaN and infinity from the network") as found:
        held = (
            f"not finite at step {step} of {STEPS} (timestep {timesteps[2]:g})" in message
            and f"in the branch {' and '.join(names)}:" in message
            and len(calls) == broken_calls
            and len(seen) == step - 1
        )
        found.check(held, "" if held else f"{value} {where} {sampler} {how}: {message}, {len(calls)} calls")


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("call", [1, STEPS])
def test_the_first_and_the_last_step_are_checked(pipe, monkeypatch, sampler, call):
    change = partial(_nan_at, call)
    with (
        planted(monkeypatch, (STDiT, "forward"), change),
        pytest.raises(InputError, match=f"at step {call} of {STEPS}"),
    ):
        pipe(PROMPT, steps=STEPS, sampler=sampler, cfg_scale=3.0, timing="constant")


def _nan_at(broken, call, run, *_):
    return run() * (float("nan") if call == broken else 1)


def test_what_is_infinite_though_the_network_was_not_is_said_to_be_so(pipe):
    with pytest.raises(InputError, match=r"the latents are not finite before step 2 of 5 \(.* lower cfg_scale"):
        pipe(PROMPT, steps=STEPS, cfg_scale=1e38, timing="constant")
    with pytest.raises(InputError, match=r"the guided prediction is not finite at step 1 \(timestep 999\), though its"):
        GuidedDenoiser(
            lambda x, level, cond: torch.cat([x, x], 1) * cond.value[:, None, None, None, None] * 10, Guidance(3e38), COND,
            UNCOND,
        )(normal(*SHAPE), SCHEDULE.levels[0])  # fmt: skip


def test_on_the_command_line_it_is_one_line_and_leaves_nothing(tiny_model, tmp_path):
    def work():
        real = STDiT.forward
        STDiT.forward = lambda self, *arguments: real(self, *arguments) * float("nan")
        main(["generate", PROMPT, "--model", str(tiny_model), "--steps", "3", "--device", "cpu", "--out", str(tmp_path / "o")])  # fmt: skip

    ended = child(work, memory=None)
    assert ended.one_line
    assert "not finite at step 1 of 3" in ended.output
    assert not (tmp_path / "o").exists()


# Not finite: a sampler alone, with any denoiser

RUNS = {
    "ddpm": lambda denoiser, schedule, x: sample_ddpm(denoiser, schedule, x, torch.zeros_like),
    "ddim": lambda denoiser, schedule, x: sample_ddim(denoiser, schedule, x, torch.zeros_like),
    "dpm-solver": lambda denoiser, schedule, x: sample_dpm_solver(denoiser, schedule, x, torch.zeros_like, steps=20),
}
SCHEDULE = NoiseSchedule.named().respaced("20")


@pytest.mark.parametrize("sampler", RUNS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_sampler_checks_the_predictions_of_any_callable(sampler, value):
    calls = []

    def denoiser(x, level):
        calls.append(level)
        return torch.cat([x, x], 1) * (value if len(calls) == 3 else 0.1)

    with pytest.raises(InputError, match=r"the denoiser's prediction is not finite at step 3 \(timestep [\d.]+\)"):
        RUNS[sampler](denoiser, SCHEDULE, normal(*SHAPE))
    assert len(calls) == 3


class Breaks(Network):
    """Gives one value that is not finite in one branch at one step."""

    def __init__(self, step, branch, together):
        super().__init__()
        self.step, self.branch, self.together, self.calls = step, branch, together, 0

    def __call__(self, x, level, cond):
        out = super().__call__(x, level, cond)
        step, branch = (self.calls, None) if self.together else divmod(self.calls, 3)
        self.calls += 1
        if step == self.step - 1 and self.together:
            out[self.branch * SHAPE[0]] = float("nan")
        elif step == self.step - 1 and branch == self.branch:
            out[1, 1] = float("inf")
        return out


@pytest.mark.parametrize("sampler", RUNS)
@pytest.mark.parametrize("branch", [0, 1, 2])
@pytest.mark.parametrize("together", [True, False])
def test_the_branch_is_named(sampler, branch, together):
    denoiser = GuidedDenoiser(
        Breaks(3, branch, together), Guidance(3, rule="perp-neg"), COND, UNCOND, negative=NEGATIVE, batched=together
    )
    name = ("cond", "uncond", "negative")[branch]
    with pytest.raises(InputError, match=rf"not finite at step 3 \(timestep [\d.]+\), in the branch {name}:"):
        RUNS[sampler](denoiser, SCHEDULE, normal(*SHAPE))


def test_large_finite_numbers_are_no_fault():
    """Their sum overflows, and a second look sees that all are finite."""
    prediction = torch.full(SHAPE, 1e38)
    denoiser = GuidedDenoiser(lambda x, level, cond: prediction, Guidance(1), COND)
    assert torch.isinf(prediction.sum())
    assert torch.equal(denoiser(normal(*SHAPE), SCHEDULE.levels[0]), prediction)


# Out of memory: smaller parts


def test_how_close_the_smaller_parts_are_depends_on_the_precision(pipe):
    assert pipe.plan(PROMPT).closeness == "1/255"
    assert pipe.plan(PROMPT, dtype="bf16").closeness == "the rounding of bf16"


def full(error, least_rows):
    """A network whose memory holds fewer than ``least_rows`` rows."""

    def change(call, run, x, level, caption, *_):
        if len(caption) >= least_rows:
            raise type(error)(*error.args)
        return run()

    return change


def same(a, b):
    """Whether two clips are the same up to 1/255."""
    return np.abs(a.frames.astype(int) - b.frames).max() <= 1


LESS = [  # rows that no longer fit, what is told, and (batch, sequential) of what was computed
    (6, "2 denoised together in place of 4", (2, False)),  # a batch of 4 clips is 8 rows
    (4, "1 denoised together in place of 4", (1, False)),
    (2, "1 denoised together in place of 4, one branch after the other", (1, True)),
]
CASES = list(product(enumerate(FULL), enumerate(SAMPLERS), enumerate(LESS)))
SQUARE = [case for case in CASES if sum(number for number, _ in case) % 3 == 0]
"""A Latin square: every two of an error, a sampler and a row of ``LESS`` meet once."""


@pytest.fixture(scope="module")
def whole_batch(pipe):
    """The options of a run with a sampler, and its clips where the memory holds all."""

    @cache
    def of(sampler):
        options = {"num_samples": 2, "steps": 4, "sampler": sampler, "cfg_scale": 3.0, "timing": "constant"}
        return options, pipe(PROMPTS[:2], **options)

    return of


@pytest.mark.parametrize(
    ("error", "sampler", "less"), [tuple(value for _, value in case) for case in (CASES if LONG else SQUARE)]
)
def test_a_full_memory_halves_the_batch_then_runs_branch_after_branch(
    pipe, whole_batch, monkeypatch, error, sampler, less
):
    rows, told, computed = less
    options, whole = whole_batch(sampler)
    with (
        planted(monkeypatch, (STDiT, "forward"), full(FULL[error], rows)),
        pytest.warns(UserWarning, match="memory ran out") as warned,
    ):
        parts = pipe(PROMPTS[:2], **options)
    lines = [str(warning.message) for warning in warned if "memory ran out" in str(warning.message)]
    with trials("memory that runs out") as found:
        held = (
            len(lines) == 1
            and told in lines[0]
            and "\n" not in lines[0]
            and len(parts) == 4
            and all(map(same, parts, whole))
            and all((c["batch"], c["sequential"]) == computed for c in (v.manifest["computed"] for v in parts))
        )
        found.check(held, "" if held else f"{error} {sampler} {rows} rows: {lines}")


@pytest.mark.parametrize("error", FULL)
def test_memory_that_runs_out_late_keeps_what_is_done(pipe, monkeypatch, error):
    """Batches of 2 clips; the third batch fails in its second step, and is made clip by clip."""
    options = {"num_samples": 2, "steps": 3, "cfg_scale": 3.0, "timing": "constant", "batch_size": 2}
    whole, seen = pipe(PROMPTS, **options), []

    def change(call, run, x, *_):
        if call == 8:
            raise FULL[error]
        return run()

    with planted(monkeypatch, (STDiT, "forward"), change) as calls, pytest.warns(UserWarning, match="memory ran out"):
        parts = pipe(PROMPTS, **options, on_step=lambda *done: seen.append(done))
    assert len(calls) == 6 + 2 + 6
    assert [video.manifest["computed"]["batch"] for video in parts] == [2, 2, 2, 2, 1, 1]
    assert all(map(same, parts, whole))
    assert all(np.array_equal(a.frames, b.frames) for a, b in zip(parts[:4], whole[:4], strict=True))
    assert all(done <= total for done, total in seen)
    assert seen[-1][0] == seen[-1][1]


def test_a_conditional_run_has_no_branches_to_run_apart(pipe, monkeypatch):
    with (
        planted(monkeypatch, (STDiT, "forward"), full(CUDA, 1)),
        pytest.raises(
            InputError, match="the memory of cpu is full where one clip and one branch is denoised at a time"
        ),
    ):
        pipe(PROMPT, steps=2, cfg_scale=1.0)


@pytest.mark.parametrize("error", FULL)
def test_memory_that_holds_no_single_row_is_refused_in_one_line(pipe, monkeypatch, error):
    with (
        planted(monkeypatch, (STDiT, "forward"), full(FULL[error], 1)) as calls,
        pytest.raises(InputError, match=r"is full where one clip and one branch .* lower size or frames") as refused,
    ):
        pipe(PROMPTS, num_samples=2, steps=2, cfg_scale=3.0, timing="constant")
    assert "\n" not in str(refused.value)
    assert [len(arguments[2]) for arguments in calls] == [12, 6, 2, 1]


def test_another_error_is_not_taken_for_a_full_memory(pipe, monkeypatch):
    def change(call, run, *_):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with planted(monkeypatch, (STDiT, "forward"), change) as calls, pytest.raises(RuntimeError, match="mat1"):
        pipe(PROMPTS, steps=2)
    assert len(calls) == 1


def test_a_trace_keeps_its_one_batch_and_holds_one_run(pipe, monkeypatch):
    options = {"num_samples": 2, "steps": 4, "cfg_scale": 3.0, "timing": "constant"}
    expected, trace = GuidanceTrace(), GuidanceTrace()
    whole = pipe(PROMPT, **options, trace=expected)

    def change(call, run, x, level, caption, *_):
        if len(caption) > 2 and call == 3:  # two steps are in the trace already
            raise CUDA
        return run()

    with (
        planted(monkeypatch, (STDiT, "forward"), change),
        pytest.warns(UserWarning, match="one branch after the other"),
    ):
        parts = pipe(PROMPT, **options, trace=trace)
    for name, values in expected.as_arrays().items():
        assert np.allclose(values, trace.as_arrays()[name], rtol=0.02, atol=2e-3)
    assert all(map(same, parts, whole))


def test_an_exact_replay_keeps_its_batches_and_its_noise(pipe, monkeypatch):
    """Its clips depend on their batch, so that only the branches are run apart, from the first batch on."""
    request = pipe.plan(PROMPTS, (0, 1), steps=3, cfg_scale=3.0, timing="constant")
    request = request.model_copy(update={"exact": "open-sora-1.0", "batch_size": 2})
    whole = pipe.generate(request)

    def change(call, run, x, level, caption, *_):
        if len(caption) == 4 and call == 5:  # in the second batch
            raise CUDA
        return run()

    with (
        planted(monkeypatch, (STDiT, "forward"), change),
        pytest.warns(UserWarning, match="smaller parts: one branch after the other;"),
    ):
        parts = pipe.generate(request)
    assert all(map(same, parts, whole))
    assert {video.manifest["computed"]["batch"] for video in parts} == {2}


FEWER_FRAMES = [(8, 8), (3, 2), (1, 1)]  # as many fit, so many are decoded at a time


@pytest.mark.parametrize(
    ("error", "most", "told"),
    [
        (error, *fewer)
        for error, fewer in (product(FULL, FEWER_FRAMES) if LONG else zip(FULL, FEWER_FRAMES, strict=True))
    ],
)
def test_a_decoder_that_runs_out_takes_fewer_frames(pipe, monkeypatch, error, most, told):
    options = {"num_samples": 3, "steps": 2, "cfg_scale": 1.0}
    whole = pipe(PROMPT, **options)

    def change(call, run, images):
        if len(images) > most:
            raise FULL[error]
        return run()

    with (
        planted(monkeypatch, (FrameVAE, "reconstruct"), change),
        pytest.warns(UserWarning, match=f"smaller parts: {told} frames decoded at a time;") as warned,
    ):
        parts = pipe(PROMPT, **options)
    assert len([w for w in warned if "memory" in str(w.message)]) == 1
    assert all(map(same, parts, whole))
    assert {video.manifest["computed"]["micro_batch"] for video in parts} == {told}
    with (
        planted(monkeypatch, (FrameVAE, "reconstruct"), lambda call, run, images: (_ for _ in ()).throw(FULL[error])),
        pytest.raises(InputError, match="is full even where one frame is decoded at a time: lower size or frames"),
    ):
        pipe(PROMPT, **options)


def test_a_real_memory_that_is_too_small_falls_back(tmp_path):
    """RLIMIT_AS leaves less than a run took: real allocations fail, and the clips are made in smaller parts."""
    wide = FrameVAEConfig(block_out_channels=(16, 16, 16), norm_num_groups=4, scaling_factor=1.0)
    model = write_tiny_model(tmp_path / "model", vae=wide)
    shares = [f"{number / 20}" for number in range(2, 25)] if LONG else ["0.5", "0.1"]
    # Blocks of memory go back to the system when they are freed, so that the limit meets what a run takes.
    environment = os.environ | {
        "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }  # fmt: skip
    command = [sys.executable, "-m", "faults.small_memory", str(model), *shares]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    with trials("an allocation that fails on the CPU") as found:
        rows = json.loads(run.stdout)
        for row in rows:
            case = f"{row['share']}: {row['message']}"
            if row["how"] == "returned":
                found.check(row["right"], case)
            else:
                (found.refused if row["one_line"] and "memory" in row["message"] else found.failed)(case)
        assert any(row["told"] for row in rows), rows


# What is promised about bytes


def test_a_manifest_makes_its_clip_again_bit_for_bit_alone(pipe, tmp_path):
    """Whatever it was made beside. The manifest says of how many rows its batch was."""
    options = {"steps": 4, "cfg_scale": 3.0, "timing": "constant", "seed": 3}
    for size in (1, 2, 3, 5, 6):
        for number, video in enumerate(pipe(PROMPTS, num_samples=2, batch_size=size, **options)):
            request = pipe.plan(PROMPTS, range(2), **options).alone(number // 2, number % 2)
            like = Computation(**video.manifest["computed"])
            assert like.batch == min(size, 6 - number // size * size)
            again = pipe.generate(request, like=like)
            assert len(again) == 1
            assert np.array_equal(again[0].frames, video.frames)
            assert again[0].manifest == video.manifest
            assert same(pipe.generate(request)[0], video)


def test_branches_together_and_apart_are_each_made_again(pipe):
    for sequential in (False, True):
        video = pipe(PROMPT, steps=3, cfg_scale=3.0, timing="constant", sequential=sequential)
        assert video.manifest["computed"]["sequential"] == sequential
        like = Computation(**video.manifest["computed"])
        assert np.array_equal(pipe.generate(pipe.plan([PROMPT], steps=3, cfg_scale=3.0, timing="constant"), like=like)[0].frames, video.frames)  # fmt: skip


@pytest.fixture
def made(tiny_model, tmp_path):
    """Clips of one batch, as the command line writes them: {name: (manifest, frames)}."""

    def run(out, *words):
        line = ["generate", *words, "--device", "cpu", "--format", "frames", "--out", str(out)]
        with pytest.raises(SystemExit) as stop:
            main(line)
        assert not stop.value.code
        return {path.name: path for path in out.iterdir() if path.suffix == ".json"}

    return run


def pictures(manifest):
    folder = manifest.with_suffix("")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_command_line_makes_a_manifest_again_bit_for_bit(made, tiny_model, tmp_path, capsys):
    first = made(
        tmp_path / "a", *PROMPTS, "--model", str(tiny_model), "--steps", "3", "--num-samples", "2", "--cfg-scale", "3"
    )
    assert len(first) == 6
    for name, manifest in first.items():
        capsys.readouterr()
        again = made(tmp_path / "b", "--from", str(manifest))
        assert pictures(again[name]) == pictures(manifest)
        assert capsys.readouterr().err == ""
        assert json.loads(again[name].read_text())["computed"] == json.loads(manifest.read_text())["computed"]


def test_another_batch_or_another_version_is_said(made, tiny_model, tmp_path, capsys):
    (manifest,) = made(tmp_path / "a", PROMPT, "--model", str(tiny_model), "--steps", "2", "--cfg-scale", "3").values()
    content = json.loads(manifest.read_text())
    content["computed"] |= {"batch": 3, "threads": 4096}
    manifest.write_text(json.dumps(content | {"torch": "2.5.0", "device": "cuda:0"}))
    capsys.readouterr()
    made(tmp_path / "b", "--from", str(manifest), "--batch-size", "1")
    said = (
        "made with torch 2.5.0, the device cuda:0, 3 clips together, its branches together: frames may differ by 1/255"
    )
    assert said in capsys.readouterr().err
    made(tmp_path / "c", "--from", str(manifest))
    assert "the device cuda:0, 4096 threads: frames may differ by 1/255" in capsys.readouterr().err


def test_a_manifest_of_an_earlier_version_makes_its_clip_as_before(made, pipe, tiny_model, tmp_path, capsys):
    (manifest,) = made(tmp_path / "a", PROMPT, "--model", str(tiny_model), "--steps", "2").values()
    content = json.loads(manifest.read_text())
    del content["computed"]
    manifest.write_text(json.dumps(content))
    capsys.readouterr()
    (again,) = made(tmp_path / "b", "--from", str(manifest)).values()
    assert pictures(again) == pictures(manifest)
    assert capsys.readouterr().err == ""


def test_threads_are_those_of_the_manifest(pipe):
    video = pipe(PROMPT, steps=2, cfg_scale=3.0)
    before = torch.get_num_threads()
    assert video.manifest["computed"]["threads"] == before
    two = pipe.generate(pipe.plan([PROMPT], steps=2, cfg_scale=3.0), like=Computation(threads=2))[0]
    assert two.manifest["computed"]["threads"] == 2
    assert torch.get_num_threads() == before
    assert same(two, video)
