from dataclasses import replace

import numpy as np
import pytest
import torch

import guidon
from guidon.analysis.spectrum import ASPECTS, LUMA, gains, spectrum
from guidon.core.errors import InputError

PROMPTS = ["a red circle moves left on a white background", "a blue square stays still on a black background"]
GREY = torch.tensor([1.0, 1.0, 1.0])
TINT = torch.tensor([1.0, -LUMA[0] / LUMA[1], 0.0])  # of no luminance


def decode(latents):
    """Channel 0 shifts brightness, 1 shifts colour at equal brightness, 2 and 3 are not shown; frames are 4 x 4."""
    grey = torch.einsum("bthw,c->bcthw", latents[:, 0], GREY)
    return 0.4 * grey + 0.2 * torch.einsum("bthw,c->bcthw", latents[:, 1], TINT)


def aspects(direction):
    return dict(zip(ASPECTS, gains(decode, torch.zeros_like(direction), direction).T, strict=True))


def test_gains_tell_what_each_channel_moves():
    """A shift of a whole channel: brightness by 0.4 / 2, since intensities are half as wide as the decoder's."""
    found = aspects(torch.ones(4, 3, 4, 4))
    assert found["luminance"] == pytest.approx([0.2, 0, 0, 0], abs=1e-6)
    red, blue = (1 - 0) * 0.1 / 1.5748, 0.0
    assert found["chroma"] == pytest.approx([0, np.hypot(red, blue), 0, 0], abs=1e-6)
    assert found["structure"] == pytest.approx([0, 0, 0, 0], abs=1e-6)
    assert found["motion"] == pytest.approx([0, 0, 0, 0], abs=1e-6)


def test_edges_are_structure_and_alternation_is_motion():
    board = torch.tensor([1.0, -1.0]).repeat(2)
    columns = board.expand(4, 3, 4, 4)
    assert aspects(columns)["structure"][0] == pytest.approx(0.4, abs=1e-6)  # neighbours differ by 2, one way
    assert aspects(columns)["motion"][0] == pytest.approx(0, abs=1e-6)
    frames = torch.tensor([1.0, -1.0, 1.0, -1.0])[None, :, None, None].expand(4, 4, 4, 4)
    assert aspects(frames)["motion"][0] == pytest.approx(0.4, abs=1e-6)
    assert aspects(frames)["structure"][0] == pytest.approx(0, abs=1e-6)


def test_gain_does_not_depend_on_how_far_guidance_moves():
    direction = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    near, far = (gains(decode, torch.zeros(4, 3, 4, 4), scale * direction) for scale in (1e-3, 10.0))
    assert np.allclose(near, far, rtol=1e-3, atol=1e-6)


def test_an_image_has_no_motion():
    found = gains(lambda z: decode(z[:, :, None])[:, :, 0], torch.zeros(4, 4, 4), torch.ones(4, 4, 4))
    assert np.isnan(found[:, 3]).all()
    assert np.isfinite(found[:, :3]).all()


CHOICES = {"steps": 5, "cfg_scale": 3.0, "cfg_channels": "3", "sampler": "ddim", "timing": "constant"}


@pytest.fixture(scope="module")
def taken_apart(tiny_model):
    return spectrum(guidon.load(str(tiny_model)), PROMPTS, looks=3, **CHOICES)


def test_a_spectrum_has_every_prompt_step_channel_and_frame(taken_apart):
    assert taken_apart.difference.shape == taken_apart.cosine.shape == (2, 5, 4, 16)
    assert taken_apart.gain.shape == (2, 3, 4, len(ASPECTS))
    assert taken_apart.looked_at.tolist() == [0, 2, 4]
    assert taken_apart.scale[0].tolist() == [3, 3, 3, 1]
    assert (np.diff(taken_apart.timestep) < 0).all()
    assert taken_apart.energy_share.sum() == pytest.approx(1)
    assert (taken_apart.moved > 0).all()  # the unguided channel is measured too
    assert np.isfinite(taken_apart.influence).all()


def test_a_prompt_without_energy_has_no_share_of_it(taken_apart):
    difference = taken_apart.difference.copy()
    difference[0] = 0
    shares = replace(taken_apart, difference=difference).energy_share
    assert np.array_equal(shares, replace(taken_apart, difference=difference[1:]).energy_share)
    assert shares.sum() == pytest.approx(1)
    none = replace(taken_apart, difference=0 * difference)
    assert np.isnan(none.energy_share).all()
    assert [row.split(" | ")[1] for row in none.table().splitlines()[2:]] == ["undefined"] * 4


def test_influence_is_the_slope_of_the_decoded_video(tiny_model, taken_apart):
    """Of the middle step: one more unit of scale on channel 1 moves the video as far as was said, for small units."""
    pipe = guidon.load(str(tiny_model))
    trace = guidon.GuidanceTrace(keep_x0=True)
    pipe.generate(pipe.plan(PROMPTS[:1], **CHOICES), trace=trace)
    cond, uncond = (branch[2, 0] for branch in trace.x0)
    unit = 0.02 / float((cond - uncond)[1].square().mean().sqrt())
    moved = cond.clone()
    moved[1] += unit * (cond - uncond)[1]
    with pipe.model.vae.in_use() as vae:
        change = (vae.decode(moved[None]) - vae.decode(cond[None])) / 2 / unit
    luma = torch.einsum("bcthw,c->bthw", change, torch.tensor(LUMA))
    assert taken_apart.influence[0, 1, 1, 0] == pytest.approx(float(luma.square().mean().sqrt()), rel=0.05)
    assert taken_apart.influence[0, 1, 1, 0] > 1e-8


@pytest.mark.usefixtures("pictures")
def test_a_spectrum_is_written_and_printed(taken_apart, tmp_path):
    arrays, picture = taken_apart.write(tmp_path / "out")
    with np.load(arrays) as stored:
        assert stored["aspects"].tolist() == list(ASPECTS)
        assert np.array_equal(stored["difference"], taken_apart.difference)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert len(taken_apart.table().splitlines()) == 2 + 4


def test_one_prompt_may_be_a_text(tiny_model):
    seen = []
    pipe = guidon.load(str(tiny_model))
    found = spectrum(pipe, PROMPTS[0], looks=3, on_step=lambda *at: seen.append(at), **CHOICES | {"steps": 2})
    assert seen[-1] == (2 + 2, 2 + 2)  # both steps, and a look at each
    assert seen == sorted(seen)
    assert found.prompts == (PROMPTS[0],)
    assert found.difference.shape[0] == 1


def test_progress_grows_to_one_total_where_few_steps_are_guided(tiny_model):
    seen = []
    own = CHOICES | {"steps": 8, "timing": "interval:0,0.5"}
    found = spectrum(guidon.load(str(tiny_model)), PROMPTS, looks=8, on_step=lambda *at: seen.append(at), **own)
    assert len(found.looked_at) < 8
    assert len(seen) == 8 + 2 * len(found.looked_at)
    assert {total for _, total in seen} == {8 + 2 * 8}
    assert seen == sorted(seen)
    assert seen[-1] == (24, 24)


def test_what_guides_nothing_is_refused(tiny_model):
    pipe = guidon.load(str(tiny_model))
    with pytest.raises(InputError, match="cfg_scale 1 guides nothing"):
        spectrum(pipe, PROMPTS, cfg_scale=1.0)
    with pytest.raises(InputError, match="give at least 1"):
        spectrum(pipe, PROMPTS, looks=0)
    with pytest.raises(InputError, match="rotation guides rotated channels"):
        spectrum(pipe, PROMPTS, rotation=3, **CHOICES)
    with (
        pytest.warns(UserWarning, match="no step was guided"),
        pytest.raises(InputError, match="guides none of the 2 steps"),
    ):
        spectrum(pipe, PROMPTS, steps=2, cfg_scale=2.0, timing="interval:0.4,0.5")
