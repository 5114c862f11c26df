import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guidon.core.errors import InputError
from guidon.core.settings import validated
from guidon.diffusion import NoiseSchedule, Process, converted, eps_from_x0, predicted_x0
from guidon.guidance import (
    RULES,
    Branches,
    ChannelScale,
    GuidanceTrace,
    GuidedDenoiser,
    parse_rule,
    random_rotation,
    rule_text,
)
from guidon.guidance.rules import APG, CFG, CFGPlusPlus, CFGZero, FrequencyDecoupled, PerpendicularNegative, Rescale
from guidon.samplers import ddim_step, sample_ddim

SCHEDULE = NoiseSchedule.named().respaced("20")
NEUTRAL = {
    "cfg": CFG(), "rescale": Rescale(phi=0), "apg": APG(eta=1, norm_limit=0, momentum=0), "fdg": FrequencyDecoupled(low=1),
    "cfg-zero": CFGZero(project=0, zeroed=0), "perp-neg": PerpendicularNegative(weight=0),
}  # fmt: skip


def draw(*seeds, shape=(2, 3, 2, 4, 4)):
    return [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]


def branches(**changes):
    cond, uncond, negative = draw(0, 1, 2)
    return Branches(
        **{"cond": cond, "uncond": uncond, "negative": negative, "signal": 0.3, "signal_before": 0.5} | changes
    )


def plain(b, scale):
    return b.uncond + scale * (b.cond - b.uncond)


class Network:
    """Predictions that depend on x, t and the condition, in any parameterisation of the same process."""

    def __init__(self, predicts="eps", channels=4, learned=True):
        self.predicts, self.learned = predicts, learned
        self.weight = torch.randn(channels, channels, generator=torch.Generator().manual_seed(3)) / 2
        self.signal = dict(zip(SCHEDULE.timestep_map.tolist(), SCHEDULE.alphas_cumprod.tolist(), strict=True))
        self.rows = []

    def __call__(self, x, t, cond):
        self.rows.append(len(x))
        eps = torch.tanh(torch.einsum("oc,bc...->bo...", self.weight, x) + cond.view(-1, 1, 1, 1, 1) * x.roll(1, 1))
        out = converted(eps, x, self.signal.get(int(t[0]), 0.5), "eps", self.predicts)
        return torch.cat([out, out.sigmoid()], 1) if self.learned else out


class Text(torch.Tensor):
    def cat(self, other):
        return torch.cat([self, other]).as_subclass(Text)


def text(*values):
    return torch.tensor(values).as_subclass(Text)


def guided(rule, scale=3.0, channels="all", predicts="eps", network=None, **options):
    cond, uncond = text(1.0, 0.5), text(-1.0, -1.0)
    scale = ChannelScale.parse(scale, channels, channels=4)
    negative = text(0.2, -0.3) if rule.needs_negative else None
    network = network or Network(predicts)
    return GuidedDenoiser(
        network, cond, uncond, scale, SCHEDULE, rule=rule, parameterization=predicts, negative=negative, **options
    )


def noisy():
    return draw(9, shape=(2, 4, 2, 4, 4))[0]


@pytest.mark.parametrize("name", NEUTRAL)
def test_every_rule_is_plain_guidance_at_its_neutral_setting(name):
    for predicts in ("eps", "x0", "v"):
        ours, cfg = (guided(rule, predicts=predicts)(noisy(), 12) for rule in (NEUTRAL[name], CFG()))
        assert torch.allclose(ours, cfg, atol=2e-5)


def test_the_neutral_settings_are_of_all_rules_but_the_one_that_has_none():
    assert NEUTRAL.keys() | {"cfg++"} == RULES.keys()


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(
    ("channels", "others"), [("3", [3]), ("only:2", [0, 1, 3]), ("0,2", [1, 3]), ("none", [0, 1, 2, 3])]
)
def test_unguided_channels_and_variance_are_the_conditional_ones_bit_for_bit(name, channels, others):
    for predicts in ("eps", "x0", "v"):
        rule, alone = (
            RULES[name](),
            Network(predicts)(noisy(), torch.full((2,), float(SCHEDULE.timestep_map[7])), text(1.0, 0.5)),
        )
        out = guided(rule, 0.7, channels, predicts)(noisy(), 7)
        assert torch.equal(out[:, others], alone[:, others])
        assert torch.equal(out[:, 4:], alone[:, 4:])
        if channels == "3":
            assert not torch.allclose(out[:, :3], alone[:, :3], atol=1e-3)


@pytest.mark.parametrize("name", RULES)
def test_a_rule_sees_only_the_guided_channels(name):
    """What an unguided channel predicts changes nothing in the others."""

    class Loud(Network):
        def __call__(self, x, t, cond):
            out = super().__call__(x, t, cond)
            out[:, 3] += 100 * cond.view(-1, 1, 1, 1)
            return out

    quiet, loud = (guided(RULES[name](), 0.7, 3, network=network)(noisy(), 7) for network in (Network(), Loud()))
    assert torch.equal(quiet[:, :3], loud[:, :3])


@pytest.mark.parametrize("name", RULES)
def test_samples_do_not_depend_on_their_batch_mates(name):
    b = branches()
    whole = RULES[name]()(b, 0.6)
    for k in range(2):
        row = slice(k, k + 1)
        alone = RULES[name]()(branches(cond=b.cond[row], uncond=b.uncond[row], negative=b.negative[row]), 0.6)
        assert torch.allclose(alone, whole[row], atol=1e-6)


@pytest.mark.parametrize("name", RULES)
def test_one_scale_per_channel_equals_one_for_all(name):
    each = RULES[name]()(branches(), torch.full((3, 1, 1, 1), 0.6))
    assert torch.allclose(each, RULES[name]()(branches(), 0.6), atol=1e-6)


@pytest.mark.parametrize("name", ["cfg", "apg", "cfg-zero", "fdg", "perp-neg"])
def test_rules_mean_the_same_whatever_the_network_predicts(name):
    x, rule = noisy(), RULES[name]
    signal = float(SCHEDULE.alphas_cumprod[9])
    found = {}
    for predicts in ("eps", "x0", "v"):
        out = guided(rule(), predicts=predicts)(x, 9)[:, :4]
        found[predicts] = converted(out, x, signal, predicts, "x0")
    assert torch.allclose(found["x0"], found["eps"], atol=1e-4)
    assert torch.allclose(found["v"], found["eps"], atol=1e-4)


def test_conversions_agree_with_the_process_and_undo_each_other():
    tables, (x, prediction) = SCHEDULE.tables(), draw(0, 1)
    signal = float(SCHEDULE.alphas_cumprod[11])
    for given_as in ("eps", "x0", "v"):
        x_0 = predicted_x0(prediction, x, 11, tables, Process(given_as))
        assert torch.allclose(converted(prediction, x, signal, given_as, "x0"), x_0, atol=1e-5)
        assert torch.allclose(
            converted(prediction, x, signal, given_as, "eps"), eps_from_x0(x, 11, x_0, tables), atol=1e-5
        )
        for wanted in ("eps", "x0", "v"):
            back = converted(converted(prediction, x, signal, given_as, wanted), x, signal, wanted, given_as)
            assert torch.allclose(back, prediction, atol=1e-5)


def test_rescale_brings_back_the_share_phi_of_the_standard_deviation():
    b = branches()

    def spread(x):
        return x.flatten(1).std(1)

    assert torch.allclose(spread(Rescale(1.0)(b, 5.0)), spread(b.cond), atol=1e-5)
    expected = 0.7 * spread(b.cond) + 0.3 * spread(plain(b, 5.0))
    assert torch.allclose(spread(Rescale()(b, 5.0)), expected, atol=1e-4)


def test_apg_takes_away_what_lies_along_the_conditional_prediction():
    b = branches()
    update = APG(eta=0, norm_limit=0, momentum=0)(b, 4.0) - b.cond
    assert ((update * b.cond).flatten(1).sum(1)).abs().max() < 1e-3
    along = (b.cond * (plain(b, 4.0) - b.cond)).flatten(1).sum(1) / b.cond.square().flatten(1).sum(1)
    rest = plain(b, 4.0) - b.cond - along.view(-1, 1, 1, 1, 1) * b.cond
    assert torch.allclose(update, rest, atol=1e-4)


def test_apg_limits_the_norm_of_the_update():
    b = branches()
    assert (b.cond - b.uncond).flatten(1).norm(dim=1).min() > 5
    update = (APG(eta=1, norm_limit=0.5, momentum=0)(b, 3.0) - b.cond).flatten(1).norm(dim=1)
    assert torch.allclose(update, torch.tensor(1.0))  # (s - 1) times the limit
    assert torch.allclose(APG(eta=1, norm_limit=1000, momentum=0)(b, 3.0), plain(b, 3.0), atol=1e-5)


def test_apg_adds_its_earlier_updates_with_momentum():
    rule, first = APG(eta=1, norm_limit=0, momentum=-0.5), branches()
    cond, uncond = draw(5, 6)
    rule(first, 2.0)
    second = branches(cond=cond, uncond=uncond, memory=first.memory)
    update = (cond - uncond) - 0.5 * (first.cond - first.uncond)
    assert torch.allclose(rule(second, 3.0), cond + 2 * update, atol=1e-5)
    assert torch.allclose(second.memory["update"], update, atol=1e-6)


def test_a_run_begins_without_the_memory_of_the_one_before():
    first, second = (guided(APG(norm_limit=0))(noisy(), 12) for _ in range(2))
    assert torch.equal(first, second)


@settings(deadline=None, max_examples=20)
@given(st.floats(0.2, 5.0))
def test_cfg_zero_does_not_care_how_large_the_unconditional_branch_is(factor):
    b = branches(progress=0.5)
    louder = branches(uncond=factor * b.uncond, progress=0.5)
    assert torch.allclose(CFGZero()(louder, 3.0), CFGZero()(b, 3.0), atol=1e-4)


def test_cfg_zero_uses_the_nearest_multiple_of_the_unconditional_velocity_and_starts_with_none():
    b = branches(progress=0.5)
    optimum = torch.stack(
        [
            torch.linalg.lstsq(u.flatten()[:, None], c.flatten()[:, None]).solution[0, 0]
            for c, u in zip(b.cond, b.uncond, strict=True)
        ]
    )
    u = b.uncond * optimum.view(-1, 1, 1, 1, 1)
    assert torch.allclose(CFGZero()(b, 3.0), u + 3 * (b.cond - u), atol=1e-4)
    assert not CFGZero()(branches(progress=0.03), 3.0).any()
    out = guided(CFGZero(), predicts="v", channels=3)(noisy(), 19)
    assert not out[:, :3].any()
    assert out[:, 3].any()


def test_cfg_plus_plus_is_the_papers_sampler():
    """x_0 from the interpolated noise, noise put back by the unconditional one (algorithm 2), step by step."""
    network, tables, x = Network(learned=False), SCHEDULE.tables(), noisy()
    expected = x
    for step in reversed(range(20)):
        t = torch.full((2,), float(SCHEDULE.timestep_map[step]))
        cond, uncond = network(expected, t, text(1.0, 0.5)), network(expected, t, text(-1.0, -1.0))
        _, x_0 = ddim_step(uncond + 0.6 * (cond - uncond), expected, step, None, tables, Process())
        before = float(SCHEDULE.alphas_cumprod[step - 1]) if step else 1.0
        expected = math.sqrt(before) * x_0 + math.sqrt(1 - before) * uncond
    denoiser = guided(CFGPlusPlus(), 0.6, network=Network(learned=False))
    found = sample_ddim(denoiser, SCHEDULE, x, torch.randn_like)
    assert (found - expected).norm() / expected.norm() < 1e-4


def test_cfg_plus_plus_is_still_guidance_at_scale_one_and_none_on_unguided_channels():
    denoiser = guided(CFGPlusPlus(), 1.0, 3)
    out, alone = (
        denoiser(noisy(), 9),
        Network()(noisy(), torch.full((2,), float(SCHEDULE.timestep_map[9])), text(1.0, 0.5)),
    )
    assert not torch.allclose(out[:, :3], alone[:, :3], atol=1e-3)
    assert torch.equal(out[:, 3], alone[:, 3])
    with pytest.raises(InputError, match=r"from 0 to 1, such as 0\.6: 2 was given"):
        guided(CFGPlusPlus(), 2.0)
    with pytest.raises(InputError, match="ddim"):
        guided(CFGPlusPlus(), 0.6).at(noisy(), 500.0)


def test_fdg_guides_flat_parts_by_the_low_scale_and_a_checkerboard_by_the_high_one():
    zero = torch.zeros(1, 1, 2, 8, 8)
    flat = torch.ones_like(zero)
    y, x = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    fine = ((x + y) % 2 * 2.0 - 1).expand_as(zero)
    rule = FrequencyDecoupled(low=0.25)
    assert torch.allclose(rule(Branches(flat, zero), 5.0), flat * (1 + 0.25 * 4))
    assert torch.allclose(rule(Branches(fine, zero), 5.0), fine * 5.0)
    both = rule(Branches(flat + fine, zero), 5.0)
    assert torch.allclose(both, 2.0 * flat + 5.0 * fine)
    with pytest.raises(InputError, match="8x8 latents cannot be halved 4 times"):
        FrequencyDecoupled(levels=4)(Branches(flat, zero), 2.0)


def test_perp_neg_ignores_a_negative_prompt_that_says_the_same():
    b = branches()
    same = branches(negative=b.uncond + 0.8 * (b.cond - b.uncond))
    assert torch.allclose(PerpendicularNegative()(same, 3.0), plain(b, 3.0), atol=1e-4)
    moved = plain(b, 3.0) - PerpendicularNegative()(b, 3.0)
    assert ((moved * (b.cond - b.uncond)).flatten(1).sum(1)).abs().max() < 1e-2
    assert ((moved * (b.negative - b.uncond)).flatten(1).sum(1) > 1).all()


def test_perp_neg_runs_three_branches_in_one_batch_or_one_by_one():
    together, apart = Network(), Network()
    a = guided(PerpendicularNegative(), network=together)(noisy(), 5)
    b = guided(PerpendicularNegative(), network=apart, batched=False)(noisy(), 5)
    assert (together.rows, apart.rows) == ([6], [2, 2, 2])
    assert torch.allclose(a, b, atol=1e-6)
    with pytest.raises(InputError, match="needs a negative prompt"):
        GuidedDenoiser(
            Network(), text(1.0), text(0.0), ChannelScale.parse(2.0, channels=4), SCHEDULE, rule=PerpendicularNegative()
        )


@pytest.mark.parametrize("name", ["cfg", "apg", "cfg-zero", "perp-neg"])
def test_a_rotation_changes_what_three_channels_are_and_not_what_all_are(name):
    turn = random_rotation(4, 5)
    assert torch.allclose(turn @ turn.T, torch.eye(4), atol=1e-6)
    assert abs(torch.linalg.det(turn)) == pytest.approx(1, abs=1e-5)
    assert not torch.allclose(turn, random_rotation(4, 6), atol=0.1)
    plain, turned = (guided(RULES[name](), 3.0, "all", rotation=r)(noisy(), 9) for r in (None, turn))
    assert torch.allclose(plain[:, :4], turned[:, :4], atol=2e-3)
    assert torch.equal(plain[:, 4:], turned[:, 4:])
    three, turned = (guided(RULES[name](), 3.0, 3, rotation=r)(noisy(), 9)[:, :4] for r in (None, turn))
    assert not torch.allclose(three, turned, atol=0.05)
    alone = Network()(noisy(), torch.full((2,), float(SCHEDULE.timestep_map[9])), text(1.0, 0.5))[:, :4]
    fourth = torch.einsum("c,bc...->b...", turn[3], turned - alone)
    assert fourth.abs().max() < 1e-4  # the unguided direction is the conditional prediction's


def test_rules_are_read_with_their_settings_and_written_whole():
    assert parse_rule("cfg") == CFG()
    assert parse_rule("apg:momentum=0,norm_limit=2.5") == APG(momentum=0, norm_limit=2.5)
    assert rule_text(APG(momentum=0)) == "apg:eta=0,norm_limit=15,momentum=0"
    for rule in (*NEUTRAL.values(), *(kind() for kind in RULES.values())):
        assert parse_rule(rule_text(rule)) == rule


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("abg", "did you mean 'apg'"), ("apg:moment=1", "'moment' is not a setting: apg has eta, norm_limit, momentum"),
        ("cfg:eta=1", "cfg has no settings"), ("apg:eta", "cannot be read"), ("apg:eta=x", "cannot be read"), ("apg:eta=1,eta=2", "once"),
        ("rescale:phi=2", "from 0 to 1"), ("apg:eta=nan", "eta is nan"), ("fdg:levels=0", "at least 1"), ("fdg:levels=1.5", "cannot be read"),
        ("apg:", None),
    ],
)  # fmt: skip
def test_bad_rules_are_refused_in_one_line(text, message):
    if message is None:
        assert parse_rule(text) == APG()
        return
    with pytest.raises(InputError) as error:
        parse_rule(text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_trace_under_a_rotation_is_of_the_directions_that_are_guided():
    """What guidance adds to the prediction has the energy that the trace and its scales say."""
    turn, trace, x = random_rotation(4, 1), GuidanceTrace(keep_x0=True), noisy()
    prediction = guided(CFG(), 3.0, 3, rotation=turn, trace=trace)(x.clone(), 9)[:, :4]
    t = torch.full((2,), float(SCHEDULE.timestep_map[9]))
    cond = Network()(x, t, text(1.0, 0.5))[:, :4]
    arrays = trace.as_arrays()
    said = (((arrays["scale"] - 1) * arrays["difference"]) ** 2).sum((1, 2))
    assert np.allclose(said, (prediction - cond).square().flatten(1).sum(1).numpy(), rtol=1e-3)


def test_a_scale_that_falls_by_itself_takes_no_ramp():
    from guidon.request import Generation

    own = {"prompts": ("a",), "guidance": "cfg++", "sampler": "ddim", "cfg_scale": 0.6}
    for timing in ("linear", "cosine"):
        with pytest.raises(InputError, match="give no ramp"):
            validated(Generation, own | {"timing": timing}, "generate")
    assert validated(Generation, own | {"timing": "interval:0.1,0.5"}, "generate").timing == "interval:0.1,0.5"


def test_low_frequencies_of_a_slope_are_the_slope_on_sides_that_do_not_halve():
    update = torch.linspace(-1, 1, 18).expand(1, 1, 1, 18, 18)
    given = Branches(cond=update, uncond=torch.zeros_like(update))
    left = FrequencyDecoupled(low=0.0, levels=2)(given, 2.0) - update  # what is not low
    assert left[..., 3:-3].abs().max() < 0.05


def test_a_rescaled_constant_is_finite():
    flat = Branches(cond=torch.ones(2, 3, 4, 4), uncond=torch.zeros(2, 3, 4, 4))
    assert torch.equal(Rescale()(flat, 3.0), torch.full((2, 3, 4, 4), 3.0))
