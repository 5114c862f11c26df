import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from goldens import golden, relative_error
from guidon.core.errors import InputError
from guidon.guidance import ChannelScale, Guidance, GuidedDenoiser
from toy_network import COND, SCHEDULE, UNCOND, Network, caption, denoiser, latents, level_at, predicted


@pytest.mark.parametrize(
    "guidance", [Guidance(1.0, 3), Guidance(7.0, "none"), Guidance(7.0, 3, timing="interval:0.99,1")], ids=str
)
def test_scale_one_is_the_conditional_model_bit_for_bit_and_never_calls_the_other_branch(guidance):
    network = Network()
    out = denoiser(guidance, network)(latents(), level_at(10))
    assert torch.equal(out, predicted(COND, 10))
    assert network.rows == [2]


def test_scale_one_needs_no_unconditional_condition():
    run = GuidedDenoiser(Network(), Guidance(1.0, 3), COND)
    assert run(latents(), level_at(3)).shape == (2, 8, 2, 4, 4)
    with pytest.raises(InputError, match="needs an unconditional"):
        GuidedDenoiser(Network(), Guidance(2.0, 3), COND)


@pytest.mark.parametrize("batched", [True, False])
def test_scale_zero_on_all_channels_is_the_unconditional_eps(batched):
    out = denoiser(Guidance(0.0, "all"), batched=batched)(latents(), level_at(10))
    assert torch.equal(out[:, :4], predicted(UNCOND, 10)[:, :4])
    assert torch.equal(out[:, 4:], predicted(COND, 10)[:, 4:])


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("channels", [1, 2, 3, "all", "0,2", "only:3", "1-2"])
def test_unguided_and_variance_channels_are_bitwise_conditional(channels, batched):
    out = denoiser(Guidance(7.0, channels), batched=batched)(latents(), level_at(10))
    cond, uncond = predicted(COND, 10), predicted(UNCOND, 10)
    chosen = ChannelScale.parse(7.0, channels, channels=4).guided
    for channel in range(8):
        if channel in chosen:
            expected = uncond[:, channel] + 7 * (cond[:, channel] - uncond[:, channel])
            assert torch.allclose(out[:, channel], expected, atol=1e-5)
            assert not torch.equal(out[:, channel], cond[:, channel])
        else:
            assert torch.equal(out[:, channel], cond[:, channel])


@pytest.mark.parametrize("learned", [True, False])
def test_all_is_plain_guidance_and_without_learned_variance_too(learned):
    out = denoiser(Guidance(4.0, "all"), Network(learned=learned))(latents(), level_at(5))
    cond, uncond = (Network(learned=learned)(latents(), level_at(5), condition) for condition in (COND, UNCOND))
    assert torch.equal(out[:, :4], (uncond + 4 * (cond - uncond))[:, :4])


@settings(deadline=None, max_examples=40)
@given(st.permutations(range(4)), st.sets(st.integers(0, 3), min_size=1), st.floats(0, 10))
def test_permuting_channels_commutes_with_guiding_them(order, chosen, scale):
    x, back = latents(), [order.index(channel) for channel in range(4)]

    class Permuted(Network):
        def __call__(self, x, level, cond):
            return super().__call__(x[:, back], level, cond)[:, [*order, *(4 + c for c in order)]]

    plain = denoiser(Guidance(scale, sorted(chosen)))(x, level_at(7))
    elsewhere = Guidance(scale, sorted(order.index(c) for c in chosen))
    permuted = denoiser(elsewhere, Permuted())(x[:, list(order)], level_at(7))
    assert torch.allclose(permuted, plain[:, [*order, *(4 + c for c in order)]], atol=1e-5)


def test_scales_per_channel_act_on_their_own_channels():
    out = denoiser(Guidance([4.0, 1.0, 0.0, 2.0]))(latents(), level_at(5))
    for channel, scale in enumerate((4.0, 1.0, 0.0, 2.0)):
        alone = denoiser(Guidance(scale, "all"))(latents(), level_at(5))
        assert torch.allclose(out[:, channel], alone[:, channel], atol=1e-5)


def test_one_doubled_batch_and_two_calls_agree():
    one, two = Network(), Network()
    a = denoiser(Guidance(4.0, 3), one)(latents(), level_at(5))
    b = denoiser(Guidance(4.0, 3), two, batched=False)(latents(), level_at(5))
    assert torch.allclose(a, b, atol=1e-6)
    assert (one.rows, two.rows) == ([4], [2, 2])


def test_negative_prompts_bring_their_own_token_mask():
    network = Network()
    cond, negative = caption(1.0, 2.0, tokens=3), caption(3.0, 3.0, tokens=6)
    denoiser(Guidance(4.0, 3), network, cond=cond, uncond=negative)(latents(), level_at(5))
    assert network.seen[0][1].sum(1).tolist() == [3, 3, 6, 6]


def test_a_third_branch_runs_in_one_batch_or_by_itself():
    together, apart = Network(), Network()
    guidance = Guidance(3.0, "all", "perp-neg")
    a = denoiser(guidance, together)(latents(), level_at(5))
    b = denoiser(guidance, apart, batched=False)(latents(), level_at(5))
    assert (together.rows, apart.rows) == ([6], [2, 2, 2])
    assert torch.allclose(a, b, atol=1e-6)
    with pytest.raises(InputError, match="needs a negative prompt"):
        GuidedDenoiser(Network(), guidance, COND, UNCOND)


def test_a_negative_condition_is_not_run_where_the_rule_does_not_need_it():
    network = Network()
    run = GuidedDenoiser(network, Guidance(3.0, 3), COND, UNCOND, negative=caption(0.2, -0.3))
    run(latents(), level_at(5))
    assert network.rows == [4]


def test_the_network_is_told_original_timesteps():
    network = Network()
    run = denoiser(Guidance(4.0, 3), network)
    run(latents(), level_at(19))
    run(latents(), SCHEDULE.between(0.52))
    assert network.seen[0][0].tolist() == [999.0] * 4
    assert network.seen[1][0].tolist() == pytest.approx([SCHEDULE.between(0.52).timestep] * 4)


def test_the_prediction_is_fp32_whatever_the_network_computes_in():
    class Half(Network):
        def __call__(self, x, level, cond):
            return super().__call__(x, level, cond).bfloat16()

    for guidance in (Guidance(4.0, 3), Guidance(1.0)):
        assert denoiser(guidance, Half())(latents(), level_at(5)).dtype == torch.float32


def test_a_run_begins_without_the_memory_of_the_one_before():
    runs = [denoiser(Guidance(3.0, "all", "apg:norm_limit=0")) for _ in range(2)]
    first, second = (run(latents(), level_at(12)) for run in runs)
    assert torch.equal(first, second)
    again = runs[0](latents(), level_at(11)), denoiser(runs[0].guidance)(latents(), level_at(11))
    assert not torch.allclose(*again, atol=1e-3)
    assert [run.memory.calls for run in runs] == [2, 1]


def test_an_observer_is_shown_every_step_at_which_guidance_acted():
    seen = []
    run = denoiser(Guidance(4.0, "0,2", timing="interval:0.4,0.6"), observe=seen.append)
    for level in SCHEDULE.levels:
        run(latents(level.step), level)
    assert [step.level for step in seen] == [level for level in SCHEDULE.levels if 0.4 <= level.progress <= 0.6]
    assert len(seen) == run.memory.guided
    for step in seen:
        x = latents(step.level.step)
        assert step.scale.scales == (4, 1, 4, 1)
        assert step.parameterization == "eps"
        assert torch.equal(step.x, x)
        assert torch.equal(step.cond, predicted(COND, step.level.step, x=x)[:, :4])
        assert torch.equal(step.uncond, predicted(UNCOND, step.level.step, x=x)[:, :4])


def test_networks_that_do_not_fit_are_refused():
    for guidance in (Guidance(2.0, 3), Guidance(1.0)):
        for batched in (True, False):
            wrong = denoiser(guidance, lambda x, level, cond: torch.zeros(len(x), 6, *x.shape[2:]), batched=batched)
            with pytest.raises(InputError, match="gave 6 channels for 4 latent channels: expected 4 or 8"):
                wrong(latents(), level_at(3))
    with pytest.raises(InputError, match=r"^scale has 4 values, but this model has 3 latent channels"):
        denoiser(Guidance([2.0] * 4))(torch.zeros(2, 3, 2, 3, 3), level_at(3))
    with pytest.raises(InputError, match="this model has 3 latent channels"):
        denoiser(Guidance(2.0, 4))(torch.zeros(2, 3, 2, 3, 3), level_at(3))


class OneStepLater:
    """A check that looks at a step's predictions one step later, as on other devices than the CPU."""

    def __init__(self):
        self.open = None

    def look(self, tensors, fail):
        self.finish()
        self.open = [tensor.clone() for tensor in tensors], fail

    def finish(self):
        if self.open and not all(bool(tensor.isfinite().all()) for tensor in self.open[0]):
            self.open[1]()


def test_a_prediction_that_is_looked_at_at_the_end_is_refused_with_its_step():
    class Breaking(Network):
        def __call__(self, x, level, cond):
            return super().__call__(x, level, cond) / (level.timestep != level_at(3).timestep)

    run = denoiser(Guidance(3.0), Breaking(), steps=2)
    run.check = OneStepLater()
    for step in (4, 3):
        run(latents(), level_at(step))
    with pytest.raises(InputError, match=r"not finite at step 2 of 2 .*, in the branch cond and uncond"):
        run.finish()


def run_golden(output, channels, scale):
    """Our guidance, given the recorded outputs of both branches."""
    before = output.clone()

    def replay(x, level, cond):
        return output if len(x) == 6 else output[:3]

    run = denoiser(Guidance(scale, channels), replay, cond=caption(1.0, 1.0, 1.0), uncond=caption(0.0, 0.0, 0.0))
    out = run(torch.zeros(3, 4, *output.shape[2:]), level_at(3))
    assert torch.equal(output, before)  # what a network gives is its own
    return out


def test_guidance_of_open_sora_1_0():
    g, _ = golden("guidance/open_sora_1_0")
    for scale in (0.0, 1.0, 4.0, 7.0):
        assert relative_error(run_golden(g["model_output"], 3, scale), g[f"v1_0.scale{scale}"][:3]) < 1e-5


@pytest.mark.parametrize("channels", [None, 1, 2, 3, 4])
def test_guidance_of_open_sora_1_1(channels):
    g, _ = golden("guidance/open_sora_1_1")
    for scale in (1.0, 4.0, 7.0):
        expected = g[f"cfg_channel_{channels}.scale{scale}"][:3]
        assert relative_error(run_golden(g["model_output"], channels, scale), expected) < 1e-5


def test_none_guides_all_channels_without_learned_variance_where_open_sora_1_1_guided_half():
    g, _ = golden("guidance/open_sora_1_1")
    ours, theirs = run_golden(g["model_output_no_sigma"], None, 7.0), g["no_sigma.cfg_channel_None.scale7.0"][:3]
    assert relative_error(ours[:, :2], theirs[:, :2]) < 1e-5
    assert torch.equal(theirs[:, 2:], g["model_output_no_sigma"][:3, 2:])
    assert not torch.equal(ours[:, 2:], theirs[:, 2:])
