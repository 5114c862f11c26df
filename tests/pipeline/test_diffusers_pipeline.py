"""Clips of a diffusers pipeline through its own call: the pipeline's own frames, paired noise, whole manifests."""

import copy
import dataclasses
import functools
import inspect
import json
import logging
import shutil
from contextlib import ExitStack
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import (
    CogVideoXDPMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    WanImageToVideoPipeline,
    WanTransformer3DModel,
)
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

import guidon
from guidon.bridges.diffusers.arguments import Arguments, read_arguments
from guidon.bridges.diffusers.clips import _stepping
from guidon.bridges.diffusers.families import FAMILIES
from guidon.bridges.diffusers.hook import GuidanceHook
from guidon.core.errors import InputError
from guidon.pipeline.diffusers_planner import DiffusersPlanner
from tiny_pipelines import PIPELINES
from tiny_pipelines.contract import quiet, shaken
from tiny_pipelines.whole import WHOLE, _autoencoder, make_pipeline, write_pipeline

PROMPTS = ("a red ball", "blue cat")


@pytest.fixture(scope="module")
def wrapped():
    """Pipelines of the user's own, by name, made when first asked for."""
    made = {}

    def wrapped(name):
        if name not in made:
            made[name] = guidon.wrap(make_pipeline(name), call=WHOLE[name][1])
        return made[name]

    return wrapped


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    return write_pipeline("wan", tmp_path_factory.mktemp("folders") / "wan")


@pytest.fixture(scope="module")
def stochastic():
    """DiT with a scheduler that adds noise, which the pipeline gives no generator."""
    from diffusers import DiTPipeline

    tiny = next(each for each in PIPELINES if each.name == "dit")
    pipe = DiTPipeline(transformer=tiny.make().transformer, vae=_autoencoder(4), scheduler=guidon.IDDPMScheduler())
    return guidon.wrap(quiet(pipe))


def call(name, pipe, prompt, seed, **more):
    """What the pipeline gives by itself."""
    given = WHOLE[name][1] | {"num_inference_steps": 2, "output_type": "np", "return_dict": False} | more
    return pipe(prompt, generator=torch.Generator().manual_seed(seed), **given)[0]


def frames(values):
    found = (values[0] * 255).round().astype(int)
    return found if found.ndim == 4 else found[None]


@pytest.mark.parametrize("name", WHOLE)
def test_frames_are_those_of_the_pipelines_own_call(wrapped, name):
    """Guidance on all channels at a scale is the pipeline's own; scale 1 and no channel are the conditional alone."""
    pipe = wrapped(name)
    argument, negative = pipe.planner.family.argument, {"negative_prompt": ""} if name == "flux" else {}
    for scale, choices in ((4.0, {"cfg_scale": 4, "cfg_channels": "all"}), (1.0, {"cfg_scale": 1})):
        own = call(name, pipe.pipe, PROMPTS[0], 7, **{argument: scale}, **negative)
        video = pipe(PROMPTS[0], steps=2, seed=7, **choices)
        assert np.abs(video.frames.astype(int) - frames(own)).max() <= 1
    none = pipe(PROMPTS[0], steps=2, seed=7, cfg_scale=4, cfg_channels="none")
    assert np.array_equal(none.frames, video.frames)
    three = pipe(PROMPTS[0], steps=2, seed=7, cfg_scale=4, cfg_channels=3)
    assert not np.array_equal(three.frames, video.frames)
    assert not any(part._forward_hooks for part in pipe.pipe.components.values() if isinstance(part, torch.nn.Module))


def test_no_scale_is_left_to_the_pipelines_own_formula(wrapped, monkeypatch):
    """It may renormalise, or count from cond: a scale of the number that opens the branches would mean another thing."""
    monkeypatch.setattr(GuidanceHook, "_show_own", lambda *step: pytest.fail("the pipeline's own formula"))
    wrapped("pixart")(PROMPTS[0], steps=2, cfg_scale=2, cfg_channels="all")


def test_latents_are_decoded_under_a_scheduler_with_more_arguments(wrapped):
    """CogVideoX's DPM takes two more before the sample."""
    pipe = make_pipeline("cogvideox")
    pipe.scheduler = CogVideoXDPMScheduler.from_config(pipe.scheduler.config)
    model = guidon.wrap(pipe, call=WHOLE["cogvideox"][1])
    request, seen = model.plan(PROMPTS[0], steps=2, cfg_scale=3), guidon.GuidanceTrace(keep_x0=True)
    model.generate(request, trace=seen)
    with model.decoder(request) as decode:
        black, other = decode(torch.stack([torch.zeros_like(seen.x0[0][-1, 0]), seen.x0[0][-1, 0]]))
    assert not torch.equal(black, other)


def stable_diffusion_xl():
    """A tiny one, with the second of its two text encoders alone."""
    parts = make_pipeline("sd").components
    text = CLIPTextConfig(**parts["text_encoder"].config.to_dict() | {"projection_dim": 16})
    more = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    more["projection_class_embeddings_input_dim"] = 6 * 8 + 16  # six sizes, and the pooled prompt
    network = shaken(lambda: UNet2DConditionModel(**dict(parts["unet"].config) | more), 0.1)
    return quiet(
        StableDiffusionXLPipeline(
            vae=parts["vae"], text_encoder=None, text_encoder_2=shaken(lambda: CLIPTextModelWithProjection(text), 0.1),
            tokenizer=None, tokenizer_2=parts["tokenizer"], unet=network, scheduler=EulerDiscreteScheduler(),
            add_watermarker=False,
        )
    )  # fmt: skip


@pytest.fixture
def cat(tmp_path, monkeypatch):
    """A picture's file in the working folder."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save("cat.png")
    return "cat.png"


def test_latents_are_decoded_where_the_call_shortens_the_schedule(wrapped, cat, monkeypatch):
    size = {"height": 32, "width": 32}
    from_picture = StableDiffusionImg2ImgPipeline(**wrapped("sd").pipe.components, requires_safety_checker=False)
    for pipe, given in (
        (quiet(from_picture), {"image": cat}),  # its strength is 0.8
        (stable_diffusion_xl(), size | {"denoising_end": 0.8}),
    ):
        model = guidon.wrap(pipe, call=given)
        with model.decoder(model.plan(PROMPTS[0], steps=4)) as decode:
            black, other = decode(torch.stack([torch.zeros(4, 4, 4), torch.ones(4, 4, 4)]))
        assert (black - other).abs().max() > 0.1
    monkeypatch.setattr(pipe.scheduler, "timesteps", torch.zeros(0))  # such as another way to end early
    monkeypatch.setattr(type(pipe.scheduler), "set_timesteps", lambda *given, **more: None)
    with (
        model.decoder(model.plan(PROMPTS[0])) as decode,
        pytest.raises(InputError, match="XLPipeline makes no step in a call of one step"),
    ):
        decode(torch.zeros(1, 4, 4, 4))


def test_the_steps_of_two_schedulers_of_one_class_are_seen_apart():
    """As two threads do: the first ends in the middle of the second."""
    first, second, seen = FlowMatchEulerDiscreteScheduler(), FlowMatchEulerDiscreteScheduler(), []
    own, kind, one = FlowMatchEulerDiscreteScheduler.step, type(first), torch.ones(1)

    def watched(scheduler, name):
        scheduler.set_timesteps(2)
        return _stepping(scheduler, lambda sample, result: seen.append(name) or result)

    with ExitStack() as stack:
        with watched(first, "first"):
            stack.enter_context(watched(second, "second"))
            for scheduler in (first, second, copy.deepcopy(second)):
                scheduler.step(one, scheduler.timesteps[0], one)
            assert type(second).__name__ == kind.__name__
            assert "generator" in inspect.signature(second.step).parameters
        for scheduler in (first, second):
            scheduler.step(one, scheduler.timesteps[1], one)
    assert seen == ["first", "second", "second"]
    assert FlowMatchEulerDiscreteScheduler.step is own
    assert type(first) is type(second) is kind


def test_skip_guidance_is_a_rule_like_any_other(wrapped):
    """It runs the network once more, with a block left out."""
    pipe = wrapped("wan")
    plain, skipped = (pipe(PROMPTS[0], steps=2, cfg_scale=3, guidance=rule) for rule in ("cfg", "stg:blocks=0"))
    assert not np.array_equal(plain.frames, skipped.frames)


def test_noise_of_steps_is_of_the_clip_and_not_of_the_batch(stochastic):
    request = stochastic.plan(["1", "2"], range(2), steps=3, cfg_scale=3, seed=5, seed_per_prompt=True)
    traces = [guidon.GuidanceTrace(keep_x0=True) for _ in range(2)]
    stochastic.generate(request, batch_size=1, trace=traces[0])
    together = stochastic.generate(request, batch_size=4, trace=traces[1])
    alone, beside = (trace.x0[0] for trace in traces)  # (steps, clips, C, ...)
    assert torch.allclose(alone, beside, rtol=1e-3, atol=1e-3)
    assert (alone[-1, 0] - alone[-1, 1]).abs().max() > 0.1
    (again,) = stochastic.reproduce(together[3].manifest)
    assert np.abs(again.frames.astype(int) - together[3].frames).max() <= 1


def test_noise_is_of_the_clip_and_not_of_the_batch(wrapped):
    pipe = wrapped("pixart")
    assert [clip.manifest["computed"]["batch"] for clip in pipe(PROMPTS, steps=1, batch_size=2)] == [2, 2]
    with pytest.raises(InputError, match="on_step is 3: give a function"):
        pipe.generate(pipe.plan("a"), on_step=3)
    request = pipe.plan(PROMPTS, range(2), steps=2, cfg_scale=3, seed=5, seed_per_prompt=True)
    alone, together = (pipe.generate(request, batch_size=size) for size in (1, 4))
    for one, other in zip(alone, together, strict=True):
        assert np.abs(one.frames.astype(int) - other.frames).max() <= 1
    assert len({clip.frames.tobytes() for clip in alone}) == 4
    second = pipe(PROMPTS[1], steps=2, cfg_scale=3, seed=6)  # the seed of prompt 1, by itself
    assert np.array_equal(second.frames, alone[2].frames)


def test_noise_of_a_step_is_not_the_noise_that_a_run_starts_from(wrapped, stochastic, monkeypatch):
    """Whether a step draws it from the clip's generator, or from torch's own."""
    from diffusers.pipelines.dit import pipeline_dit

    from guidon.bridges.diffusers import scheduler

    drawn, own = [], scheduler.randn_tensor

    def seen(*shape, **given):
        drawn.append(own(*shape, **given))
        return drawn[-1]

    monkeypatch.setattr(scheduler, "randn_tensor", seen)
    monkeypatch.setattr(pipeline_dit, "randn_tensor", seen)
    videos = [stochastic("1", steps=3, cfg_scale=3, seed=5) for _ in range(2)]
    assert len(drawn) == 6  # each time the start, and two steps of three
    assert all(torch.equal(one, other) for one, other in zip(drawn[:3], drawn[3:], strict=True))
    assert np.array_equal(videos[0].frames, videos[1].frames)
    start, *steps = (noise[0].flatten() for noise in drawn[:3])
    for noise in steps:
        assert abs(torch.corrcoef(torch.stack([start, noise]))[0, 1]) < 0.5
    elsewhere, pipe = [], wrapped("pixart")
    pipe.generate(pipe.plan("a", steps=1, seed=5), on_step=lambda *done: elsewhere.append(torch.randn(8)))
    assert not torch.equal(elsewhere[0], torch.randn(8, generator=torch.Generator().manual_seed(5)))


def test_a_trace_holds_a_sample_for_each_clip(wrapped):
    pipe, traces = wrapped("pixart"), []
    request = pipe.plan(PROMPTS, steps=3, cfg_scale=3, timing="interval:0,0.7")
    for size in (1, 2):
        traces.append(guidon.GuidanceTrace(keep_x0=True))
        pipe.generate(request, batch_size=size, trace=traces[-1])
    one, two = (trace.as_arrays() for trace in traces)
    assert one["difference"].shape[0] == 2
    for name in one:
        assert np.allclose(one[name], two[name], rtol=1e-3, atol=1e-4)
    assert traces[0].x0[0].shape == traces[1].x0[0].shape


def test_the_copies_beside_a_clip_are_not_shown(wrapped):
    pipe, trace, seen = wrapped("pixart"), guidon.GuidanceTrace(keep_x0=True), []
    request = pipe.plan("a", steps=2, cfg_scale=3)
    pipe.generate(request, trace=trace, on_x0=seen.append, like={"batch": 3, "threads": 1})
    assert trace.as_arrays()["difference"].shape[0] == trace.x0[0].shape[1] == 1
    assert [len(x0) for x0 in seen] == [1, 1]


def test_a_clip_is_reproduced_from_its_manifest(wan, tmp_path):
    pipe = guidon.load(f"diffusers:{wan}", device="cpu", call=WHOLE["wan"][1])
    request = pipe.plan(PROMPTS, steps=2, cfg_scale=3, guidance="apg", seed=3)
    video, beside = pipe.generate(request)[1], pipe.generate(request, batch_size=2)[1]
    manifest = json.loads(json.dumps(video.manifest))
    assert manifest["pipeline"] == "WanPipeline"
    assert {"torch", "diffusers", "transformers", "weights", "computed", "fps", "frames"} <= manifest.keys()
    assert manifest["generation"]["call"] == {**WHOLE["wan"][1]}
    assert video.fps == 16  # of the example in diffusers' documentation
    with pytest.raises(InputError, match="'sequential' is not for a clip of a diffusers pipeline: leave it out"):
        guidon.reproduce(manifest, sequential=True)
    again = guidon.reproduce(manifest, device="cpu")
    assert np.array_equal(again.frames, video.frames)
    (again,) = pipe.reproduce(beside.manifest)
    assert again.manifest["computed"]["batch"] == 2
    assert np.abs(again.frames.astype(int) - beside.frames).max() <= 1
    # other weights are said
    other = shutil.copytree(wan, tmp_path / "other")
    tensors = other / "transformer" / "diffusion_pytorch_model.safetensors"
    content = bytearray(tensors.read_bytes())
    content[-4] ^= 1
    tensors.write_bytes(content)
    with pytest.warns(UserWarning, match="other transformer weights"):
        guidon.load(f"diffusers:{other}", device="cpu").reproduce(manifest)


def test_progress_is_of_the_scheduler_steps(wrapped):
    seen = []
    pipe = wrapped("pixart")
    pipe.generate(pipe.plan(PROMPTS, steps=3, cfg_scale=2), on_step=lambda *done: seen.append(done))
    assert seen == [(k, 6) for k in range(1, 7)]


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"sampler": "ddim"}, "sampler 'ddim' cannot be set in PixArtSigmaPipeline: the scheduler is"),
        ({"rotation": 1}, "rotation 1 cannot be set"),
        ({"eta": 0.5}, "eta 0.5 cannot be set"),
        ({"size": (32, 32)}, "give height and width in call"),
        ({"frames": 3}, "give num_frames in call"),
        ({"exact": "dit"}, "only Guidon's own models"),
        ({"dtype": "bf16"}, "dtype bf16 is not that of the pipeline, fp32"),
        ({"guidance": "perp-neg", "negative_prompt": "x"}, "needs a third branch"),
        ({"guidance": "autoguidance"}, "autoguidance needs a weaker model"),
        ({"cfg_channels": 5}, "4 latent channels"),
        ({"cfg_scales": 5}, "'cfg_scales' is not a setting"),
        ({"guidance_scale": 5}, "'guidance_scale' is not a setting: give cfg_scale"),
        ({"num_frames": 5}, "'num_frames' is not a setting: give it in call"),
        ({"samples": 3}, r"samples are 3: give sample indices, such as range\(3\)"),
        ({"steps": 0}, "steps is 0"),
    ],
)
def test_settings_that_a_diffusers_pipeline_cannot_take_are_refused(wrapped, choices, message):
    with pytest.raises(InputError, match=message):
        wrapped("pixart").plan("a red ball", **choices)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "call is 3: give arguments by name"),
        ({"heigth": 32}, r"takes no argument 'heigth' \(did you mean 'height'\?\)"),
        ({"guidance_scale": 3}, "call gives guidance_scale, which the settings decide: give cfg_scale"),
        ({"num_images_per_prompt": 2}, "ask for more seeds"),
        ({"prompt_embeds": 2}, "give prompts"),
        ({"output_type": "pil"}, "leave it out"),
        ({"num_inference_steps": "many"}, "num_inference_steps the value 'many': give a whole number of at least 1"),
        ({"height": object()}, "give a number, a text or a list"),
    ],
)
def test_arguments_that_a_call_cannot_take_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        guidon.wrap(make_pipeline("pixart"), call=given)


def test_a_pipeline_starts_from_a_picture(wrapped, cat, monkeypatch):
    pixels = np.asarray(Image.open(cat))
    pipe = StableDiffusionImg2ImgPipeline(**wrapped("sd").pipe.components, requires_safety_checker=False)
    model = guidon.wrap(pipe, call={"image": "cat.png", "strength": 0.5})
    request = model.plan(PROMPTS, steps=4, cfg_scale=4, seed=2)
    seen = []
    videos = model.generate(request, batch_size=2, on_step=lambda *done: seen.append(done))
    assert seen == [(1, 2), (2, 2)]  # half of 4 steps
    own = pipe(
        PROMPTS[1], image=Image.fromarray(pixels), strength=0.5, num_inference_steps=4, guidance_scale=4.0,
        generator=torch.Generator().manual_seed(2), output_type="np", return_dict=False,
    )[0]  # fmt: skip
    assert np.abs(videos[1].frames.astype(int) - frames(own)).max() <= 1
    assert videos[0].manifest["generation"]["call"]["image"]["file"] == "cat.png"
    pipe.save_pretrained("folder")
    monkeypatch.setattr(Arguments, "required", ("prompt", "image"))  # as in image-to-video pipelines
    video = guidon.load("diffusers:folder", device="cpu", call={"image": "cat.png"})("a", steps=2)
    assert np.array_equal(guidon.reproduce(video.manifest, device="cpu").frames, video.frames)
    Image.fromarray(255 - pixels).save("cat.png")
    assert guidon.wrap(pipe, call={"image": "cat.png"}).plan("x").call["image"] != request.call["image"]
    with pytest.raises(InputError, match=r"cat\.png is not the picture that this was made with"):
        model.generate(request)
    guidon.Video(np.stack([pixels, 255 - pixels]), 8, {}).save("cat.gif")
    with pytest.raises(InputError, match=r"cat\.gif holds 2 frames: give a picture"):
        guidon.wrap(pipe, call={"image": "cat.gif"})("a", steps=2)
    with pytest.raises(InputError, match="cannot be read as a picture: it is not there"):
        guidon.wrap(pipe, call={"image": "dog.png"})


@pytest.mark.parametrize(
    ("name", "argument", "given"),
    [
        ("cogvideox-image-to-video", "image", "one a clip"),
        ("flux", "ip_adapter_image", "one a call"),
        ("wan-2.2-image-to-video", "image", "one a call"),
        ("flux-2-klein", "image", "one a call"),
        ("ltx-condition", "image", "calls of one clip"),
        ("hunyuan-image-to-video-concat", "image", "calls of one clip"),
        ("qwen-image-edit", "image", "calls of one clip"),
        ("ltx-condition", None, "one call"),
    ],
)
def test_every_clip_of_a_batch_has_the_picture(cat, monkeypatch, name, argument, given):
    """A list of pictures is one for each clip in some pipelines, and one for each adapter or reference in others."""
    calls, tiny = [], {each.name: each.make for each in PIPELINES}
    pipe = make_pipeline(name) if name in WHOLE else tiny[name]()
    if isinstance(pipe.vae.config, SimpleNamespace):
        pipe.vae.config = vars(pipe.vae.config)
    model = guidon.wrap(pipe, call={} if argument is None else {argument: cat})

    def called(self, **given):
        calls.append(given)
        return (np.zeros((1 if isinstance(given["prompt"], str) else len(given["prompt"]), 8, 8, 3)),)

    monkeypatch.setattr(type(pipe), "__call__", called)
    model.generate(model.plan(PROMPTS, steps=1, cfg_scale=1), batch_size=2)
    assert [call["prompt"] for call in calls] == (list(PROMPTS) if given == "calls of one clip" else [list(PROMPTS)])
    for call in calls if argument else ():
        pictures = call[argument] if given == "one a clip" else [call[argument]]
        assert len(pictures) == (2 if given == "one a clip" else 1)
        assert all(isinstance(picture, Image.Image) for picture in pictures)


def test_videos_of_a_batch_start_from_the_picture(cat):
    parts = make_pipeline("wan").components
    settings = dict(parts["transformer"].config) | {"in_channels": 12}
    parts["transformer"] = shaken(lambda: WanTransformer3DModel(**settings), 0.3)
    pipe = quiet(WanImageToVideoPipeline(**parts, image_encoder=None, image_processor=None))
    model = guidon.wrap(pipe, call=WHOLE["wan"][1] | {"image": cat})
    request = model.plan(PROMPTS, steps=2, cfg_scale=3, seed=1)
    alone, together = (model.generate(request, batch_size=size) for size in (1, 2))
    for one, other in zip(alone, together, strict=True):
        assert np.abs(one.frames.astype(int) - other.frames).max() <= 1


def test_steps_and_the_negative_prompt_of_a_call_are_defaults(wrapped):
    given = WHOLE["pixart"][1] | {"num_inference_steps": 7, "negative_prompt": "grey"}
    pipe = guidon.wrap(wrapped("pixart").pipe, call=given)
    request = pipe.plan("a red ball")
    assert (request.steps, request.negative_prompt) == (7, "grey")
    assert request.guidance.to_settings() == {
        "cfg_scale": 4.5, "cfg_channels": "all", "guidance": "cfg", "timing": "constant",
    }  # fmt: skip
    chosen = pipe.plan("a red ball", steps=2, negative_prompt="blue")
    assert (chosen.steps, chosen.negative_prompt) == (2, "blue")
    assert "num_inference_steps" not in request.call


def test_what_the_pipeline_itself_refuses_is_one_line(wrapped):
    pipe = guidon.wrap(wrapped("pixart").pipe, call=WHOLE["pixart"][1] | {"height": 33})
    with pytest.raises(InputError, match=r"PixArtSigmaPipeline cannot make this: .*divisible by 8"):
        pipe("a red ball", steps=2)


def test_where_memory_is_too_small_fewer_clips_are_made_together(wrapped, monkeypatch):
    pipe, most = wrapped("pixart"), 1
    own = type(pipe.pipe).__call__

    def small(self, prompt, **given):
        if (1 if isinstance(prompt, str) else len(prompt)) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return own(self, prompt=prompt, **given)

    monkeypatch.setattr(type(pipe.pipe), "__call__", small)
    request = pipe.plan([*PROMPTS, "green"], steps=1, cfg_scale=2)
    trace = guidon.GuidanceTrace()
    with pytest.warns(UserWarning, match="memory ran out, so that 1 clips are made together"):
        assert len(pipe.generate(request, batch_size=3, trace=trace)) == 3
    assert trace.as_arrays()["difference"].shape[0] == 3
    most = 0
    with pytest.raises(InputError, match="memory of cpu is full where one clip is made: lower height"):
        pipe.generate(request)


def test_no_pipeline_is_refused(wrapped):
    for given in (torch.nn.Linear(1, 1), "wan", None):
        with pytest.raises(InputError, match="is not a pipeline"):
            guidon.wrap(given)


def test_classes_are_prompts():
    tiny = next(each for each in PIPELINES if each.name == "dit")
    pipe = tiny.make()
    pipe.vae.config.latent_channels = 4
    pipe.vae.config = vars(pipe.vae.config)
    model = guidon.wrap(pipe)
    assert model.plan("207", steps=2, cfg_scale=2).prompts == ("207",)
    with pytest.raises(InputError, match="'golden retriever' is no class of DiTPipeline: give its number"):
        model.plan("golden retriever")
    named = dataclasses.replace(model.planner, classes={"tench": 0, "goldfish": 1})
    assert named.complete(["tench", "01"]).read_as == {"tench": "0"}
    with pytest.raises(InputError, match="'2' is no class of DiTPipeline: give a number from 0 to 1"):
        named.complete(["2"])


@pytest.mark.parametrize(
    ("pipeline", "call", "is_image"),
    [
        ("WanPipeline", {"num_frames": 1}, True),
        ("WanPipeline", {}, False),
        ("LattePipeline", {"video_length": 1}, True),
        ("SanaVideoPipeline", {"frames": 1}, True),
        ("LTXConditionPipeline", {"num_frames": 1}, True),
        ("Cosmos2_5_PredictBasePipeline", {"num_frames": 1}, True),
        ("WanVideoToVideoPipeline", {}, False),
        ("PixArtSigmaPipeline", {}, True),
    ],
)
def test_a_video_pipeline_that_makes_one_frame_makes_an_image(pipeline, call, is_image):
    family = next(family for family in FAMILIES if pipeline in family.pipelines)
    planner = DiffusersPlanner.of("x", family, read_arguments(pipeline), 4, "fp32", call, {}, None)
    assert planner.is_image == is_image


@pytest.mark.parametrize(("part", "name"), [("vae", "AutoencoderKLWan"), ("text_encoder", "UMT5EncoderModel")])
def test_weights_that_would_be_drawn_at_random_are_refused(wan, tmp_path, request, part, name):
    for logger in map(logging.getLogger, ("diffusers", "transformers")):
        request.addfinalizer(functools.partial(logger.setLevel, logger.level))
        logger.setLevel(logging.ERROR)  # a user may have silenced what tells of them
    folder = shutil.copytree(wan, tmp_path / "copy")
    [weights] = (folder / part).glob("*.safetensors")
    tensors = load_file(weights)
    tensors.pop(next(key for key in tensors if key.endswith("layer_norm.weight") or "post_quant" in key))
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"misses weights of {name}"):
        guidon.load(f"diffusers:{folder}", device="cpu")
    weights.write_bytes(b"no weights")
    with pytest.raises(InputError, match="cannot be read as a pipeline of diffusers"):
        guidon.load(f"diffusers:{folder}", device="cpu")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_what_is_offloaded_gives_the_same(wan, device):
    """Clips, traces and decoded latents, while accelerate moves parts and layers to and from the device."""
    found = {}
    ways = ("none", "model") if device == "cpu" else ("none", "model", "sequential")  # accelerate moves no layer there
    for offload in ways:
        pipe = guidon.load(f"diffusers:{wan}", device=device, offload=offload, call=WHOLE["wan"][1])
        assert pipe.device.type == device
        assert pipe.keeps_parts == (offload == "none")
        request, trace = (
            pipe.plan(PROMPTS, steps=2, cfg_scale=3, guidance="apg", seed=1),
            guidon.GuidanceTrace(keep_x0=True),
        )
        videos = pipe.generate(request, trace=trace)
        with pipe.decoder(request) as decode:
            pixels = [decode(latents) for latents in trace.x0[0][-1:]]
        again = pipe.generate(request)
        assert [video.frames.tolist() for video in again] == [video.frames.tolist() for video in videos]
        found[offload] = [
            np.stack([video.frames for video in videos]),
            trace.as_arrays()["difference"],
            pixels[0].numpy(),
        ]
        found[offload].append(pipe.hashes)
    for offload in ways[1:]:
        assert found[offload][3] == found["none"][3]
        assert np.abs(found[offload][0].astype(int) - found["none"][0]).max() <= 1
        for own, other in zip(found[offload][1:3], found["none"][1:3], strict=True):
            assert np.allclose(own, other, rtol=1e-3, atol=1e-3)


def test_other_options_of_load_are_refused(wan):
    with pytest.raises(InputError, match="vae is not for a diffusers pipeline"):
        guidon.load(f"diffusers:{wan}", vae="x")
    with pytest.raises(InputError, match="offload 'stages' does not exist; valid: none, model, sequential"):
        guidon.load(f"diffusers:{wan}", offload="stages")
    with pytest.raises(InputError, match="dtype 'float16' does not exist; valid: fp32, bf16, fp16"):
        guidon.load(f"diffusers:{wan}", dtype="float16")
    with pytest.raises(InputError, match="is no folder"):
        guidon.load("diffusers:nowhere")
    assert guidon.load(f"diffusers:{wan}", device="cpu", dtype="bf16").pipe.transformer.dtype == torch.bfloat16
