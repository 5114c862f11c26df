import json
import warnings

import numpy as np
import pytest
import torch

import guidon
from guidon.core.errors import InputError
from guidon.guidance import RULES, Guidance, GuidanceTrace, GuidedDenoiser, Memory
from guidon.models.vae.frames import FrameVAE
from guidon.pipeline.calls import CallOptions, RunOptions
from guidon.pipeline.manifests import other_weights
from guidon.request import Request

PROMPT = "a red circle moves left on a white background"
OTHER = "a blue square moves up on a black background"


@pytest.fixture(scope="module")
def pipe(tiny_model):
    return guidon.load(tiny_model, device="cpu")


def test_a_prompt_gives_a_video(pipe):
    video = pipe(PROMPT, steps=3, seed=4)
    assert video.frames.shape == (16, 64, 64, 3)
    assert video.frames.dtype == np.uint8
    assert video.frames.std() > 0


def test_the_same_call_gives_the_same_frames_and_another_seed_others(pipe):
    first, again, other = (pipe(PROMPT, steps=3, seed=seed).frames for seed in (4, 4, 5))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm-solver", "dpm-solver-sde", "unipc"])
def test_samples_do_not_depend_on_what_is_generated_beside_them(pipe, sampler):
    options = {"steps": 3, "seed": 4, "sampler": sampler, "cfg_scale": 3.0}
    many = pipe([OTHER, PROMPT], num_samples=3, **options)
    small_batches = pipe([OTHER, PROMPT], num_samples=3, batch_size=2, **options)
    alone = pipe(PROMPT, **options)
    assert len(many) == 6
    for a, b in ((many[3], alone), (many[5], small_batches[5]), (many[0], small_batches[0])):
        difference = np.abs(a.frames.astype(int) - b.frames)
        assert (difference <= 1).mean() > 0.999
    assert not np.array_equal(many[3].frames, many[4].frames)


def test_guidance_and_its_channels_matter(pipe):
    frames = {c: pipe(PROMPT, steps=3, cfg_scale=6.0, cfg_channels=c).frames for c in (3, "all", "none", "only:3")}
    unguided = pipe(PROMPT, steps=3, cfg_scale=1.0).frames
    assert np.array_equal(frames["none"], unguided)
    for a, b in ((3, "all"), (3, "none"), ("all", "only:3")):
        assert not np.array_equal(frames[a], frames[b])


def test_a_negative_prompt_replaces_the_null_caption(pipe):
    plain = pipe(PROMPT, steps=3, cfg_scale=6.0).frames
    steered = pipe(PROMPT, steps=3, cfg_scale=6.0, negative_prompt="a blue square").frames
    assert not np.array_equal(plain, steered)
    same = pipe(PROMPT, steps=3, cfg_scale=6.0, negative_prompt=PROMPT).frames
    unguided = pipe(PROMPT, steps=3, cfg_scale=1.0).frames
    assert (np.abs(same.astype(int) - unguided) <= 1).mean() > 0.999


def test_an_interval_that_holds_no_step_is_no_guidance(pipe):
    with pytest.warns(
        UserWarning, match="no step was guided: none of the 3 steps falls inside the timing interval:0.1,0.2"
    ):
        nothing = pipe(PROMPT, steps=3, cfg_scale=6.0, timing="interval:0.1,0.2").frames
    assert np.array_equal(nothing, pipe(PROMPT, steps=3, cfg_scale=1.0).frames)


@pytest.mark.parametrize("rule", [name for name in RULES if name not in ("autoguidance", "three-way")])
def test_every_rule_makes_a_video_from_the_text_that_names_it(pipe, rule):
    choices = {"cfg++": {"cfg_scale": 0.6, "sampler": "ddim"}, "perp-neg": {"negative_prompt": "a blue square"}}.get(
        rule, {}
    )
    video = pipe(PROMPT, **{"steps": 4, "cfg_scale": 3.0, "guidance": rule} | choices)
    plain = pipe(PROMPT, **{"steps": 4, "cfg_scale": 3.0} | choices, guidance="cfg")
    assert np.array_equal(video.frames, plain.frames) == (rule == "cfg")
    assert video.manifest["generation"]["guidance"].startswith(rule)
    if rule == "stg":  # both ways to run its three branches
        apart = pipe(PROMPT, steps=4, cfg_scale=3.0, guidance=rule, sequential=True)
        assert (np.abs(apart.frames.astype(int) - video.frames) <= 1).mean() > 0.999
    unguided = pipe(PROMPT, **{"steps": 4} | choices | {"cfg_scale": 1.0, "cfg_channels": "none"}, guidance=rule)
    assert np.array_equal(
        unguided.frames, pipe(PROMPT, steps=4, cfg_scale=1.0, sampler=choices.get("sampler", "ddpm")).frames
    )


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"guidance": "cfg++", "cfg_scale": 0.6}, "sampler ddim"), ({"guidance": "cfg++", "sampler": "ddim", "eta": 0.5, "cfg_scale": 0.6}, "eta 0"),
        ({"guidance": "cfg++", "sampler": "ddim", "cfg_scale": 3.0}, "from 0 to 1"), ({"guidance": "perp-neg"}, "needs a negative prompt"),
        ({"guidance": "autoguidance"}, "guidance autoguidance needs a weaker model: give weak"), ({"guidance": "stg:blocks=7"}, "blocks=7 names block 7, but the network's are numbered 0 to"),
        ({"guidance": "apg:eta=-1"}, "at least 0"), ({"timing": "oscillation:no"}, "step number"),
    ],
)  # fmt: skip
def test_rules_that_cannot_run_are_refused_before_anything_runs(pipe, choices, message):
    with pytest.raises(InputError, match=message):
        pipe(PROMPT, steps=3, **choices)


def test_when_to_guide_is_the_models_unless_it_is_said(pipe):
    assert pipe.plan(PROMPT).guidance.timing.text == pipe.preset.timing != "constant"
    assert pipe.plan(PROMPT, timing="constant").guidance.timing.text == "constant"


def test_progress_and_trace_cover_every_step(pipe):
    seen, trace = [], GuidanceTrace()
    pipe(
        PROMPT, num_samples=2, steps=4, cfg_scale=2.0, timing="constant", on_step=lambda *a: seen.append(a), trace=trace
    )
    assert seen == [(k, 4) for k in range(1, 5)]
    assert trace.as_arrays()["difference"].shape == (2, 4, 4)
    assert (trace.as_arrays()["difference"] > 0).all()


def test_branches_one_after_the_other_give_the_same_frames(pipe):
    together, apart = (pipe(PROMPT, steps=3, cfg_scale=4.0, sequential=flag).frames for flag in (False, True))
    assert (np.abs(together.astype(int) - apart) <= 1).mean() > 0.999


def test_opensoras_spelling_of_the_channels_is_the_same_setting(pipe):
    for value in (None, "all", 3, [0, 2]):
        assert pipe.plan([PROMPT], cfg_channel=value) == pipe.plan([PROMPT], cfg_channels=value)
    assert pipe.plan([PROMPT], cfg_channels=None).guidance.channels.text == "all"
    with pytest.raises(InputError, match="one setting, give it once"):
        pipe.plan([PROMPT], cfg_channel="all", cfg_channels=3)


def test_numbers_that_overflow_are_no_video(pipe):
    with pytest.raises(InputError, match="not finite"):
        pipe(PROMPT, steps=2, cfg_scale=1e38)
    with pytest.raises(InputError, match="batch_size is 0"):
        pipe(PROMPT, steps=2, batch_size=0)


def test_an_autoencoder_that_gives_nan_makes_no_video(pipe, monkeypatch):
    def decode(self, latents, *_):
        return original(self, latents) * float("nan")

    original = FrameVAE.decode
    monkeypatch.setattr(FrameVAE, "decode", decode)
    with pytest.raises(InputError, match="the autoencoder gave numbers that are not finite"):
        pipe("a red circle moves left on a white background", steps=2)


def test_loading_leaves_the_callers_random_numbers_alone(tiny_model):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    guidon.load(tiny_model, device="cpu")(PROMPT, steps=1)
    assert torch.equal(torch.rand(2), expected)


def test_a_trace_is_of_one_run(pipe):
    trace = GuidanceTrace()
    pipe(PROMPT, steps=2, cfg_scale=2.0, timing="constant", trace=trace)
    with pytest.raises(InputError, match="a trace holds one run"):
        pipe(PROMPT, steps=2, cfg_scale=2.0, trace=trace)
    assert len(trace) == 2


def test_a_trace_needs_one_batch(pipe):
    with pytest.raises(InputError, match="one batch"):
        pipe(PROMPT, num_samples=3, steps=2, batch_size=2, trace=GuidanceTrace())


def test_another_precision_is_close_and_leaves_the_weights_alone(pipe):
    before = pipe(PROMPT, steps=3).frames
    half = pipe(PROMPT, steps=3, dtype="bf16").frames
    assert not np.array_equal(half, before)
    assert np.abs(half.astype(int) - before).mean() < 8
    assert np.array_equal(pipe(PROMPT, steps=3).frames, before)


def test_nothing_global_is_drawn(pipe):
    torch.manual_seed(0)
    expected = torch.randn(4)
    torch.manual_seed(0)
    pipe(PROMPT, steps=2)
    assert torch.equal(torch.randn(4), expected)


def test_a_pipeline_shows_its_guidance(pipe):
    own = pipe.preset
    assert f"cfg_scale {own.cfg_scale}, cfg_channels {own.cfg_channels}, timing {own.timing}, " in repr(pipe)


def test_a_saved_video_has_a_manifest_that_reproduces_it(pipe, tmp_path):
    video = pipe(PROMPT, steps=3, seed=2, cfg_scale=[4.0, 4.0, 2.0, 1.0])
    path = video.save(tmp_path / "circle.webp")
    manifest = json.loads((tmp_path / "circle.webp.json").read_text())
    again = pipe.generate(Request(**manifest["generation"]))[0]
    assert np.array_equal(again.frames, video.frames)
    assert path.exists()
    assert manifest["weights"].keys() == {"denoiser", "text", "vae"}


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"steps": 0}, "steps"), ({"steps": 1001}, "at most 1000"), ({"cfg_scale": -1.0}, "cfg_scale"), ({"cfg_scale": float("nan")}, "cfg_scale"),
        ({"cfg_scale": [1.0, 2.0]}, "4 latent channels"), ({"cfg_channels": 5}, "4 latent channels"), ({"timing": "interval:0.5,0.2"}, "backwards"),
        ({"sampler": "euler"}, "sampler"), ({"guidance": "cgf"}, "did you mean 'cfg'"), ({"seeed": 3}, "did you mean 'seed'"), ({"eta": 2.0}, "eta"),
        ({"seed": -1}, "seed"), ({"negative_prompt": "qwerty"}, "unknown word 'qwerty'"),
    ],
)  # fmt: skip
def test_bad_choices_are_refused_in_one_line(pipe, choices, message):
    with pytest.raises(InputError) as error:
        pipe(PROMPT, **{"steps": 2} | choices)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("xyzzy plugh", "unknown words 'xyzzy', 'plugh'"), ("", "the prompt '' is empty"), ("two circles", "'two circles' asks for"),
        ("a red cirle moves up", r"unknown word 'cirle' \(nearest: circle\)\. It knows shapes: circle, square"),
        (["a red circle", "a cat"], "unknown word 'cat'"),
    ],
)  # fmt: skip
def test_prompts_that_cannot_be_followed_are_refused_unless_forced(pipe, prompt, message):
    with pytest.raises(InputError, match=message):
        pipe.plan([prompt] if isinstance(prompt, str) else prompt)
    with pytest.raises(InputError, match=message):
        pipe(prompt, steps=1)
    if prompt and "xyzzy" not in prompt:  # of those two nothing can be read
        with pytest.warns(UserWarning, match=message):
            pipe(prompt, steps=1, force=True)


def test_a_prompt_that_is_followed_in_part_is_warned_of_once(pipe):
    with pytest.warns(UserWarning, match="it says no motion or background, so the model chooses") as found:
        pipe("a shiny red circle", steps=3)
    assert len(found) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe(PROMPT, steps=3)


def test_a_manifest_says_what_was_typed_and_what_was_read(pipe):
    typed, read = "A red sphere rolls from right to left on white", "a red circle moves left on a white background"
    video = pipe(typed, steps=2, seed=3, negative_prompt="squares")
    generation = video.manifest["generation"]
    assert generation["prompts"] == [typed]
    assert generation["read_as"] == {typed: read, "squares": "square"}
    assert np.array_equal(video.frames, pipe(read, steps=2, seed=3, negative_prompt="square").frames)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(pipe.generate(Request(**generation))[0].frames, video.frames)
    many = pipe([PROMPT, typed], steps=1)
    assert "read_as" not in many[0].manifest["generation"]
    assert many[1].manifest["generation"]["read_as"] == {typed: read}


def test_a_manifest_of_an_earlier_version_gives_what_it_gave(pipe):
    """It has no ``read_as``: the text encoder leaves out what it does not know."""
    with pytest.warns(UserWarning, match="left out of 'red circles move left on white': 'circles'"):
        earlier = pipe.generate(
            Request(**pipe.plan([PROMPT], steps=2).model_dump() | {"prompts": ["red circles move left on white"]})
        )
    assert np.array_equal(earlier[0].frames, pipe("red move left on white", steps=2, force=True).frames)


def test_models_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(InputError, match="did you mean 'guidon-small'"):
        guidon.load("guidon-smal")
    with pytest.raises(InputError, match=r"holds no denoiser\.safetensors"):
        guidon.load(tmp_path)
    with pytest.raises(InputError, match="not a device"):
        guidon.load(device="quantum")


def test_prompts_may_have_noise_of_their_own(pipe):
    """Prompt k draws from seed + k, as if it were generated alone with that seed, which its manifest says."""
    options = {"steps": 3, "cfg_scale": 3.0}
    first, second = pipe([PROMPT, PROMPT], seed=4, seed_per_prompt=True, **options)
    alone = pipe(PROMPT, seed=5, **options)
    assert (np.abs(second.frames.astype(int) - alone.frames) <= 1).mean() > 0.999
    assert not np.array_equal(first.frames, second.frames)
    assert second.manifest["generation"] == alone.manifest["generation"]


def test_prompts_are_encoded_once_for_all_settings(tiny_model, monkeypatch):
    pipe, calls = guidon.load(tiny_model, device="cpu"), []
    with pipe.model.text.in_use() as text:
        encode = text.encode
        monkeypatch.setattr(text, "encode", lambda prompts: calls.append(tuple(prompts)) or encode(prompts))
    for scale in (1.0, 2.0, 3.0):
        pipe([PROMPT, OTHER], steps=2, cfg_scale=scale)
    assert calls == [(PROMPT, OTHER)]
    pipe([PROMPT, OTHER], steps=2, cfg_scale=2.0, negative_prompt="a blue square")
    assert calls[1:] == [("a blue square",), (PROMPT, OTHER)]
    for colour in ("red", "green", "blue", "yellow", "purple", "cyan"):
        for shape in ("circle", "square", "triangle"):
            pipe(f"a {colour} {shape} moves left", steps=1, cfg_scale=1.0)
    assert len(pipe._prompts._known) == 16


def test_a_guidance_object_is_its_settings(pipe):
    guidance = Guidance(4, "0,2", "apg:momentum=0", "interval:0,0.8")
    whole = pipe(PROMPT, steps=3, guidance=guidance)
    parts = pipe(PROMPT, steps=3, cfg_scale=4, cfg_channels=[0, 2], guidance="apg:momentum=0", timing="interval:0,0.8")
    assert np.array_equal(whole.frames, parts.frames)
    assert whole.manifest["generation"] == parts.manifest["generation"]
    for more in ({"cfg_scale": 3}, {"timing": "constant"}, {"cfg_channels": 3}, {"cfg_channel": 3}):
        with pytest.raises(InputError, match="already: leave one of them out"):
            pipe(PROMPT, steps=3, guidance=guidance, **more)


@pytest.mark.parametrize(
    "choices",
    [
        {"cfg_channels": 3}, {"cfg_channels": "only:3", "guidance": "apg"}, {"cfg_scale": (4.0, 1.0, 2.0, 3.0), "guidance": "rescale"},
        {"cfg_channels": "0,2", "guidance": "cfg-zero", "timing": "oscillation:1"}, {"guidance": "cfg++", "cfg_scale": 0.6, "sampler": "ddim"},
        {"guidance": "fdg", "timing": "linear", "sampler": "dpm-solver"}, {"guidance": "perp-neg", "negative_prompt": "a blue square"},
    ],
)  # fmt: skip
def test_combine_on_bare_tensors_is_the_pipelines_guided_prediction(pipe, monkeypatch, choices):
    """What the sampler was given is what ``combine`` makes of the network's predictions alone, bit for bit."""
    calls = []

    class Recorded(GuidedDenoiser):
        def __call__(self, x, level, /):
            memory, self.seen = self.memory, None
            out = super().__call__(x, level)
            calls.append((x.clone(), level, memory, self.seen, out.clone()))
            return out

        def _predictions(self, x, level):
            found = super()._predictions(x, level)
            self.seen = {name: part.clone() for name, part in found.items()}
            return found

    monkeypatch.setattr("guidon.pipeline.generation.GuidedDenoiser", Recorded)
    values = {"steps": 5, "cfg_scale": 4.0, "timing": "constant"} | choices
    request = pipe.plan([PROMPT, OTHER], **values)
    pipe.generate(request)
    guidance, memory, guided = request.guidance, Memory(), 0
    for x, level, before, seen, out in calls:
        assert (before.calls, before.guided) == (memory.calls, memory.guided)
        if seen is None:  # the conditional branch ran alone
            memory = Memory(memory.calls + 1, memory.guided, memory.kept)
            continue
        cond, uncond = seen.pop("cond"), seen.pop("uncond", None)
        ours, memory = guidance.combine(cond, uncond, x, level, memory, **seen)
        assert torch.equal(ours, out)
        guided += 1
    assert guided >= 3


def test_none_is_the_default_of_every_keyword(pipe):
    """But for cfg_channels, of which None means all."""
    nothing = dict.fromkeys({*CallOptions.__annotations__} - {"cfg_channels", "cfg_channel", "prompt"})
    values = {"steps": 2, "seed": 4}
    plain = pipe(PROMPT, **values)
    assert pipe(PROMPT, **nothing | values) == plain
    assert pipe.generate(pipe.plan(PROMPT, **values), **dict.fromkeys(RunOptions.__annotations__)) == [plain]
    assert pipe(PROMPT, return_dict=False, **values) == ([plain],)


def test_a_mistyped_choice_is_refused_whatever_its_value(pipe):
    with pytest.raises(InputError, match="did you mean 'steps'"):
        pipe(PROMPT, stepz=None)
    with pytest.raises(InputError, match="'model' is not a setting"):
        pipe(PROMPT, model="guidon-small")


def test_seeds_and_negative_prompts_may_be_one_for_each_prompt(pipe):
    """Each clip is what its own seed and negative prompt give alone, and its manifest says so."""
    negative = ["a blue square", "a red circle"]
    options = {"steps": 3, "cfg_scale": 5.0}
    many = pipe([PROMPT, OTHER], seed=[4, 9], negative_prompt=negative, **options)
    for video, prompt, seed, avoided in zip(many, (PROMPT, OTHER), (4, 9), negative, strict=True):
        alone = pipe(prompt, seed=[seed], negative_prompt=[avoided], **options)
        assert alone.manifest["generation"] == video.manifest["generation"]
        assert (np.abs(video.frames.astype(int) - alone.frames) <= 1).mean() > 0.999
    other = pipe([PROMPT, OTHER], seed=[4, 9], negative_prompt=negative[::-1], **options)
    assert not np.array_equal(other[0].frames, many[0].frames)
    first, second = pipe(PROMPT, num_samples=2, seed=[4, 9], steps=3)
    assert first.manifest["generation"] == pipe.plan(PROMPT, seed=4, steps=3).model_dump(mode="json")
    assert second.manifest["generation"] == pipe.plan(PROMPT, seed=9, steps=3).model_dump(mode="json")
    assert (np.abs(second.frames.astype(int) - pipe(PROMPT, seed=9, steps=3).frames) <= 1).mean() > 0.999
    with pytest.raises(InputError, match="holds 2 seeds"):
        pipe(PROMPT, seed=[4, 9], steps=3)


def test_an_empty_negative_prompt_and_frames_of_another_kind_are_refused(pipe):
    with pytest.raises(InputError, match=r"negative_prompt is empty, which .* cannot read: leave it out"):
        pipe(PROMPT, steps=2, negative_prompt=" ")
    with pytest.raises(InputError, match="give an array"):
        pipe.autoencode(3)


def test_a_clip_of_a_batch_is_reproduced_bit_for_bit(pipe, tmp_path):
    """From its file, its manifest's file or the manifest's content, and by hand with ``like``."""
    _, video, _ = pipe([OTHER, PROMPT, OTHER], steps=2, seed=4, cfg_scale=3.0)
    path = video.save(tmp_path / "a.gif")
    ways = path, str(path), tmp_path / "a.gif.json", video.manifest, json.loads((tmp_path / "a.gif.json").read_text())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = [pipe.reproduce(each)[0] for each in ways] + [guidon.reproduce(path, device="cpu")]
    request = Request(**video.manifest["generation"])
    again.append(pipe.generate(request, like=video.manifest["computed"])[0])
    for each in again:
        assert np.array_equal(each.frames, video.frames)
        assert each.manifest["computed"] == video.manifest["computed"]
    assert again[0].save(tmp_path / "b.gif").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    "choices",
    [
        {"reuse": 2, "cfg_channels": "0,2"}, {"adaptive": 0.9, "reuse": 2}, {"spacing": "karras", "sampler": "unipc"},
        {"spacing": "split:0.5,0.5", "sampler": "dpm-solver-3m-sde"}, {"spacing": "at:999,500,3"},
    ],
)  # fmt: skip
def test_a_clip_of_a_batch_with_lossy_settings_is_reproduced_bit_for_bit(pipe, choices):
    values = {"steps": 4, "cfg_scale": 3.0, "timing": "constant"} | choices
    if str(choices.get("spacing")).startswith("at:"):
        del values["steps"]
    videos = pipe([PROMPT, OTHER, PROMPT], seed_per_prompt=True, **values)
    made = videos[1].manifest
    assert set(made["lossy"]) == {"adaptive", "reuse", "spacing"} & choices.keys()
    assert {name: made["generation"][name] for name in choices} == choices
    assert np.array_equal(pipe.reproduce(made)[0].frames, videos[1].frames)
    neutral = {name: value for name, value in values.items() if name not in made["lossy"]}
    plain = pipe([PROMPT, OTHER, PROMPT], seed_per_prompt=True, **{"steps": 4} | neutral)
    assert "lossy" not in plain[1].manifest
    assert not np.array_equal(plain[1].frames, videos[1].frames)


def test_calls_that_are_left_out_do_not_reach_the_network(pipe, monkeypatch):
    rows = []
    with pipe.model.network.in_use(torch.float32) as network:
        original = type(network).__call__

        def counted(self, x, level, condition):
            rows.append(len(condition))  # branches may share the rows of x
            return original(self, x, level, condition)

        monkeypatch.setattr(type(network), "__call__", counted)
        found = {}
        for name, choices in {"all": {}, "reuse": {"reuse": 3}, "ended": {"adaptive": 1e-6}}.items():
            rows.clear()
            pipe(PROMPT, steps=8, cfg_scale=3.0, timing="constant", **choices)
            found[name] = sum(rows)
    assert found == {"all": 16, "reuse": 8 + 3, "ended": 8 + 1}


def test_a_precision_of_t5_that_an_earlier_version_left_out_is_not_compared():
    now = {"vae": "a", "text_dtype": "bf16", "weak-text_dtype": "bf16"}
    assert other_weights({"vae": "a"}, now) == []
    assert other_weights({"vae": "a", "text_dtype": "fp32"}, now) == ["text_dtype"]
    assert other_weights({"vae": "b", "text": "c"}, now) == ["text", "vae"]
    assert other_weights({"vae": "a"}, now | {"text": "c"}) == ["text"]


def test_what_differs_from_a_manifest_is_said(pipe):
    manifest = pipe(PROMPT, steps=1, seed=4).manifest
    manifest |= {"weights": manifest["weights"] | {"vae": "0" * 64}, "torch": "2.5.0"}
    with pytest.warns(UserWarning, match="the manifest was made with") as said:
        pipe.reproduce(manifest, batch_size=1)
    lines = [str(each.message) for each in said]
    assert "the manifest was made with other vae weights: frames will differ" in lines
    expected = "made with torch 2.5.0, 1 clip together, its branches together: frames may differ by 1/255"
    assert any(expected in line for line in lines)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda pipe: pipe.reproduce({"cfg_scale": 3}), "the mapping is not the whole manifest of a clip"),
        (lambda pipe: pipe.reproduce(3), "the manifest is 3: give its path"),
        (lambda pipe: pipe.reproduce("a.mp4"), "a.mp4 is a video without its manifest, a.mp4.json"),
        (lambda pipe: pipe.generate({"generation": {}}), "give a manifest to pipe.reproduce"),
        (lambda pipe: pipe.generate(pipe.plan(PROMPT), like=3), "like is 3: give the part 'computed' of a manifest"),
        (lambda pipe: pipe.generate(pipe.plan(PROMPT), like={"computed": {}}), "like is a whole manifest"),
        (lambda pipe: pipe.generate(pipe.plan(PROMPT), like={"batches": 3}), "batches.*did you mean 'batch'"),
    ],
)
def test_what_is_no_manifest_is_refused_in_one_line(pipe, wrong, message):
    with pytest.raises(InputError, match=message):
        wrong(pipe)
