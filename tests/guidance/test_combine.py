import dataclasses
import itertools
import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from goldens import relative_error
from guidon.core.errors import InputError
from guidon.diffusion import NoiseLevel, NoiseSchedule, convert
from guidon.guidance import (
    CONSTANT,
    RULES,
    START,
    UNSET,
    Branches,
    ChannelChoice,
    Constant,
    Guidance,
    Interval,
    Memory,
    Oscillation,
    RotatedGuidance,
    WeakModel,
    parse_rule,
    parse_timing,
    random_rotation,
)
from guidon.guidance.rules import APG, CFG, CFGZero, FrequencyDecoupled, PerpendicularNegative, Renormalised, Rescale
from toy_network import GENTLE, NEGATIVE, SCHEDULE, Network, denoiser, flow_level, latents, level_at, normal

RULE_TEXTS = [*(GENTLE.get(name, name) for name in RULES), "apg:norm_limit=0,momentum=0.3", "cfg-zero:zeroed=0.5"]
SHAPES = {"image": (2, 4, 8, 8), "video": (2, 4, 2, 8, 8), "sequence": (2, 4, 9)}
PER_CHANNEL = (0.6, 1.0, 0.2, 0.9)
SETTINGS = [(0.7, 3), (0.7, "all"), (0.7, "0,2"), (0.7, "only:3"), (PER_CHANNEL, UNSET)]
DTYPES = [torch.bfloat16, torch.float16, torch.float64]
HAND_MADE = {"noise schedule": level_at(9), "rectified flow": flow_level(0.6, after=0.5)}


def branches(shape, learned=False, dtype=torch.float32):
    """Predictions of the three branches and the latents."""
    whole = (shape[0], shape[1] * (2 if learned else 1), *shape[2:])
    cond, uncond, negative = (normal(*whole, seed=seed).to(dtype) for seed in range(3))
    return cond, uncond, negative, normal(*shape, seed=3).to(dtype)


def every_other(turn, *values):
    """Half of the combinations of values: those whose places and ``turn`` have an even sum. The other half has the other turn."""
    places = itertools.product(*(range(len(given_)) for given_ in values))
    return [
        tuple(given_[k] for given_, k in zip(values, place, strict=True))
        for place in places
        if (sum(place) + turn) % 2 == 0
    ]


def storages(*tensors):
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


def moved(rule, space):
    """The same rule, at work in another parameterisation."""
    kind = type(rule)
    other = type(kind.__name__, (kind,), {"space": space})
    return other(**dataclasses.asdict(rule))


# combine


@pytest.mark.parametrize(
    ("rule", "shape"),
    [
        (rule, shape)
        for rule in RULE_TEXTS
        for shape in SHAPES
        if (rule, shape) not in (("fdg", "sequence"), ("fdg-time", "sequence"))
    ],
)
def test_combine_changes_nothing_that_is_given_and_gives_the_same_again(rule, shape):
    turn, levels = list(SHAPES).index(shape), list(HAND_MADE.values())
    for (scale, channels), level, learned in every_other(turn, SETTINGS, levels, (False, True)):
        guidance = Guidance(scale, channels, rule)
        cond, uncond, negative, x = given_ = branches(SHAPES[shape], learned)
        before = [tensor.clone() for tensor in given_]
        _, memory = guidance.combine(cond, uncond, x, level, negative=negative, weak=negative, imageless=negative)
        kept = {name: value.clone() for name, value in memory.kept.items()}
        first, after_first = guidance.combine(
            cond, uncond, x, level, memory, negative=negative, weak=negative, imageless=negative
        )
        again, after_again = guidance.combine(
            cond, uncond, x, level, memory, negative=negative, weak=negative, imageless=negative
        )
        # what was given is as before, bit for bit
        assert all(torch.equal(tensor, old) for tensor, old in zip(given_, before, strict=True))
        assert (memory.calls, memory.guided, memory.kept.keys()) == (1, 1, kept.keys())
        assert all(torch.equal(memory.kept[name], value) for name, value in kept.items())
        # the result is a new tensor, and the same at every call
        assert not storages(first) & storages(*given_, again, *memory.kept.values())
        assert torch.equal(first, again)
        assert after_first.kept.keys() == after_again.kept.keys()
        assert all(torch.equal(after_first.kept[name], value) for name, value in after_again.kept.items())
        assert first.shape == cond.shape
        assert first.isfinite().all()


@pytest.mark.parametrize(("turn", "level"), enumerate(HAND_MADE.values()), ids=HAND_MADE)
@pytest.mark.parametrize("rule", RULE_TEXTS)
def test_unguided_and_variance_channels_are_the_conditional_ones_bit_for_bit(rule, turn, level):
    for (scale, channels), learned in every_other(turn, SETTINGS, (False, True)):
        guidance = Guidance(scale, channels, rule)
        cond, uncond, negative, x = branches(SHAPES["video"], learned)
        out, _ = guidance.combine(cond, uncond, x, level, negative=negative, weak=negative, imageless=negative)
        scales = guidance.scales_for(4)
        guided = scales.active() if guidance.rule.by_scale_one else scales.guided
        others = [channel for channel in range(cond.shape[1]) if channel not in guided]
        assert torch.equal(out[:, others], cond[:, others])
        assert all(not torch.allclose(out[:, c], cond[:, c], atol=1e-3) for c in guided)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", RULE_TEXTS)
def test_any_dtype_is_combined_in_fp32_and_given_back(rule, dtype):
    turn = DTYPES.index(dtype)
    for (scale, channels), level in every_other(turn, SETTINGS, list(HAND_MADE.values())):
        guidance = Guidance(scale, channels, rule)
        cond, uncond, negative, x = given_ = branches(SHAPES["image"], learned=True, dtype=dtype)
        out, memory = guidance.combine(cond, uncond, x, level, negative=negative, weak=negative, imageless=negative)
        c, u, n, z = (tensor.float() for tensor in given_)
        expected, _ = guidance.combine(c, u, z, level, negative=n, weak=n, imageless=n)
        scales = guidance.scales_for(4)
        guided = list(scales.active() if guidance.rule.by_scale_one else scales.guided)
        others = [channel for channel in range(8) if channel not in guided]
        assert out.dtype == dtype
        assert torch.equal(out[:, guided], expected[:, guided].to(dtype))
        assert torch.equal(out[:, others], cond[:, others])
        assert all(value.dtype == torch.float32 for value in memory.kept.values())


def test_plain_guidance_is_its_formula_at_every_level_and_in_every_shape():
    for shape, level in itertools.product(SHAPES.values(), HAND_MADE.values()):
        cond, uncond, _, x = branches(shape)
        out, _ = Guidance([4.0, 1.0, 0.0, 2.0]).combine(cond, uncond, x, level, parameterization="flow")
        scales = torch.tensor([4.0, 1.0, 0.0, 2.0]).view(-1, *[1] * (len(shape) - 2))
        assert torch.allclose(out, uncond + scales * (cond - uncond), atol=1e-6)


def test_rows_are_combined_each_for_itself():
    cond, uncond, negative, x = branches((3, 4, 2, 8, 8))
    for rule in RULE_TEXTS:
        guidance = Guidance(0.7, 3, rule)
        whole, _ = guidance.combine(cond, uncond, x, level_at(9), negative=negative, weak=negative, imageless=negative)
        for k in range(3):
            row = slice(k, k + 1)
            third = dict.fromkeys(("negative", "weak", "imageless"), negative[row])
            alone, _ = guidance.combine(cond[row], uncond[row], x[row], level_at(9), **third)
            assert torch.allclose(alone, whole[row], atol=1e-5), rule


TIMINGS = ("constant", "interval:0.2,0.7", "oscillation:2", "cosine")
PREDICTS = ("eps", "x0", "v", "flow")


def cases_of(timing, whole):
    """Settings, parameterisations, and whether the branches are one batch: the whole grid, or a part for each timing.

    The parts of the four timings hold each setting with each parameterisation once, and each timing with all of both.
    """
    if whole:
        return itertools.product(SETTINGS, PREDICTS, (True, False))
    turn = TIMINGS.index(timing)
    return [(setting, PREDICTS[(turn + k) % 4], (turn // 2 + k) % 2 == 0) for k, setting in enumerate(SETTINGS)]


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.long)], ids=["part", "whole"])
@pytest.mark.parametrize(
    ("rule", "timing"),
    [(rule, timing) for rule in RULE_TEXTS for timing in TIMINGS if (rule, timing) != ("cfg++", "cosine")],
)
def test_combine_on_bare_tensors_equals_the_denoiser_bit_for_bit(rule, timing, whole):
    levels = SCHEDULE.levels[::3]
    acted = set()
    for (scale, channels), predicts, batched in cases_of(timing, whole):
        guidance, network = Guidance(scale, channels, rule, timing), Network(predicts, learned=batched)
        weak = WeakModel(network, NEGATIVE)
        run, memory = denoiser(guidance, network, batched=batched, weak=weak), START
        needed = (guidance.needs_uncond, guidance.needs_negative, guidance.needs_imageless, guidance.needs_weak)
        names = ["cond", *itertools.compress(("uncond", "negative", "imageless", "weak"), needed)]
        for number, level in enumerate(levels):
            x = latents(number)
            network.given.clear()
            found = run(x, level)
            # what the network gave in this step, branch by branch
            rows = torch.cat(network.given).split(len(x))
            acts = guidance.acts(level, memory, 4)
            assert len(rows) == (len(names) if acts else 1)
            seen = dict(zip(names, rows, strict=False))
            cond, uncond = seen.pop("cond"), seen.pop("uncond", None)
            expected, memory = guidance.combine(cond, uncond, x, level, memory, **seen, parameterization=predicts)
            assert torch.equal(found, expected)
            assert (run.memory.calls, run.memory.guided) == (memory.calls, memory.guided)
            acted.add(acts)
    assert acted == ({True} if timing == "constant" else {True, False})


def test_combine_under_a_rotation_equals_the_denoiser_bit_for_bit():
    guidance = RotatedGuidance(Guidance(3.0, 3, "apg"), random_rotation(4, 1))
    network, memory = Network("v"), START
    run = denoiser(guidance, network)
    for number, level in enumerate(SCHEDULE.levels[::4]):
        x = latents(number)
        found = run(x, level)
        cond, uncond = network.given[-1].chunk(2)
        expected, memory = guidance.combine(cond, uncond, x, level, memory, parameterization="v")
        assert torch.equal(found, expected)


def test_gradients_pass_through_and_inference_mode_before_is_no_hindrance():
    guidance = Guidance([3.0, 1.0, 2.5, 0.25])  # its factors are made in inference mode, and kept
    with torch.inference_mode():
        cond, uncond, _, x = branches(SHAPES["image"])
        guidance.combine(cond, uncond, x, level_at(9))
    cond, uncond, _, x = branches(SHAPES["image"])
    cond.requires_grad_()
    uncond.requires_grad_()
    out, _ = guidance.combine(cond, uncond, x, level_at(9))
    out.square().sum().backward()
    assert (cond.grad.abs().sum((0, 2, 3)) > 0).all()
    assert (uncond.grad.abs().sum((0, 2, 3)) > 0).tolist() == [True, False, True, True]


# spaces

INVARIANT = [CFG(), parse_rule("cfg++"), FrequencyDecoupled(), PerpendicularNegative()]


@pytest.mark.parametrize("level", HAND_MADE.values(), ids=HAND_MADE)
@pytest.mark.parametrize("rule", INVARIANT, ids=lambda rule: rule.name)
def test_an_affine_rule_in_flow_space_equals_itself_in_eps_space(rule, level):
    cond, uncond, negative, x = branches(SHAPES["video"])
    for (scale, channels), predicts in itertools.product(SETTINGS, ("eps", "x0", "flow")):
        found = {
            space: Guidance(scale, channels, moved(rule, space)).combine(
                cond, uncond, x, level, negative=negative, weak=negative, imageless=negative, parameterization=predicts
            )[0]
            for space in ("flow", "eps", "x0", "own")
        }
        for space in ("flow", "x0", "own"):
            assert relative_error(found[space], found["eps"]) < 1e-5, space


@pytest.mark.parametrize("level", HAND_MADE.values(), ids=HAND_MADE)
@pytest.mark.parametrize("space", ["eps", "x0", "v", "flow"])
@pytest.mark.parametrize("rule", [Rescale(), APG(), APG(eta=0.5, norm_limit=2.0, momentum=0.0), CFGZero(), *INVARIANT])
def test_a_rule_in_a_space_means_the_same_for_networks_of_flow_and_of_eps(rule, space, level):
    eps, x = branches(SHAPES["video"])[:3], branches(SHAPES["video"])[3]
    flow = [convert(branch, x, level, "eps", "flow") for branch in eps]
    for scale, channels in SETTINGS:
        guidance = Guidance(scale, channels, moved(rule, space))
        memory = {"eps": START, "flow": START}
        for _ in range(3):  # the rule may remember
            found = {}
            for predicts, (cond, uncond, negative) in (("eps", eps), ("flow", flow)):
                found[predicts], memory[predicts] = guidance.combine(
                    cond,
                    uncond,
                    x,
                    level,
                    memory[predicts],
                    negative=negative,
                    weak=negative,
                    imageless=negative,
                    parameterization=predicts,
                )
            assert relative_error(convert(found["flow"], x, level, "flow", "eps"), found["eps"]) < 1e-5


def test_cfg_plus_plus_works_where_rectified_flow_begins():
    cond, uncond, _, x = branches(SHAPES["image"])
    guidance = Guidance(0.6, "all", "cfg++")
    start = flow_level(1.0, after=0.9)  # alpha is 0: A is infinite, and the scale is s itself
    found, _ = guidance.combine(cond, uncond, x, start, parameterization="flow")
    assert torch.allclose(found, uncond + 0.6 * (cond - uncond), atol=1e-6)
    nearly, _ = guidance.combine(cond, uncond, x, flow_level(1 - 1e-6, after=0.9), parameterization="flow")
    assert torch.allclose(found, nearly, atol=1e-4)


def test_cfg_plus_plus_is_conditional_in_a_step_that_stays_at_its_level():
    cond, uncond, _, x = branches(SHAPES["image"])
    found, _ = Guidance(0.6, "all", "cfg++").combine(
        cond, uncond, x, flow_level(0.1, after=0.1), parameterization="flow"
    )
    assert torch.equal(found, cond)


# when it acts


@given(st.floats(0, 1), st.integers(0, 30))
def test_it_acts_exactly_where_it_needs_the_other_branch(progress, calls):
    cond, uncond, _, x = branches(SHAPES["image"])
    level = dataclasses.replace(level_at(9), progress=progress)
    for timing in ("constant", "linear", "interval:0.25,0.75", "oscillation:5"):
        guidance, memory = Guidance(3.0, 3, timing=timing), Memory(calls=calls, guided=2)
        if guidance.acts(level, memory, 4):
            out, after = guidance.combine(cond, uncond, x, level, memory)
            assert not torch.equal(out, cond)
            assert (after.calls, after.guided) == (calls + 1, 3)
            with pytest.raises(InputError, match="guidance on channels 3 needs the unconditional prediction"):
                guidance.combine(cond, None, x, level, memory)
        else:
            out, after = guidance.combine(cond, None, x, level, memory)
            assert torch.equal(out, cond)
            assert (after.calls, after.guided) == (calls + 1, 2)


@pytest.mark.parametrize(
    "guidance",
    [Guidance(1.0), Guidance([1, 1, 1, 1]), Guidance(7.0, "none"), Guidance(1.0, "all", "apg"), Guidance(0.5, "none", "cfg++")],
    ids=str,
)  # fmt: skip
def test_guidance_of_scale_one_or_of_no_channel_is_the_conditional_model(guidance):
    cond, _, _, x = branches(SHAPES["image"], learned=True)
    assert guidance.is_conditional
    for level in HAND_MADE.values():
        assert not guidance.acts(level, START, 4)
        assert torch.equal(guidance.combine(cond, None, x, level)[0], cond)


def test_cfg_plus_plus_acts_at_scale_one_too():
    assert not Guidance(1.0, 3, "cfg++").is_conditional
    assert Guidance(1.0, 3, "cfg++").acts(level_at(9), START, 4)


# memory


def test_a_run_counts_its_calls_and_what_it_guided():
    guidance, memory = Guidance(3.0, 3, "apg", "oscillation:2"), START
    cond, uncond, _, x = branches(SHAPES["image"])
    for number in range(6):
        _, memory = guidance.combine(cond, uncond, x, level_at(19 - number), memory)
    assert (memory.calls, memory.guided) == (6, 4)
    assert memory.kept.keys() == {"update"}
    assert (START.calls, START.guided, dict(START.kept)) == (0, 0, {})


def test_what_a_rule_keeps_outlives_steps_without_guidance():
    guidance = Guidance(3.0, "all", "apg:norm_limit=0,momentum=-0.5", "oscillation:0")
    cond, uncond, _, x = branches(SHAPES["image"])
    _, first = guidance.combine(cond, uncond, x, level_at(12))
    _, second = guidance.combine(cond, uncond, x, level_at(11), first)
    assert second.kept is first.kept
    assert second.guided == first.guided == 1
    _, third = guidance.combine(cond, uncond, x, level_at(10), second)
    assert not torch.equal(third.kept["update"], first.kept["update"])


# refusals


def test_predictions_that_do_not_fit_are_refused_in_one_line():
    cond, uncond, negative, x = branches(SHAPES["image"])
    plain, level = Guidance(3.0, 3), level_at(9)
    cases = [
        (plain, (cond[:, :3], uncond, x), "gave 3 channels for 4 latent channels: expected 4 or 8"),
        (plain, (cond, uncond[:1], x), r"the unconditional prediction is \(1, 4, 8, 8\), the conditional one \(2, 4, 8, 8\)"),
        (plain, (cond, torch.cat([uncond, uncond], 1), x), r"the unconditional prediction is \(2, 8, 8, 8\)"),
        (plain, (cond, uncond, x[:, :, None]), r"predictions \(2, 4, 8, 8\) do not fit latents \(2, 4, 1, 8, 8\)"),
        (plain, (cond, uncond, x[:1]), r"do not fit latents \(1, 4, 8, 8\)"),
        (Guidance(3.0, 3, "perp-neg"), (cond, uncond, x), "guidance perp-neg needs a negative prompt"),
        (Guidance(3.0, 3, "autoguidance"), (cond, None, x), "guidance autoguidance needs a weak prediction: give weak"),
        (Guidance(3.0, 3, "stg"), (cond, None, x), "needs the unconditional prediction"),
        (Guidance([3, 3]), (cond, uncond, x), "^scale has 2 values, but this model has 4 latent channels"),
        (Guidance(3.0, 5), (cond, uncond, x), "^channels '5' asks for more channels than the model has"),
    ]  # fmt: skip
    for guidance, (c, u, z), message in cases:
        with pytest.raises(InputError, match=message) as error:
            guidance.combine(c, u, z, level)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="the negative prediction is"):
        Guidance(3.0, 3, "perp-neg").combine(cond, uncond, x, level, negative=negative[:1])
    with pytest.raises(InputError, match="the weak prediction is"):
        Guidance(3.0, 3, "stg").combine(cond, uncond, x, level, weak=negative[:1])


def test_a_level_for_every_sample_is_refused_in_one_line():
    cond, uncond, _, x = branches(SHAPES["image"])
    level = NoiseSchedule.named().at(torch.tensor([1, 500]), x)
    for guidance in (Guidance(3.0), Guidance(1.0), RotatedGuidance(Guidance(3.0), random_rotation(4, 0))):
        with pytest.raises(InputError, match="one level for the whole batch: its numbers are floats") as error:
            guidance.combine(cond, uncond, x, level)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": "3"}, "scale '3' is not a number"), ({"scale": -1}, "scale -1 is not valid"),
        ({"rule": "abg"}, "did you mean 'apg'"), ({"timing": "liner"}, "did you mean 'linear'"),
        ({"channels": "0,x"}, "channels '0,x' cannot be read"), ({"scale": 2.0, "rule": "cfg++"}, "from 0 to 1, such as 0.6: 2 was given"),
        ({"scale": [0.5, 2.0], "rule": "cfg++"}, "from 0 to 1, such as 0.6: 2 was given"),
        ({"scale": 0.5, "rule": "cfg++", "timing": "linear"}, "cfg++ changes its scale during sampling: give no ramp (linear)"),
        ({"interval": (0, 0.5)}, "Guidance has no 'interval': give timing='interval:0,0.5'"), ({"cfg_channels": 3}, "did you mean 'channels'"), ({"chanels": 3}, "did you mean 'channels'"),
        ({"scale": 0.5, "rule": "cfg++", "timing": "cosine"}, "give no ramp (cosine)"),
    ],
)  # fmt: skip
def test_settings_that_are_not_valid_are_refused_when_guidance_is_made(options, message):
    with pytest.raises(InputError) as error:
        Guidance(**{"scale": 3.0} | options)
    assert message in str(error.value)
    assert "cfg_s" not in message
    assert "\n" not in str(error.value)
    assert type(error.value) is InputError


# settings


def test_guidance_is_a_value():
    same = [
        Guidance(3, "0,2", "apg:momentum=0", "interval:0,0.5"),
        Guidance(3.0, [0, 2], APG(momentum=0), Interval(0, 0.5)),
        Guidance(3, (2, 0), APG(momentum=0.0), Interval(0.0, 0.5)),
        Guidance(scale=3, channels=ChannelChoice(indices=(0, 2)), rule=APG(momentum=0), timing="interval:0.0,0.5"),
    ]
    assert len(set(same)) == 1
    assert all(guidance == same[0] for guidance in same)
    assert Guidance([3, 1, 2, 1]) == Guidance((3.0, 1.0, 2.0, 1.0))
    assert hash(Guidance([3, 1, 2, 1])) == hash(Guidance((3.0, 1.0, 2.0, 1.0)))
    assert Guidance(3) == Guidance(3.0, UNSET, "cfg", CONSTANT) == Guidance(3.0, UNSET, CFG(), Constant())
    others = [
        Guidance(2),
        Guidance(3, 3),
        Guidance(3, "all"),
        Guidance(3, rule="rescale"),
        Guidance(3, timing="linear"),
    ]
    assert len({Guidance(3), *others}) == 6
    assert dataclasses.replace(Guidance(3, "all"), timing="linear") == Guidance(3, "all", timing="linear")
    with pytest.raises(dataclasses.FrozenInstanceError):
        Guidance(3).scale = 4
    for guidance in (*same, *others):
        assert pickle.loads(pickle.dumps(guidance)) == guidance


@st.composite
def guidances(draw):
    rule = draw(
        st.one_of(
            st.sampled_from([kind() for kind in RULES.values()]),
            st.builds(APG, st.floats(0, 5), st.floats(0, 100), st.floats(-1, 1)),
            st.builds(CFGZero, st.floats(0, 1), st.floats(0, 1)),
            st.builds(Rescale, st.floats(0, 1)),
            st.builds(FrequencyDecoupled, st.floats(0, 2), st.integers(1, 3)),
            st.builds(PerpendicularNegative, st.floats(0, 3)),
        )
    )
    one = st.floats(0, 1 if rule.name == "cfg++" else 30)
    per_channel = draw(st.booleans())
    scale = draw(st.lists(one, min_size=4, max_size=4) if per_channel else one)
    indices = st.lists(st.integers(0, 3), min_size=1, unique=True)
    choice = draw(
        st.just(UNSET) | st.sampled_from(["all", "none", None, "0-2", "only:3"]) | st.integers(1, 4) | indices
    )
    if per_channel and not isinstance(choice, type(UNSET)):
        chosen = ChannelChoice.parse(choice).indices_for(4)
        scale = [value if channel in chosen else 1.0 for channel, value in enumerate(scale)]
    ends = st.tuples(st.floats(0, 1), st.floats(0, 1)).filter(lambda ends: ends[0] < ends[1])
    timings = st.builds(Oscillation, st.integers(0, 99)) | ends.map(lambda ends: Interval(*ends)) | st.just("constant")
    timing = draw(timings if rule.name == "cfg++" else timings | st.sampled_from(["linear", "cosine"]))
    return Guidance(scale, choice, rule, timing)


@settings(deadline=None)
@given(guidances())
def test_guidance_is_read_back_from_its_settings(guidance):
    plain = guidance.to_settings()
    assert Guidance.from_settings(plain) == guidance
    back = Guidance.from_settings(json.loads(json.dumps(plain)))
    assert back == guidance
    assert hash(back) == hash(guidance)
    assert json.loads(json.dumps(back.to_settings())) == json.loads(json.dumps(plain))


@settings(deadline=None)
@given(guidances())
def test_resolving_names_the_same_channels_in_one_form(guidance):
    resolved = guidance.resolved(4)
    assert resolved.scales_for(4) == guidance.scales_for(4)
    assert resolved.resolved(4) == resolved
    assert resolved.to_settings()["cfg_channels"] == guidance.scales_for(4).text
    assert (resolved.scale, resolved.rule, resolved.timing) == (guidance.scale, guidance.rule, guidance.timing)


def test_choices_that_mean_the_same_are_resolved_to_one():
    assert len({Guidance(3, form).resolved(4) for form in (UNSET, 3, "3", "0-2", [2, 1, 0])}) == 1
    assert len({Guidance(3, form).resolved(4) for form in ("all", None, 4, "0-3")}) == 1
    assert Guidance(3).resolved(2) == Guidance(3, "all")
    assert Guidance([3, 2, 1, 4]).resolved(4) == Guidance([3, 2, 1, 4], "all")
    with pytest.raises(InputError, match=r"^scale has 2 values, but this model has 4 latent channels"):
        Guidance([3, 3]).resolved(4)


@pytest.mark.parametrize("name", ["guidance_scale", "cfg_scale"])
def test_a_scale_under_another_name_is_pointed_at(name):
    with pytest.raises(InputError, match=f"Guidance has no '{name}' .did you mean 'scale'"):
        Guidance(**{name: 6})
    with pytest.raises(InputError, match="Guidance has no scale: give one, as in Guidance"):
        Guidance()


def test_a_message_names_scale_and_channels_as_they_were_given():
    settings = Guidance.from_settings({"cfg_scale": [3, 3]})
    for guidance, scale in ((Guidance([3, 3]), "scale"), (settings, "cfg_scale")):
        for same in (guidance, guidance.with_timing("linear"), guidance.with_timing("linear").resolved(2)):
            with pytest.raises(InputError, match=f"^{scale} has 2 values"):
                same.scales_for(4)
        assert guidance == Guidance([3, 3])
    with pytest.raises(InputError, match=r"^scale gives channel 1 .* but channels 'only:0' leaves it unguided"):
        Guidance([3, 3], "only:0").scales_for(2)


def test_settings_are_those_of_manifests():
    assert Guidance(3).to_settings() == {"cfg_scale": 3.0, "guidance": "cfg", "timing": "constant"}
    assert Guidance([2, 1, 1, 4], "0,3", "apg:momentum=0", "interval:0,0.5").to_settings() == {
        "cfg_scale": (2.0, 1.0, 1.0, 4.0),
        "cfg_channels": "0,3",
        "guidance": "apg:eta=0,norm_limit=15,momentum=0",
        "timing": "interval:0,0.5",
    }
    assert Guidance.from_settings({}) == Guidance(1.0)
    assert Guidance.from_settings({"cfg_scale": 2, "cfg_channel": None}) == Guidance(2, "all")


@pytest.mark.parametrize("s", [1.0, 0.7, 0.3])
def test_a_velocity_is_the_one_of_the_path(s):
    """On rectified flow CFG-Zero* works on the flow velocity, whatever the network predicts."""
    cond, uncond, x = (torch.randn(2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2, 3))
    level = NoiseLevel(1000 * s, 1 - s, s, 1 - s)
    guided, _ = Guidance(3.0, "all", "cfg-zero:zeroed=0").combine(cond, uncond, x, level, parameterization="flow")
    optimum = (cond * uncond).flatten(1).sum(1) / uncond.square().flatten(1).sum(1)
    scaled = uncond * optimum.view(-1, *[1] * (x.ndim - 1))
    assert torch.allclose(guided, scaled + 3 * (cond - scaled), atol=1e-5)
    if s < 1:  # an eps network cannot tell x_0 from pure noise
        as_eps = [convert(part, x, level, "flow", "eps") for part in (cond, uncond)]
        by_eps, _ = Guidance(3.0, "all", "cfg-zero:zeroed=0").combine(*as_eps, x, level, parameterization="eps")
        assert torch.allclose(convert(by_eps, x, level, "eps", "flow"), guided, atol=1e-4)


@pytest.mark.parametrize("predicts", ["x0", "v"])
def test_where_a_noise_schedule_begins_at_pure_noise_a_rule_works_on_what_shows_the_sample(predicts):
    """Where alpha is 0, eps is the latents themselves. The next level tells that the path is not a rectified flow."""
    cond, uncond, _, x = branches(SHAPES["image"])
    level = NoiseLevel(999.0, 0.0, 1.0, 0.0, next=NoiseLevel(949.0, 0.6, 0.8, 0.05))
    found, _ = Guidance(3.0, "all", "renorm").combine(cond, uncond, x, level, parameterization=predicts)
    assert torch.allclose(found, Renormalised()(Branches(cond, uncond, None, level), 3.0), atol=1e-5)


@pytest.mark.parametrize("value", [3, 10**400, 1.5, [1], None])
def test_a_rule_or_timing_that_is_no_text_is_refused_in_one_line(value):
    for wrong in ({"rule": value}, {"timing": value}):
        with pytest.raises(
            InputError,
            match=r"^((guidance rule|timing) '.*' does not exist|guidance names a rule, and '.*' is a number)",
        ):
            Guidance(2.0, "all", **wrong)


@pytest.mark.parametrize(("name", "ours"), [("epsilon", "eps"), ("sample", "x0"), ("v_prediction", "v"), ("flow_prediction", "flow")])  # fmt: skip
def test_diffusers_names_of_parameterisations_mean_the_same(name, ours):
    level, guidance = NoiseLevel(700, 0.6, 0.8, 0.3), Guidance(3, "all", "apg")
    cond, uncond, x = torch.randn(3, 2, 4, 3, 4, 4).unbind()
    theirs, _ = guidance.combine(cond, uncond, x, level, parameterization=name)
    assert torch.equal(theirs, guidance.combine(cond, uncond, x, level, parameterization=ours)[0])


@pytest.mark.parametrize(
    ("level", "parameterization", "message"),
    [
        (700, "eps", r"level is 700: give a NoiseLevel\("),
        (None, "eps", "level is None"),
        (NoiseLevel(700, 0.6, 0.8, 0.3), "banana", "parameterization 'banana' does not exist; valid: eps, x0, v, flow"),
        (NoiseLevel(700, 0.6, 0.8, 0.3), "velocity", r"'velocity' does not exist; valid: v \(.*\), flow \("),
        (NoiseLevel(700, 0.6, 0.8, 0.3), None, "parameterization None does not exist"),
    ],
)
def test_what_is_no_level_or_no_parameterisation_is_refused(level, parameterization, message):
    cond, uncond, x = torch.randn(3, 1, 4, 4, 4).unbind()
    with pytest.raises(InputError, match=message):
        Guidance(3).combine(cond, uncond, x, level, parameterization=parameterization)


@pytest.mark.parametrize(("key", "meant"), [("scale", "cfg_scale"), ("channels", "cfg_channels"), ("rule", "guidance"), ("timings", "timing")])  # fmt: skip
def test_a_key_that_is_no_setting_is_refused(key, meant):
    with pytest.raises(InputError, match=f"'{key}' is not a setting of guidance .did you mean '{meant}'"):
        Guidance.from_settings({key: 3})


def test_a_timing_that_is_left_out_gives_way_to_a_models():
    left_out, chosen = Guidance(3), Guidance(3, timing="constant")
    assert left_out == chosen
    for copied in (left_out, pickle.loads(pickle.dumps(left_out)), replace(left_out, channels=2)):
        assert copied.with_timing("linear").timing == parse_timing("linear")
    assert chosen.with_timing("linear") == chosen


def test_scales_may_be_an_array_or_a_tensor():
    for scales in (torch.tensor([4.0, 4, 4, 1.5]), np.array([4, 4, 4, 1.5])):
        assert Guidance(scales) == Guidance([4, 4, 4, 1.5])
    assert Guidance(torch.tensor(3.0)) == Guidance(3.0)
    with pytest.raises(InputError, match="scale"):
        Guidance(torch.ones(2, 2))


@pytest.mark.parametrize("rule", ["momentum", "apg"])
def test_a_rule_sees_the_same_channels_whatever_a_ramp_makes_of_their_scales(rule):
    """Channel 0 has the scale 0.5, which the ramp makes 1 at the data."""
    guidance, memory = Guidance((0.5, 3.0, 1.0, 2.0), rule=rule, timing="exponential"), START
    of_last, own = Guidance(2.0, "only:3", rule=rule, timing="exponential"), START
    for seed, s in enumerate((0.1, 0.0, 0.0, 0.1)):
        level = flow_level(s)
        cond, uncond, x = (normal(2, 4, 2, 4, 4, seed=3 * seed + k) for k in range(3))
        found, memory = guidance.combine(cond, uncond, x, level, memory, parameterization="flow")
        if not s:
            assert guidance.scale_at(level, memory, 4).scales == (1, 6, 1, 4)
            assert guidance.looks_at(level, memory, 4) == (0, 1, 3)
        assert torch.equal(found[:, 2], cond[:, 2])
        _, own = of_last.combine(cond, uncond, x, level, own, parameterization="flow")
    ((kept, kept_of_last),) = zip(memory.kept.values(), own.kept.values(), strict=True)
    assert kept.shape[1] == 3
    assert torch.allclose(kept[:, 2:], kept_of_last)
