"""A scale per channel in the place of a pipeline's own number."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guidon.bridges.diffusers.scale import channel_scale
from guidon.core.errors import InputError
from tiny_pipelines import PIPELINES, in_dtype, record

FAMILIES = {tiny.name: tiny for tiny in PIPELINES}
# the arguments of channel_scale for every family whose channels are not the first axis, or whose formula is another
ARGUMENTS: dict[str, dict[str, Any]] = {
    "dit": {}, "pixart-sigma": {}, "sd-1.5": {}, "latte-learned-range": {}, "wan-2.1": {},
    "cogvideox": {"axis": 2},
    "ltx": {"axis": -1},
    "ltx-2": {"axis": -1},
    "flux": {"axis": -1, "patch": 2},
    "z-image": {"axis": 0, "neutral": 0},
    "cosmos-2.5": {"neutral": 0},
}  # fmt: skip


@pytest.mark.parametrize("name", ARGUMENTS)
def test_it_guides_exactly_the_chosen_channels_of_a_real_pipeline(name: str) -> None:
    tiny, arguments = FAMILIES[name], ARGUMENTS[name]
    pipe = tiny.make()
    own, _ = record(tiny, pipe, steps=2)
    every, _ = record(tiny, pipe, channel_scale(tiny.scale, "all", **arguments), steps=2)
    assert torch.equal(every, own)
    # a scale of its own for every channel: 1 + 0.5 (k + 1), and channel 0 unguided
    neutral = arguments.get("neutral", 1)
    scales = [neutral + (0.5 * (channel + 1) if channel else 0) for channel in range(tiny.channels)]
    _, seen = record(tiny, pipe, channel_scale(scales, **arguments), steps=2)
    cond, uncond = tiny.branches(seen[0])
    got = tiny.to_channels(tiny.received(seen[0]))
    for channel, scale in enumerate(scales):
        full = tiny.to_channels(tiny.guide(cond, uncond, scale))[:, channel]
        if tiny.tolerance:
            torch.testing.assert_close(got[:, channel], full, rtol=tiny.tolerance, atol=tiny.tolerance)
        elif channel:
            assert torch.equal(got[:, channel], full)
    c, u = tiny.to_channels(cond), tiny.to_channels(uncond)
    torch.testing.assert_close(got[:, 0], c[:, 0], rtol=1e-5, atol=1e-6)
    assert (got - c)[:, 1:].abs().amax() > 1e-3
    assert not torch.equal(c, u)


@pytest.mark.parametrize("name", ["pixart-sigma", "wan-2.1", "cogvideox", "flux"])
def test_guided_channels_round_in_bfloat16_as_with_the_number(name: str) -> None:
    tiny = FAMILIES[name]
    pipe = in_dtype(tiny.make(), torch.bfloat16)
    own, _ = record(tiny, pipe, steps=2)
    scale = channel_scale(tiny.scale, "all", **ARGUMENTS[name])
    assert torch.equal(record(tiny, pipe, scale, steps=2)[0], own)
    _, seen = record(tiny, pipe, channel_scale(tiny.scale, [1, 2], **ARGUMENTS[name]), steps=2)
    full, got = tiny.to_channels(tiny.guided(seen[0])), tiny.to_channels(tiny.received(seen[0]))
    assert torch.equal(got[:, 1:3], full[:, 1:3])
    assert not torch.equal(got[:, 0], full[:, 0])


def test_a_compiled_network_gives_the_same() -> None:
    tiny = FAMILIES["wan-2.1"]
    scale = channel_scale(tiny.scale, 2, latent_channels=4)
    pipe = tiny.make()
    plain = tiny.latents(pipe, pipe(**tiny.arguments(steps=2), guidance_scale=scale, return_dict=False))
    pipe.transformer.compile(backend="eager", fullgraph=True)
    compiled = tiny.latents(pipe, pipe(**tiny.arguments(steps=2), guidance_scale=scale, return_dict=False))
    assert torch.equal(compiled, plain)


def test_a_learned_variance_is_not_guided() -> None:
    shift = torch.ones(1, 8, 2, 2)
    assert (channel_scale(5.0, 3, latent_channels=4) * shift)[0, :, 0, 0].tolist() == [5, 5, 5, 1, 1, 1, 1, 1]
    for all_of_them in ({}, {"channels": "all"}):
        each = channel_scale([2, 3, 4, 5], **all_of_them) * shift
        assert each[0, :, 0, 0].tolist() == [2, 3, 4, 5, 1, 1, 1, 1]
    less = (channel_scale(5.0, 3, latent_channels=4) - 1) * shift
    assert less[0, :, 0, 0].tolist() == [4, 4, 4, 0, 0, 0, 0, 0]
    assert (channel_scale(5.0, "all", latent_channels=4) * shift)[0, :, 0, 0].tolist() == [5] * 8


@given(
    scales=st.lists(st.floats(0, 20, width=32), min_size=4, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    axis=st.integers(0, 3),
)
def test_every_channel_is_the_product_with_its_number(scales: list[float], dtype: torch.dtype, axis: int) -> None:
    shift = torch.randn(4, 4, 4, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    scale = channel_scale(scales, axis=axis)
    for product in (scale * shift, shift * scale):
        assert product.dtype == dtype
        for channel, value in enumerate(scales):
            assert torch.equal(product.select(axis, channel), value * shift.select(axis, channel))
    assert torch.equal((scale - 1) * shift, channel_scale_of([s - 1 for s in scales], shift, axis))
    assert torch.equal((1 - scale) * shift, channel_scale_of([1 - s for s in scales], shift, axis))
    zero_neutral = channel_scale(scales, axis=axis, neutral=0)
    assert torch.equal((zero_neutral + 1) * shift, channel_scale_of([s + 1 for s in scales], shift, axis))


def channel_scale_of(factors: list[float], shift: torch.Tensor, axis: int) -> torch.Tensor:
    return torch.stack([f * shift.select(axis, c) for c, f in enumerate(factors)], axis)


def test_unguided_channels_of_the_other_formulas_are_exact() -> None:
    c, u = torch.randn(2, 1, 4, 3, 3)
    scale = channel_scale(4.0, "only:2")
    zero = channel_scale(4.0, "only:2", neutral=0)
    for guided in (
        c + (scale - 1) * (c - u),
        (1 - scale) * u + scale * c,
        c + zero * (c - u),
        (zero + 1) * c - zero * u,
    ):
        assert torch.equal(guided[:, [0, 1, 3]], c[:, [0, 1, 3]])
        assert not torch.allclose(guided[:, 2], c[:, 2])


def test_comparisons_see_the_largest_scale() -> None:
    scale = channel_scale([0.5, 3.0, 1.0])
    assert scale > 1
    assert scale >= 3
    assert scale < 4
    assert scale <= 3
    assert scale == 3
    assert scale != 1
    assert scale
    assert not channel_scale(1.0) > 1
    assert channel_scale(0.5)
    assert not channel_scale(0.0)


def test_it_is_shown_and_copied_whole() -> None:
    scale = channel_scale(7.5, 3, latent_channels=16, axis=2)
    assert repr(scale) == "channel_scale(7.5, channels='3', latent_channels=16, axis=2)"
    assert f"{scale}" == repr(scale)
    assert f"{scale:.2f}" == "7.50"
    assert repr(scale - 1) == f"{scale!r} - 1"
    assert scale != channel_scale(7.5, 2, latent_channels=16, axis=2)
    for same in (pickle.loads(pickle.dumps(scale)), copy.deepcopy(scale)):
        assert same == scale
        assert repr(same) == repr(scale)
        assert hash(same) == hash(scale)


FLATTENING = {
    "float": float,
    "int": int,
    "round": round,
    "a list in a tensor": lambda s: torch.tensor([s]),  # Flux with ControlNet, HunyuanVideo
    "a tensor": lambda s: torch.tensor(s - 1),  # latent consistency
    "torch.full": lambda s: torch.full([1], s, dtype=torch.float32),  # Flux
    "torch.lerp": lambda s: torch.lerp(torch.zeros(3), torch.ones(3), s),
    "a tensor plus it": lambda s: torch.ones(3) + s,
    "a tensor in place": lambda s: torch.ones(1, 4, 2, 2).mul_(s),
    "dynamic guidance": lambda s: 1 + s * 0.5,  # CogVideoX
    "a sum": lambda s: 1 + s,
    "another difference": lambda s: s - 2,
    "twice": lambda s: (s - 1) - 1,
    "a division": lambda s: s / 2,
    "a power": lambda s: s**2,
    "its negative": lambda s: -s,
    "a comparison after arithmetic": lambda s: s - 1 > 0,
}


@pytest.mark.parametrize("use", FLATTENING)
def test_it_refuses_to_become_one_number(use: str) -> None:
    with pytest.raises(InputError, match=r"channel_scale\(4.0.*one number.*guidon.apply") as refused:
        FLATTENING[use](channel_scale(4.0, 3))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["cogvideox-dynamic-cfg", "lumina"])
def test_pipelines_that_it_cannot_serve_refuse_it(name: str) -> None:
    tiny = FAMILIES[name]
    axis = {"axis": 2} if name.startswith("cogvideox") else {}
    with pytest.raises(InputError, match=r"guidon\.apply"):
        record(tiny, tiny.make(), channel_scale(4.0, 2, latent_channels=4, **axis), steps=2)


@pytest.mark.parametrize(
    ("arguments", "shape", "message"),
    [
        ({"latent_channels": 16}, (1, 13, 16, 4, 4), "holds 13 channels and not 16"),  # CogVideoX without its axis
        ({"latent_channels": 4}, (1, 12, 8, 8), "holds 12 channels and not 4"),
        *(({}, (1, *video, 4, 4), "not certain where the channels are") for video in ((13, 16), (16, 8), (6, 5))),
        ({}, (16, 1, 4, 4), "not certain where the channels are"),  # a sample of Z-Image
        ({}, (1, 24, 128), "axis=-1"),  # packed
        ({"axis": -1, "patch": 2}, (1, 24, 66), "patches of 4"),
        ({"axis": 4}, (1, 4, 8, 8), "no axis 4"),
        ({"channels": 5}, (1, 4, 8, 8), "more channels than the model has"),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused(arguments: dict[str, Any], shape: tuple[int, ...], message: str) -> None:
    scale = channel_scale(4.0, **{"channels": 3} | arguments)
    with pytest.raises(InputError, match=message):
        scale * torch.ones(shape)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": -1}, "at least 0"),
        ({"scale": "7"}, "is not a number"),
        ({"scale": 7, "channels": "5-3"}, "backwards"),
        ({"scale": 7, "channels": 5, "latent_channels": 4}, "more channels than the model has"),
        ({"scale": [7, 2], "channels": "only:0"}, "leaves channel 1 unguided"),
        ({"scale": [7, 1], "channels": "only:0", "neutral": 0}, "leaves channel 1 unguided"),
        ({"scale": 7, "neutral": 2}, "neutral is 2"),
        ({"scale": 7, "patch": 0}, "patch is 0"),
    ],
)
def test_bad_values_are_refused_at_once(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        channel_scale(**arguments)
