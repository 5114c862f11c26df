import math
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guidon.core.errors import InputError
from guidon.diffusion import Process, convert
from guidon.guidance import RULES, parse_rule, rule_text
from guidon.guidance.rules import (
    APG,
    CFG,
    Autoguidance,
    CFGPlusPlus,
    CFGZero,
    FrequencyDecoupled,
    MagnitudeAware,
    Momentum,
    PerpendicularNegative,
    Renormalised,
    Rescale,
    SkipGuidance,
    SpatialAdaptive,
    TangentialDamping,
    TemporalFrequencies,
    ThreeWay,
)
from guidon.samplers import ddim_step, sample_ddim
from toy_network import (
    COND,
    GENTLE,
    SCHEDULE,
    UNCOND,
    Network,
    branches,
    draw,
    guided,
    latents,
    level_at,
    of_images,
    plain,
    predicted,
)

SETTINGS_OF = {
    "rescale": st.builds(Rescale, st.floats(0, 1)),
    "apg": st.builds(APG, st.floats(0, 1e6), st.floats(0, 1e6), st.floats(-1, 1)),
    "cfg-zero": st.builds(CFGZero, st.floats(0, 1), st.floats(0, 1)),
    "fdg": st.builds(FrequencyDecoupled, st.floats(0, 1e6), st.integers(1, 16)),
    "perp-neg": st.builds(PerpendicularNegative, st.floats(0, 1e6)),
    "tcfg": st.builds(TangentialDamping, st.floats(0, 1)),
    "mambo-g": st.builds(MagnitudeAware, st.floats(0, 1e6)),
    "momentum": st.builds(Momentum, st.floats(0, 1e6), st.floats(0, 1)),
    "samg": st.builds(SpatialAdaptive, st.floats(0, 1e6), st.floats(0, 1e6)),
    "renorm": st.builds(Renormalised, st.just("token"), st.integers(1, 16), st.floats(0, 1), st.integers(0, 1))
    | st.builds(Renormalised, st.sampled_from(["row", "sample"])),
    "fdg-time": st.builds(TemporalFrequencies, st.floats(0, 1e6), st.floats(0, 1e6), st.integers(1, 16)),
    "autoguidance": st.builds(Autoguidance, st.floats(0, 1)),
    "three-way": st.builds(
        ThreeWay, st.floats(0, 1e6), st.sampled_from(["none", "text", "image"]), st.integers(0, 99), st.integers(0, 1)
    ),
    "stg": st.builds(
        SkipGuidance,
        st.floats(0, 1e6),
        st.from_regex(r"\d{1,4}(\+\d{1,4}){0,3}", fullmatch=True, alphabet="0123456789+") | st.just("middle"),
    ),
}
NEUTRAL = {
    "cfg": CFG(), "rescale": Rescale(phi=0), "apg": APG(eta=1, norm_limit=0, momentum=0), "fdg": FrequencyDecoupled(low=1),
    "cfg-zero": CFGZero(project=0, zeroed=0), "perp-neg": PerpendicularNegative(weight=0), "tcfg": TangentialDamping(0),
    "mambo-g": MagnitudeAware(0), "momentum": Momentum(0), "samg": SpatialAdaptive(1, 1), "renorm": Renormalised(phi=0),
    "fdg-time": TemporalFrequencies(1, 1), "autoguidance": Autoguidance(0), "stg": SkipGuidance(0),
    "three-way": ThreeWay(1),
}  # fmt: skip


@pytest.mark.parametrize("name", NEUTRAL)
def test_every_rule_is_plain_guidance_at_its_neutral_setting(name):
    assert NEUTRAL[name].is_plain
    for predicts in ("eps", "x0", "v"):
        ours, cfg = (guided(rule, predicts=predicts)(latents(), level_at(12)) for rule in (NEUTRAL[name], CFG()))
        assert torch.equal(ours, cfg)
    # the rule's own formula says so too, up to rounding
    assert torch.allclose(NEUTRAL[name](branches(), 3.0), CFG()(branches(), 3.0), atol=2e-5)


@pytest.mark.parametrize("name", RULES)
def test_no_rule_is_plain_by_default(name):
    assert RULES[name]().is_plain == (name == "cfg")


def test_the_neutral_settings_are_of_all_rules_but_the_one_that_has_none():
    assert NEUTRAL.keys() | {"cfg++"} == RULES.keys()


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(
    ("channels", "others"), [("3", [3]), ("only:2", [0, 1, 3]), ("0,2", [1, 3]), ("none", [0, 1, 2, 3])]
)
def test_unguided_channels_and_variance_are_the_conditional_ones_bit_for_bit(name, channels, others):
    for predicts in ("eps", "x0", "v", "flow"):
        alone = predicted(COND, 7, predicts)
        out = guided(GENTLE.get(name, name), 0.7, channels, predicts)(latents(), level_at(7))
        assert torch.equal(out[:, others], alone[:, others])
        assert torch.equal(out[:, 4:], alone[:, 4:])
        if channels == "3":
            assert not torch.allclose(out[:, :3], alone[:, :3], atol=1e-3)


@pytest.mark.parametrize("name", RULES)
def test_what_an_unguided_channel_predicts_changes_nothing_in_the_others(name):
    class Loud(Network):
        def __call__(self, x, level, cond):
            out = super().__call__(x, level, cond)
            out[:, 3] += 100 * cond.value.view(-1, 1, 1, 1)
            return out

    quiet, loud = (
        guided(RULES[name](), 0.7, 3, network=network)(latents(), level_at(7)) for network in (Network(), Loud())
    )
    assert torch.equal(quiet[:, :3], loud[:, :3])


@pytest.mark.parametrize("name", RULES)
def test_samples_do_not_depend_on_their_batch_mates(name):
    b = branches()
    whole = RULES[name]()(b, 0.6)
    for k in range(2):
        row = slice(k, k + 1)
        others = {"negative": b.negative[row], "weak": b.weak[row], "imageless": b.imageless[row]}
        alone = RULES[name]()(branches(cond=b.cond[row], uncond=b.uncond[row], **others), 0.6)
        assert torch.allclose(alone, whole[row], atol=1e-6)


@pytest.mark.parametrize("name", RULES)
def test_one_scale_per_channel_equals_one_for_all(name):
    each = RULES[name]()(branches(), torch.full((3, 1, 1, 1), 0.6))
    assert torch.allclose(each, RULES[name]()(branches(), 0.6), atol=1e-6)


@pytest.mark.parametrize("name", [name for name in RULES if name not in ("rescale", "cfg++")])
def test_rules_mean_the_same_whatever_the_network_predicts(name):
    x, level = latents(), level_at(9)
    found = {}
    for predicts in ("eps", "x0", "v", "flow"):
        out = guided(RULES[name](), predicts=predicts)(x, level)[:, :4]
        found[predicts] = convert(out, x, level, predicts, "x0")
    for predicts in ("x0", "v", "flow"):
        assert torch.allclose(found[predicts], found["eps"], atol=1e-4), predicts


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
    assert torch.allclose(rule.keeps(first, 3.0)["update"], first.cond - first.uncond)
    second = branches(cond=cond, uncond=uncond, kept=rule.keeps(first, 3.0))
    update = (cond - uncond) - 0.5 * (first.cond - first.uncond)
    assert torch.allclose(rule(second, 3.0), cond + 2 * update, atol=1e-5)
    assert torch.allclose(rule.keeps(second, 3.0)["update"], update, atol=1e-6)


def test_only_momentum_is_kept_from_step_to_step():
    for name, kind in RULES.items():
        kept = {"apg": {"update"}, "momentum": {"mean"}}.get(name, set())
        assert kind().keeps(branches(), 3.0).keys() == kept
    assert not APG(momentum=0).keeps(branches(), 3.0)


@settings(deadline=None, max_examples=20)
@given(st.floats(0.2, 5.0))
def test_cfg_zero_does_not_care_how_large_the_unconditional_branch_is(factor):
    b = branches(progress=0.5)
    louder = branches(0.5, uncond=factor * b.uncond)
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
    out = guided(CFGZero(), predicts="v", channels=3)(latents(), level_at(19))
    assert not out[:, :3].any()
    assert out[:, 3].any()


def test_cfg_plus_plus_is_the_papers_sampler():
    """x_0 from the interpolated noise, noise put back by the unconditional one (algorithm 2), step by step."""
    network, x = Network(learned=False), latents()
    expected = x
    for level in SCHEDULE.levels:
        cond, uncond = network(expected, level, COND), network(expected, level, UNCOND)
        _, x_0 = ddim_step(uncond + 0.6 * (cond - uncond), expected, level, None, Process())
        before = float(SCHEDULE.alphas_cumprod[level.step - 1]) if level.step else 1.0
        expected = math.sqrt(before) * x_0 + math.sqrt(1 - before) * uncond
    run = guided(CFGPlusPlus(), 0.6, network=Network(learned=False))
    found = sample_ddim(run, SCHEDULE, x, torch.randn_like)
    assert (found - expected).norm() / expected.norm() < 1e-4


def test_cfg_plus_plus_is_still_guidance_at_scale_one_and_none_on_unguided_channels():
    out, alone = guided(CFGPlusPlus(), 1.0, 3)(latents(), level_at(9)), predicted(COND, 9)
    assert not torch.allclose(out[:, :3], alone[:, :3], atol=1e-3)
    assert torch.equal(out[:, 3], alone[:, 3])
    with pytest.raises(InputError, match=r"from 0 to 1, such as 0\.6: 2 was given"):
        guided(CFGPlusPlus(), 2.0)
    with pytest.raises(InputError, match="cfg\\+\\+ needs sampler ddim with eta 0"):
        guided(CFGPlusPlus(), 0.6)(latents(), SCHEDULE.between(0.5))


def test_cfg_plus_plus_ends_at_its_own_scale():
    b = branches(level=level_at(0))
    assert torch.allclose(CFGPlusPlus()(b, 0.6), plain(b, 0.6), atol=1e-6)


def test_fdg_guides_flat_parts_by_the_low_scale_and_a_checkerboard_by_the_high_one():
    zero = torch.zeros(1, 1, 2, 8, 8)
    flat = torch.ones_like(zero)
    y, x = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    fine = ((x + y) % 2 * 2.0 - 1).expand_as(zero)
    rule = FrequencyDecoupled(low=0.25)
    assert torch.allclose(rule(of_images(flat, zero), 5.0), flat * (1 + 0.25 * 4))
    assert torch.allclose(rule(of_images(fine, zero), 5.0), fine * 5.0)
    both = rule(of_images(flat + fine, zero), 5.0)
    assert torch.allclose(both, 2.0 * flat + 5.0 * fine)
    with pytest.raises(InputError, match="latents of 8x8 cannot be halved 4 times: give fewer levels"):
        FrequencyDecoupled(levels=4)(of_images(flat, zero), 2.0)
    with pytest.raises(InputError, match=r"fdg: latents \(1, 1, 64\) have no height and width"):
        FrequencyDecoupled()(of_images(flat[..., 0, :, :].flatten(2), torch.zeros(1, 1, 64)), 2.0)


def test_fdg_halves_a_frame_so_often_and_each_side_by_itself():
    b = of_images(*draw(0, 1, shape=(2, 3, 16, 16)))
    update = b.cond - b.uncond
    fine = update - update.mean((-2, -1), keepdim=True)  # halved four times, one pixel is left
    assert torch.allclose(FrequencyDecoupled(low=0.0, levels=4)(b, 3.0), b.cond + 2 * fine, atol=1e-5)
    for shape in ((16, 8), (8, 16)):  # the long side is halved to two pixels, the short one to one
        across = torch.linspace(-1, 1, 8).view(8, 1) if shape[0] == 8 else torch.linspace(-1, 1, 8)
        update = across.expand(1, 1, *shape)
        found = FrequencyDecoupled(low=0.0, levels=3)(of_images(update, torch.zeros_like(update)), 5.0)
        assert torch.allclose(found, 5 * update, atol=1e-5)
        with pytest.raises(InputError, match=f"latents of {shape[0]}x{shape[1]} cannot be halved 4 times"):
            FrequencyDecoupled(levels=4)(of_images(update, torch.zeros_like(update)), 5.0)


def test_perp_neg_ignores_a_negative_prompt_that_says_the_same():
    b = branches()
    same = branches(negative=b.uncond + 0.8 * (b.cond - b.uncond))
    assert torch.allclose(PerpendicularNegative()(same, 3.0), plain(b, 3.0), atol=1e-4)
    moved = plain(b, 3.0) - PerpendicularNegative()(b, 3.0)
    assert ((moved * (b.cond - b.uncond)).flatten(1).sum(1)).abs().max() < 1e-2
    assert ((moved * (b.negative - b.uncond)).flatten(1).sum(1) > 1).all()


def test_perp_neg_cannot_do_without_a_negative_prompt():
    with pytest.raises(InputError, match="guidance perp-neg needs a negative prompt"):
        PerpendicularNegative()(branches(negative=None), 3.0)


@pytest.mark.parametrize("name", SETTINGS_OF)
@given(st.data())
def test_any_settings_of_a_rule_are_read_back_from_its_text(name, data):
    rule = data.draw(SETTINGS_OF[name])
    assert parse_rule(rule_text(rule)) == rule


def test_rules_are_read_with_their_settings_and_written_whole():
    assert parse_rule("cfg") == CFG()
    assert parse_rule("apg") == parse_rule("apg:") == APG()
    assert parse_rule("apg:momentum=0,norm_limit=2.5") == APG(momentum=0, norm_limit=2.5)
    assert rule_text(APG(momentum=0)) == "apg:eta=0,norm_limit=15,momentum=0"
    for rule in (*NEUTRAL.values(), *(kind() for kind in RULES.values())):
        assert parse_rule(rule_text(rule)) == rule


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("abg", "did you mean 'apg'"), ("apg=3", "settings have names and follow a colon, as in apg:eta=0.5"), ("apg:moment=1", "'moment' is not a setting: apg has eta, norm_limit, momentum"),
        ("cfg:eta=1", "cfg has no settings"), ("apg:eta", "cannot be read"), ("apg:eta=x", "cannot be read"), ("apg:eta=1,eta=2", "once"),
        ("rescale:phi=2", "from 0 to 1"), ("apg:eta=nan", "eta is nan"), ("fdg:levels=0", "from 1 to 16"), ("fdg:levels=1.5", "cannot be read"),
        ("renorm:over=rows", "renorm: over=rows does not exist (did you mean 'row'?)"), ("renorm:over", "give over=NAME, once"),
        ("apg:momentum=1.5", "momentum is 1.5: give a number from -1 to 1"),
        ("stg:blocks=8+", "blocks=8+ cannot be read: give numbers such as 8+9, or middle"), ("autoguidance:share=2", "from 0 to 1"),
        ("renorm:over=row,patch=2", "renorm: patch is of over=token"), ("samg:low=-1", "low is -1: give a number at least 0"),
        ("fdg:levels=" + "1" * 12, "levels is 1.11111e+11: give a whole number from 1 to 16"), ("fdg:levels=" + "1" * 400, "levels is inf"),
    ],
)  # fmt: skip
def test_bad_rules_are_refused_in_one_line(text, message):
    with pytest.raises(InputError) as error:
        parse_rule(text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_slope_holds_no_high_frequencies_on_sides_that_do_not_halve():
    update = torch.linspace(-1, 1, 18).expand(1, 1, 1, 18, 18)
    given = of_images(update, torch.zeros_like(update))
    high = FrequencyDecoupled(low=0.0, levels=2)(given, 2.0) - update
    assert high[..., 3:-3].abs().max() < 0.05


def test_a_rescaled_constant_is_finite():
    flat = of_images(torch.ones(2, 3, 4, 4), torch.zeros(2, 3, 4, 4))
    assert torch.equal(Rescale()(flat, 3.0), torch.full((2, 3, 4, 4), 3.0))


def test_the_snippet_on_the_page_of_rules_runs():
    page = (Path(__file__).parents[2] / "docs" / "rules.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = {}
    exec(compile(snippet, "rules.md", "exec"), names)
    assert torch.equal(names["guided"][:, 3], names["cond"][:, 3])
    assert not torch.equal(names["guided"][:, :3], names["cond"][:, :3])
    assert names["memory"].guided == 1


@pytest.mark.parametrize("value", [10**400, -(10**400), "x", None, [1], 1j, float("nan")])
@pytest.mark.parametrize(("kind", "name"), [(Rescale, "phi"), (APG, "eta"), (FrequencyDecoupled, "levels")])
def test_a_setting_that_is_no_number_in_range_is_refused_in_python_too(kind, name, value):
    with pytest.raises(InputError, match=f"{name} is .*: give a (whole )?number"):
        kind(**{name: value})


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (FrequencyDecoupled, "levels"),
        (TemporalFrequencies, "levels"),
        (Renormalised, "patch"),
        (Renormalised, "shrink"),
    ],
)
def test_a_count_that_is_no_whole_number_is_refused_in_python_too(kind, name):
    with pytest.raises(InputError, match=f"{name} is 0.5: give a whole number"):
        kind(**{name: 0.5})
