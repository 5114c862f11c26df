from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from goldens import golden, relative_error
from guidon.core.errors import InputError
from guidon.diffusion import NoiseSchedule
from guidon.guidance import ChannelScale, GuidanceTrace, GuidedDenoiser, constant, cosine_ramp, interval, linear_ramp

SCHEDULE = NoiseSchedule.named().respaced("20")


@dataclass(frozen=True)
class Text:
    """A condition of one value and one mask a row."""

    value: torch.Tensor
    mask: torch.Tensor

    def cat(self, other):
        return Text(torch.cat([self.value, other.value]), torch.cat([self.mask, other.mask]))


class Network:
    """Mixes channels, looks at the condition and its mask, and counts rows and calls."""

    def __init__(self, channels=4, learned=True):
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(channels * (2 if learned else 1), channels, generator=generator)
        self.calls: list[int] = []
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(self, x, t, cond):
        self.calls.append(len(x))
        self.seen.append((t, cond.mask))
        row = (cond.value * cond.mask.sum(1)).view(-1, *[1] * (x.ndim - 1))
        return torch.einsum("oc,bc...->bo...", self.weight, x) * (1 + t / 1000).view(-1, *[1] * (x.ndim - 1)) + row


def text(*values, tokens=3):
    mask = torch.zeros(len(values), 8)
    mask[:, :tokens] = 1
    return Text(torch.tensor(values), mask)


def x_of(rows=2, seed=1):
    return torch.randn(rows, 4, 2, 3, 3, generator=torch.Generator().manual_seed(seed))


def guided(scale, channels="all", network=None, cond=None, uncond=None, **options):
    network = network or Network()
    parsed = ChannelScale.parse(scale, channels, channels=4)
    return GuidedDenoiser(network, cond or text(1.0, 2.0), uncond or text(-1.0, -1.0), parsed, SCHEDULE, **options)


def alone(condition, step, network=None):
    x = x_of()
    return (network or Network())(x, torch.full((2,), float(SCHEDULE.timestep_map[step])), condition)


@pytest.mark.parametrize(
    "options", [{"scale": 1.0}, {"scale": 7.0, "channels": "none"}, {"scale": 7.0, "timing": interval(0.99, 1.0)}]
)
def test_scale_one_is_the_conditional_model_bit_for_bit_and_never_calls_the_other_branch(options):
    network = Network()
    out = guided(**{"channels": 3} | options, network=network)(x_of(), 10)
    assert torch.equal(out, alone(text(1.0, 2.0), 10))
    assert network.calls == [2]


def test_scale_one_needs_no_unconditional_condition():
    scale = ChannelScale.parse(1.0, 3, channels=4)
    assert GuidedDenoiser(Network(), text(1.0), None, scale, SCHEDULE)(x_of(1), 3).shape == (1, 8, 2, 3, 3)
    with pytest.raises(InputError, match="needs an unconditional"):
        GuidedDenoiser(Network(), text(1.0), None, ChannelScale.parse(2.0, 3, channels=4), SCHEDULE)


@pytest.mark.parametrize("batched", [True, False])
def test_scale_zero_on_all_channels_is_the_unconditional_eps(batched):
    out = guided(0.0, batched=batched)(x_of(), 10)
    assert torch.equal(out[:, :4], alone(text(-1.0, -1.0), 10)[:, :4])
    assert torch.equal(out[:, 4:], alone(text(1.0, 2.0), 10)[:, 4:])


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("channels", [1, 2, 3, "all", "0,2", "only:3", "1-2"])
def test_unguided_and_variance_channels_are_bitwise_conditional(channels, batched):
    out = guided(7.0, channels, batched=batched)(x_of(), 10)
    cond, uncond = alone(text(1.0, 2.0), 10), alone(text(-1.0, -1.0), 10)
    chosen = ChannelScale.parse(7.0, channels, channels=4).guided
    for channel in range(8):
        if channel in chosen:
            expected = uncond[:, channel] + 7 * (cond[:, channel] - uncond[:, channel])
            assert torch.allclose(out[:, channel], expected, atol=1e-5)
            assert not torch.equal(out[:, channel], cond[:, channel])
        else:
            assert torch.equal(out[:, channel], cond[:, channel])


def test_all_is_plain_guidance_and_without_learned_variance_too():
    for learned in (True, False):
        out = guided(4.0, "all", network=Network(learned=learned))(x_of(), 5)
        cond, uncond = (alone(c, 5, Network(learned=learned)) for c in (text(1.0, 2.0), text(-1.0, -1.0)))
        assert torch.equal(out[:, :4], (uncond + 4 * (cond - uncond))[:, :4])


@settings(deadline=None, max_examples=40)
@given(st.permutations(range(4)), st.sets(st.integers(0, 3), min_size=1), st.floats(0, 10))
def test_permuting_channels_commutes_with_guiding_them(order, chosen, scale):
    x = x_of()

    class Permuted(Network):
        def __call__(self, x, t, cond):
            return super().__call__(x[:, np.argsort(order)], t, cond)[:, [*order, *(4 + c for c in order)]]

    plain = guided(scale, sorted(chosen))(x, 7)
    permuted = guided(scale, sorted(order.index(c) for c in chosen), network=Permuted())(x[:, list(order)], 7)
    assert torch.allclose(permuted, plain[:, [*order, *(4 + c for c in order)]], atol=1e-5)


def test_scales_per_channel_act_on_their_own_channels():
    out = guided([4.0, 1.0, 0.0, 2.0])(x_of(), 5)
    for channel, scale in enumerate((4.0, 1.0, 0.0, 2.0)):
        assert torch.allclose(out[:, channel], guided(scale)(x_of(), 5)[:, channel], atol=1e-5)


def test_one_doubled_batch_and_two_calls_agree():
    one, two = Network(), Network()
    a, b = guided(4.0, 3, network=one)(x_of(), 5), guided(4.0, 3, network=two, batched=False)(x_of(), 5)
    assert torch.allclose(a, b, atol=1e-6)
    assert (one.calls, two.calls) == ([4], [2, 2])


def test_negative_prompts_bring_their_own_token_mask():
    network = Network()
    cond, negative = text(1.0, 2.0, tokens=3), text(3.0, 3.0, tokens=6)
    guided(4.0, 3, network=network, cond=cond, uncond=negative)(x_of(), 5)
    assert network.seen[0][1].sum(1).tolist() == [3, 3, 6, 6]


def test_the_network_is_told_original_timesteps():
    network = Network()
    denoiser = guided(4.0, 3, network=network)
    denoiser(x_of(), 19)
    denoiser.at(x_of(), 12.5)
    assert network.seen[0][0].tolist() == [999.0] * 4
    assert network.seen[1][0].tolist() == [12.5] * 4


def test_an_interval_calls_the_other_branch_inside_it_only():
    network = Network()
    denoiser = guided(4.0, 3, network=network, timing=interval(0.25, 0.75))
    for step in reversed(range(20)):
        denoiser(x_of(), step)
    progress = 1 - SCHEDULE.timestep_map[::-1] / 999
    assert network.calls == [4 if 0.25 <= p <= 0.75 else 2 for p in progress]


def test_ramps_grow_and_are_one_on_average():
    at = np.linspace(0, 1, 1001)
    for ramp in (linear_ramp, cosine_ramp, constant):
        weights = np.array([ramp(p) for p in at])
        assert weights.mean() == pytest.approx(1, abs=1e-3)
        assert (np.diff(weights) >= 0).all()
    assert linear_ramp(0) == cosine_ramp(0) == 0
    assert linear_ramp(1) == cosine_ramp(1) == 2


def test_the_trace_holds_the_norms_of_the_difference():
    trace = GuidanceTrace()
    denoiser = guided(4.0, 3, trace=trace, timing=interval(0.0, 0.6))
    for step in (19, 10, 0):
        denoiser(x_of(), step)
    arrays = trace.as_arrays()
    assert len(trace) == 2
    assert arrays["difference"].shape == arrays["cosine"].shape == (2, 2, 4)
    assert arrays["timestep"].tolist() == [999, SCHEDULE.timestep_map[10]]
    assert arrays["scale"][0].tolist() == [4, 4, 4, 1]
    cond, uncond = alone(text(1.0, 2.0), 19), alone(text(-1.0, -1.0), 19)
    expected = (cond - uncond)[:, :4].flatten(2).norm(dim=2)
    assert np.allclose(arrays["difference"][:, 0], expected, rtol=1e-5)
    a, b = (cond - uncond)[:, :4].flatten(2), cond[:, :4].flatten(2)
    assert np.allclose(arrays["cosine"][:, 0], torch.cosine_similarity(a, b, dim=2), atol=1e-5)

    by_frame = trace.as_arrays(by_frame=True)
    expected = (cond - uncond)[:, :4].flatten(3).norm(dim=3)
    assert np.allclose(by_frame["difference"][:, 0], expected, rtol=1e-5)
    assert np.allclose((by_frame["difference"] ** 2).sum(-1), arrays["difference"] ** 2)
    with pytest.raises(ValueError, match="keep_x0=True"):
        _ = trace.x0


def test_the_trace_keeps_the_clean_latents_of_both_branches_if_asked():
    trace, x = GuidanceTrace(keep_x0=True), x_of()
    guided(4.0, 3, trace=trace)(x, 10)
    cond, uncond = trace.x0
    assert cond.shape == uncond.shape == (1, *x.shape)
    signal = float(SCHEDULE.alphas_cumprod[10])
    for branch, condition in ((cond, text(1.0, 2.0)), (uncond, text(-1.0, -1.0))):
        eps = alone(condition, 10)[:, :4]
        assert torch.allclose(branch[0], (x - (1 - signal) ** 0.5 * eps) / signal**0.5, rtol=1e-3, atol=1e-3)


def test_networks_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="expected 4 or 8"):
        guided(2.0, 3, network=lambda x, t, cond: torch.zeros(len(x), 6, 2, 3, 3))(x_of(), 3)
    with pytest.raises(InputError, match="3 channels, the guidance scale 4"):
        guided(2.0, 3)(torch.zeros(2, 3, 2, 3, 3), 3)


def run_golden(output, channels, scale):
    """Our guidance fed the recorded outputs of both branches."""
    cond, uncond = output[:3], output[3:]

    class Replay:
        def __call__(self, x, t, cond):
            return output.clone() if len(x) == 6 else output[:3].clone()

    count = 4
    parsed = ChannelScale.parse(scale, channels, channels=count)
    out = GuidedDenoiser(Replay(), text(1.0, 1.0, 1.0), text(0.0, 0.0, 0.0), parsed, SCHEDULE)(
        torch.zeros(3, count, *cond.shape[2:]), 3
    )
    assert torch.equal(uncond, output[3:])
    return out


def test_guidance_of_open_sora_1_0():
    g, _ = golden("guidance/open_sora_1_0")
    for scale in (0.0, 1.0, 4.0, 7.0):
        assert relative_error(run_golden(g["model_output"], 3, scale), g[f"v1_0.scale{scale}"][:3]) < 1e-5


@pytest.mark.parametrize("channels", [None, 1, 2, 3, 4])
def test_guidance_of_open_sora_1_1(channels):
    g, _ = golden("guidance/open_sora_1_1")
    for scale in (1.0, 4.0, 7.0):
        assert (
            relative_error(
                run_golden(g["model_output"], channels, scale), g[f"cfg_channel_{channels}.scale{scale}"][:3]
            )
            < 1e-5
        )


def test_none_guides_all_channels_without_learned_variance_where_open_sora_1_1_guided_half():
    g, _ = golden("guidance/open_sora_1_1")
    ours, theirs = run_golden(g["model_output_no_sigma"], None, 7.0), g["no_sigma.cfg_channel_None.scale7.0"][:3]
    assert relative_error(ours[:, :2], theirs[:, :2]) < 1e-5
    assert torch.equal(theirs[:, 2:], g["model_output_no_sigma"][:3, 2:])
    assert not torch.equal(ours[:, 2:], theirs[:, 2:])
