import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from guidon import world
from guidon.core.errors import InputError
from guidon.media import load_video, save_video

CLIP = (world.clip("train", 0, 3).frames() * 255).round().astype(np.uint8)


@pytest.mark.parametrize("name", ["a.webp", "frames"])
def test_lossless_formats_come_back_bit_for_bit(tmp_path, name):
    frames, fps = load_video(save_video(CLIP, tmp_path / name, fps=8))
    assert np.array_equal(frames, CLIP)
    assert fps == 8


@pytest.mark.parametrize(
    ("name", "decibels", "quick"), [("a.mp4", 30, False), ("a.mp4", 30, True), ("a.gif", 30, False)]
)
def test_lossy_formats_come_back_close(tmp_path, name, decibels, quick):
    frames, fps = load_video(save_video(CLIP, tmp_path / name, fps=8, quick=quick))
    assert frames.shape == CLIP.shape
    assert fps == pytest.approx(8, rel=0.05)
    error = ((frames.astype(float) - CLIP) ** 2).mean()
    assert error < 255**2 / 10 ** (decibels / 10)


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.webp"])
def test_the_same_frames_give_the_same_bytes(tmp_path, name):
    first = save_video(CLIP, tmp_path / name).read_bytes()
    assert save_video(CLIP, tmp_path / name).read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_odd_sizes_are_padded_for_h264(tmp_path):
    frames, _ = load_video(save_video(CLIP[:, :33, :31], tmp_path / "odd.mp4"))
    assert frames.shape[1:3] == (34, 32)


@pytest.mark.parametrize(
    ("frames", "name", "message"),
    [
        (CLIP.astype(float), "a.mp4", "expected uint8"),
        (CLIP[0], "a.mp4", "expected uint8"),
        (CLIP[:0], "a.gif", "expected uint8"),
        (CLIP, "a.mp5", "did you mean 'mp4'"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(tmp_path, frames, name, message):
    with pytest.raises(InputError, match=message):
        save_video(frames, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "frames"])
@pytest.mark.parametrize("picked", [[0] * 6, [0, 1, 1, 1, 2], [0, 0, 5]])
def test_frames_that_stand_still_all_come_back(tmp_path, name, picked):
    frames, _ = load_video(save_video(CLIP[picked], tmp_path / name))
    assert frames.shape == CLIP[picked].shape
    assert np.abs(frames.astype(int) - CLIP[picked]).max() <= 8


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.webp"])
@pytest.mark.parametrize("fps", [0.5, 24, 29.97])
def test_the_rate_comes_back(tmp_path, name, fps):
    assert load_video(save_video(CLIP[:4], tmp_path / name, fps))[1] == pytest.approx(fps, rel=1e-3)


def test_a_gif_shows_frames_for_the_nearest_time_that_it_can_hold(tmp_path):
    with Image.open(save_video(CLIP[:2], tmp_path / "a.gif", 15)) as image:
        assert image.info["duration"] == 70  # 66.7 ms


def test_a_gif_that_stands_still_for_too_long_is_refused(tmp_path):
    long = CLIP[[0] * 66]
    with pytest.raises(InputError, match=r"66 frames at 0\.1 fps stand still for longer than the 655 s"):
        save_video(long, tmp_path / "a.gif", 0.1)
    assert list(tmp_path.iterdir()) == []
    assert len(load_video(save_video(long[:65], tmp_path / "a.gif", 0.1))[0]) == 65


def test_another_programs_held_frames_are_taken_apart(tmp_path):
    first, *rest = (Image.fromarray(frame) for frame in CLIP[:3])
    first.save(tmp_path / "a.gif", save_all=True, append_images=rest, duration=[100, 300, 100])
    frames, fps = load_video(tmp_path / "a.gif")
    assert (len(frames), fps) == (5, 10)
    assert np.array_equal(frames[1], frames[3])


@pytest.mark.parametrize("name", ["a.gif", "a.webp"])
@pytest.mark.parametrize(
    ("times", "fps"), [([30, 30, 40], 30), ([70, 60], 1000 / 65), ([0, 100, 0], 10), ([0, 0], 8), ([60, 60], 1000 / 60)]
)
def test_frames_whose_times_are_rounded_or_left_out_are_read_once_each(tmp_path, name, times, fps):
    first, *rest = (Image.fromarray(frame) for frame in CLIP[: len(times)])
    first.save(tmp_path / name, save_all=True, append_images=rest, duration=times)
    frames, found = load_video(tmp_path / name)
    assert (len(frames), found) == (len(times), pytest.approx(fps))


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), 5000])
def test_an_impossible_rate_is_refused(tmp_path, fps):
    with pytest.raises(InputError, match=r"from 0\.1 to 1000"):
        save_video(CLIP, tmp_path / "a.mp4", fps)


def test_a_folder_of_frames_replaces_only_frames(tmp_path):
    save_video(CLIP, tmp_path / "clip")
    save_video(CLIP[:2], tmp_path / "clip")
    assert sorted(path.name for path in (tmp_path / "clip").iterdir()) == ["0000.png", "0001.png"]
    (tmp_path / "clip" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="would be lost"):
        save_video(CLIP, tmp_path / "clip")
    assert (tmp_path / "clip" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("clip", ["clip.webp", "clip.mp4", "clip"])
def test_a_folder_that_generate_wrote_is_no_clip(tmp_path, clip):
    save_video(CLIP[:2], tmp_path / clip)
    (tmp_path / f"{clip}.json").write_text("{}")
    save_video(CLIP[:1], tmp_path / "clip-sheet.png")
    with pytest.raises(InputError, match="give that file" if "." in clip else "give one of the clips in it"):
        load_video(tmp_path)


def test_a_frame_may_be_called_a_sheet(tmp_path):
    save_video(CLIP[:1], tmp_path / "clip-sheet.png")
    assert len(load_video(tmp_path)[0]) == 1


def test_a_place_that_cannot_hold_the_video_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder.mp4").mkdir()
    for path, message in (("file/a.mp4", "cannot be made"), ("file", "is a file"), ("folder.mp4", "is a folder")):
        with pytest.raises(InputError, match=message):
            save_video(CLIP, tmp_path / path)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_of_frames_may_name_them_in_capitals(tmp_path):
    save_video(CLIP, tmp_path / "clip")
    for file in list((tmp_path / "clip").iterdir()):
        file.rename(file.with_suffix(".PNG"))
    assert np.array_equal(load_video(tmp_path / "clip")[0], CLIP)


def test_files_that_are_no_video_are_refused(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"not a video")
    (tmp_path / "empty").mkdir()
    for name, message in (("a.mp4", "cannot be read"), ("empty", "holds no PNG"), ("none.mp4", "is not there")):
        with pytest.raises(InputError, match=message):
            load_video(tmp_path / name)


def test_a_video_without_a_decoder_is_refused(tmp_path):
    path = save_video(CLIP, tmp_path / "a.mp4")
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))
    with pytest.raises(InputError, match=r"a\.mp4 cannot be read as video: no decoder for it is installed"):
        load_video(path)


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.webp", "frames"])
def test_a_clip_of_too_many_pixels_is_refused_and_the_limit_can_be_raised(tmp_path, monkeypatch, name):
    path = save_video(CLIP, tmp_path / name)
    monkeypatch.setenv("GUIDON_MAX_PIXELS", str(CLIP[..., 0].size - 1))
    with pytest.raises(InputError, match="GUIDON_MAX_PIXELS"):
        load_video(path)
    monkeypatch.setenv("GUIDON_MAX_PIXELS", str(CLIP[..., 0].size))
    assert load_video(path)[0].shape == CLIP.shape
    monkeypatch.setenv("GUIDON_MAX_FRAME_PIXELS", str(CLIP[0, ..., 0].size - 1))
    with pytest.raises(InputError, match="GUIDON_MAX_FRAME_PIXELS"):
        load_video(path)


def test_frames_of_different_sizes_are_refused(tmp_path):
    for number, side in enumerate((4, 4, 5)):
        Image.new("RGB", (side, side)).save(tmp_path / f"{number}.png")
    with pytest.raises(InputError, match="its frames have different sizes"):
        load_video(tmp_path)


def test_a_png_is_a_clip_of_one_frame_and_a_jpeg_of_that_name_is_none(tmp_path):
    assert np.array_equal(load_video(save_video(CLIP[:1], tmp_path / "a.png"))[0], CLIP[:1])
    Image.fromarray(CLIP[0]).save(tmp_path / "b.png", format="JPEG")
    with pytest.raises(InputError, match="cannot be read as a frame"):
        load_video(tmp_path / "b.png")


@pytest.mark.parametrize("comment", ["3 frames at 0 fps", "3 frames at 8 fps", "2 frames at 5000 fps"])
def test_a_comment_that_does_not_fit_its_clip_is_refused(tmp_path, comment):
    first, second = (Image.fromarray(frame) for frame in CLIP[:2])
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second], duration=[130, 130], comment=comment.encode())
    with pytest.raises(InputError, match="its comment says"):
        load_video(tmp_path / "a.gif")


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".bmp"])
def test_a_picture_is_a_clip_of_one_frame(tmp_path, suffix):
    grey = np.full((16, 16, 3), 120, np.uint8)
    Image.fromarray(grey).save(tmp_path / f"a{suffix}")
    frames, fps = load_video(tmp_path / f"a{suffix}")
    assert (frames.shape, fps) == ((1, 16, 16, 3), 8.0)
    assert np.abs(frames[0].astype(int) - grey).max() <= 1


def test_a_picture_is_read_as_viewers_show_it(tmp_path):
    def read(image, name="a.png", **options):
        image.save(tmp_path / name, **options)
        return load_video(tmp_path / name)[0][0]

    deep = np.array([[0, 257 * 128], [257 * 200 + 100, 65535]], np.uint16)
    assert (read(Image.fromarray(deep)) == np.array([[0, 128], [200, 255]])[..., None]).all()
    clear = np.array([[[9, 9, 9, 255], [0, 0, 0, 0], [200, 0, 0, 51]]], np.uint8)
    assert read(Image.fromarray(clear, "RGBA")).tolist() == [[[9, 9, 9], [255, 255, 255], [244, 204, 204]]]
    turned = Image.Exif()
    turned[0x0112] = 6  # as a camera held upright writes it
    wide = Image.fromarray(np.repeat(np.array([[0, 255]], np.uint8).repeat(16, 1), 16, 0))
    seen = read(wide, "a.jpg", exif=turned, quality=95)
    assert seen.shape == (32, 16, 3)
    assert seen[:8].max() < 9
    assert seen[-8:].min() > 246


@pytest.mark.parametrize("name", ["a.gif", "a.webp"])
def test_transparent_parts_of_animations_become_white(tmp_path, name):
    drawn = np.zeros((3, 8, 8, 4), np.uint8)  # the last frame is empty
    drawn[0, :4], drawn[1, :, 4:] = (200, 0, 0, 255), (0, 0, 200, 255)
    images = [Image.fromarray(frame) for frame in drawn]
    images[0].save(tmp_path / name, save_all=True, append_images=images[1:], duration=100, disposal=2, lossless=True)
    frames, _ = load_video(tmp_path / name)
    assert np.array_equal(frames, np.where(drawn[..., 3:] == 0, 255, drawn[..., :3]))


def test_a_playlist_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile a.mp4\n")
    with pytest.raises(InputError, match="not in a format that Guidon reads: convert a video to mp4"):
        load_video(tmp_path / "list.mp4")


def test_frames_are_read_in_the_order_of_their_numbers(tmp_path):
    for number in (2, 9999, 10000):
        Image.fromarray(np.full((2, 2, 3), number % 251, np.uint8)).save(tmp_path / f"{number:04}.png")
    assert [int(frame[0, 0, 0]) for frame in load_video(tmp_path)[0]] == [2, 9999 % 251, 10000 % 251]


def test_rates_of_any_number_type(tmp_path):
    assert load_video(save_video(np.zeros((2, 16, 16, 3), np.uint8), tmp_path / "a.mp4", np.float32(8)))[1] == 8


def test_without_its_library_mp4_is_refused_and_the_other_formats_work(tmp_path, monkeypatch):
    written = save_video(CLIP, tmp_path / "a.mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError) as error:
        save_video(CLIP, tmp_path / "b.mp4")
    assert str(error.value) == "writing mp4 needs av, which is not installed: pip install 'guidon-diffusion[video]'"
    with pytest.raises(InputError, match=r"^reading mp4 needs av, which is not installed"):
        load_video(written)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    assert len(load_video(save_video(CLIP, tmp_path / "b.webp"))[0]) == len(CLIP)


def test_importing_media_imports_no_optional_library():
    code = "import sys, guidon.media; assert not {'av', 'matplotlib', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
