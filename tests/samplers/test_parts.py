"""A step that goes part by part through large latents gives the bits of the step that takes them whole."""

import pytest
import torch

from guidon.core.errors import InputError
from guidon.diffusion import NoiseSchedule, Process
from guidon.guidance import Guidance, GuidanceTrace, GuidedDenoiser, Sparing
from guidon.samplers import LegacyNoise, SampleNoise, ddpm, sample_ddpm
from guidon.samplers.ddpm import ddpm_guided_next, ddpm_next
from toy_network import normal

LEVEL = NoiseSchedule.named().respaced("20").levels[7]
PART = 64
CLAMPS = [Process(), Process(variance="clamped_range"), Process(clip_denoised=True)]
every_clamp = pytest.mark.parametrize("process", CLAMPS, ids=["neither", "variance", "clean sample"])


class Nothing:
    """A condition that is not read."""

    def cat(self, other):
        return self


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(ddpm, "PART", PART)


def denoiser(prediction, guidance, **more):
    return GuidedDenoiser(lambda x, *_: prediction[: len(x)], guidance, Nothing(), Nothing(), **more)


def both_ways(shape, guidance, noise, process=Process(), learned=True, level=LEVEL, dtype=torch.float32, **more):
    """x_{t-1} part by part and whole, and what was called in the first."""
    x, prediction = normal(*shape).to(dtype), normal(2 * shape[0], (1 + learned) * shape[1], *shape[2:], seed=1)
    kept = prediction.clone(), x.clone()
    called = []
    ways = [denoiser(prediction, guidance, **more) for _ in range(2)]
    first, second = (noise() for _ in range(2))
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(ddpm, "_in_parts", lambda *given, own=ddpm._in_parts: called.append(given) or own(*given))
        parts = ddpm_guided_next(ways[0], x, level, first, process)
        whole = ddpm_next(ways[1](x, level), x, level, second(x), process)
    assert torch.equal(parts, whole)
    assert (ways[0].memory.calls, ways[0].memory.guided) == (ways[1].memory.calls, ways[1].memory.guided)
    assert torch.equal(prediction, kept[0])
    assert torch.equal(x, kept[1])
    return bool(called)


@pytest.mark.parametrize(
    "guidance", [Guidance(7, 3), Guidance(2, "all"), Guidance(1), Guidance(3, 3, timing="interval:0.9,1")]
)
@pytest.mark.parametrize("shape", [(2, 4, 2, 5, 7), (1, 4, 32), (3, 5, 3, 9), (1, 4, 4, 16)])
def test_the_bits_are_those_of_the_whole_step(shape, guidance):
    for process in (Process(), Process(variance="clamped_range", clip_denoised=True)):
        assert both_ways(shape, guidance, lambda rows=shape[0]: SampleNoise(5, range(rows)), process)


def test_the_originals_noise_is_drawn_as_before():
    assert both_ways((2, 4, 2, 5, 7), Guidance(7, 3), lambda: LegacyNoise(2, torch.Generator().manual_seed(3)))


def test_one_branch_after_the_other():
    assert both_ways((2, 4, 2, 5, 7), Guidance(7, 3), lambda: SampleNoise(5, range(2)), batched=False)


@pytest.mark.parametrize(
    "guidance", [Guidance(7, [1, 2]), Guidance([2, 3, 1, 1]), Guidance(7, 3, rule="apg"), Guidance(7, "0,2")]
)
def test_other_guidance_takes_the_whole(guidance):
    assert not both_ways((2, 4, 2, 5, 7), guidance, lambda: SampleNoise(5, range(2)))


def test_other_processes_last_steps_and_small_latents_take_the_whole():
    def noise():
        return SampleNoise(5, range(2))

    shape, last = (2, 4, 2, 5, 7), NoiseSchedule.named().respaced("20").levels[-1]
    assert not both_ways(shape, Guidance(7, 3), noise, Process("v"))
    for learned in (True, False):
        assert not both_ways(shape, Guidance(7, 3), noise, Process(variance="fixed_small"), learned=learned)
    assert not both_ways(shape, Guidance(7, 3), noise, level=last)
    assert not both_ways((2, 4, 3, 5), Guidance(7, 3), noise)
    for dtype in (torch.bfloat16, torch.float64):
        assert not both_ways(shape, Guidance(7, 3), noise, dtype=dtype)


def test_a_guided_step_can_be_differentiated():
    x, prediction = normal(2, 4, 2, 5, 7), normal(4, 8, 2, 5, 7, seed=1).requires_grad_()
    found = ddpm_guided_next(denoiser(prediction, Guidance(7, 3)), x, LEVEL, torch.zeros_like, Process())
    (gradient,) = torch.autograd.grad(found.sum(), prediction)
    assert (gradient[:, :3].flatten(1).abs().sum(1) > 0).all()
    assert gradient[:2, 3].any()
    assert not gradient[2:, 3:].any()


def test_a_trace_sees_every_step():
    trace = GuidanceTrace()
    assert not both_ways((2, 4, 2, 5, 7), Guidance(7, 3), lambda: SampleNoise(5, range(2)), observe=trace)
    assert len(trace)


def test_calls_that_are_left_out_are_left_out_of_large_latents_too():
    for sparing in (Sparing(reuse=2), Sparing(adaptive=0.99)):
        assert not both_ways((2, 4, 2, 5, 7), Guidance(7, 3), lambda: SampleNoise(5, range(2)), sparing=sparing)


def test_the_steps_of_a_run_are_counted_from_one_at_which_guidance_does_not_act():
    """The image's scale of three-way guidance depends on their number."""
    guidance = Guidance(7, 3, "three-way:ramp=1", "interval:0.9,1")
    run = denoiser(normal(4, 8, 2, 5, 7, seed=1), guidance, imageless=Nothing())
    with torch.no_grad():
        ddpm_guided_next(run, normal(2, 4, 2, 5, 7), LEVEL, torch.zeros_like, Process())
    assert (run.memory.calls, run.memory.guided, run.memory.steps) == (1, 0, LEVEL.steps_left)


def test_a_denoiser_or_guidance_of_another_class_is_called():
    class Louder(GuidedDenoiser):
        def __call__(self, x, level, /):
            return 2 * super().__call__(x, level)

    class Twice(Guidance):
        def combine(self, *given, **named):
            guided, memory = super().combine(*given, **named)
            return 2 * guided, memory

    x, prediction = normal(2, 4, 2, 5, 7), normal(4, 8, 2, 5, 7, seed=1)
    network = (lambda x, *_: prediction[: len(x)]), Nothing(), Nothing()
    with torch.no_grad():
        expected = ddpm_next(
            2 * denoiser(prediction, Guidance(7, 3))(x, LEVEL), x, LEVEL, torch.zeros_like(x), Process()
        )
        for kind, guidance in ((Louder, Guidance(7, 3)), (GuidedDenoiser, Twice(7, 3))):
            run = kind(network[0], guidance, *network[1:])
            assert torch.equal(ddpm_guided_next(run, x, LEVEL, torch.zeros_like, Process()), expected)


def test_a_wrapper_around_a_denoiser_is_called():
    class Louder:
        def __init__(self, inner):
            self.inner = inner

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def __call__(self, x, level):
            return 2 * self.inner(x, level)

    x, prediction = normal(2, 4, 2, 5, 7), normal(4, 8, 2, 5, 7, seed=1)
    with torch.no_grad():
        wrapped = Louder(denoiser(prediction, Guidance(7, 3)))
        found = ddpm_guided_next(wrapped, x, LEVEL, torch.zeros_like, Process())
        plain = denoiser(prediction, Guidance(7, 3))(x, LEVEL)
    assert torch.equal(found, ddpm_next(2 * plain, x, LEVEL, torch.zeros_like(x), Process()))


@pytest.mark.parametrize(
    ("row", "channel", "message"),
    [(0, 1, "in the branch cond"), (0, 6, "in the branch cond"), (2, 3, "in the branch uncond")],
)
@every_clamp
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_branch_that_is_not_finite_is_refused(row, channel, message, process, value):
    x, prediction = normal(2, 4, 2, 5, 7), normal(4, 8, 2, 5, 7, seed=1)
    prediction[row, channel, 1, 2, 3] = value
    with torch.no_grad(), pytest.raises(InputError, match=message):
        ddpm_guided_next(denoiser(prediction, Guidance(7, 3)), x, LEVEL, torch.zeros_like, process)


@every_clamp
@pytest.mark.parametrize("timing", ["constant", "oscillation:1"])  # the next step is guided, or is not
def test_guidance_that_overflows_is_refused(process, timing):
    x, prediction = normal(2, 4, 2, 5, 7), normal(4, 8, 2, 5, 7, seed=1)
    prediction[0, 0, 0, 0, 0] = 3e38
    with torch.no_grad(), pytest.raises(InputError, match="the guided prediction is not finite at step 1"):
        ddpm_guided_next(denoiser(prediction, Guidance(70, 3, timing=timing)), x, LEVEL, torch.zeros_like, process)


def test_a_run_is_the_same_and_keeps_what_was_shown():
    x, prediction = normal(2, 4, 2, 5, 7), normal(4, 8, 2, 5, 7, seed=1)
    shown, schedule = [], NoiseSchedule.named().respaced("5")

    def after(step, level, latents):
        shown.append((latents, latents.clone()))
        return latents

    with torch.no_grad():
        found = sample_ddpm(
            denoiser(prediction, Guidance(7, 3)), schedule, x, SampleNoise(1, range(2)), after_step=after
        )
        ddpm.PART = 1 << 18
        whole = sample_ddpm(denoiser(prediction, Guidance(7, 3)), schedule, x, SampleNoise(1, range(2)))
    assert torch.equal(found, whole)
    assert all(torch.equal(latents, copy) for latents, copy in shown)
