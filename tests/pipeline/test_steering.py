"""Latents that a caller gives, and changes after a step."""

import json
import warnings

import numpy as np
import pytest
import torch

import guidon
from guidon.core.errors import InputError
from guidon.guidance import GuidanceTrace
from guidon.pipeline.generation import Generation
from guidon.request import Request
from guidon.samplers import SampleNoise

PROMPT = "a red circle moves left on a white background"
OTHER = "a blue square moves up on a black background"
OPTIONS = {"steps": 3, "cfg_scale": 3.0, "timing": "constant"}


@pytest.fixture(scope="module")
def pipe(tiny_model):
    return guidon.load(tiny_model, device="cpu")


@pytest.fixture(scope="module")
def noise(pipe):
    return SampleNoise([5, 6], [0, 0]).initial(pipe.model.facts.latent_shape)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm-solver"])
def test_the_noise_of_a_seed_given_as_latents_gives_the_clips_of_the_seed(pipe, noise, sampler):
    drawn = pipe([PROMPT, OTHER], seed=[5, 6], sampler=sampler, **OPTIONS)
    for size in (8, 1):
        given = pipe([PROMPT, OTHER], seed=[5, 6], sampler=sampler, latents=noise, batch_size=size, **OPTIONS)
        for ours, theirs in zip(given, drawn, strict=True):
            assert np.abs(ours.frames.astype(int) - theirs.frames).max() <= (1 if size == 1 else 0)


def test_a_manifest_holds_the_hash_of_each_clips_latents_and_needs_them_again(pipe, noise):
    first, second = pipe([PROMPT, OTHER], latents=noise, **OPTIONS)
    request = Request(**json.loads(json.dumps(second.manifest["generation"])))
    assert np.abs(pipe.generate(request, latents=noise[1:])[0].frames.astype(int) - second.frames).max() <= 1
    assert first.manifest["generation"]["latents"] != second.manifest["generation"]["latents"]
    with pytest.raises(InputError, match="give the same tensor as latents"):
        pipe.generate(request)
    with pytest.raises(InputError, match="not those that the request was made with"):
        pipe.generate(request, latents=noise[:1])
    assert "latents" not in pipe.plan(PROMPT).model_dump(mode="json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[0], "give noise of the shape"), (lambda x: x, "give noise of the shape"), (lambda x: x[:1].long(), "latents is int64"),
        (lambda x: x[:1] * float("nan"), "latents holds values that are not finite"), (lambda x: x[:1].numpy(), "of type ndarray"), (lambda x: x[:1, :, :8], "give noise of the shape"),
    ],
)  # fmt: skip
def test_latents_of_another_shape_or_type_are_refused(pipe, noise, change, message):
    with pytest.raises(InputError, match=message):
        pipe(PROMPT, latents=change(noise), **OPTIONS)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm-solver"])
def test_a_callback_that_looks_on_changes_nothing(pipe, sampler):
    seen = []

    def callback(given, step, timestep, tensors):
        seen.append((given is pipe, step, float(timestep), tuple(tensors["latents"].shape)))
        return tensors if step else None

    watched = pipe([PROMPT, OTHER], callback_on_step_end=callback, sampler=sampler, **OPTIONS)
    assert watched == pipe([PROMPT, OTHER], sampler=sampler, **OPTIONS)
    shape = (2, *pipe.model.facts.latent_shape)
    assert [(mine, step, size) for mine, step, _, size in seen] == [(True, step, shape) for step in range(3)]
    assert [time for _, _, time, _ in seen] == sorted((time for _, _, time, _ in seen), reverse=True)


def return_others(pipe, step, timestep, tensors):
    return {"latents": tensors["latents"] + (step == 1)}


def change_in_place(pipe, step, timestep, tensors):
    tensors["latents"] += step == 1


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm-solver"])
def test_latents_that_a_callback_returns_or_changes_are_gone_on_with(pipe, sampler):
    plain = pipe(PROMPT, sampler=sampler, **OPTIONS)
    changed, in_place = (
        pipe(PROMPT, sampler=sampler, callback_on_step_end=callback, **OPTIONS)
        for callback in (return_others, change_in_place)
    )
    assert changed == in_place
    assert not np.array_equal(changed.frames, plain.frames)
    assert changed.manifest["generation"] == plain.manifest["generation"] | {"callback": True}
    request = Request(**changed.manifest["generation"])
    assert pipe.generate(request, callback_on_step_end=return_others)[0] == changed
    with pytest.raises(InputError, match="give the same callback"):
        pipe.generate(request)


def test_a_callback_may_stop_the_run(pipe):
    steps, states = [], []

    def stop(given, step, timestep, tensors):
        steps.append(step)
        states.append(tensors["latents"].clone())
        given._interrupt = step == 1
        return {}

    stopped = pipe(PROMPT, callback_on_step_end=stop, output_type="latent", **OPTIONS)
    assert steps == [0, 1]
    assert torch.equal(stopped.frames, states[-1])
    assert stopped.manifests[0]["generation"]["callback"] is True
    assert pipe(PROMPT, **OPTIONS).manifest["generation"].get("callback") is None  # the next run is whole


def test_a_run_that_was_stopped_before_its_guided_steps_is_not_called_unguided(pipe):
    def stop(given, *_):
        given._interrupt = True

    late = OPTIONS | {"timing": "interval:0.5,1"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe(PROMPT, callback_on_step_end=stop, **late)
    with pytest.warns(UserWarning, match="no step was guided"):
        pipe(PROMPT, **OPTIONS | {"timing": "interval:0.4,0.45"})


class NeedsEmbeddings:
    tensor_inputs = ("prompt_embeds",)

    def __call__(self, *_):
        raise AssertionError


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (lambda *_: 3, "returned 3: return a dict"), (lambda *_: {"latents": 3}, "returned the latents 3"), (lambda *_: {"latents": torch.zeros(2)}, r"returned the latents \(2,\)"),
        (lambda *_: {"prompt_embeds": 3}, "not 'prompt_embeds'"), (NeedsEmbeddings(), "not 'prompt_embeds'"),
    ],
)  # fmt: skip
def test_what_a_callback_cannot_do_is_refused(pipe, callback, message):
    with pytest.raises(InputError, match=message):
        pipe(PROMPT, callback_on_step_end=callback, **OPTIONS)


def test_a_callback_sees_all_clips_in_one_batch(pipe):
    with pytest.raises(InputError, match="a callback needs its 3 clips in one batch"):
        pipe(PROMPT, num_samples=3, batch_size=2, callback_on_step_end=return_others, **OPTIONS)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm-solver"])
def test_a_preview_sees_the_clean_latents_of_every_prediction_and_changes_nothing(pipe, sampler):
    seen = []
    plain = pipe(PROMPT, sampler=sampler, **OPTIONS)
    watched = pipe(PROMPT, sampler=sampler, on_x0=seen.append, **OPTIONS)
    assert np.array_equal(watched.frames, plain.frames)
    assert [tuple(x0.shape) for x0 in seen] == [(1, *pipe.model.facts.latent_shape)] * OPTIONS["steps"]
    with pipe.decoder(pipe.plan(PROMPT, sampler=sampler, **OPTIONS)) as decode:  # the last step ends at its prediction
        last = ((decode(seen[-1])[0] + 1) * 127.5).round().byte().permute(1, 2, 3, 0).numpy()
    assert np.abs(last.astype(int) - plain.frames).max() <= 1


def test_a_preview_that_is_no_function_is_refused(pipe):
    with pytest.raises(InputError, match="on_x0 is 3: give a function"):
        pipe(PROMPT, on_x0=3)


def test_what_looks_on_at_a_clip_that_is_reproduced_sees_it_alone_and_changes_no_bit(pipe):
    """It was one of three, and is made beside two copies of itself."""
    prompts, whole, alone, seen = [PROMPT, OTHER, PROMPT], GuidanceTrace(keep_x0=True), GuidanceTrace(keep_x0=True), []
    clip = pipe(prompts, seed=[1, 2, 3], trace=whole, **OPTIONS)[1]
    (again,) = pipe.reproduce(clip.manifest, trace=alone, on_x0=seen.append)
    assert again == clip
    assert again.manifest["computed"]["batch"] == 3
    assert [x0.shape[0] for x0 in seen] == [1] * OPTIONS["steps"]
    found, expected = alone.as_arrays(), whole.as_arrays()
    for name in ("difference", "cond", "cosine"):
        assert np.array_equal(found[name], expected[name][1:2])
    assert torch.equal(alone.x0[0], whole.x0[0][:, 1:2])


@pytest.mark.parametrize("stop", [None, 1])
def test_a_callback_sees_a_clip_that_is_reproduced_alone_and_makes_the_same_of_it(pipe, stop):
    seen = []

    def halve(given, step, timestep, tensors):
        seen.append(len(tensors["latents"]))
        given._interrupt = step == stop
        return {"latents": 0.5 * tensors["latents"]}

    frame = np.full((64, 64, 3), 200, np.uint8)
    clip = pipe([PROMPT, OTHER, PROMPT], seed=[1, 2, 3], callback_on_step_end=halve, first_frame=frame, **OPTIONS)[1]
    seen.clear()
    (again,) = pipe.reproduce(clip.manifest, callback_on_step_end=halve, reference_frames=[frame])
    assert again == clip
    assert again.manifest["computed"]["batch"] == 3
    assert set(seen) == {1}


def test_a_traced_clip_does_without_its_copies_where_memory_is_full(pipe, monkeypatch):
    clip = pipe([PROMPT, OTHER, PROMPT], seed=[1, 2, 3], **OPTIONS)[1]
    whole, trace = Generation._sample, GuidanceTrace()

    def small(self, network, weak, numbers, *rest):
        if len(numbers) > 1:
            raise MemoryError
        return whole(self, network, weak, numbers, *rest)

    monkeypatch.setattr(Generation, "_sample", small)
    with pytest.warns(UserWarning, match="1 denoised together in place of 3"):
        (again,) = pipe.reproduce(clip.manifest, trace=trace)
    assert np.abs(again.frames.astype(int) - clip.frames).max() <= 1
    assert trace.as_arrays()["difference"].shape[:2] == (1, OPTIONS["steps"])
