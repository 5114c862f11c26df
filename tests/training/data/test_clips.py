import shutil
from collections import Counter

import numpy as np
import pytest
import torch

from guidon.core.errors import InputError
from guidon.media import save_video
from guidon.models.vae.config import FrameVAEConfig
from guidon.models.vae.frames import FrameVAE
from guidon.training.data import clips as module
from guidon.training.data.clips import PreparedClips
from guidon.training.data.frames import OwnFrames
from guidon.training.recipe.data import Data
from panned_clips import pan, write_clips, write_rows


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    config = FrameVAEConfig(block_out_channels=(8, 8), norm_num_groups=4, pixel_unshuffle=2)
    return FrameVAE(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve clips of 4 frames, 32x32, and four of 32x48."""
    folder = write_clips(tmp_path_factory.mktemp("clips") / "clips", 12, frames=4, height=32, width=32)
    rows = []
    for number in range(12, 16):
        save_video(pan(number, frames=4, height=32, width=48)[0], folder / f"{number}.mp4")
        rows.append({"file_name": f"{number}.mp4", "caption": "a wide one"})
    with (folder / "metadata.jsonl").open("a") as file:
        file.writelines(f'{{"file_name": "{row["file_name"]}", "caption": "a wide one"}}\n' for row in rows)
    return folder


class Words:
    """A text encoder of one token a word."""

    calls = 0

    def encode(self, prompts):
        Words.calls += 1
        features = torch.zeros(len(prompts), 8, 3)
        mask = torch.zeros(len(prompts), 8, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            for place, word in enumerate(prompt.split()):
                features[row, place], mask[row, place] = len(word), 1
        return features + 100 * (mask == 0)[..., None], mask  # what is at padding means nothing


def no_model():
    raise AssertionError("everything is stored")


def prepared(folder, place, vae=no_model, **options):
    values = {"folder": folder, "sizes": [(32, 32), (32, 48)], "frames": 4, "validation": 0.2}
    values |= {name: options.pop(name) for name in list(options) if name in Data.model_fields}
    if values.get("size"):
        del values["sizes"]
    load = vae if callable(vae) and not isinstance(vae, torch.nn.Module) else lambda: vae
    return PreparedClips.prepare(Data(**values), place, load, options.pop("vae_hash", "v"), **{"seed": 0} | options)


@pytest.fixture(scope="module")
def place(tmp_path_factory, folder, vae):
    """Where all clips of the folder are stored."""
    place = tmp_path_factory.mktemp("stored")
    prepared(folder, place, vae)
    return place


def test_a_batch_has_clips_of_one_size_with_their_captions(folder, place):
    clips, sizes = prepared(folder, place), Counter()
    for step in range(12):
        batch = clips.batch(step, 4)
        size = batch.clip.height, batch.clip.width
        sizes[size] += 1
        assert batch.latents.shape == (4, 4, 4, size[0] // 4, size[1] // 4)
        assert batch.latents.dtype == torch.float32
        assert {caption == "a wide one" for caption in batch.captions} == {size == (32, 48)}
        assert (batch.clip.frames, batch.clip.fps, batch.fps.tolist()) == (4, 8.0, [8.0] * 4)
        assert batch.features is batch.mask is batch.labels is None
    assert sizes[32, 32] > sizes[32, 48] > 0


def test_latents_are_those_of_the_frames(folder, place, vae):
    clips = prepared(folder, place)
    batch = clips.batch(0, 2)
    [wanted] = [clip for clip in clips.checked.clips if clip.given.captions == (batch.captions[0],) and torch.equal(batch.latents[0], clips._read(clip.bucket, [clip], [""], slice(None)).latents[0])]  # fmt: skip
    frames = module.frames_as_images(module.cut_out(wanted))
    exact = vae.encode(frames.transpose(0, 1)[None])[0]
    assert torch.allclose(batch.latents[0], exact, rtol=2**-11, atol=1e-7)
    assert frames.min() >= -1
    assert frames.max() <= 1


def test_batches_depend_on_files_seed_and_step_alone(folder, place, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    one, other = prepared(folder, place), prepared(moved, place)
    assert one.digest == other.digest
    for step in (5, 0):
        first, second = one.batch(step, 4), other.batch(step, 4)
        assert torch.equal(first.latents, second.latents)
        assert first.captions == second.captions
    assert any(
        prepared(folder, place, seed=1).batch(step, 4).captions != one.batch(step, 4).captions for step in range(4)
    )


def test_rows_are_those_of_the_batch(folder, place):
    clips = prepared(folder, place)
    whole = clips.batch(3, 6)
    for rows in (slice(0, 3), slice(3, 6), slice(4, 5)):
        part = clips.batch(3, 6, rows)
        assert torch.equal(part.latents, whole.latents[rows])
        assert part.captions == whole.captions[rows]
        assert part.clip == whole.clip


def test_one_of_several_captions_is_drawn_each_time(folder, place, tmp_path, capsys):
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    rows = (moved / "metadata.jsonl").read_text()
    (moved / "metadata.jsonl").write_text(rows.replace('"a wide one"', '["a wide one", "wide"]'))
    one, several = prepared(folder, place), prepared(moved, place)
    assert "4 files have several captions: one of them is drawn" in capsys.readouterr().err
    assert one.digest != several.digest
    assert set(several.captions) == {*one.captions, "wide"}
    counts: Counter[str] = Counter()
    for step in range(12):
        first, second = one.batch(step, 4), several.batch(step, 4)
        assert torch.equal(first.latents, second.latents)
        assert first.captions == ["a wide one" if caption == "wide" else caption for caption in second.captions]
        assert several.batch(step, 4, slice(1, 3)).captions == second.captions[1:3]
        counts.update(second.captions)
    assert min(counts["wide"], counts["a wide one"]) > 0
    assert all("wide" not in batch.captions for batch in several.validation)


def test_held_out_clips_are_never_drawn(folder, place):
    clips = prepared(folder, place)
    held = [row for batch in clips.validation for row in batch.latents]
    assert 0 < len(held) == len(clips.checked.held_out)
    drawn = [row for step in range(30) for row in clips.batch(step, 4).latents]
    assert not any(one.shape == other.shape and torch.equal(one, other) for one in held for other in drawn)
    again = [row for batch in prepared(folder, place, seed=7).validation for row in batch.latents]
    assert all(torch.equal(one, other) for one, other in zip(held, again, strict=True))


def test_only_what_is_missing_is_encoded(folder, vae, tmp_path):
    encoded = []

    def load():
        encoded.append(vae)
        return vae

    prepared(folder, tmp_path, load)
    assert len(encoded) == 1
    prepared(folder, tmp_path)
    for other in ({"vae_hash": "other"}, {"crop": "none", "size": (32, 32), "sizes": None}, {"frames": 3}):
        with pytest.raises(AssertionError, match="everything is stored"):
            prepared(folder, tmp_path, **other)


def test_features_are_stored_once_without_padding(folder, place):
    Words.calls = 0
    clips = prepared(folder, place, text=Words, text_hash="t")
    captions = set(clips.captions)
    assert Words.calls == len(
        captions | {caption for clip in clips.checked.held_out for caption in clip.given.captions}
    )
    clips = prepared(folder, place, text=no_model, text_hash="t")
    batch = clips.batch(0, 3)
    features, mask = Words().encode(batch.captions)
    assert torch.equal(batch.mask, mask.bool())
    assert torch.equal(batch.features, features * mask[..., None])
    with pytest.raises(AssertionError, match="everything is stored"):
        prepared(folder, place, text=no_model, text_hash="another")


def test_no_caption_has_no_features(folder, tmp_path, vae):
    some = tmp_path / "some"
    shutil.copytree(folder, some)
    write_rows(some, [{"file_name": f"{number:02}.mp4", "caption": "x y" * (number > 1)} for number in range(4)])
    clips = prepared(some, tmp_path, vae, allow_empty=True, text=Words, text_hash="t", validation=0)
    assert clips.captions == ["x y"]
    batch = clips.batch(0, 4)
    for caption, features, mask in zip(batch.captions, batch.features, batch.mask, strict=True):
        assert mask.sum() == (2 if caption else 1)
        assert caption or not features.any()
    write_rows(some, [{"file_name": "00.mp4"}, {"file_name": "01.mp4"}])
    with pytest.raises(InputError, match="no clip has a caption"):
        prepared(some, tmp_path, vae, allow_empty=True, text=Words, text_hash="t")
    assert prepared(some, tmp_path, vae, allow_empty=True).batch(0, 2).captions == ["", ""]


def test_classes_and_pictures(tmp_path, vae):
    for number, name in enumerate(("b", "a", "a")):
        save_video(pan(number, frames=1, height=32, width=32)[0], tmp_path / "pictures" / name / f"{number}.png")
    values = {"size": (32, 32), "frames": 1, "validation": 0.0, "wanted": "classes"}
    clips = prepared(tmp_path / "pictures", tmp_path, vae, images=True, **values)
    batch = clips.batch(0, 3)
    assert batch.latents.shape == (3, 4, 8, 8)
    assert sorted(batch.labels.tolist()) == [0, 0, 1]
    assert (clips.classes, clips.captions, batch.clip.frames, batch.clip.fps) == (["a", "b"], [], 1, 120.0)
    assert prepared(tmp_path / "pictures", tmp_path, **values).batch(0, 3).latents.shape == (3, 4, 1, 8, 8)
    with pytest.raises(InputError, match="the network makes images, and frames is"):
        prepared(tmp_path / "pictures", tmp_path, images=True, **values | {"frames": 2})


def test_repeats_weigh_folders(tmp_path, vae):
    one, two = (
        write_clips(tmp_path / name, 4, frames=4, height=height, width=32) for name, height in (("a", 32), ("b", 36))
    )
    write_rows(one, [{"file_name": f"{number:02}.mp4", "caption": "one"} for number in range(4)])
    clips = prepared([one, two], tmp_path, vae, size=(32, 32), validation=0.0, repeats=(3, 1))
    drawn = Counter(caption == "one" for step in range(8) for caption in clips.batch(step, 4).captions)
    assert drawn[True] == 3 * drawn[False] == 24
    assert clips.digest != prepared([one, two], tmp_path, size=(32, 32), validation=0.0).digest


def test_files_that_fail_while_they_are_encoded_are_refused_or_left_out(folder, tmp_path, vae, monkeypatch, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    cut = module.cut_out

    def cut_out(clip):
        if clip.given.name.endswith("/03.mp4"):
            raise InputError(f"{clip.given.name} cannot be read as a video: a frame of it is damaged")
        return cut(clip)

    monkeypatch.setattr(module, "cut_out", cut_out)
    with pytest.raises(
        InputError, match=r"1 file \(1 undecodable\) cannot be used: 1. .*03.mp4 .*line 4\): cannot be read"
    ):
        prepared(broken, tmp_path, vae)
    clips = prepared(broken, tmp_path, unreadable="leave_out")  # the others were kept
    assert len(clips.checked.clips) + len(clips.checked.held_out) == 15
    assert "left out: " in capsys.readouterr().err


def test_nothing_to_train_on_is_refused(tmp_path, vae):
    with pytest.raises(InputError, match="holds no video or picture to train on"):
        prepared(tmp_path, tmp_path, vae)


def test_latents_that_are_no_numbers_are_refused(folder, tmp_path):
    class Broken(torch.nn.Linear):
        def encode(self, frames):
            return torch.full((1, 4, 4, 8, 8), float("nan"))

    with pytest.raises(InputError, match="the autoencoder is broken"):
        prepared(folder, tmp_path, Broken(1, 1))


def test_few_clips_for_a_batch_are_told_once(folder, place, capsys):
    clips = prepared(folder, place)
    module.tell_of_small(clips.buckets, 9)
    for step in range(3):
        assert len(clips.batch(step, 9).latents) == 9
    told = capsys.readouterr().err
    assert told.count("4 x 32 x 48: ") == 1
    assert "fewer than a batch of 9" in told


def test_frames_of_clips_are_drawn_for_an_autoencoder(folder, tmp_path):
    data = Data(folder=folder, sizes=[(32, 32), (32, 48)], frames=4, validation=0.2)
    frames = OwnFrames.prepare(data, tmp_path, seed=0)
    batch = frames.batch(2, 5)
    assert torch.equal(OwnFrames.prepare(data, tmp_path, seed=0).batch(2, 5), batch)
    assert torch.equal(frames.batch(2, 5, slice(1, 3)), batch[1:3])
    pictures = np.concatenate(
        [module.cut_out(clip) for clip in frames.checked.clips if clip.bucket[1:] == batch.shape[2:]]
    )
    of = {picture.tobytes() for picture in pictures}

    def bytes_of(row):
        return ((row + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy().tobytes()

    assert all(bytes_of(row) in of for row in batch)
    time_of = {
        frame.tobytes(): time for clip in frames.checked.clips for time, frame in enumerate(module.cut_out(clip))
    }
    assert {time_of[bytes_of(row)] for step in range(6) for row in frames.batch(step, 4)} == {0, 1, 2, 3}
    held = frames.held_out(3, 4)
    assert sum(map(len, held)) <= 12
    assert {row.numpy().tobytes() for part in held for row in part}.isdisjoint(
        row.numpy().tobytes() for step in range(20) for row in frames.batch(step, 4)
    )


def test_held_out_frames_are_of_all_sizes_by_their_share(folder, tmp_path):
    """Twelve clips and four, of 4 frames each."""
    data = Data(folder=folder, sizes=[(32, 32), (32, 48)], frames=4, validation=0)
    frames = OwnFrames.prepare(data, tmp_path, seed=0)
    for most, share in ((2, (1, 1)), (8, (6, 2)), (99, (24, 8))):
        widths = Counter(part.shape[3] for part in frames.held_out(most, 2))
        assert (widths[32], widths[48]) == share
