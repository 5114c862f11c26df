import io
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from guidon.core.errors import InputError
from guidon.core.reading import FRAME_PIXELS, PIXELS
from guidon.media import streaming
from guidon.media.files import as_images, load_video, save_video
from guidon.media.streaming import Content, frames_at, look, looks_like_media
from panned_clips import pan

UNITY, QUARTER_TURN = (
    struct.pack(">9i", *matrix)
    for matrix in (
        (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30),
        (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30),
    )
)


def write(path, frames, *, times=None, unit=None, codec="libx264", aspect=None, sound=False):
    """A video with b-frames and a key frame every five, whose frames are shown at ``times`` in ``unit``."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=24)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.codec_context.gop_size = 5
        if codec == "libx264":
            stream.options = {"bf": "2", "crf": "1"}
        if unit is not None:
            stream.codec_context.time_base = unit
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if sound:
            container.add_stream("aac", rate=44100)
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            if times is not None:
                picture.pts, picture.time_base = times[number], unit
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def read(path, numbers, **part):
    content = Content(path, **part)
    found = look(content)
    return np.stack(list(frames_at(content, found, [int(found.ticks[number]) for number in numbers])))


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.ts", "a.webm", "a.gif", "a.webp"])
def test_chosen_frames_are_those_of_the_whole_video(tmp_path, name):
    frames, _ = pan(0, frames=12, height=32, width=48)
    path = tmp_path / name
    if name.endswith(("gif", "webp")):
        save_video(frames, path)
    else:
        write(path, frames, codec={"avi": "mpeg4", "webm": "libvpx-vp9"}.get(name[2:], "libx264"))
    whole, _ = load_video(path)
    for numbers in ([0, 1, 2], [7, 8], [6, 6, 11], [11]):
        assert np.array_equal(read(path, numbers), whole[numbers]), numbers


def test_a_part_of_an_archive_is_read_as_a_file_of_its_own(tmp_path):
    for suffix in ("mp4", "gif", "png"):
        frames, _ = pan(1, frames=1 if suffix == "png" else 6, height=32, width=48)
        path = save_video(frames, tmp_path / f"a.{suffix}")
        data = path.read_bytes()
        archive = tmp_path / "archive"
        archive.write_bytes(b"before" + data + b"after")
        content = Content(archive, (6, len(data)), "a")
        assert content.sha256() == Content(path).sha256()
        last = len(frames) - 1
        assert np.array_equal(read(archive, [0, last], part=(6, len(data))), load_video(path)[0][[0, last]])


def test_only_chosen_frames_are_converted(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mp4", pan(2, frames=20, height=32, width=48)[0])
    made = []
    upright = streaming._upright
    monkeypatch.setattr(streaming, "_upright", lambda *given: made.append(1) or upright(*given))
    read(path, [12, 12, 14])
    assert len(made) == 2


def test_times_are_those_of_the_frames(tmp_path):
    times = [0, 40, 80, 160, 200, 240]
    path = write(tmp_path / "a.mkv", pan(3, frames=6, height=32, width=48)[0], times=times, unit=Fraction(1, 1000))
    found = look(Content(path))
    assert [round(float(tick) * found.tick, 3) for tick in found.ticks] == [time / 1000 for time in times]
    assert not found.is_steady
    even = look(Content(write(tmp_path / "b.mp4", pan(3, frames=12, height=32, width=48)[0], sound=True)))
    assert even.is_steady
    assert (even.frames, even.fps, even.seconds) == (12, pytest.approx(24), pytest.approx(0.5))


def test_a_video_is_turned_as_the_camera_was_held(tmp_path):
    frames = np.zeros((6, 32, 48, 3), np.uint8)
    frames[:, :16, :16] = 255  # a light corner, top left
    path = write(tmp_path / "a.mp4", frames)
    data = path.read_bytes()
    assert UNITY in data[data.index(b"tkhd") :]
    at = data.index(UNITY, data.index(b"tkhd"))
    path.write_bytes(data[:at] + QUARTER_TURN + data[at + len(UNITY) :])
    found = look(Content(path))
    assert (found.height, found.width) == (48, 32)
    [shown] = read(path, [3])
    assert shown.shape == (48, 32, 3)
    assert shown[8, 24].min() > 200  # top right, after a quarter turn to the right
    assert shown[8, 8].max() < 50
    assert np.array_equal(load_video(path)[0][3], shown)


def test_the_size_is_that_of_square_pixels(tmp_path):
    path = write(tmp_path / "a.mp4", pan(4, frames=3, height=32, width=48)[0], aspect=Fraction(4, 3))
    found = look(Content(path))
    assert (found.height, found.width) == (32, 64)
    whole, _ = load_video(path)
    assert whole.shape == (3, 32, 64, 3)
    stretched = [image.resize((64, 32), Image.Resampling.BICUBIC) for image in as_images(read(path, [0, 1, 2]))]
    assert np.abs(whole - np.stack([np.asarray(image, float) for image in stretched])).mean() < 4


def test_a_wide_pixel_counts_as_the_square_ones_that_are_made_of_it(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mp4", pan(4, frames=3, height=32, width=48)[0], aspect=Fraction(4, 3))
    monkeypatch.setenv(PIXELS.variable, str(3 * 32 * 64))
    assert load_video(path)[0].size == 3 * 3 * 32 * 64
    monkeypatch.setenv(PIXELS.variable, str(3 * 32 * 64 - 1))
    with pytest.raises(InputError, match="6,144 pixels"):
        load_video(path)


def test_a_picture_is_one_frame(tmp_path):
    frames, _ = pan(5, frames=1, height=32, width=48)
    path = save_video(frames, tmp_path / "a.png")
    path = path.rename(tmp_path / "no suffix")
    found = look(Content(path))
    assert (found.kind, found.frames, found.fps, found.seconds) == ("picture", 1, None, 0.0)
    assert np.array_equal(read(path, [0]), frames)
    assert looks_like_media(Content(path))


def test_damage_is_an_error_and_no_wrong_frame(tmp_path):
    path = write(tmp_path / "a.mp4", pan(6, frames=12, height=32, width=48)[0])
    data, content = path.read_bytes(), Content(path)
    found = look(content)
    ticks = list(map(int, found.ticks))
    middle = data.index(b"mdat") + len(data) // 3
    path.write_bytes(data[:middle] + bytes(200) + data[middle + 200 :])
    with pytest.raises(InputError, match=r"a\.mp4 cannot be read as a video or a picture: .*write it anew"):
        list(frames_at(content, found, ticks))
    for kept in (0, 20, len(data) // 2, len(data) - 100):
        path.write_bytes(data[:kept])
        with pytest.raises(InputError, match=r"a\.mp4 cannot be read"):
            list(frames_at(content, look(content), ticks))
    path.write_bytes(b"<html>not found</html>")
    assert not looks_like_media(content)
    with pytest.raises(InputError, match=r"a\.mp4 cannot be read"):
        look(content)


def test_a_file_in_an_archive_is_named(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(b"nothing of use")
    with pytest.raises(InputError, match=r"a\.tar/0001\.mp4 cannot be read"):
        look(Content(path, (2, 8), "0001.mp4"))


def test_large_pictures_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    monkeypatch.setenv(FRAME_PIXELS.variable, "1000")
    frames, _ = pan(7, frames=2, height=32, width=48)
    for name in ("a.mp4", "a.gif", "a.png"):
        path = save_video(frames[:1] if name == "a.png" else frames, tmp_path / name)
        with pytest.raises(InputError, match=r"asks for 1,536 pixels in a frame"):
            look(Content(path))


def test_a_part_behaves_as_a_file(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"0123456789")
    with Content(path, (2, 5)).opened() as part:
        whole = io.BytesIO(b"23456")
        for act in (
            lambda f: f.read(2), lambda f: f.read(0), lambda f: f.tell(), lambda f: f.seek(-2, 2), lambda f: f.read(9),
            lambda f: f.seek(1), lambda f: f.seek(2, 1), lambda f: f.read(), lambda f: f.seek(99), lambda f: f.read(1),
        ):  # fmt: skip
            assert act(part) == act(whole)
