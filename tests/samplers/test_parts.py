"""A step that goes part by part through large latents gives the bits of the step that takes them whole."""

import pytest
import torch

from guidon.core.errors import InputError
from guidon.diffusion import NoiseSchedule, Process
from guidon.guidance import Guidance, GuidanceTrace, GuidedDenoiser
from guidon.samplers import LegacyNoise, SampleNoise, ddpm, sample_ddpm
from guidon.samplers.ddpm import ddpm_guided_next, ddpm_next
from toy_network import normal

LEVEL = NoiseSchedule.named().respaced("20").levels[7]
PART = 64


class Nothing:
    """A condition that is not read."""

    def cat(self, other):
        return self


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(ddpm, "PART", PART)


def denoiser(prediction, guidance, **more):
    return GuidedDenoiser(lambda x, *_: prediction[: len(x)], guidance, Nothing(), Nothing(), **more)


def both_ways(shape, guidance, noise, process=Process(), learned=True, level=LEVEL, **more):
    """x_{t-1} part by part and whole, and what was called in the first."""
    x, prediction = normal(*shape), normal(2 * shape[0], (1 + learned) * shape[1], *shape[2:], seed=1)
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
    assert not both_ways(shape, Guidance(7, 3), noise, Process(variance="fixed_small"), learned=False)
    assert not both_ways(shape, Guidance(7, 3), noise, level=last)
    assert not both_ways((2, 4, 3, 5), Guidance(7, 3), noise)


def test_a_trace_sees_every_step():
    trace = GuidanceTrace()
    assert not both_ways((2, 4, 2, 5, 7), Guidance(7, 3), lambda: SampleNoise(5, range(2)), observe=trace)
    assert len(trace)


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
def test_a_branch_that_is_not_finite_is_refused(row, channel, message):
    x, prediction = normal(2, 4, 2, 5, 7), normal(4, 8, 2, 5, 7, seed=1)
    prediction[row, channel, 1, 2, 3] = float("nan")
    with torch.no_grad(), pytest.raises(InputError, match=message):
        ddpm_guided_next(denoiser(prediction, Guidance(7, 3)), x, LEVEL, torch.zeros_like, Process())


def test_guidance_that_overflows_is_refused():
    x, prediction = normal(2, 4, 2, 5, 7), normal(4, 8, 2, 5, 7, seed=1)
    prediction[0, 0, 0, 0, 0] = 3e38
    with torch.no_grad(), pytest.raises(InputError, match="the guided prediction is not finite at step 1"):
        ddpm_guided_next(denoiser(prediction, Guidance(70, 3)), x, LEVEL, torch.zeros_like, Process())


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
