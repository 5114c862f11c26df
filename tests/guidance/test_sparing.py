"""Calls of the other branches that are left out: how many there are, and what the clips are then."""

import pytest
import torch

from guidon.core.errors import InputError
from guidon.guidance import Guidance, GuidanceTrace, RotatedGuidance, Sparing
from toy_network import COND, UNCOND, Caption, Near, Network, caption, denoiser, guided, latents, level_at

STEPS = tuple(range(19, 9, -1))  # steps of a schedule of 20, from noise on
ALIKE = caption(1.0, -1.0)  # the first clip's caption differs from UNCOND, the second's is the null caption


def run(guidance, network=None, steps=STEPS, cond=COND, **options):
    """The guided predictions of some steps on the same latents, and the network with the rows that it was given."""
    network = network or Network()
    step = denoiser(guidance, network, cond=cond, uncond=UNCOND, **options)
    return torch.stack([step(latents(), level_at(number)) for number in steps]), network


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("reuse", [2, 3, 7])
def test_the_other_branch_is_called_at_every_kth_guided_step(reuse, batched):
    _, network = run(Guidance(3), sparing=Sparing(reuse=reuse), batched=batched)
    calls = [4] if batched else [2, 2]
    assert network.rows == [rows for k in range(len(STEPS)) for rows in (calls if k % reuse == 0 else [2])]


@pytest.mark.parametrize("start", [0.15, 0.2])  # the fourth step, and the fifth
def test_steps_outside_of_the_interval_do_not_count(start):
    guidance, plain = Guidance(3, timing=f"interval:{start},1"), Network()
    _, network = run(guidance, sparing=Sparing(reuse=2))
    run(guidance, plain)
    guided_at = [k for k, rows in enumerate(plain.rows) if rows == 4]
    assert [k for k, rows in enumerate(network.rows) if rows == 4] == guided_at[::2]


@pytest.mark.parametrize("channels", [3, "all", "only:1", "0,2"])
def test_between_calls_the_last_difference_is_added(channels):
    found, network = run(Guidance(3, channels), steps=(19, 18, 17, 16), sparing=Sparing(reuse=2))
    chosen = [c for c in range(4) if Guidance(3, channels).scales_for(4).scales[c] != 1]
    left = [c for c in range(8) if c not in chosen]
    for k in (1, 3):
        cond, uncond = network.given[k - 1].chunk(2)
        own = network.given[k]
        expected = own.clone()
        expected[:, chosen] += 2 * (cond - uncond)[:, chosen]
        assert torch.allclose(found[k], expected, atol=1e-5)
        assert torch.equal(found[k][:, left], own[:, left])


@pytest.mark.parametrize("rule", ["cfg", "apg", "rescale", "perp-neg", "autoguidance", "three-way"])
def test_every_rule_takes_differences_again(rule):
    step = guided(rule, sparing=Sparing(reuse=2))
    exact = guided(rule)
    same = [each(latents(), level_at(19)) for each in (step, exact)]
    assert torch.equal(*same)  # all branches were computed
    again = [each(latents(), level_at(18)) for each in (step, exact)]
    assert not torch.equal(*again)
    assert (again[0] - again[1]).abs().mean() < (same[0] - again[1]).abs().mean()


@pytest.mark.parametrize("rule", ["cfg", "apg", "rescale", "cfg-zero"])
def test_a_clip_whose_branches_agree_is_guided_no_more(rule):
    network = Network()
    found, _ = run(Guidance(3, "all", rule), network, cond=ALIKE, sparing=Sparing(adaptive=0.9999), steps=(19, 18, 17))
    assert network.rows == [2] * 6  # the first clip goes on, and so do the calls
    for k in range(3):
        cond, uncond = network.given[2 * k : 2 * k + 2]
        assert torch.equal(cond[1], uncond[1])
        if k:  # from the step after the one that showed it
            assert torch.equal(found[k, 1], cond[1])
        assert not torch.allclose(found[k, 0], cond[0])


class Late(Network):
    """The second clip's branches agree at the first step, and never again."""

    def __call__(self, x, level, cond):
        first = torch.tensor([False, bool(level.timestep == level_at(STEPS[0]).timestep)])
        return super().__call__(x, level, Caption(torch.where(first, 0.3, cond.value), cond.mask))


@pytest.mark.parametrize("reuse", [1, 2])
def test_a_clip_that_is_guided_no_more_stays_so(reuse):
    trace = GuidanceTrace()
    found, network = run(Guidance(3), Late(), STEPS[:4], sparing=Sparing(0.9999, reuse), observe=trace)
    apart = [k for k in range(4) if k % reuse == 0]  # the steps at which both branches are called
    assert len(network.rows) == 4 + len(apart)
    for place, k in enumerate(apart):
        cond, uncond = network.given[k + place : k + place + 2]
        assert torch.equal(found[k, 1], cond[1])
        assert torch.equal(cond[1], uncond[1]) == (k == 0)
        assert not torch.allclose(found[k, 0], cond[0])
    difference = trace.as_arrays()["difference"]  # (clips, steps, channels)
    assert difference[0].all()
    assert not difference[1].any()


def test_a_clip_is_guided_until_every_other_branch_agrees():
    network = Network()
    run(Guidance(3, rule="perp-neg"), network, negative=COND, sparing=Sparing(adaptive=0.99))
    assert network.rows == [2, 2, 2] * len(STEPS)


def test_calls_end_when_all_clips_agree():
    _, network = run(Guidance(3), cond=UNCOND, sparing=Sparing(adaptive=0.99))
    assert network.rows == [2, 2, *[2] * (len(STEPS) - 1)]


def test_steps_after_the_last_guided_one_are_counted():
    step = denoiser(Guidance(3), cond=UNCOND, uncond=UNCOND, sparing=Sparing(adaptive=0.99))
    for number in STEPS:
        step(latents(), level_at(number))
    assert (step.memory.calls, step.memory.guided) == (len(STEPS), 1)


def test_a_clip_does_not_depend_on_when_the_others_stop():
    both, _ = run(Guidance(3), cond=ALIKE, sparing=Sparing(adaptive=0.999))
    network = Network()
    step = denoiser(Guidance(3), network, cond=caption(1.0), uncond=caption(-1.0), sparing=Sparing(adaptive=0.999))
    alone = torch.stack([step(latents()[:1], level_at(number)) for number in STEPS])
    assert torch.allclose(both[:, :1], alone, atol=1e-5)


class Half(Network):
    """Its branches agree in the first two channels."""

    def __call__(self, x, level, cond):
        out = super().__call__(x, level, cond)
        out[:, :2] = super().__call__(x, level, caption(*[0.5] * len(x)))[:, :2]
        return out


SWAPPED = torch.eye(4)[[2, 3, 0, 1]]  # the rotated channels 2 and 3 are the latents' 0 and 1


@pytest.mark.parametrize(
    ("guidance", "ends"),
    [
        (Guidance(3, "0,1"), True),
        (Guidance([3, 3, 1, 1], "all"), True),
        (RotatedGuidance(Guidance(3, "2,3"), SWAPPED), True),
        (Guidance(3, "all"), False),
        (Guidance(3, "only:3"), False),
        (RotatedGuidance(Guidance(3, "0,1"), SWAPPED), False),
    ],
)
def test_only_guided_channels_are_compared(guidance, ends):
    network = Half()
    run(guidance, network, sparing=Sparing(adaptive=0.9999))
    calls = len(network.rows) // 2  # each is two of the toy's
    assert calls == (len(STEPS) + 1 if ends else 2 * len(STEPS))


def test_a_trace_shows_no_guidance_of_a_clip_in_the_step_that_ends_it():
    trace, network = GuidanceTrace(), Near()
    found, _ = run(Guidance(3), network, sparing=Sparing(adaptive=0.5), observe=trace)
    assert not torch.equal(network.given[0], network.given[1])
    assert torch.equal(found[0], network.given[0])
    assert len(trace) == 1
    assert not trace.as_arrays()["difference"].any()


def test_both_together_leave_out_what_each_does():
    _, network = run(Guidance(3), cond=UNCOND, sparing=Sparing(adaptive=0.99, reuse=3))
    assert len(network.rows) == len(STEPS) + 1
    _, network = run(Guidance(3), sparing=Sparing(adaptive=1.0, reuse=3))
    assert len(network.rows) == len(STEPS) + 4


def test_a_neutral_one_changes_nothing():
    assert torch.equal(run(Guidance(3), sparing=Sparing())[0], run(Guidance(3))[0])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"adaptive": 0.0}, "adaptive 0 is not a cosine"),
        ({"adaptive": 1.5}, "above 0 and up to 1"),
        ({"reuse": 0}, "1 to"),
    ],
)
def test_numbers_out_of_range_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        Sparing(**values)
