import base64
import copy
import io
import json
import pickle
import re

import numpy as np
import pytest
from PIL import Image, ImageSequence

from guidon.core.errors import InputError
from guidon.media import Video, load_video
from guidon.media.files import shrink

FRAMES = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)


def test_a_video_is_saved_with_its_manifest_beside_it(tmp_path):
    manifest = {"generation": {"prompts": ["ein Kreis für dich"]}, "fps": 8}
    path = Video(FRAMES, 8, manifest).save(tmp_path / "new" / "a.webp")
    assert path == tmp_path / "new" / "a.webp"
    frames, fps = load_video(path)
    assert np.array_equal(frames, FRAMES)
    assert fps == 8
    written = {"format": "webp", "fps": 8, "upscale": 1}
    assert json.loads((tmp_path / "new" / "a.webp.json").read_text(encoding="utf-8")) == manifest | {"output": written}


@pytest.mark.parametrize("suffix", ["webp", "gif", "mp4", ""])
def test_a_video_can_be_enlarged_for_looking_and_is_shrunk_to_what_it_was(tmp_path, suffix):
    frames = np.repeat(FRAMES[:, :, :, :1] // 64 * 64, 3, axis=3)[:, :15, :9]  # few greys, which a gif keeps
    path = Video(frames, 8, {}).save(tmp_path / f"a.{suffix}".rstrip("."), upscale=5, fps=12)
    enlarged, fps = load_video(path)
    assert fps == (12 if suffix else 8)  # pictures do not record a rate
    assert (enlarged.shape[1] // 2, enlarged.shape[2] // 2) == (
        75 // 2 + (suffix == "mp4"),
        45 // 2 + (suffix == "mp4"),
    )
    found = shrink(enlarged, 5, 15, 9)
    assert np.abs(found.astype(int) - frames).max() <= (12 if suffix == "mp4" else 0)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"upscale": 0}, "upscale 0 is not a factor: give a whole number of at least 1"),
        ({"upscale": 4096}, "upscale 4096 makes 3 frames of 65536x65536 pixels.* give at most 512"),
        ({"upscale": 2.5}, "upscale 2.5 is not a factor"),
        ({"upscale": True}, "upscale True is not a factor"),
        ({"upscale": "4"}, "upscale '4' is not a factor"),
        ({"fps": "8"}, "fps '8' is not a rate"),
        ({"fps": True}, "fps True is not a rate"),
        ({"fps": 0}, "fps 0 is not a rate: give a number from 0.1 to 1000"),
        ({"fps": float("nan")}, "fps nan is not a rate"),
        ({"fps": 10**400}, "fps 10+.* is not a rate"),
    ],
)
def test_what_a_file_cannot_hold_is_refused(tmp_path, choice, message):
    with pytest.raises(InputError, match=message):
        Video(FRAMES, 8, {}).save(tmp_path / "a.webp", **choice)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_takes_no_file_is_refused():
    with pytest.raises(InputError, match="the folder /proc is not writable"):
        Video(FRAMES, 8, {}).save("/proc/x.gif")


@pytest.mark.parametrize("length", [251, 256])
def test_a_name_that_is_too_long_for_the_video_or_its_manifest_is_refused(tmp_path, length):
    with pytest.raises(InputError, match=r"bytes, is too long for a file: give a shorter name"):
        Video(FRAMES, 8, {}).save(tmp_path / ("x" * (length - 4) + ".gif"))
    assert not list(tmp_path.iterdir())


def test_the_format_may_be_given_in_place_of_a_suffix(tmp_path):
    path = Video(FRAMES, 8, {}).save(tmp_path / "clip", "frames")
    assert np.array_equal(load_video(path)[0], FRAMES)
    assert (tmp_path / "clip.json").is_file()


def test_a_video_that_cannot_be_written_leaves_no_manifest(tmp_path):
    with pytest.raises(InputError, match="did you mean 'mp4'"):
        Video(FRAMES, 8, {}).save(tmp_path / "a.mp5")
    assert list(tmp_path.iterdir()) == []


CLIP = Video(
    FRAMES, 8, {"generation": {"prompts": ["a <b>red</b> circle"], "cfg_scale": 3.0, "cfg_channels": "3", "seed": 7}}
)


def test_a_video_says_what_it_is_in_one_line():
    assert (
        repr(CLIP) == "<Video 'a <b>red</b> circle', 16x16, 3 frames at 8 fps, cfg_scale 3.0, cfg_channels 3, seed 7>"
    )
    assert repr(Video(FRAMES[:1], 8, {})) == "<Video 16x16>"
    assert (CLIP.prompt, Video(FRAMES, 8, {}).prompt) == ("a <b>red</b> circle", None)


def shown(html):
    """The picture in a video's HTML, as an image that Pillow decodes."""
    return Image.open(io.BytesIO(base64.b64decode(re.search('data:image/webp;base64,([^"]*)"', html)[1])))


def test_a_notebook_shows_the_frames_of_a_small_clip_enlarged_and_exact():
    picture = shown(CLIP._repr_html_())
    assert (picture.size, picture.n_frames) == ((256, 256), 3)
    for k, frame in enumerate(ImageSequence.Iterator(picture)):
        assert np.array_equal(np.asarray(frame.convert("RGB"))[::16, ::16], FRAMES[k])
        assert frame.info["duration"] == 125


@pytest.mark.parametrize("shape", [(1, 8, 4000, 3), (1, 3000, 3000, 3), (300, 200, 360, 3), (2000, 16, 16, 3)])
def test_what_a_notebook_holds_of_a_large_clip_is_small(shape):
    rng = np.random.default_rng(0)
    frames = np.repeat(rng.integers(0, 256, (*shape[:1], 8, 4, 3), np.uint8), -(-shape[1] // 8), 1)
    frames = np.repeat(frames, -(-shape[2] // 4), 2)[:, : shape[1], : shape[2]]
    html = Video(frames, 8, {})._repr_html_()
    assert len(html) < 3 << 20
    assert shown(html).n_frames == shape[0]


def test_a_caption_cannot_break_the_html():
    html = Video(FRAMES, 8, {"generation": {"prompts": ['"><script>x</script>']}})._repr_html_()
    assert "<script>" not in html
    assert re.search('alt="&quot;&gt;&lt;script&gt;', html)


def test_without_pillow_a_notebook_shows_the_text(monkeypatch):
    monkeypatch.setattr("guidon.media.preview.find_spec", lambda name: None)
    assert CLIP._repr_html_() is None


def test_videos_are_equal_by_their_content_and_survive_pickling_and_copying():
    for other in (pickle.loads(pickle.dumps(CLIP)), copy.copy(CLIP), copy.deepcopy(CLIP)):
        assert other == CLIP
        assert hash(other) == hash(CLIP)
    assert CLIP not in (Video(FRAMES[:2], 8, CLIP.manifest), Video(FRAMES, 9, CLIP.manifest), Video(FRAMES, 8, {}), 3)


@pytest.mark.parametrize("path", [3, None, b"a.mp4"])
def test_what_is_no_path_is_refused(path):
    with pytest.raises(InputError, match="give a path such as"):
        CLIP.save(path)
