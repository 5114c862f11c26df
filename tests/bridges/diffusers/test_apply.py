"""Guidance on tiny random pipelines of every family, end to end: what the scheduler receives, and the final latents."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from itertools import cycle, product
from typing import Any

import pytest
import torch
from accelerate import cpu_offload_with_hook
from accelerate.hooks import remove_hook_from_module
from diffusers import ClassifierFreeGuidance
from torch import Tensor

import guidon
from guidon import Guidance, GuidanceTrace, InputError
from guidon.bridges.diffusers.families import FAMILIES, family_of
from guidon.bridges.diffusers.guider import ChannelGuidance
from guidon.bridges.diffusers.levels import DETERMINISTIC, RunLevels
from guidon.guidance import RULES, START, Memory
from tiny_pipelines import IMAGE, PIPELINES, VIDEO, Lend, TinyPipeline, in_dtype, own, record, run

pytestmark = pytest.mark.together("tiny pipelines")
BY_NAME = {tiny.name: tiny for tiny in PIPELINES}
MIXED = {"lumina-2": "cfg_normalization"} | dict.fromkeys(
    ("qwen-image", "qwen-image-to-image", "qwen-image-edit"), "normalisation of every token"
)
"""Families that mix channels after guidance by default."""
OWN = {"lumina": 3}
"""Channels that a family guides by itself, where these are not all."""
THROUGH_X0 = {"ltx-2": 3e-7, "cosmos-1": 3e-7, "cosmos-2": 1e-6, "cosmos-2.5": 1e-6, "cosmos-2-video-to-world": 2e-6}
"""Pipelines that convert or solve: the error of a rule, relative to its norm."""
NO_FULL_GRAPH = ("lumina-2", "z-image", "hunyuan-video-1.5")
"""Pipelines whose network torch.compile cannot trace whole, with guidance or without."""


def _first_of(way: Callable[[TinyPipeline], Any]) -> set[TinyPipeline]:
    first: dict[Any, TinyPipeline] = {}
    for tiny in PIPELINES:
        first.setdefault(way(tiny), tiny)
    return set(first.values())


def _arithmetic(tiny: TinyPipeline) -> tuple[Any, ...]:
    """How a pipeline joins the branches: formula, normalisation, networks, where the scale is, and conversions."""
    return tiny.formula, tiny.normalise, len(tiny.networks), tiny.scale_argument, tiny.tolerance > 0


FIRST = _first_of(lambda tiny: (_arithmetic(tiny), tiny.to_channels, tiny.received, tiny.branches))
"""The first pipeline of each way to join the branches: of one formula, one layout and one order."""


def sampled(always: set[TinyPipeline]) -> Any:
    """Every family, where CI tries those of ``always`` alone."""
    cases = [pytest.param(tiny, marks=() if tiny in always else pytest.mark.long, id=str(tiny)) for tiny in PIPELINES]
    return pytest.mark.parametrize("tiny", cases)


every_way = sampled({*IMAGE, *VIDEO, *FIRST})
"""CI leaves out variants that join their branches as another pipeline does. The support matrix measures them all."""


def per_channel(tiny: TinyPipeline) -> list[float]:
    return [1 + 0.5 * channel for channel in range(tiny.channels)]


def subset(tiny: TinyPipeline) -> tuple[list[int], list[int]]:
    """Channels to guide, and the others."""
    guided = [0, 2]
    return guided, [channel for channel in range(tiny.channels) if channel not in guided]


def expected(tiny: TinyPipeline, step: Any, scales: list[float]) -> Tensor:
    """uncond + s (cond - uncond) with a scale per channel; scale 1 is cond to the bit."""
    cond, uncond = (tiny.to_channels(branch).float() for branch in tiny.branches(step))
    factor = torch.tensor(scales).view(1, -1, *[1] * (cond.ndim - 2))
    return torch.where(factor == 1, cond, uncond + factor * (cond - uncond))


def received(tiny: TinyPipeline, step: Any) -> Tensor:
    return tiny.to_channels(tiny.received(step))


def same(tiny: TinyPipeline, got: Tensor, wanted: Tensor) -> bool:
    """Bit for bit, unless what the pipeline went on with can only be told up to rounding."""
    if not tiny.tolerance:
        return torch.equal(got, wanted)
    slack = tiny.tolerance if got.dtype == torch.float32 else 0.02
    return bool((got - wanted).norm() <= slack * wanted.norm())


@every_way
@pytest.mark.parametrize("alone", [True, pytest.param(False, marks=pytest.mark.long)], ids=["channels", "guidance"])
def test_all_channels_are_the_pipelines_own_guidance(tiny: TinyPipeline, alone: bool, lend: Lend) -> None:
    """With as many prompts as it takes. The support matrix is measured with a guidance, and one prompt."""
    pipe, batch, channels = lend(tiny), tiny.most, OWN.get(tiny.name, "all")
    if alone:
        guidon.apply(pipe, channels=channels)
    else:
        guidon.apply(pipe, Guidance(tiny.scale, channels))
    assert torch.equal(run(tiny, pipe, steps=2, batch=batch), own(tiny, steps=2, batch=batch))


@pytest.mark.parametrize("name", MIXED)
def test_channels_alone_are_refused_where_the_pipeline_mixes_them(name: str) -> None:
    tiny = BY_NAME[name]
    pipe = tiny.make()
    guidon.apply(pipe, channels=subset(tiny)[0])
    with pytest.raises(InputError, match=MIXED[name]):
        run(tiny, pipe)


@every_way
def test_a_subset_is_full_guidance_and_the_rest_is_conditional(tiny: TinyPipeline, lend: Lend) -> None:
    """With a guidance. The support matrix is measured with channels alone, and with what is left after ``remove``."""
    pipe, (guided, rest) = lend(tiny), subset(tiny)
    guidon.apply(pipe, Guidance(tiny.scale, guided))
    latents, steps = record(tiny, pipe, steps=2, batch=tiny.most)
    first = steps[0]
    cond, uncond = (tiny.to_channels(branch) for branch in tiny.branches(first))
    # families that mix channels are guided by the formula without the mixing
    full = uncond + tiny.scale * (cond - uncond) if tiny.name in MIXED else tiny.to_channels(tiny.guided(first))
    assert same(tiny, received(tiny, first)[:, guided], full[:, guided])
    assert same(tiny, received(tiny, first)[:, rest], cond[:, rest])
    if tiny.name != "cogvideox-dynamic-cfg":  # whose scale is 1 in the first step
        assert not torch.equal(full[:, rest], cond[:, rest])
    assert not torch.equal(own(tiny, steps=2, batch=tiny.most), latents)


@every_way
def test_no_channel_is_no_guidance(tiny: TinyPipeline, lend: Lend) -> None:
    pipe = lend(tiny)
    if tiny.name in MIXED:
        guidon.apply(pipe, Guidance(tiny.scale, "none"))
    else:
        guidon.apply(pipe, channels="none")
    _, steps = record(tiny, pipe, steps=2)
    for step in steps:
        cond = tiny.to_channels(tiny.branches(step)[0])
        assert same(tiny, received(tiny, step), cond)


@every_way
def test_a_scale_per_channel_is_what_the_scheduler_receives(tiny: TinyPipeline, lend: Lend) -> None:
    pipe, scales = lend(tiny), per_channel(tiny)
    guidon.apply(pipe, Guidance(scales))
    _, steps = record(tiny, pipe, batch=tiny.most)
    assert len(steps) >= 3
    for step in steps:
        wanted, got = expected(tiny, step, scales), received(tiny, step)
        if tiny.name in THROUGH_X0:
            assert (got - wanted).norm() < THROUGH_X0[tiny.name] * wanted.norm()
        else:
            assert torch.equal(got, wanted)


@sampled({*IMAGE, *VIDEO, *FIRST, BY_NAME["sd3-image-to-image"]})
def test_a_rule_of_memory_is_what_the_scheduler_receives(tiny: TinyPipeline, lend: Lend) -> None:
    """APG works on x_0 and remembers: the level, the sign and the memory of every step must be right.

    One variant that joins its branches as another pipeline does is always tried: it begins in the middle.
    """
    pipe, guidance = lend(tiny), of_memory(tiny)
    guidon.apply(pipe, guidance)
    assert follows(tiny, pipe, guidance).guided


@sampled({BY_NAME[name] for name in ("dit", "sd-1.5", "sdxl", "sd3", "cogvideox", "wan-2.2", "ltx-2", "kandinsky-5")})
def test_a_second_run_begins_anew(tiny: TinyPipeline, lend: Lend) -> None:
    """CI tries one pipeline of each of many schedulers, in one call and in two."""
    pipe, guidance = lend(tiny), of_memory(tiny)
    guidon.apply(pipe, guidance)
    run(tiny, pipe, steps=2)
    assert follows(tiny, pipe, guidance).guided


def of_memory(tiny: TinyPipeline) -> Guidance:
    return Guidance(tiny.scale, 3, "apg:norm_limit=2", "interval:0,0.8")


def follows(tiny: TinyPipeline, pipe: Any, guidance: Guidance) -> Memory:
    """Run a pipeline, and compare what its scheduler receives with ``combine`` on the branches, step by step."""
    _, steps = record(tiny, pipe)
    course, memory = RunLevels.of(pipe.scheduler), START
    # these pipelines join predictions of x_0, Cosmos 1 in units of sigma_data
    parameterization = "x0" if tiny.name in JOIN_X0 else course.parameterization
    unit = JOIN_X0.get(tiny.name, course.sign)
    assert parameterization is not None
    for level, step in zip(course.levels[-len(steps) :], steps, strict=True):
        cond, uncond = (tiny.to_channels(branch) / unit for branch in tiny.branches(step))
        noisy = network_input(pipe, tiny.to_channels(tiny.noisy(step)), float(level.alpha))
        wanted, memory = guidance.combine(cond, uncond, noisy, level, memory, parameterization=parameterization)
        torch.testing.assert_close(received(tiny, step), unit * wanted, rtol=1e-4, atol=1e-4)
    assert memory.guided <= memory.calls
    return memory


JOIN_X0 = {"ltx-2": 1.0, "cosmos-1": 0.5, "cosmos-2": 1.0, "cosmos-2-video-to-world": 1.0}


def network_input(pipe: Any, latents: Tensor, alpha: float) -> Tensor:
    """What the network is given: the latents of Euler's schedulers are alpha times as large."""
    return latents * alpha if type(pipe.scheduler).__name__ in VARIANCE_EXPLODING else latents


VARIANCE_EXPLODING = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")


@sampled(_first_of(lambda tiny: (_arithmetic(tiny), tiny.bf16)))
def test_bf16(tiny: TinyPipeline) -> None:
    """Rounding is of the arithmetic, and not of the layout."""
    if not tiny.bf16:
        pytest.skip("the pipeline does not run in bf16 on a CPU")
    pipe, (guided, rest) = in_dtype(tiny.make(), torch.bfloat16), subset(tiny)
    wanted = run(tiny, pipe, steps=2)
    guidon.apply(pipe, Guidance(tiny.scale, OWN.get(tiny.name, "all")))
    assert torch.equal(run(tiny, pipe, steps=2), wanted)
    if tiny.name not in MIXED:
        guidon.apply(pipe, channels=guided)
        _, steps = record(tiny, pipe, steps=2)
        first = steps[0]
        assert same(tiny, received(tiny, first)[:, guided], tiny.to_channels(tiny.guided(first))[:, guided])
        assert same(tiny, received(tiny, first)[:, rest], tiny.to_channels(tiny.branches(first)[0])[:, rest])
    guidon.apply(pipe, Guidance(per_channel(tiny)))
    _, steps = record(tiny, pipe, steps=2)
    wanted = expected(tiny, steps[0], per_channel(tiny))
    assert (received(tiny, steps[0]).float() - wanted).norm() < 0.01 * wanted.norm()


COMPILED = ("dit", "wan-2.2")
"""One pipeline of a doubled batch, and one of two calls of two networks. Formulas and places of the channels are the hook's
work, which is not traced."""


def compiled_cases() -> list[Any]:
    """Guidance that is applied before torch.compile, and after it. Of those in ``COMPILED``, CI tries one in turn."""
    turns = dict(zip(COMPILED, cycle(("before", "after")), strict=False))
    return [
        pytest.param(tiny, when, marks=() if turns.get(tiny.name) == when else pytest.mark.long, id=f"{tiny}-{when}")
        for tiny, when in product((*IMAGE, *VIDEO), ("before", "after"))  # the variants have the networks of these
    ]


@pytest.mark.parametrize(("tiny", "when"), compiled_cases())
def test_compiled_whole(tiny: TinyPipeline, when: str, lend: Lend) -> None:
    if tiny.name in NO_FULL_GRAPH:
        pytest.skip("torch.compile cannot trace this network whole")
    guidance = Guidance(per_channel(tiny))
    pipe = lend(tiny)
    guidon.apply(pipe, guidance)
    wanted = run(tiny, pipe, steps=2)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    pipe = tiny.make()
    if when == "before":
        guidon.apply(pipe, guidance)
    for name in tiny.networks:
        setattr(pipe, name, torch.compile(getattr(pipe, name), backend="eager", fullgraph=True))
    if when == "after":
        guidon.apply(pipe, guidance)
    assert torch.equal(run(tiny, pipe, steps=2), wanted)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    guidon.remove(pipe)
    assert torch.equal(run(tiny, pipe, steps=2), own(tiny, steps=2))
    torch._dynamo.reset()


@pytest.mark.parametrize("rule", [name for name in RULES if name not in ("perp-neg", "three-way", "autoguidance")])
@pytest.mark.parametrize("name", ["pixart-sigma", "wan-2.1", "ltx", "flux", "kandinsky-5"])
def test_every_rule_runs(name: str, rule: str, lend: Lend) -> None:
    tiny = BY_NAME[name]
    pipe = lend(tiny)
    if rule == "cfg++" and type(pipe.scheduler).__name__ not in DETERMINISTIC:
        guidon.apply(pipe, Guidance(0.6, "all", rule))
        with pytest.raises(InputError, match=r"cfg\+\+ needs a scheduler that adds no noise.*DDIMScheduler"):
            run(tiny, pipe)
        return
    if (name, rule) == ("flux", "stg"):
        guidon.apply(pipe, Guidance(tiny.scale, "all", rule))
        with pytest.raises(InputError, match="stg skips blocks that give one tensor of the shape of their input"):
            run(tiny, pipe)
        return
    guidance = Guidance(0.6 if rule == "cfg++" else tiny.scale, "all", rule)
    guidon.apply(pipe, guidance)
    latents = run(tiny, pipe, steps=2)
    assert latents.isfinite().all()
    assert torch.equal(latents, own(tiny, steps=2)) == (rule == "cfg" or (rule == "fdg-time" and tiny in IMAGE))


@pytest.mark.parametrize(
    "rule", [name for name in RULES if name not in ("cfg", "perp-neg", "three-way", "cfg++", "autoguidance", "stg")]
)
@pytest.mark.parametrize("name", ["wan-2.1", "pixart-sigma"])
def test_every_rule_on_three_channels_is_what_the_scheduler_receives(name: str, rule: str, lend: Lend) -> None:
    """In two calls, and in a doubled batch."""
    tiny = BY_NAME[name]
    pipe, guidance = lend(tiny), Guidance(tiny.scale, 3, rule)
    guidon.apply(pipe, guidance)
    assert follows(tiny, pipe, guidance).guided


@pytest.mark.parametrize(("name", "rule"), [("qwen-image", "renorm:patch=2"), ("lumina-2", "renorm:over=row")])
def test_renorm_is_the_pipelines_own_normalisation(name: str, rule: str, lend: Lend) -> None:
    tiny = BY_NAME[name]
    pipe = lend(tiny)
    guidon.apply(pipe, Guidance(tiny.scale, "all", rule))
    assert torch.allclose(run(tiny, pipe), own(tiny), atol=1e-4)
    guidon.apply(pipe, Guidance(tiny.scale, "all", "renorm:phi=0.5"))
    assert not torch.allclose(run(tiny, pipe), own(tiny), atol=1e-2)


def test_applied_again_the_new_guidance_takes_its_place(lend: Lend) -> None:
    tiny = BY_NAME["sd3"]
    pipe = lend(tiny)
    guidon.apply(pipe, Guidance(9, "all"))
    nine = run(tiny, pipe)
    for _ in range(3):
        guidon.apply(pipe, Guidance(2, "all"))
    two = run(tiny, pipe)
    assert not torch.equal(two, nine)
    assert len(pipe.transformer._forward_hooks) == 1
    guidon.remove(pipe)
    guidon.remove(pipe)
    assert not pipe.transformer._forward_hooks
    assert not pipe.transformer._forward_hooks_with_kwargs


def test_nothing_is_left() -> None:
    tiny = BY_NAME["wan-2.2"]
    pipe = tiny.make()
    before = [set(vars(part)) for part in (pipe, pipe.transformer, pipe.transformer_2, pipe.scheduler)]
    run(tiny, pipe)
    before = [set(vars(part)) for part in (pipe, pipe.transformer, pipe.transformer_2, pipe.scheduler)]
    guidon.apply(pipe, Guidance(3, "all", "apg"))
    run(tiny, pipe)
    guidon.remove(pipe)
    assert [set(vars(part)) for part in (pipe, pipe.transformer, pipe.transformer_2, pipe.scheduler)] == before


def test_a_pipeline_with_guidance_is_freed() -> None:
    tiny = BY_NAME["pixart-sigma"]
    pipe = tiny.make()
    guidon.apply(pipe, Guidance(3, "all", "apg"))
    run(tiny, pipe)
    gone = weakref.ref(pipe)
    del pipe
    gc.collect()
    assert gone() is None


def test_each_expert_has_its_own_guidance(lend: Lend) -> None:
    tiny = BY_NAME["wan-2.2"]
    pipe, scales = lend(tiny), per_channel(tiny)
    guidon.apply(pipe, Guidance(scales), second=Guidance(scales[::-1]))
    _, steps = record(tiny, pipe)
    assert {step.networks[0] for step in steps} == {"transformer", "transformer_2"}
    for step in steps:
        wanted = expected(tiny, step, scales if step.networks[0] == "transformer" else scales[::-1])
        assert torch.equal(received(tiny, step), wanted)
    with pytest.raises(InputError, match="leave out second"):
        guidon.apply(BY_NAME["sd3"].make(), Guidance(3), second=Guidance(2))


def test_channels_alone_follow_each_experts_scale(lend: Lend) -> None:
    tiny = BY_NAME["wan-2.2"]
    pipe, (guided, _) = lend(tiny), subset(tiny)
    guidon.apply(pipe, channels=guided)
    _, steps = record(tiny, pipe)
    for step in steps:
        assert torch.equal(received(tiny, step)[:, guided], tiny.to_channels(tiny.guided(step))[:, guided])


def test_channels_alone_follow_dynamic_cfg(lend: Lend) -> None:
    tiny = BY_NAME["cogvideox-dynamic-cfg"]
    pipe, (guided, rest) = lend(tiny), subset(tiny)
    guidon.apply(pipe, channels=guided)
    _, steps = record(tiny, pipe)
    for step in steps:
        assert torch.equal(received(tiny, step)[:, guided], tiny.to_channels(tiny.guided(step))[:, guided])
        assert torch.equal(received(tiny, step)[:, rest], tiny.to_channels(tiny.branches(step)[0])[:, rest])


def test_channels_alone_follow_a_callback(lend: Lend) -> None:
    tiny = BY_NAME["sd-1.5"]
    pipe, (guided, rest) = lend(tiny), subset(tiny)

    def lower(pipe: Any, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        pipe._guidance_scale = 2.0
        return given

    guidon.apply(pipe, channels=guided)
    _, steps = record(tiny, pipe, callback_on_step_end=lower)
    for number, step in enumerate(steps):
        full = tiny.to_channels(tiny.guided(step, 2.0 if number else tiny.scale))
        assert torch.equal(received(tiny, step)[:, guided], full[:, guided])
        assert torch.equal(received(tiny, step)[:, rest], tiny.to_channels(tiny.branches(step)[0])[:, rest])


def test_lumina_guides_its_fourth_channel_at_last(lend: Lend) -> None:
    tiny = BY_NAME["lumina"]
    pipe = lend(tiny)
    guidon.apply(pipe, Guidance(tiny.scale, "all"))
    _, steps = record(tiny, pipe)
    assert torch.equal(received(tiny, steps[0]), expected(tiny, steps[0], [tiny.scale] * tiny.channels))
    guidon.apply(pipe, channels="all")
    with pytest.raises(InputError, match="it guides channels='3' alone: give guidon"):
        run(tiny, pipe)


@pytest.mark.parametrize("name", ["wan-2.1", "flux", "kandinsky-5", "sd3"])
def test_the_networks_own_output_is_left_alone(name: str) -> None:
    """A cache may hold it, and a CUDA graph writes the next output over it."""
    tiny = BY_NAME[name]
    pipe = tiny.make()
    held: list[tuple[Tensor, Tensor]] = []
    forward = pipe.transformer.forward

    def kept(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        prediction = output[0] if isinstance(output, tuple) else output.sample
        held.append((prediction, prediction.clone()))
        return output

    pipe.transformer.forward = kept
    guidon.apply(pipe, Guidance(per_channel(tiny)))
    run(tiny, pipe)
    assert held
    assert all(torch.equal(now, then) for now, then in held)


def in_turn(names: tuple[str, ...], *ways: Any) -> list[Any]:
    """Every name in every way, where CI tries each name in one way, in turn, and the first name in all of them."""
    return [
        pytest.param(name, way, marks=() if number == 0 or number % len(ways) == place else pytest.mark.long)
        for number, name in enumerate(names)
        for place, way in enumerate(ways)
    ]


ORDERS = tuple(product(("ours first", "theirs first"), repeat=2))


@pytest.mark.parametrize(("name", "orders"), in_turn(("wan-2.1", "sd3", "kandinsky-5", "z-image"), *ORDERS))
def test_offloading_by_accelerate(name: str, orders: tuple[str, str], lend: Lend) -> None:
    order, removal = orders
    tiny, guidance = BY_NAME[name], Guidance([1.5] * BY_NAME[name].channels)
    pipe = lend(tiny)
    guidon.apply(pipe, guidance)
    wanted = run(tiny, pipe, steps=2)
    pipe = tiny.make()
    if order == "ours first":
        guidon.apply(pipe, guidance)
    cpu_offload_with_hook(pipe.transformer, execution_device="cpu")
    if order == "theirs first":
        guidon.apply(pipe, guidance)
    assert torch.equal(run(tiny, pipe, steps=2), wanted)
    if removal == "ours first":
        guidon.remove(pipe)
        assert hasattr(pipe.transformer, "_hf_hook")
        assert torch.equal(run(tiny, pipe, steps=2), own(tiny, steps=2))
        remove_hook_from_module(pipe.transformer)
    else:
        remove_hook_from_module(pipe.transformer)
        assert torch.equal(run(tiny, pipe, steps=2), wanted)
        guidon.remove(pipe)
    assert torch.equal(run(tiny, pipe, steps=2), own(tiny, steps=2))


def group_offload(network: Any) -> None:
    network.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")


def layerwise_casting(network: Any) -> None:
    network.enable_layerwise_casting(storage_dtype=torch.float16, compute_dtype=torch.float32)


def first_block_cache(network: Any) -> None:
    from diffusers import FirstBlockCacheConfig

    network.enable_cache(FirstBlockCacheConfig(threshold=0.5))


@pytest.mark.parametrize(
    ("name", "enable"),
    in_turn(("wan-2.1", "sd3", "flux", "ltx", "kandinsky-5"), group_offload, layerwise_casting)
    + [(name, first_block_cache) for name in ("flux", "hunyuan-video", "mochi")],
)  # fmt: skip
def test_diffusers_own_hooks(name: str, enable: Any) -> None:
    tiny = BY_NAME[name]
    pipe = tiny.make()
    enable(pipe.transformer)
    cached = run(tiny, pipe, steps=3)
    guidon.apply(pipe, channels="all")
    assert torch.equal(run(tiny, pipe, steps=3), cached)
    guidon.apply(pipe, Guidance(per_channel(tiny)))
    assert not torch.equal(run(tiny, pipe, steps=3), cached)
    guidon.remove(pipe)
    assert torch.equal(run(tiny, pipe, steps=3), cached)


@pytest.mark.parametrize("name", ["wan-2.1", "sd3", "kandinsky-5"])
def test_inference_mode(name: str, lend: Lend) -> None:
    tiny, guidance = BY_NAME[name], Guidance(per_channel(BY_NAME[name]))
    pipe = lend(tiny)
    guidon.apply(pipe, guidance)
    wanted = run(tiny, pipe)
    with torch.inference_mode():
        assert torch.equal(run(tiny, pipe), wanted)


# what is refused


@pytest.mark.parametrize("name", ["sd-1.5", "ltx", "ltx-2"])
def test_guidance_rescale_is_refused_but_with_ours_in_its_place(name: str, lend: Lend) -> None:
    tiny = BY_NAME[name]
    pipe = lend(tiny)
    rescaled = run(tiny, pipe, guidance_rescale=0.7)
    guidon.apply(pipe, channels="all")
    assert torch.equal(run(tiny, pipe, guidance_rescale=0.7), rescaled)
    guidon.apply(pipe, channels=3)
    with pytest.raises(InputError, match=r"guidance_rescale=0\.7 mixes channels"):
        run(tiny, pipe, guidance_rescale=0.7)
    guidon.apply(pipe, Guidance(5, 3))
    with pytest.raises(InputError, match=r'give 0, and Guidance\(\.\.\., rule="rescale:phi=0\.7"\)'):
        run(tiny, pipe, guidance_rescale=0.7)
    guidon.apply(pipe, Guidance(5, 3, "rescale:phi=0.7"))
    audio = {"audio_guidance_rescale": 0.7} if name == "ltx-2" else {}
    ours = run(tiny, pipe, guidance_rescale=0, **audio)
    torch.testing.assert_close(run(tiny, pipe, guidance_rescale=0.7, **audio), ours, rtol=1e-3, atol=1e-4)
    if name == "ltx-2":  # its other guidances keep cond, to whose spread it would rescale all channels
        with pytest.raises(InputError, match=r"guidance_rescale=0\.7 of LTX2Pipeline cannot rescale"):
            run(tiny, pipe, guidance_rescale=0.7, modality_scale=3.0)
    guidon.remove(pipe)
    assert torch.equal(run(tiny, pipe, guidance_rescale=0.7), rescaled)


def test_a_norm_below_that_of_cond_is_refused(lend: Lend) -> None:
    tiny = BY_NAME["z-image"]
    pipe = lend(tiny)
    guidon.apply(pipe, Guidance(6, "all", "apg"))
    wanted = run(tiny, pipe)
    torch.testing.assert_close(run(tiny, pipe, cfg_normalization=True), wanted)
    with pytest.raises(InputError, match=r"cfg_normalization=0\.5 would shrink the guided prediction: give False"):
        run(tiny, pipe, cfg_normalization=0.5)


@pytest.mark.parametrize("name", ["pixart-sigma", "dit", "sd3", "wan-2.1", "flux", "z-image", "kandinsky-5"])
def test_a_run_without_an_unconditional_branch_is_refused(name: str, lend: Lend) -> None:
    tiny = BY_NAME[name]
    pipe = lend(tiny)
    cond = run(tiny, pipe, tiny.unguided_scale, batch=2)
    guidon.apply(pipe, Guidance(3, "all", "apg"))
    with pytest.raises(InputError, match=r"runs no unconditional branch.*a number above [01]"):
        run(tiny, pipe, tiny.unguided_scale, batch=2)
    guidon.apply(pipe, Guidance(1))
    assert torch.equal(run(tiny, pipe, tiny.unguided_scale, batch=2), cond)


def _distilled_with_scale(pipe: Any) -> None:
    pipe.unet.register_to_config(time_cond_proj_dim=8)
    embedding = pipe.unet.time_embedding
    embedding.cond_proj = torch.nn.Linear(8, embedding.linear_1.in_features, bias=False)


def _guider_that_begins_late(pipe: Any) -> None:
    pipe.guider = ClassifierFreeGuidance(start=0.4)


@pytest.mark.parametrize(
    ("name", "change", "scale", "fix"),
    [
        ("cosmos-1", None, 0.5, "give its own guidance_scale a number above 1"),
        ("z-image", None, 0.0, "give its own guidance_scale a number above 0"),
        ("flux-2-klein", lambda pipe: pipe.register_to_config(is_distilled=True), 8.0, "distilled to need none"),
        ("sd-1.5", _distilled_with_scale, 8.0, "distilled to need none, so load one that is not"),
        ("hunyuan-video-1.5", _guider_that_begins_late, 4.0, r"begins at 0\.4 of the steps, so give it start=0"),
    ],
)
def test_a_run_without_an_unconditional_branch_says_what_to_do(name: str, change: Any, scale: float, fix: str) -> None:
    tiny = BY_NAME[name]
    pipe = tiny.make()
    if change:
        change(pipe)
    guidon.apply(pipe, Guidance(3, "all", "apg"))
    with pytest.raises(InputError, match=rf"runs no unconditional branch, so that there is nothing to guide: .*{fix}"):
        run(tiny, pipe, scale)


def test_two_guidances_are_refused(lend: Lend) -> None:
    tiny = BY_NAME["hunyuan-video-1.5"]
    pipe = lend(tiny)
    own_guider, pipe.guider = pipe.guider, ChannelGuidance(4.0, 3)
    guidon.apply(pipe, Guidance(3, "all", "apg"))
    with pytest.raises(InputError, match="the pipeline's guider ChannelGuidance guides in its own way"):
        pipe(**tiny.arguments())
    pipe.guider = own_guider


@pytest.mark.parametrize("name", ["flux", "sd-1.5", "pixart-sigma"])
def test_a_rule_sees_two_images_of_a_prompt_apart(name: str, lend: Lend) -> None:
    tiny = BY_NAME[name]
    pipe = lend(tiny)
    guidon.apply(pipe, Guidance([1 + 0.5 * k for k in range(tiny.channels)], rule="apg"))
    seeds = [[torch.Generator().manual_seed(seed)] for seed in (3, 4)]
    alone = torch.cat([run(tiny, pipe, generator=seed) for seed in seeds])
    both = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    together = run(tiny, pipe, generator=both, num_images_per_prompt=2)
    assert torch.allclose(together, alone, rtol=1e-3, atol=1e-3)
    assert (alone[0] - alone[1]).abs().max() > 0.1


def test_a_refused_run_does_not_spoil_the_next(lend: Lend) -> None:
    tiny = BY_NAME["wan-2.1"]
    pipe, scales = lend(tiny), per_channel(tiny)
    guidon.apply(pipe, Guidance(scales))
    wanted = run(tiny, pipe)
    with pytest.raises(InputError):
        run(tiny, pipe, tiny.unguided_scale)
    assert torch.equal(run(tiny, pipe), wanted)


def test_two_prompts_of_equal_noise_are_no_pair(lend: Lend) -> None:
    """At scale 1 two prompts may start from the same latents; an even batch is not two branches."""
    tiny = BY_NAME["sd3"]
    pipe = lend(tiny)
    guidon.apply(pipe, channels=[0])
    latents = torch.randn(1, *own(tiny).shape[1:]).repeat(2, 1, 1, 1)
    with pytest.raises(InputError, match="runs no unconditional branch"):
        run(tiny, pipe, 1.0, batch=2, latents=latents)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "neither guidance nor channels was given"),
        ({"guidance": Guidance(3), "channels": 3}, "guidance and channels were given"),
        ({"channels": 3, "second": Guidance(3)}, "guidance and channels were given"),
        ({"guidance": Guidance(3), "second": 3}, "int is not a guidance"),
        ({"guidance": Guidance(3), "observe": 3}, "observe is 3: give a GuidanceTrace"),
        ({"guidance": Guidance(3), "family": "SD3"}, "family is 'SD3': give a Family"),
        ({"guidance": 3}, "int is not a guidance: give guidon.Guidance"),
        ({"guidance": Guidance(3, rule="perp-neg")}, "perp-neg needs a third branch"),
        ({"guidance": Guidance(3, rule="three-way")}, "three-way needs a third branch"),
        ({"channels": "0-"}, "cannot be read"),
    ],
)
def test_bad_input_is_refused_at_once(given: dict[str, Any], message: str, lend: Lend) -> None:
    pipe = lend(BY_NAME["sd3"])
    with pytest.raises(InputError, match=message):
        guidon.apply(pipe, **given)
    assert not pipe.transformer._forward_hooks
    guidon.apply(pipe, channels=3)
    before = dict(pipe.transformer._forward_hooks)
    with pytest.raises(InputError, match=message):
        guidon.apply(pipe, **given)
    assert pipe.transformer._forward_hooks == before


@pytest.mark.parametrize("wrong", [None, torch.nn.Linear(2, 2), 3, torch.nn.Linear])
def test_what_is_no_pipeline_is_refused(wrong: Any) -> None:
    with pytest.raises(InputError, match="is not a pipeline: give"):
        guidon.apply(wrong, channels=3)
    with pytest.raises(InputError, match="is not a pipeline: give"):
        guidon.remove(wrong)


def test_what_belongs_elsewhere_is_pointed_at(tiny_model: Any, lend: Lend) -> None:
    pipe = lend(BY_NAME["sd3"])
    for name, hint in {"scale": "", "cfg_channels": r" \(did you mean 'channels'\?\)", "rule": ""}.items():
        message = f"apply has no '{name}'{hint}: scale, rule and timing belong to a guidon.Guid"
        with pytest.raises(InputError, match=message):
            guidon.apply(pipe, **{name: 3})
    with pytest.raises(InputError, match="this is a pipeline of Guidon: give cfg_scale and cfg_channels in its call"):
        guidon.apply(guidon.load(tiny_model, device="cpu"), Guidance(3))


def test_channels_that_the_model_lacks_are_refused(lend: Lend) -> None:
    tiny = BY_NAME["pixart-sigma"]
    pipe = lend(tiny)
    guidon.apply(pipe, channels=9)
    with pytest.raises(InputError, match="this model has 4 latent channels"):
        run(tiny, pipe)


# the trace


@pytest.mark.parametrize("name", ["pixart-sigma", "wan-2.1", "flux", "cosmos-1"])
def test_a_trace_sees_every_guided_step(name: str, lend: Lend) -> None:
    tiny = BY_NAME[name]
    pipe = lend(tiny)
    for given in ({"guidance": Guidance(per_channel(tiny))}, {"channels": "all"}):
        trace = GuidanceTrace(keep_x0=True)
        guidon.apply(pipe, **given, observe=trace)
        _, steps = record(tiny, pipe)
        arrays = trace.as_arrays()
        assert arrays["difference"].shape == (1, len(steps), tiny.channels)
        for number, step in enumerate(steps):
            cond, uncond = (tiny.to_channels(branch) for branch in tiny.branches(step))
            norms = (cond - uncond).flatten(2).norm(dim=2)
            if tiny.name not in THROUGH_X0:
                torch.testing.assert_close(torch.from_numpy(arrays["difference"][:, number]).float(), norms)
        cond_x0, uncond_x0 = trace.x0
        assert cond_x0.isfinite().all()
        assert not torch.equal(cond_x0, uncond_x0)


# pipelines that are not in the table


def test_a_trace_of_a_guider_that_counts_from_0(lend: Lend) -> None:
    tiny, trace = BY_NAME["hunyuan-video-1.5"], GuidanceTrace()
    pipe = lend(tiny)
    own_guider, pipe.guider = pipe.guider, ClassifierFreeGuidance(use_original_formulation=True)
    guidon.apply(pipe, channels="all", observe=trace)
    run(tiny, pipe, 4.0, steps=2)
    pipe.guider = own_guider
    assert (trace.as_arrays()["scale"] == 5).all()


def unknown(tiny: TinyPipeline, pipe: Any) -> Any:
    """The same pipeline as a class of another name, with a ``__call__`` of its own."""
    parent = type(pipe)
    code = parent.__call__

    class Unlisted(parent):  # type: ignore[misc, valid-type]
        __call__ = code

    pipe.__class__ = Unlisted
    return pipe


@pytest.mark.parametrize(
    "name",
    [
        *("pixart-sigma", "sd-1.5", "dit", "wan-2.1", "hunyuan-video", "chroma", "cogvideox"),
        *(pytest.param(name, marks=pytest.mark.long) for name in ("latte", "sdxl", "sana", "mochi")),
    ],
)
def test_an_unknown_pipeline_takes_a_mask(name: str) -> None:
    tiny = BY_NAME[name]
    pipe, (guided, rest) = unknown(tiny, tiny.make()), subset(tiny)
    if name in ("chroma", "cogvideox"):  # packed, or channels third: nothing tells
        guidon.apply(pipe, channels=guided)
        with pytest.raises(InputError, match=r"holds the channels cannot be told: give family=Family"):
            run(tiny, pipe)
        return
    for given in ({"channels": guided}, {"guidance": Guidance(tiny.scale, guided)}):
        guidon.apply(pipe, **given)
        _, steps = record(tiny, pipe, steps=2)
        assert torch.equal(received(tiny, steps[0])[:, guided], tiny.to_channels(tiny.guided(steps[0]))[:, guided])
        assert torch.equal(received(tiny, steps[0])[:, rest], tiny.to_channels(tiny.branches(steps[0])[0])[:, rest])
    with pytest.raises(InputError, match="is not known, so that no rule"):
        guidon.apply(pipe, Guidance(4, rule="apg"))
    guidon.apply(pipe, Guidance(tiny.scale + 1, guided))
    with pytest.raises(InputError, match="give it the same"):
        run(tiny, pipe)
    guidon.remove(pipe)
    assert torch.equal(run(tiny, pipe, steps=2), own(tiny, steps=2))


def test_an_unknown_pipeline_with_channels_third_is_refused_at_any_length() -> None:
    """4 latent frames are as many as the network's output channels."""
    tiny = BY_NAME["cogvideox-image-to-video"]
    pipe = unknown(tiny, tiny.make())
    guidon.apply(pipe, channels=[0, 2])
    with pytest.raises(InputError, match=r"\(1, 4, 8, 4, 4\) holds the channels cannot be told"):
        run(tiny, pipe, num_frames=13)


def test_patches_of_an_unknown_pipeline_are_no_channels() -> None:
    tiny = BY_NAME["sd-1.5-image-to-image"]
    pipe = unknown(tiny, tiny.make())
    pipe.vae.config.latent_channels = 1  # the network's 4 features may be a patch of 2 x 2 pixels
    guidon.apply(pipe, channels=[0, 2])
    with pytest.raises(InputError, match="predicts 4 features for 1 latent channels"):
        run(tiny, pipe)


@pytest.mark.parametrize("channels", ["none", [0]], ids=str)
@pytest.mark.parametrize("name", ["sd-1.5", "wan-2.1"])
def test_an_unknown_pipeline_whose_branches_see_different_latents_is_refused(name: str, channels: Any) -> None:
    tiny = BY_NAME[name]
    pipe = unknown(tiny, tiny.make())
    calls: list[int] = []

    def noisier(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        calls.append(len(calls))
        if args:
            uncond, cond = args[0].chunk(2)
            return (torch.cat([uncond + 1, cond]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": kwargs["hidden_states"] + len(calls)}

    getattr(pipe, tiny.networks[0]).register_forward_pre_hook(noisier, with_kwargs=True)
    guidon.apply(pipe, channels=channels)
    with pytest.raises(InputError, match="does not give both branches the same latents"):
        run(tiny, pipe)


@pytest.mark.parametrize("name", ["flux-kontext", "qwen-image-edit"])
def test_reference_tokens_are_no_part_of_the_image(name: str, lend: Lend) -> None:
    tiny = BY_NAME[name]
    pipe, seen = lend(tiny), []
    guidon.apply(pipe, Guidance(tiny.scale, [0, 2]), observe=seen.append)
    _, steps = record(tiny, pipe)
    assert torch.equal(seen[0].x, tiny.to_channels(tiny.noisy(steps[0])))
    assert torch.equal(seen[0].cond, tiny.to_channels(tiny.branches(steps[0])[0]))


@pytest.mark.parametrize("frame", [0, 8])
def test_tokens_that_are_given_are_shown_to_no_rule(frame: int, lend: Lend) -> None:
    """The condition of a later frame is 4 tokens more, before the others."""
    tiny = BY_NAME["ltx-condition"]
    pipe, seen = lend(tiny), []
    guidon.apply(pipe, Guidance(tiny.scale, [0, 2], "apg"), observe=seen.append)
    run(tiny, pipe, frame_index=frame)
    assert [tuple(step.cond.shape) for step in seen] == [(1, 4, 4 if frame == 0 else 8)] * 3
    with pytest.raises(InputError, match="a condition of a strength below 1 has a noise level of its own"):
        run(tiny, pipe, frame_index=frame, strength=0.5)
    guidon.remove(pipe)
    wanted = run(tiny, pipe, frame_index=frame, strength=0.5)
    guidon.apply(pipe, channels="all")
    assert torch.equal(run(tiny, pipe, frame_index=frame, strength=0.5), wanted)


def test_a_run_that_begins_in_the_middle_has_its_own_levels(lend: Lend) -> None:
    tiny = BY_NAME["wan-video-to-video"]  # whose scheduler is told no begin_index
    pipe, seen = lend(tiny), []
    guidon.apply(pipe, Guidance(tiny.scale, [0, 2]), observe=seen.append)
    _, steps = record(tiny, pipe)
    assert [step.level.timestep for step in seen] == [float(step.timestep) for step in steps]


def test_an_unreadable_pipeline_is_refused_by_name() -> None:
    tiny = BY_NAME["sd3"]
    parent = type(tiny.make())

    class Secret(parent):  # type: ignore[misc, valid-type]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return parent.__call__(self, *args, **kwargs)

    pipe = tiny.make()
    pipe.__class__ = Secret
    with pytest.raises(InputError, match=r"Secret is not among the pipelines.*family=Family"):
        guidon.apply(pipe, channels=3)
    guidon.apply(pipe, Guidance(per_channel(tiny)), family=family_of(parent))
    _, steps = record(tiny, pipe)
    assert torch.equal(received(tiny, steps[0]), expected(tiny, steps[0], per_channel(tiny)))


def test_a_subclass_that_hands_its_call_on_is_its_parent() -> None:
    tiny = BY_NAME["sd3"]

    class Louder(type(tiny.make())):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(*args, **kwargs)

    pipe = tiny.make()
    pipe.__class__ = Louder
    guidon.apply(pipe, Guidance(per_channel(tiny)))
    _, steps = record(tiny, pipe)
    assert torch.equal(received(tiny, steps[0]), expected(tiny, steps[0], per_channel(tiny)))


def test_every_pipeline_of_the_table_is_tested(lend: Lend) -> None:
    tested = {type(lend(tiny)).__name__ for tiny in PIPELINES}
    assert tested == {pipeline for family in FAMILIES for pipeline in family.pipelines}
