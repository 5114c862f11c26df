"""The spectrum of diffusers pipelines, packed ones too: channel k of the plot is channel k of the autoencoder."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import guidon
from guidon.analysis.spectrum import ASPECTS, spectrum
from guidon.bridges.diffusers.levels import RunLevels
from guidon.core.errors import InputError
from tiny_pipelines.whole import WHOLE, make_pipeline

FAMILIES = ("pixart", "cogvideox", "wan", "ltx", "flux")
CHANNELS = 4
FEATURES = {
    "pixart": lambda k: (slice(None), k),  # (B, C and a variance, H, W)
    "cogvideox": lambda k: (slice(None), slice(None), k),  # (B, T, C, H, W)
    "wan": lambda k: (slice(None), k),  # (B, C, T, H, W)
    "ltx": lambda k: (..., k),  # (B, tokens, C)
    "flux": lambda k: (..., slice(4 * k, 4 * k + 4)),  # (B, tokens, 4 C): patches of 2 x 2
}
"""Where channel k is in what the network predicts, as diffusers' own packing has it."""


@pytest.fixture(scope="module")
def pipes():
    return {name: guidon.wrap(make_pipeline(name), call=WHOLE[name][1]) for name in FAMILIES}


@pytest.fixture
def planted(pipes, monkeypatch):
    """A pipeline whose prompt moves one channel of the prediction alone."""

    def planted(name, channel):
        network = pipes[name].pipe.transformer
        forward = network.forward

        def moved(*args, **given):
            prompt = given["encoder_hidden_states"].mean((1, 2))  # (B,)
            given["encoder_hidden_states"] = torch.zeros_like(given["encoder_hidden_states"])
            given.pop("pooled_projections", None)
            if name == "flux":
                given["pooled_projections"] = torch.zeros(len(prompt), network.config.pooled_projection_dim)
            found = forward(*args, **given)
            output = found[0].clone()
            where = output[FEATURES[name](channel)]
            where += prompt.view(-1, *[1] * (where.ndim - 1)) * torch.linspace(1, 2, where[0].numel()).view(
                where[0].shape
            )
            return (output, *found[1:])

        monkeypatch.setattr(network, "forward", moved)
        return pipes[name]

    return planted


@pytest.mark.parametrize("channel", [pytest.param(0, marks=pytest.mark.long), 2])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompt_that_moves_one_channel_shows_in_that_channel(planted, name, channel):
    found = spectrum(planted(name, channel), ["a red ball"], steps=2, looks=1, cfg_scale=3)
    others = [k for k in range(CHANNELS) if k != channel]
    assert found.difference[..., others, :].max() < 1e-3 * found.difference[..., channel, :].min()
    assert found.energy_share[channel] == pytest.approx(1)
    luminance = found.influence[0, 0, :, list(ASPECTS).index("luminance")]
    assert luminance[channel] > 0
    assert luminance[others].max() < 0.05 * luminance[channel]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_channel_reaches_the_autoencoder_as_that_channel_alone(pipes, name, monkeypatch):
    pipe, given, trace = pipes[name], [], guidon.GuidanceTrace(keep_x0=True)
    request = pipe.plan("a red ball", steps=1, cfg_scale=3, seed=4)
    (video,) = pipe.generate(request, trace=trace)
    latents = torch.zeros_like(trace.x0[0][0])  # (1, C, ...)
    own = pipe.pipe.vae.decode
    monkeypatch.setattr(pipe.pipe.vae, "decode", lambda z, *args, **more: given.append(z) or own(z, *args, **more))
    with pipe.decoder(request) as decode:
        pixels = decode(latents)
        for channel in range(CHANNELS):
            latents.zero_()[:, channel] = 1
            decode(latents)
    first, *others = given
    for channel, moved in enumerate(others):  # every autoencoder has its channels on dimension 1
        change = (moved - first).transpose(0, 1).flatten(1).abs().amax(1)
        assert change[channel] > 1e-2
        assert change.sum() - change[channel] < 1e-6
    size = video.frames.shape[1:3] if len(video.frames) == 1 else video.frames.shape[:3]
    assert pixels.shape == (1, 3, *size)


def test_the_last_prediction_of_a_run_decodes_to_its_frames(pipes):
    """With one step, x_0 of the guided prediction is the latent that the pipeline decodes."""
    for name in ("cogvideox", "ltx", "flux"):
        pipe, trace = pipes[name], guidon.GuidanceTrace(keep_x0=True)
        request = pipe.plan("a red ball", steps=1, cfg_scale=3, cfg_channels="all", seed=4)
        (video,) = pipe.generate(request, trace=trace)
        cond, uncond = (branch[0] for branch in trace.x0)
        with pipe.decoder(request) as decode:
            shown = decode(uncond + 3 * (cond - uncond))
        pixels = ((shown + 1) * 127.5).round()[0].movedim(0, -1).numpy()
        assert np.abs(pixels.reshape(video.frames.shape) - video.frames.astype(float)).max() <= 1, name


def test_every_prompt_step_channel_and_frame_is_measured(pipes):
    found = spectrum(pipes["ltx"], ["a red ball", "blue cat"], steps=3, looks=2, cfg_scale=3, cfg_channels=[1])
    assert found.difference.shape == (2, 3, CHANNELS, 3)
    assert found.gain.shape == (2, 2, CHANNELS, len(ASPECTS))
    assert np.isfinite(found.influence).all()
    assert found.scale[0].tolist() == [1, 3, 1, 1]
    assert pipes["ltx"].pipe.transformer.forward.__func__ is type(pipes["ltx"].pipe.transformer).forward
    images = spectrum(pipes["flux"], ["a red ball"], steps=2, looks=1, cfg_scale=3)
    assert np.isnan(images.influence[..., list(ASPECTS).index("motion")]).all()


def test_what_guides_nothing_is_refused(pipes):
    with pytest.raises(InputError, match="cfg_scale 1 guides nothing"):
        spectrum(pipes["flux"], ["a red ball"], steps=2)  # Flux's own true_cfg_scale is 1


def test_where_noise_levels_are_unknown_the_influence_is_undefined(pipes, monkeypatch):
    own = RunLevels.of

    def unknown(scheduler):
        found = own(scheduler)
        levels = tuple(replace(level, alpha=float("nan"), sigma=float("nan"), next=None) for level in found.levels)
        return replace(found, levels=levels, parameterization=None)

    monkeypatch.setattr(RunLevels, "of", unknown)
    seen = []
    with pytest.warns(UserWarning, match="noise levels of the scheduler are not known"):
        found = spectrum(
            pipes["pixart"], ["a red ball"], steps=2, looks=1, cfg_scale=3, on_step=lambda *at: seen.append(at)
        )
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert np.isnan(found.gain).all()
    assert np.isfinite(found.energy_share).all()
    assert "undefined" in found.table()
