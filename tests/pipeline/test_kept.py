"""Clips that keep, edit and join given frames."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import guidon
from guidon.core.errors import InputError
from guidon.diffusion import NoiseLevel, NoiseSchedule, Process, convert
from guidon.media.conditioning import ClipShape, Conditioning, Reference, choose_conditioning
from guidon.media.placing import Placement, parse_placements
from guidon.media.references import resize_to_fill
from guidon.pipeline.kept import STEERED_BELOW, Kept, hold, put_back
from guidon.request import Request
from guidon.samplers import checked, sample_ddim

PROMPT = "a red circle moves left on a white background"
OTHER = "a blue square moves up on a black background"
OPTIONS = {"steps": 3, "cfg_scale": 3.0, "timing": "constant"}


@pytest.fixture(scope="module")
def pipe(tiny_model):
    return guidon.load(tiny_model, device="cpu")


@pytest.fixture(scope="module")
def picture():
    """A picture of the clips' size: a red disc on white."""
    rows, columns = np.mgrid[:64, :64]
    image = np.full((64, 64, 3), 240, np.uint8)
    image[(rows - 20) ** 2 + (columns - 30) ** 2 < 64] = 220, 30, 30
    return image


@pytest.fixture(scope="module")
def video(picture):
    """A video of 20 different frames."""
    return np.stack([np.roll(picture, 2 * step, axis=1) for step in range(20)])


def shown(pipe, frames):
    """Frames as the autoencoder shows them."""
    return (pipe.autoencode(np.asarray(frames, np.float32) / 255) * 255).round()


def apart(ours, theirs):
    """The largest difference of intensities."""
    return np.abs(np.asarray(ours, float) - theirs).max()


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm-solver", "dpm-solver-3m-sde", "unipc"])
@pytest.mark.parametrize("channels", ["3", "all", "only:1"])
def test_the_first_and_last_frames_are_the_pictures_with_every_sampler(pipe, picture, video, sampler, channels):
    clip = pipe(
        PROMPT, first_frame=picture, last_frame=video[7], sampler=sampler, cfg_channels=channels, **OPTIONS
    ).frames
    assert apart(clip[[0, -1]], shown(pipe, [picture, video[7]])) <= 1
    plain = pipe(PROMPT, sampler=sampler, cfg_channels=channels, **OPTIONS).frames
    assert apart(plain[0], shown(pipe, [picture])[0]) > 20


def test_a_clip_depends_on_its_own_seed_whatever_is_made_beside_it(pipe, picture):
    both = pipe([PROMPT, OTHER], num_samples=2, first_frame=picture, seed=4, **OPTIONS)
    alone = pipe(OTHER, num_samples=2, first_frame=picture, seed=4, batch_size=1, **OPTIONS)
    for ours, theirs in zip(both[2:], alone, strict=True):
        assert apart(ours.frames, theirs.frames) <= 1
    assert apart(both[0].frames[1:], both[1].frames[1:]) > 20


def test_frames_go_where_the_strategy_says(pipe, picture, video):
    clip = pipe(PROMPT, reference=[picture, video], mask_strategy="0,0,0,3;0,1,-2,-2,2;0,1,5,6,2,0", **OPTIONS).frames
    assert apart(clip[[3, 14, 15, 6, 7]], shown(pipe, [picture, video[18], video[19], video[5], video[6]])) <= 1


def test_the_last_reference_is_the_callers_in_every_loop(pipe, picture):
    placed = {"reference": picture, "loop": 2, **OPTIONS}
    first, last = (pipe(PROMPT, mask_strategy=f"1,{number},0,-1", **placed).frames for number in (0, -1))
    assert np.array_equal(first, last)


def test_a_strategy_goes_on_after_the_frames_that_a_loop_takes_over(picture, video):
    clip = ClipShape("a model", 16, lambda frames: frames)
    made = choose_conditioning({"reference": video, "mask_strategy": "0;1,0,0,4,9", "loop": 2}, clip, "a model")
    assert made is not None
    assert made.strategy == "0,0,0,0,1,0;1,0,0,4,9,0"


def test_a_prompt_may_end_in_open_soras_json(pipe, picture, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(picture).save("a.png")
    end = '{"reference_path": "a.png", "mask_strategy": "0,0,0,-1"}'
    found = pipe(f"{PROMPT} {end}", **OPTIONS)
    assert found == pipe(PROMPT, reference="a.png", mask_strategy="0,0,0,-1", **OPTIONS)
    for prompts, options in (([f"{PROMPT} {end}", OTHER], {}), (f"{PROMPT} {end}", {"reference": "a.png"})):
        with pytest.raises(InputError, match="names references of its own: give it alone"):
            pipe(prompts, **options, **OPTIONS)


def test_a_video_goes_on_and_leads_to_another(pipe, video):
    clip = pipe(PROMPT, continue_from=video, connect_to=video[:3], condition_frames=3, **OPTIONS).frames
    assert apart(clip[:3], shown(pipe, video[-3:])) <= 1
    assert apart(clip[-3:], shown(pipe, video[:3])) <= 1


def test_a_weaker_edit_stays_nearer_to_the_video(pipe, video):
    wanted = shown(pipe, video[:16])
    errors = [
        np.abs(pipe(PROMPT, edit=video, edit_strength=strength, steps=10).frames - wanted).mean()
        for strength in (0, 0.2, 0.6)
    ]
    assert errors[0] <= 1
    assert errors[0] < errors[1] < errors[2]


def test_a_mask_strategy_keeps_frames_of_a_video_that_is_edited(pipe, picture, video):
    options = {"edit": video, "reference": picture[::-1], "mask_strategy": "0,0,0,4"}
    keeper = pipe._keeper(pipe.plan(PROMPT, **options), {"reference_frames": [video, picture[::-1]]})
    [kept] = keeper.of_loop(0, 1)
    assert kept.made.tolist() == pytest.approx([0.7] * 4 + [0] + [0.7] * 11)
    [flipped] = keeper.encode([picture[None, ::-1]], picture.shape[:2])
    assert torch.equal(kept.clean[:, 4], flipped[:, 0])


def test_loops_join_clips_and_extend_gives_their_parts(pipe, picture):
    options = {"first_frame": picture, "condition_frames": 5, "seed": 3, **OPTIONS}
    prompt = f"|0|{PROMPT}|1|{OTHER}"
    long = pipe(prompt, loop=3, **options)
    assert long.frames.shape == (16 + 11 + 11, 64, 64, 3)
    assert np.array_equal(long.frames[:16], pipe(PROMPT, **{**options, "condition_frames": None}).frames)
    parts = pipe.extend(prompt, **options)
    found = [next(parts) for _ in range(3)]
    assert np.array_equal(np.concatenate([part.frames for part in found]), long.frames)
    assert np.array_equal(pipe.reproduce(found[1].manifest, reference_frames=[picture])[0].frames, long.frames[:27])
    assert not np.array_equal(long.frames[5:16], long.frames[16:27])
    with pytest.raises(InputError, match="extend makes one video"):
        next(pipe.extend([PROMPT, OTHER], **options))
    # the second clip began with the last frames of the first one
    second = pipe(OTHER, continue_from=long.frames[:16], condition_frames=5, **OPTIONS).frames
    assert apart(second[:5], shown(pipe, long.frames[11:16])) <= 1


@pytest.mark.parametrize(
    ("name", "given"),
    [("loop", "loop"), ("last_frame", "last_frame"), ("last_image", "last_frame"), ("connect_to", "connect_to")],
)
def test_extend_refuses_what_ends_a_video(pipe, video, name, given):
    option = {name: 3 if name == "loop" else video if name == "connect_to" else video[0]}
    with pytest.raises(InputError, match=f"^{given} ends a video, and extend goes on: leave it out, or call the pip"):
        next(pipe.extend(PROMPT, **option, **OPTIONS))


def test_each_loop_is_steered_away_from_its_own_text(pipe):
    typed = pipe(PROMPT, loop=2, negative_prompt="|0|squares|1|circles", **OPTIONS)
    read = pipe(PROMPT, loop=2, negative_prompt="|0|square|1|circle", **OPTIONS)
    assert np.array_equal(typed.frames, read.frames)
    one = pipe(PROMPT, loop=2, negative_prompt=["square"], **OPTIONS)
    assert np.array_equal(one.frames[:16], read.frames[:16])
    assert not np.array_equal(one.frames[16:], read.frames[16:])
    assert np.array_equal(pipe.reproduce(typed.manifest)[0].frames, typed.frames)


def test_a_loop_begins_with_the_last_frames_of_each_clip_of_the_one_before(pipe, video):
    keeper = pipe._keeper(pipe.plan([PROMPT, OTHER], loop=2, condition_frames=5, condition_edit=0.25), {})
    clips = [video[:16], video[4:]]
    keeper.take(clips)
    for kept, clip in zip(keeper.of_loop(1, 2), clips, strict=True):
        (last,) = keeper.encode([clip[-5:]], clip.shape[1:3])
        assert torch.equal(kept.clean[:, :5], last)
        assert kept.made.tolist() == [0.25] * 5 + [1] * 11


def test_a_part_of_a_long_clip_needs_what_its_own_loops_keep():
    first, second, third = (Reference(file=None, sha256=digit * 64) for digit in "123")
    loops = {"condition_frames": 4, "condition_edit": 0.5}
    whole = Conditioning(references=(first, second, third), strategy="0,-1;2,0;2,1", loop=3, **loops)
    assert whole.up_to(1) == Conditioning(references=(third,), strategy="0,0,0,0,1,0")
    assert whole.up_to(2) == Conditioning(references=(third,), strategy="0,0,0,0,1,0", loop=2, **loops)
    assert whole.up_to(3) == whole.model_copy(update={"strategy": "0,2,0,0,1,0;2,0,0,0,1,0;2,1,0,0,1,0"})
    plain = Conditioning(loop=3, **loops)
    assert plain.up_to(2) == Conditioning(loop=2, **loops)
    assert plain.up_to(1) is None
    with pytest.raises(ValueError, match="loop 2 needs condition_frames"):
        Conditioning(loop=2)
    with pytest.raises(ValueError, match="mask_strategy is given without reference: give both"):
        Conditioning(strategy="0,0", **loops)


def test_choices_are_placed_in_latent_frames(video):
    clip = ClipShape("a model", 20, lambda frames: frames)
    for chosen, strategy in (
        ({"edit": video, "edit_strength": 0.25, "first_frame": video[0]}, "0,0,0,0,20,0.25;0,1,0,0,1,0"),
        ({"edit": video, "edit_strength": 1}, "0,0,0,0,20,1"),
        ({"edit": video, "reference": video[0], "mask_strategy": "0"}, "0,1,0,0,20,0.7;0,0,0,0,1,0"),
        ({"connect_to": video, "loop": 3}, "2,0,0,-4,4,0"),
        ({"connect_to": video, "loop": 3, "condition_frames": 9}, "2,0,0,-9,9,0"),
        (
            {"reference": [video[0], video[1]], "mask_strategy": "0;0,-1,0,8", "last_frame": video[2]},
            "0,0,0,0,1,0;0,1,0,8,1,0;0,2,0,-1,1,0",
        ),
    ):
        assert choose_conditioning(chosen, clip, "a model").strategy == strategy
    assert ClipShape("a model", 5, lambda frames: frames).condition_frames == 2  # half of a short clip


def test_files_are_found_beside_a_manifest_and_checked_by_their_hash(pipe, picture, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(picture).save("picture.png")
    clip = pipe(PROMPT, image="picture.png", **OPTIONS)
    clip.save("a/clip.webp")
    assert np.array_equal(pipe.reproduce("a/clip.webp")[0].frames, clip.frames)
    shutil.move("picture.png", "a/picture.png")
    assert np.array_equal(pipe.reproduce("a/clip.webp")[0].frames, clip.frames)
    Image.fromarray(picture[::-1].copy()).save("a/picture.png")
    with pytest.raises(InputError, match="not the file that the clip was made with"):
        pipe.reproduce("a/clip.webp")
    (tmp_path / "a" / "picture.png").unlink()
    with pytest.raises(InputError, match=r"picture\.png is not there, which the clip was made with"):
        pipe.reproduce("a/clip.webp")


def test_a_manifest_that_names_no_regular_file_is_refused(pipe, picture, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(picture).save("picture.png")
    manifest = pipe(PROMPT, first_frame="picture.png", **OPTIONS).manifest
    os.mkfifo("pipe")
    for name in ("/dev/zero", "pipe"):
        manifest["generation"]["conditioning"]["references"][0]["file"] = name
        with pytest.raises(InputError, match="give a file"):
            pipe.reproduce(manifest)


def test_frames_from_python_must_be_given_again(pipe, picture):
    clip = pipe(PROMPT, first_frame=Image.fromarray(picture), **OPTIONS)
    with pytest.raises(InputError, match="give the same frames as reference_frames"):
        pipe.reproduce(clip.manifest)
    assert np.array_equal(pipe.reproduce(clip.manifest, reference_frames=[picture])[0].frames, clip.frames)


def test_floats_are_read_as_the_nearest_of_256_levels(pipe, picture):
    asked = pipe.plan(PROMPT, first_frame=picture)
    for error in (-0.4, 0.0, 0.4):
        assert pipe.plan(PROMPT, first_frame=(picture + error) / 255) == asked
    assert pipe.plan(PROMPT, first_frame=(picture - 0.6) / 255) != asked


def test_the_json_of_other_requests_is_as_it_was(pipe):
    assert "conditioning" not in pipe.plan(PROMPT).model_dump(mode="json")
    request = pipe.plan(PROMPT, loop=2)
    assert Request(**json.loads(request.model_dump_json())) == request


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"first_frame": "none.png"}, "first_frame 'none.png' is not there"),
        ({"first_frame": "https://x.org/a.png"}, "is an address: fetch the file"),
        ({"first_frame": np.zeros((4, 4))}, "(4, 4): give a path, an array (time, height, width, 3)"),
        ({"first_frame": np.zeros((4, 4))}, "of uint8 or of floats from 0 to 1"),
        ({"first_frame": np.full((4, 4, 3), 7.0)}, "is an array of float64 from 7 to 7: give uint8"),
        ({"first_frame": 3}, "first_frame is 3: give a path"),
        ({"first_frame": "VIDEO"}, "has 20 frames: give a picture, or the video as continue_from"),
        ({"continue_from": "PICTURE"}, "continue_from has 1 frame, and 4 are taken of it"),
        ({"continue_from": "VIDEO", "condition_frames": 16}, "condition_frames 16 leaves nothing to make of 16"),
        ({"continue_from": "VIDEO", "first_frame": "PICTURE"}, "both say how the clip begins"),
        ({"continue_from": "VIDEO", "connect_to": "VIDEO", "condition_frames": 8}, "leave no frame to make"),
        (
            {"connect_to": "VIDEO", "loop": 2, "condition_frames": 8},
            "loop and connect_to leave no frame to make between them: lower condition_frames",
        ),
        ({"connect_to": "VIDEO", "loop": 3, "condition_frames": 15}, "leave no frame to make"),
        (
            {"continue_from": "VIDEO", "last_frame": "PICTURE", "condition_frames": 15},
            "continue_from and last_frame leave no frame to make between them: lower condition_frames",
        ),
        ({"last_frame": "PICTURE", "loop": 2, "condition_frames": 15}, "leave no frame to make"),
        (
            {"first_frame": "PICTURE", "reference": "PICTURE", "mask_strategy": "0"},
            "mask_strategy and first_frame both give frame 0, counted from 0: give one of them",
        ),
        (
            {"continue_from": "VIDEO", "reference": "PICTURE", "mask_strategy": "0,0,0,3"},
            "both give frame 3, counted from 0: give one of them, or lower condition_frames",
        ),
        (
            {"reference": "VIDEO", "mask_strategy": "1,0,0,0,4,0.5", "loop": 2},
            "'1,0,0,0,4,0.5' ends before frame 4 of loop 1, whose first 4 are those of the clip before: place it at",
        ),
        ({"edit": "PICTURE"}, "edit has 1 frame, a clip has 16: give a longer video"),
        ({"edit": ["VIDEO", "VIDEO"]}, "edit is a list of 2 videos: give one, and call once for each"),
        ({"edit": ["VIDEO", "PICTURE"]}, "edit is a list of 2 videos"),
        ({"edit": "VIDEO", "edit_strength": 1.5}, "edit_strength is 1.5: give 0"),
        ({"edit_strength": 0.5}, "edit_strength has an effect only with edit"),
        ({"condition_frames": 3}, "condition_frames has an effect only with loop"),
        ({"condition_edit": 0.3}, "condition_edit has an effect only with loop"),
        ({"loop": 2, "condition_edit": np.float32(2)}, "condition_edit is"),
        ({"loop": 0}, "loop is 0: give a whole number"),
        ({"loop": 10**8}, "frames of a long clip need at least"),
        ({"mask_strategy": "0"}, "mask_strategy is given without reference"),
        ({"reference": "PICTURE"}, "reference is given without mask_strategy"),
        (
            {"reference": "PICTURE", "mask_strategy": "0,1"},
            "names reference 1, and there is only reference 0: give another reference",
        ),
        (
            {"reference": "PICTURE", "mask_strategy": "0;0,1,0,4", "last_frame": "PICTURE"},
            "names reference 1, and there is only reference 0: give another reference",
        ),
        (
            {"reference": "PICTURE", "mask_strategy": "0,-2", "last_frame": "PICTURE"},
            "names reference -2, and there is only reference 0",
        ),
        (
            {"reference": ["PICTURE"] * 2, "mask_strategy": "0,-3"},
            "names reference -3, and references are numbered 0 to 1",
        ),
        ({"reference": "PICTURE", "mask_strategy": "0,0,0,-17"}, "begins at frame -17 of a clip of 16"),
        ({"reference": "PICTURE", "mask_strategy": "1"}, "is for loop 1, and there is only loop 0: raise loop"),
        ({"reference": ["PICTURE", "VIDEO"], "mask_strategy": "0"}, "reference 1 is not placed anywhere"),
        ({"loop": 2, "output_type": "latent"}, "output_type 'latent' is for one clip"),
        ({"loop": 2, "trace": guidon.GuidanceTrace()}, "trace is for one clip, loop 2 makes several"),
        ({"image": "PICTURE", "first_frame": "PICTURE"}, "are one setting: give it once"),
        ({"first_frame": "PICTURE", "exact": "open-sora-1.0"}, "without given frames"),
    ],
)
def test_what_cannot_be_kept_is_refused_in_one_line(pipe, picture, video, options, said):
    stand_ins = {"PICTURE": picture, "VIDEO": video}

    def real(value):
        if isinstance(value, list):
            return [real(each) for each in value]
        return stand_ins.get(value, value) if isinstance(value, str) else value

    with pytest.raises(InputError) as error:
        pipe(PROMPT, **{name: real(value) for name, value in options.items()})
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("prompt", "loop", "said"),
    [
        (f"|0|{PROMPT}|2|{OTHER}", 2, "has a text for loop 2, and loops are numbered 0 to 1: raise loop"),
        (f"|0|{PROMPT}|1|{OTHER}", None, "has a text for loop 1, and there is only loop 0: raise loop"),
        (f"|1|{PROMPT}", 2, "begins with loop 1: begin with |0|"),
    ],
)
def test_a_text_that_would_never_be_shown_is_refused(pipe, prompt, loop, said):
    with pytest.raises(InputError) as error:
        pipe(prompt, loop=loop)
    assert said in str(error.value)


def test_a_model_of_images_is_refused(picture):
    with pytest.raises(InputError, match="dit-xl makes images: leave out first_frame, which is for video"):
        choose_conditioning({"first_frame": picture}, None, "dit-xl")


@pytest.mark.parametrize("space", ["eps", "v", "x0", "flow"])
def test_predictions_are_right_for_the_frames_that_are_held(space):
    level = NoiseLevel(500.0, alpha=0.6, sigma=0.8, progress=0.5)
    x, clean = torch.randn(2, 1, 4, 6, 2, 2, generator=torch.Generator().manual_seed(0))
    kept = Kept(torch.tensor([0.0, 1, 1, 1, 0.5, 1]), clean[0])
    seen = []

    class Denoiser:
        def __call__(self, x, level):
            seen.append(x)
            return torch.cat([x, x], dim=1)  # with a variance

        def finish(self):
            seen.append("end")

    held, frames = hold(Denoiser(), [kept], False, space, torch.device("cpu"))
    prediction = held(x, level)
    held.finish()
    assert torch.equal(seen[0], x)
    assert seen[1] == "end"
    assert prediction.shape == (1, 8, 6, 2, 2)
    assert torch.equal(prediction[:, 4:], x)
    assert torch.equal(prediction[:, :4, 1:], x[:, :, 1:])
    assert torch.allclose(convert(prediction[:, :4], x, level, space, "x0")[:, :, 0], clean[:, :, 0], atol=1e-5)
    assert frames.replace
    assert frames.made[0].tolist() == [1, 1, 1, 1, 0.5, 1]
    assert torch.equal(frames.clean, clean)
    # a network that is told of the frames gets them as they are
    denoiser = Denoiser()
    same, told = hold(denoiser, [kept], True, space, torch.device("cpu"))
    assert same is denoiser
    assert not told.replace
    assert told.made[0].tolist() == kept.made.tolist()
    assert torch.equal(put_back(x, [kept])[:, :, 0], clean[:, :, 0])
    assert torch.equal(put_back(x, [kept])[:, :, 1:], x[:, :, 1:])


@pytest.mark.parametrize("space", ["eps", "v", "x0"])
@pytest.mark.parametrize("ratio", [STEERED_BELOW * 0.9, STEERED_BELOW * 1.1])
@pytest.mark.parametrize("weak", [True, False])
def test_the_error_in_kept_frames_corrects_the_others_where_noise_is_high(space, ratio, weak):
    sigma = (1 + ratio**2) ** -0.5
    level = NoiseLevel(500.0, alpha=ratio * sigma, sigma=sigma, progress=0.5)
    generator = torch.Generator().manual_seed(0)
    x, clean = torch.randn(2, 2, 1, 3, 2, 2, generator=generator)
    mixing = torch.randn(3, 3, generator=generator) * (0.02 if weak else 1)  # x_0 of each frame from all frames

    def predicted(x, level):
        return convert(torch.einsum("st,bcthw->bcshw", mixing, x), x, level, "x0", space)

    class Guided:
        def __call__(self, x, level):
            return convert(torch.zeros_like(x), x, level, "x0", space)

        def finish(self):
            pass

    kept = [Kept(torch.tensor([0.0, 1, 1]), each) for each in clean]
    held, _ = hold(Guided(), kept, False, space, torch.device("cpu"), predicted)
    with torch.inference_mode(False), torch.no_grad():
        found = held(x, level)
    assert not found.requires_grad
    x_0 = convert(found, x, level, space, "x0")
    error = clean[:, :, 0] - torch.einsum("t,bcthw->bchw", mixing[0], x)
    # no correction is larger than the error
    wanted = mixing[0, 1:, None, None] * error[:, :, None] / level.alpha
    larger = (wanted.square().mean((1, 2, 3, 4)) / error.square().mean((1, 2, 3))).sqrt().clamp_min(1)
    assert (larger[0] == 1) == weak
    wanted = wanted / larger[:, None, None, None, None] * (ratio < STEERED_BELOW)
    assert torch.allclose(x_0[:, :, 1:], wanted, atol=1e-4)
    assert torch.allclose(x_0[:, :, 0], clean[:, :, 0], atol=1e-4)


def test_a_network_without_gradients_is_said_to_steer_nothing():
    x, clean = torch.randn(2, 1, 1, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    level = NoiseLevel(900.0, alpha=0.1, sigma=0.99, progress=0.1)

    def network(x, level):
        return x.detach() * 0.5

    held, _ = hold(
        checked(network), [Kept(torch.tensor([0.0, 1]), clean[0])], False, "x0", torch.device("cpu"), network
    )
    with torch.no_grad():
        with pytest.warns(UserWarning, match="the network gives no gradients"):
            first = held(x, level)
        assert torch.equal(first, held(x, level))
    assert torch.equal(first[:, :, 1], x[:, :, 1] * 0.5)


def test_frames_that_belong_together_come_near_the_kept_one():
    frames, process = 4, Process("x0", "fixed_small")

    def denoiser(x, level):  # the exact one of clips that stand still, each value from the normal distribution
        mean = level.alpha * x.sum(2, keepdim=True) / (level.sigma**2 + frames * level.alpha**2)
        return mean.expand_as(x).clone()

    def made(conditional):
        kept = [Kept(torch.tensor([0.0, 1, 1, 1]), torch.full((1, frames, 8, 8), 1.5))]
        held, mask = hold(checked(denoiser), kept, False, "x0", torch.device("cpu"), conditional)
        generator = torch.Generator().manual_seed(1)

        def noise(x):
            return torch.randn(x.shape, generator=generator)

        x = noise(torch.empty(1, 1, frames, 8, 8))
        with torch.no_grad():
            return sample_ddim(held, NoiseSchedule.named().respaced(50), x, noise, process=process, frames=mask)

    steered, plain = made(denoiser), made(None)
    errors = [(each[:, :, 1:] - 1.5).abs().mean() for each in (steered, plain)]
    assert errors[0] < 0.8 * errors[1]


def compressed(frames):
    """Latent frames of an autoencoder that makes 5 of 17, as Open-Sora 1.2's does."""
    return frames // 17 * 5 + -(-(frames % 17) // 4)


def test_an_autoencoder_that_compresses_time_has_its_own_units(video):
    clip = ClipShape("a model", 51, compressed, 5)
    assert (clip.align, clip.unit, clip.condition_frames) == (5, 17, 17)
    found = choose_conditioning({"first_frame": video[0], "last_frame": video[1], "loop": 3}, clip, "a model")
    assert found is not None
    assert (found.strategy, found.condition_frames) == ("0,0,0,0,1,0;2,1,0,-1,1,0", 17)
    assert clip.joined(found) == 51 + 2 * 34
    (last,) = [each for each in parse_placements(found.strategy) if each.loop == 2]
    assert last.within(1, 15, clip.align).target == 10  # the last part begins there
    assert Placement(start=3).within(7, 15, clip.align).start == 0  # the reference has one whole part
    with pytest.raises(InputError, match="condition_frames 4 is no multiple of 17, as a model needs: give 17"):
        choose_conditioning({"loop": 2, "condition_frames": 4}, clip, "a model")


@pytest.mark.parametrize(("height", "width"), [(90, 120), (120, 90), (40, 200), (64, 64)])
def test_pictures_are_resized_to_fill_and_cut_in_the_middle(height, width):
    rows, columns = np.mgrid[:height, :width]
    x = ((columns - width / 2) ** 2 + (rows - height / 2) ** 2 < (min(height, width) / 4) ** 2).astype(np.uint8) * 255
    found = resize_to_fill(np.repeat(x[None, :, :, None], 3, axis=3), 64, 64)[0, :, :, 0] > 127
    rows, columns = np.nonzero(found)
    assert found.shape == (64, 64)
    assert abs(rows.mean() - 31.5) < 1
    assert abs(columns.mean() - 31.5) < 1
    assert abs(found.sum() - np.pi * 16**2) < 60
