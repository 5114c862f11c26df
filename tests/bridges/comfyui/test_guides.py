"""Channel guidance and Guidance rule in ComfyUI's order of sampling."""

import copy
from types import SimpleNamespace

import pytest
import torch

from guidon import Guidance, InputError, NoiseLevel
from guidon.guidance import START, Interval

SIGMA = 0.6


def once(comfy, model, x, cfg, sigma=SIGMA, **more):
    """x_0 of one call."""
    return comfy.run(model, lambda call: call(x, sigma), cfg, **more)


def branches(comfy, model, x, sigma=SIGMA):
    """cond and uncond of one call: at cfg 1 and at cfg 0."""
    return once(comfy, model, x, 1.0, sigma), once(comfy, model, x, 0.0, sigma)


def channel(comfy, model, *given, **more):
    return comfy.nodes.ChannelGuidance.execute(model, *given, **more).args[0]


def rule(comfy, model, *given, **more):
    return comfy.nodes.GuidanceRule.execute(model, *given, **more).args[0]


def kinds(comfy):
    return [(kind, comfy.model(kind)) for kind in comfy.samplings]


CHOICES = {"3": [0, 1, 2], "all": [0, 1, 2, 3], "none": [], "0,2": [0, 2], "1-2": [1, 2], "only:3": [3]}


@pytest.mark.parametrize("choice", CHOICES)
def test_guided_channels_are_fully_guided_and_the_others_are_cond(comfy, x, choice):
    guided = CHOICES[choice]
    others = [c for c in range(4) if c not in guided]
    for _, model in kinds(comfy):
        cond, _ = branches(comfy, model, x)
        full = once(comfy, model, x, 7.0)
        result = once(comfy, channel(comfy, model, choice), x, 7.0)
        assert torch.equal(result[:, guided], full[:, guided])
        assert torch.equal(result[:, others], cond[:, others])
        assert not torch.equal(full[:, others], cond[:, others]) or not others


def test_the_original_model_is_untouched(comfy, x):
    model = comfy.model()
    before, options = once(comfy, model, x, 7.0), copy.copy(model.model_options)
    channel(comfy, model, "only:1", scales="4")
    rule(comfy, model, "apg", 4.0)
    assert model.model_options.keys() == options.keys()
    assert not model.wrappers.get("outer_sample")
    assert torch.equal(once(comfy, model, x, 7.0), before)


def test_at_cfg_1_uncond_is_not_run_and_nothing_changes(comfy, x):
    model = comfy.model()
    seen = []
    counted = channel(comfy, model, "2")
    counted.set_model_sampler_pre_cfg_function(lambda args: seen.append(args["conds"][1]) or args["conds_out"])
    cond, _ = branches(comfy, model, x)
    assert torch.equal(once(comfy, counted, x, 1.0), cond)
    assert seen == [None]


def test_outside_the_interval_the_result_is_cond(comfy, x):
    for kind, model in kinds(comfy):
        sampling = comfy.sampling(kind)
        patched = channel(comfy, model, "2", 0.25, 0.75)
        for percent in (0.05, 0.24, 0.26, 0.5, 0.74, 0.76, 0.95):
            sigma = float(sampling.percent_to_sigma(percent))
            cond, _ = branches(comfy, model, x, sigma)
            full = once(comfy, model, x, 7.0, sigma)
            expected = cond.clone()
            if 0.25 <= percent <= 0.75:
                expected[:, :2] = full[:, :2]
            assert torch.equal(once(comfy, patched, x, 7.0, sigma), expected), (kind, percent)


def test_one_end_of_the_interval_is_enough_and_the_calls_own_model_tells_the_levels(comfy, x):
    for ends in ((0.0, 0.75), (0.25, 1.0)):
        function = channel(comfy, comfy.model(), "2", *ends).model_options["sampler_pre_cfg_function"][-1]
        assert function.interval == Interval(*ends)
    # at sigma 0.9 a quarter of a flow model's sampling is over, and more of an eps model's
    late = channel(comfy, comfy.model("eps"), "all", 0.3, 1.0).model_options["sampler_pre_cfg_function"][-1]
    for kind, acts in (("flow", False), ("eps", True)):
        own = comfy.model(kind).model
        args = {"conds": [[], []], "conds_out": [x, -x], "cond_scale": 7.0, "input": x, "sigma": torch.full((2,), 0.9)}
        assert torch.equal(late(args | {"model": own})[1], -x if acts else x)


@pytest.mark.parametrize("cfg", [7.0, 2.5, 0.5, 1.0, 1.003])
def test_scales_per_channel_hold_at_any_cfg(comfy, x, cfg):
    scales = [9.0, 1.0, 3.5, 0.0]
    model = comfy.model("flow")
    cond, uncond = branches(comfy, model, x)
    wanted = uncond + torch.tensor(scales).view(-1, 1, 1) * (cond - uncond)
    result = once(comfy, channel(comfy, model, "", scales="9, 1, 3.5, 0"), x, cfg)
    torch.testing.assert_close(result, wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(result[:, 1], cond[:, 1])


def test_a_channel_whose_scale_is_the_samplers_is_the_samplers(comfy, x):
    model = comfy.model()
    full = once(comfy, model, x, 7.0)
    result = once(comfy, channel(comfy, model, "", scales="7,1,3,7"), x, 7.0)
    assert torch.equal(result[:, [0, 3]], full[:, [0, 3]])


@pytest.mark.parametrize("cfg", [7.0, 1.0])
@pytest.mark.parametrize("scales", ["1", "1,1,1,1"])
def test_scale_1_is_no_guidance(comfy, x, cfg, scales):
    model = comfy.model()
    cond, _ = branches(comfy, model, x)
    for patched in (channel(comfy, model, "all", scales=scales), rule(comfy, model, "cfg", 5.0, scales=scales)):
        assert torch.equal(once(comfy, patched, x, cfg), cond)


def test_one_scale_is_for_the_guided_channels(comfy, x):
    model = comfy.model()
    one = once(comfy, channel(comfy, model, "0,2", scales="4"), x, 7.0)
    each = once(comfy, channel(comfy, model, "", scales="4,1,4,1"), x, 7.0)
    assert torch.equal(one, each)
    assert once(comfy, channel(comfy, model, "0,2", scales="4"), x.bfloat16(), 1.0).dtype == torch.bfloat16


# rules


@pytest.mark.parametrize("cfg", [1.0, 7.0])
@pytest.mark.parametrize("name", ["cfg", "rescale", "apg", "fdg"])
def test_a_rule_is_what_combine_gives_whatever_the_samplers_cfg(comfy, x, name, cfg):
    scales = (5.0, 1.0, 2.0, 3.0)
    guidance = Guidance(scales, rule=name)
    for _, model in kinds(comfy):
        cond, uncond = branches(comfy, model, x)
        expected, _ = guidance.combine(
            cond, uncond, x, NoiseLevel(0, 0.8, 0.6, 0.5), START, parameterization="x0"
        )  # fmt: skip
        patched = rule(comfy, model, name, 9.0, "", scales="5,1,2,3")
        result = once(comfy, patched, x, cfg)
        assert torch.equal(result, expected)
        assert torch.equal(result[:, 1], cond[:, 1])


def test_cfg_zero_projects_the_velocity_of_the_models_own_path(comfy, x):
    """Of flow models eps - x_0; of noise and v models v, on the variance-preserving latent."""
    for kind, model in kinds(comfy):
        cond, uncond = branches(comfy, model, x)
        if kind in ("flow", "flux"):
            c, u = ((x - part) / SIGMA for part in (cond, uncond))  # eps - x_0 = (x - x_0) / sigma
        elif kind == "cosmos":  # x / (1 + sigma) = (1 - t) x_0 + t eps
            c, u = ((x - part) / SIGMA - part for part in (cond, uncond))
        else:  # v = alpha eps - sigma x_0 = ((x - x_0) / sigma - sigma x_0) / sqrt(1 + sigma^2)
            c, u = ((x - part) / SIGMA - SIGMA * part for part in (cond, uncond))
        optimum = (c * u).flatten(1).sum(1) / (u * u).flatten(1).sum(1)
        u = u * optimum.view(-1, 1, 1, 1)
        velocity = u + 4 * (c - u)
        if kind in ("flow", "flux"):
            expected = x - SIGMA * velocity
        elif kind == "cosmos":
            expected = (x - SIGMA * velocity) / (1 + SIGMA)
        else:
            expected = (x - SIGMA * velocity) / (1 + SIGMA**2)
        patched = rule(comfy, model, "cfg-zero", 4.0, settings="zeroed=0")
        torch.testing.assert_close(once(comfy, patched, x, 7.0), expected, rtol=1e-4, atol=1e-4)


def test_the_timing_of_a_rule_is_the_interval_of_channel_guidance(comfy, x):
    for kind, model in kinds(comfy):
        for percent in (0.05, 0.3, 0.5, 0.9):
            sigma = float(comfy.sampling(kind).percent_to_sigma(percent))
            by_rule = once(comfy, rule(comfy, model, "cfg", 7.0, "2", "interval:0.25,0.6"), x, 1.0, sigma)
            by_channel = once(comfy, channel(comfy, model, "2", 0.25, 0.6), x, 7.0, sigma)
            torch.testing.assert_close(by_rule, by_channel, rtol=1e-6, atol=1e-6)


def path(x, sigmas=(2.0, 1.0, 0.5)):
    """A sampler that moves x by what each call gives, and keeps every x_0."""

    def visit(call):
        moving, kept = x, []
        for sigma in sigmas:
            kept.append(call(moving, sigma))
            moving = moving + 0.1 * kept[-1]
        return torch.cat([part[:, :, None] for part in kept], 2)

    return visit


def test_memory_lasts_a_run_and_no_longer(comfy, x):
    model = comfy.model()
    with_memory = rule(comfy, model, "apg", 4.0, settings="momentum=-0.5")
    without = rule(comfy, model, "apg", 4.0, settings="momentum=0")
    first, again, plain = (comfy.run(m, path(x), 7.0) for m in (with_memory, with_memory, without))
    assert torch.equal(first, again)
    assert torch.equal(first[:, :, 0], plain[:, :, 0])
    assert not torch.equal(first[:, :, 1], plain[:, :, 1])
    # a sampler may call the model at one level twice, and at a higher one again, in one run
    up_and_down = comfy.run(with_memory, path(x, (1.0, 0.5, 0.5, 0.8)), 7.0)
    expected, memory, moving = [], START, x
    guidance = Guidance(4.0, "all", "apg:momentum=-0.5")
    for sigma in (1.0, 0.5, 0.5, 0.8):
        cond, uncond = branches(comfy, model, moving, sigma)
        level = NoiseLevel(0, 0.8, 0.6, 0.5)
        result, memory = guidance.combine(cond, uncond, moving, level, memory, parameterization="x0")
        expected.append(result[:, :, None])
        moving = moving + 0.1 * result
    assert torch.equal(up_and_down, torch.cat(expected, 2))


def test_a_run_that_was_interrupted_leaves_no_memory(comfy, x):
    patched = rule(comfy, comfy.model(), "apg", 4.0)
    expected = comfy.run(patched, path(x), 7.0)

    def interrupted(call):
        call(x, 2.0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        comfy.run(patched, interrupted, 7.0)
    assert torch.equal(comfy.run(patched, path(x, (2.0, 1.0, 0.5)), 7.0), expected)


# composition


def test_other_nodes_functions_are_kept_and_see_the_result(comfy, x):
    model = comfy.model()
    log = []

    def before(args):
        log.append("before")
        cond, uncond = args["conds_out"]
        return [cond + 1, uncond]

    def after(args):
        log.append("after")
        cond, uncond = args["conds_out"]
        assert torch.equal(cond[:, 2:], uncond[:, 2:])
        return [cond, uncond * 2]

    def post(args):
        log.append("post")
        return args["denoised"] + 3

    model.set_model_sampler_pre_cfg_function(before)
    patched = channel(comfy, model, "2")
    patched.set_model_sampler_pre_cfg_function(after)
    patched.set_model_sampler_post_cfg_function(post)
    cond, uncond = branches(comfy, comfy.model(), x)
    cond = cond + 1
    seen = uncond.clone()
    seen[:, 2:] = cond[:, 2:]
    assert torch.equal(once(comfy, patched, x, 7.0), seen * 2 + (cond - seen * 2) * 7.0 + 3)
    assert log == ["before", "after", "post"]


def test_a_rule_ignores_what_later_functions_do_to_cfg_alone(comfy, x):
    """Both branches are the guided prediction, so that a post-CFG function sees it as cond, uncond and denoised."""
    seen = {}
    patched = rule(comfy, comfy.model(), "cfg", 4.0)
    patched.set_model_sampler_post_cfg_function(lambda args: seen.update(args) or args["denoised"])
    result = once(comfy, patched, x, 11.0)
    for name in ("cond_denoised", "uncond_denoised", "denoised"):
        assert torch.equal(seen[name], result)


def test_two_nodes_add_up_and_a_clone_shares_the_run(comfy, x):
    model = comfy.model()
    both = channel(comfy, channel(comfy, model, "0-2"), "1-3")
    cond, _ = branches(comfy, model, x)
    full = once(comfy, model, x, 7.0)
    result = once(comfy, both.clone(), x, 7.0)
    assert torch.equal(result[:, 1:3], full[:, 1:3])
    assert torch.equal(result[:, [0, 3]], cond[:, [0, 3]])
    functions = [m.model_options["sampler_pre_cfg_function"] for m in (both, both.clone())]
    assert [id(f) for f in functions[0]] == [id(f) for f in functions[1]]


@pytest.mark.parametrize("node", ["channel", "scales", "rule"])
def test_what_a_function_is_given_stays_as_it_is(comfy, x, node):
    model = comfy.model()
    patched = {
        "channel": lambda: channel(comfy, model, "2"),
        "scales": lambda: channel(comfy, model, "", scales="4,1,2,1"),
        "rule": lambda: rule(comfy, model, "apg", 4.0, "2"),
    }[node]()
    function = patched.model_options["sampler_pre_cfg_function"][-1]
    for cfg in (7.0, 1.0):
        out = [torch.randn(2, 4, 3, 4) for _ in range(3)]
        before, given = [part.clone() for part in out], list(out)
        result = function({
            "conds": [[], []], "conds_out": given, "cond_scale": cfg, "input": x, "sigma": torch.full((2,), SIGMA),
            "model": model.model, "model_options": {},
        })  # fmt: skip
        assert [id(part) for part in given] == [id(part) for part in out]
        assert all(torch.equal(a, b) for a, b in zip(out, before, strict=True))
        assert result is not given
        assert result[2] is out[2]  # a prediction that another node added is passed on
        assert result[0] is not result[1]


# what does not fit


def test_a_guider_without_a_negative_is_left_alone_or_refused(comfy, x):
    model = comfy.model()
    cond, _ = branches(comfy, model, x)
    assert torch.equal(once(comfy, channel(comfy, model, "2"), x, 1.0, prompts=(0.8,)), cond)
    idle = rule(comfy, model, "cfg", 5.0, "all", "interval:0,0.01")
    assert torch.equal(once(comfy, idle, x, 1.0, prompts=(0.8,)), cond)
    for patched in (channel(comfy, model, "2", scales="4"), rule(comfy, model, "cfg", 5.0)):
        with pytest.raises(InputError, match=r"needs? an unconditional prediction, and this guider runs none"):
            once(comfy, patched, x, 1.0, prompts=(0.8,))


def test_a_guider_that_asks_no_other_node_is_refused(comfy, x):
    patched = channel(comfy, comfy.model(), "2")
    with pytest.raises(InputError, match=r"^Channel guidance: the guider .* had no effect"):
        comfy.run(patched, lambda call: x, 7.0)
    around = patched.model_options["sampler_pre_cfg_function"][-1].around_run
    assert around(lambda *_: x, None, x, None, torch.ones(1)) is x  # one sigma is no step
    with pytest.raises(InputError, match="had no effect"):
        around(lambda *_: x, None, x, None, torch.ones(2))


def test_channels_that_the_model_lacks_are_refused_by_the_nodes_name(comfy, x):
    for patched in (channel(comfy, comfy.model(), "only:9"), rule(comfy, comfy.model(), "cfg", 5.0, "9")):
        with pytest.raises(InputError, match=r"^(Channel guidance|Guidance rule): .*4 latent channels") as refused:
            once(comfy, patched, x, 7.0)
        assert "\n" not in str(refused.value)
        assert "cfg_" not in str(refused.value)


def test_samples_at_different_levels_are_refused(comfy, x):
    patched = channel(comfy, comfy.model(), "2")
    function = patched.model_options["sampler_pre_cfg_function"][-1]
    args = {"conds": [[], []], "conds_out": [x, x], "cond_scale": 7.0, "input": x, "sigma": torch.tensor([1.0, 0.5])}
    with pytest.raises(InputError, match="different noise levels"):
        function(args)


# packed latents

VIDEO, AUDIO = (2, 4, 3, 2, 2), (2, 8, 5)


def packed(*streams):
    return torch.cat([stream.reshape(len(stream), 1, -1) for stream in streams], -1)


def flat(samples):
    """A run's latent as the sampler packs it."""
    return samples if isinstance(samples, torch.Tensor) else packed(*samples.unbind())


@pytest.fixture
def streams(comfy):
    if not comfy.packs:
        pytest.skip("this version of ComfyUI has no latents of several streams")
    return packed(*(torch.randn(shape, generator=torch.Generator().manual_seed(1)) for shape in (VIDEO, AUDIO)))


@pytest.mark.parametrize("node", ["channel", "rule"])
def test_of_a_packed_latent_the_first_streams_channels_are_chosen(comfy, streams, node):
    model = comfy.model("flow")
    shapes = {"shapes": (VIDEO, AUDIO)}
    cond, full = (flat(once(comfy, model, streams, cfg, **shapes)) for cfg in (1.0, 7.0))
    patched = channel(comfy, model, "only:1") if node == "channel" else rule(comfy, model, "cfg", 7.0, "only:1")
    result = flat(once(comfy, patched, streams, 7.0, **shapes))
    expected = cond[..., :48].reshape(VIDEO).clone()
    expected[:, 1] = full[..., :48].reshape(VIDEO)[:, 1]
    torch.testing.assert_close(result, packed(expected, full[..., 48:].reshape(AUDIO)), rtol=1e-6, atol=1e-6)
    if node == "channel":
        assert torch.equal(result, packed(expected, full[..., 48:].reshape(AUDIO)))


def test_a_packed_latent_of_unknown_shape_is_refused(comfy):
    patched = channel(comfy, comfy.model("flow"), "only:1")
    function = patched.model_options["sampler_pre_cfg_function"][-1]
    row = torch.zeros(2, 1, 88)
    args = {"conds": [[], []], "conds_out": [row, row], "cond_scale": 7.0, "input": row, "sigma": torch.ones(2)}
    with pytest.raises(InputError, match=r"Channel guidance: .*several streams in one row"):
        function(args)
    # older versions keep the shapes in the conditionings
    told = [[{"model_conds": {"latent_shapes": SimpleNamespace(cond=(VIDEO, AUDIO))}}], []]
    _, uncond = function(args | {"conds": told, "conds_out": [row, row + 1]})
    assert uncond[0, 0, :48].view(4, 12).amax(1).tolist() == [0, 1, 0, 0]
    assert bool((uncond[..., 48:] == 1).all())
    # one stream of several channels is not packed
    sound = torch.zeros(2, 4, 22)
    _, uncond = function(args | {"input": sound, "conds_out": [sound, sound + 1]})
    assert uncond[0].amax(1).tolist() == [0, 1, 0, 0]


# guiders that combine three predictions


def test_every_prediction_that_a_guider_combines_is_cond_on_unguided_channels(comfy, x):
    cond, *others = torch.randn(3, 2, 4, 3, 4, generator=torch.Generator().manual_seed(3))

    def called(patched, cfg=7.0):
        return patched.model_options["sampler_pre_cfg_function"][-1]({
            "conds": [[], [], []], "conds_out": [cond, *others], "cond_scale": cfg, "input": x,
            "sigma": torch.full((2,), SIGMA),
        })  # fmt: skip

    model = comfy.model()
    found = called(channel(comfy, model, "2"))
    assert torch.equal(found[0], cond)
    for now, before in zip(found[1:], others, strict=True):
        assert torch.equal(now, torch.cat([before[:, :2], cond[:, 2:]], 1))
    for patched, cfg in (
        (channel(comfy, model, "none"), 7.0),
        (channel(comfy, model, "all", scales="4"), 1.0),
        (rule(comfy, model, "cfg", 4.0), 7.0),
    ):
        with pytest.raises(InputError, match="combines 3 predictions by a formula of its own"):
            called(patched, cfg)


@pytest.mark.parametrize("comfy", [pytest.param("checkout", marks=pytest.mark.comfyui)], indirect=True)
def test_perp_neg_guider_leaves_unguided_channels_at_cond(comfy, x):
    from comfy_extras.nodes_perpneg import Guider_PerpNeg

    def sampled(model):
        guider = Guider_PerpNeg(model)
        prompts = ([[torch.full((1, 1, 4), prompt), {}]] for prompt in (0.8, -0.5, 0.1))
        guider.set_conds(*prompts)
        guider.set_cfg(7.0, 1.0)
        return comfy.run(model, lambda call: call(x, SIGMA), 7.0, guider=guider)

    model = comfy.model()
    cond, _ = branches(comfy, model, x)
    own = sampled(model)
    assert torch.equal(sampled(channel(comfy, model, "all")), own)
    result = sampled(channel(comfy, model, "0-2"))
    torch.testing.assert_close(result[:, 3], cond[:, 3], rtol=0, atol=1e-6)
    assert not torch.equal(result[:, :3], cond[:, :3])
    for refused in (channel(comfy, model, "none"), rule(comfy, model, "cfg", 4.0)):
        with pytest.raises(InputError, match="combines 3 predictions by a formula of its own"):
            sampled(refused)


@pytest.mark.parametrize("comfy", [pytest.param("checkout", marks=pytest.mark.comfyui)], indirect=True)
def test_dual_cfg_guider_is_refused(comfy, x):
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG

    model = channel(comfy, comfy.model(), "2")
    guider = Guider_DualCFG(model)
    guider.set_conds(*([[torch.full((1, 1, 4), prompt), {}]] for prompt in (0.8, 0.1, -0.5)))
    guider.set_cfg(7.0, 3.0)
    with pytest.raises(InputError, match=r"the guider \(Guider_DualCFG\) combines its predictions"):
        comfy.run(model, lambda call: call(x, SIGMA), 7.0, guider=guider)


@pytest.mark.parametrize("comfy", [pytest.param("checkout", marks=pytest.mark.comfyui)], indirect=True)
def test_a_run_of_no_steps_is_no_error(comfy, x):
    """SplitSigmas can leave a sampler with one sigma."""
    guider = comfy.comfy.samplers.CFGGuider(channel(comfy, comfy.model(), "2"))
    guider.inner_set_conds({"positive": [[torch.zeros(1, 1, 4), {}]], "negative": [[torch.zeros(1, 1, 4), {}]]})
    guider.set_cfg(7.0)
    euler = comfy.comfy.samplers.sampler_object("euler")
    assert guider.sample(torch.zeros_like(x), x, euler, torch.tensor([1.0]), seed=0).shape == x.shape
