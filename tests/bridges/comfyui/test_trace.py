"""Guidance trace: which run it shows, what it measures, and what it looks like."""

import pytest
import torch

from guidon import Guidance, GuidanceTrace, InputError, NoiseLevel
from guidon.bridges.comfyui import Run, guide_of, run_of, trace_picture, trace_table
from guidon.guidance import GuidedStep

SIGMAS = (2.0, 1.0, 0.5)


def sampled(comfy, model, seed, cfg=7.0, sigmas=SIGMAS, **more):
    """The latent of a short run, whose last x_0 is the result."""
    start = torch.randn(2, 4, 3, 4, generator=torch.Generator().manual_seed(seed))

    def visit(call):
        x = start
        for sigma in sigmas:
            x = 0.5 * x + 0.5 * call(x, sigma)
        return x

    return comfy.run(model, visit, cfg, **more)


def differences(comfy, model, seed, cfg=7.0):
    """||cond - uncond|| of the same run, by GuidanceTrace: (samples, calls, channels)."""
    trace = GuidanceTrace()

    def watch(args):
        cond, uncond = args["conds_out"]
        scale = Guidance(cfg, "all").scales_for(4)
        level = NoiseLevel(float(args["sigma"][0]), 0.5, 0.5, 0.5)
        trace(GuidedStep(level, scale, cond, uncond, args["input"], "x0"))
        return args["conds_out"]

    watched = model.clone()
    options = watched.model_options
    options["sampler_pre_cfg_function"] = [watch, *options.get("sampler_pre_cfg_function", [])]
    sampled(comfy, watched, seed, cfg)
    return torch.from_numpy(trace.as_arrays()["difference"]).float()


def traced(comfy, model, latent):
    return run_of(guide_of(model).runs, latent)


@pytest.mark.parametrize("node", ["channel", "rule"])
def test_it_measures_what_guidance_trace_measures(comfy, node):
    model = comfy.model()
    patched = (
        comfy.nodes.ChannelGuidance.execute(model, "2").args[0]
        if node == "channel"
        else comfy.nodes.GuidanceRule.execute(model, "apg", 4.0, "2", "interval:0,0.4").args[0]
    )
    expected = differences(comfy, patched, 0)
    run = traced(comfy, patched, sampled(comfy, patched, 0))
    torch.testing.assert_close(run.table().transpose(0, 1), expected)
    assert run.sigmas == list(SIGMAS)
    rule = [(4.0, 4.0, 1.0, 1.0), (1.0,) * 4, (1.0,) * 4]
    assert run.scales == ([(7.0, 7.0, 1.0, 1.0)] * 3 if node == "channel" else rule)


def test_each_latent_gets_the_trace_of_its_own_run(comfy):
    """Whatever ran since, and whatever type the latent was stored in."""
    patched = comfy.nodes.ChannelGuidance.execute(comfy.model(), "2").args[0]
    latents = [sampled(comfy, patched, seed) for seed in range(5)]
    for seed in (3, 0, 4, 1, 2):
        expected = differences(comfy, patched, seed)
        for latent in (latents[seed], latents[seed].bfloat16(), latents[seed].half()):
            torch.testing.assert_close(traced(comfy, patched, latent).table().transpose(0, 1), expected)
    with pytest.raises(InputError, match="no sampling run of this model that is still known made this latent"):
        traced(comfy, patched, latents[0] + 9)


def test_the_trace_outlives_the_model_that_made_it(comfy):
    """ComfyUI may drop a patched model and keep the latent: the node then makes the model again."""
    latents = [
        sampled(comfy, comfy.nodes.ChannelGuidance.execute(comfy.model(), choice).args[0], 0) for choice in ("1", "3")
    ]
    again = comfy.nodes.ChannelGuidance.execute(comfy.model(), "1").args[0]
    assert traced(comfy, again, latents[0]).scales == [(7.0, 1.0, 1.0, 1.0)] * 3
    with pytest.raises(InputError, match="no sampling run of this model that is still known made this latent"):
        traced(comfy, again, latents[1])


def test_of_two_nodes_the_first_is_shown(comfy):
    model = comfy.nodes.ChannelGuidance.execute(comfy.model(), "2").args[0]
    both = comfy.nodes.GuidanceRule.execute(model, "cfg", 4.0, "all").args[0]
    expected = differences(comfy, comfy.model(), 0, cfg=4.0)
    run = traced(comfy, both, sampled(comfy, both, 0))
    torch.testing.assert_close(run.table()[0], expected[:, 0])
    assert (run.table()[:, :, 2:] > 0).all()  # before the first node makes uncond cond


def test_what_cannot_be_traced_is_said(comfy):
    model = comfy.model()
    patched = comfy.nodes.ChannelGuidance.execute(model, "2").args[0]
    with pytest.raises(InputError, match="this model has no Guidon node"):
        comfy.nodes.GuidanceTrace.execute(model, {"samples": torch.zeros(1, 4, 2, 2)})
    with pytest.raises(InputError, match="no sampling run of this model that is still known made this latent"):
        comfy.nodes.GuidanceTrace.execute(patched, {"samples": torch.full((1, 4, 2, 2), 5.0)})
    latent = sampled(comfy, patched, 7, cfg=1.0)
    with pytest.raises(InputError, match="the sampler ran no unconditional prediction"):
        comfy.nodes.GuidanceTrace.execute(patched, {"samples": latent})


def test_where_comfyui_does_not_mark_runs_the_last_one_is_shown(comfy):
    """A sampler that calls the pre-CFG functions itself: a run begins where sigma rises, or the shape changes."""
    patched = comfy.nodes.ChannelGuidance.execute(comfy.model(), "2").args[0]
    guide = guide_of(patched)

    def visit(x, scale, sigma):
        args = {"conds": [[], []], "conds_out": [scale * x, 0 * x], "cond_scale": 7.0, "input": x}
        guide(args | {"sigma": torch.tensor([sigma])})

    for scale in (1.0, 3.0):
        for sigma in (*SIGMAS, SIGMAS[-1]):
            visit(torch.ones(1, 4, 2, 2), scale, sigma)
    run = run_of(guide.runs, torch.zeros(1, 4, 2, 2))
    torch.testing.assert_close(run.table(), torch.full((4, 1, 4), 6.0))
    visit(torch.ones(1, 4, 3, 3), 1.0, 0.1)
    torch.testing.assert_close(run_of(guide.runs, torch.zeros(1, 4, 3, 3)).table(), torch.full((1, 1, 4), 3.0))


def test_a_packed_latent_finds_its_run(comfy):
    if not comfy.packs:
        pytest.skip("this version of ComfyUI has no latents of several streams")
    shapes = (2, 4, 3, 2, 2), (2, 8, 5)
    patched = comfy.nodes.ChannelGuidance.execute(comfy.model("flow"), "2").args[0]
    row = torch.randn(2, 1, 88, generator=torch.Generator().manual_seed(2))
    latent = comfy.run(patched, lambda call: call(row, 0.5), 7.0, shapes=shapes)
    assert traced(comfy, patched, latent).table().shape == (1, 2, 4)


# the picture


def run_of_table(table, scales):
    run = Run("a test")
    run.sigmas, run.scales = list(range(len(table), 0, -1)), scales
    run.differences = [torch.tensor(row)[None] for row in table]
    return run


def test_the_picture_has_a_row_a_channel_and_a_column_a_call():
    run = run_of_table([[0.0, 1.0], [4.0, 2.0], [0.0, 0.0]], [(7.0, 1.0)] * 3)
    picture = trace_picture(run)
    assert picture.shape[0] == 1
    assert picture.shape[3] == 3
    assert picture.dtype == torch.float32
    assert 0 <= picture.min() <= picture.max() <= 1
    body = picture[0, :-18, 36:]
    cells = body.unflatten(0, (2, -1)).unflatten(2, (3, -1))  # (channels, height, calls, width, 3)
    assert torch.equal(cells, cells[:, :1, :, :1].expand_as(cells))
    brightness = cells[:, 0, :, 0].sum(-1)  # (channels, calls)
    assert brightness.argmax() == 1  # channel 0, call 1
    assert brightness[1, 1] > brightness[1, 0] > brightness[0, 0] == brightness[1, 2]
    numbers = picture[0, :-18, :36].unflatten(0, (2, -1)).amax((1, 2, 3))
    assert numbers[0] == 1 > numbers[1]  # the guided channel's number is white


@pytest.mark.parametrize(("calls", "channels"), [(1, 1), (3, 4), (20, 16), (250, 128)])
def test_pictures_of_any_size_are_readable(calls, channels):
    table = torch.rand(calls, channels).tolist()
    picture = trace_picture(run_of_table(table, [(7.0,) * channels] * calls))
    assert 18 <= picture.shape[1] <= 128 * 18 + 18
    assert 36 < picture.shape[2] <= 1100


def test_the_table_gives_shares_and_scales():
    run = run_of_table([[3.0, 0.0], [0.0, 4.0]], [(7.0, 1.0), (1.0, 1.0)])
    first, head, *channels = trace_table(run).splitlines()
    assert first == "2 calls, sigma 2 to 1"
    assert head.split() == ["channel", "||c", "-", "u||", "share", "scale"]
    assert channels[0].split() == ["0", "3", "36.0%", "1", "to", "7"]
    assert channels[1].split() == ["1", "4", "64.0%", "1"]
