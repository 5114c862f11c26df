import numpy as np
import pytest
import torch

import guidon
from guidon.media.layouts import DiffusersOutput

PROMPTS = ["a red circle moves left", "a blue square moves up"]
OPTIONS = {"steps": 2, "cfg_scale": 2.0, "timing": "constant"}


@pytest.fixture(scope="module")
def pipe(tiny_model):
    return guidon.load(tiny_model, device="cpu")


@pytest.fixture(scope="module")
def videos(pipe):
    return pipe(PROMPTS, **OPTIONS)


def test_the_output_types_of_diffusers_hold_the_same_frames(pipe, videos):
    made = {kind: pipe(PROMPTS, output_type=kind, **OPTIONS) for kind in ("np", "pt", "pil")}
    expected = np.stack([video.frames for video in videos])
    assert made["np"].frames.dtype == np.float32
    assert np.array_equal((made["np"].frames * 255).round().astype(np.uint8), expected)
    assert torch.equal(made["pt"].frames, torch.from_numpy(made["np"].frames).permute(0, 1, 4, 2, 3))
    assert np.array_equal(np.asarray(made["pil"].frames[1][3]), expected[1, 3])
    for output in made.values():
        assert output[0] is output["frames"] is output.frames
        assert list(output.manifests) == [video.manifest for video in videos]
        with pytest.raises(AttributeError, match="has 'frames', not 'images'"):
            output.images  # noqa: B018
        with pytest.raises(IndexError):
            output[1]
        with pytest.raises(KeyError, match="has 'frames' and 'manifests', not 'images'"):
            output["images"]
        with pytest.raises(AttributeError, match="2 clips were made: take manifests"):
            output.manifest  # noqa: B018
    (frames,) = pipe(PROMPTS, output_type="np", return_dict=False, **OPTIONS)
    assert np.array_equal(frames, made["np"].frames)
    assert pipe(PROMPTS, return_dict=False, **OPTIONS) == (videos,)
    assert pipe(PROMPTS[0], return_dict=False, **OPTIONS) == (pipe([PROMPTS[0]], **OPTIONS),)


def test_the_manifest_of_one_clip_comes_with_every_output_type(pipe, videos):
    for kind in ("np", "pt", "pil", "latent"):
        output = pipe(PROMPTS[0], output_type=kind, **OPTIONS)
        assert output.manifest == output["manifest"] == output.manifests[0]
        assert output.manifest["generation"] == videos[0].manifest["generation"]


@pytest.mark.parametrize("key", [0, "frames"])
def test_a_video_that_is_taken_for_an_output_of_diffusers_says_what_to_do(videos, key):
    with pytest.raises(TypeError, match=r"is one clip and has no .*: take video\.frames, .* output_type='np'"):
        videos[0][key]


def test_latents_come_out_as_a_plain_tensor_that_the_autoencoder_decodes_to_the_frames(pipe, videos):
    latents = pipe(PROMPTS, output_type="latent", **OPTIONS).frames
    assert latents.shape == (2, *pipe.model.facts.latent_shape)
    assert not latents.is_inference()
    with pipe.model.vae.in_use() as vae, torch.no_grad():
        decoded = vae.decode(latents[:1])[0]
    frames = ((decoded.permute(1, 2, 3, 0) + 1) * 127.5).round().to(torch.uint8).numpy()
    assert np.abs(frames.astype(int) - videos[0].frames).max() <= 1


def test_a_model_of_images_gives_them_without_the_axis_of_time():
    frames = np.zeros((2, 1, 8, 8, 3), np.float32)
    output = DiffusersOutput(frames, ({}, {}), is_image=True)
    assert output.images.shape == output[0].shape == output["images"].shape == (2, 8, 8, 3)
    assert DiffusersOutput([["a"], ["b"]], ({}, {}), True).images == ["a", "b"]
    latents = torch.zeros(2, 4, 8, 8)
    assert DiffusersOutput(latents, ({}, {}), True).images is latents
