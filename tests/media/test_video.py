import json

import numpy as np
import pytest

from guidon.core.errors import InputError
from guidon.media import Video, load_video

FRAMES = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)


def test_a_video_is_saved_with_its_manifest_beside_it(tmp_path):
    manifest = {"generation": {"prompts": ["ein Kreis für dich"]}, "fps": 8}
    path = Video(FRAMES, 8, manifest).save(tmp_path / "new" / "a.webp")
    assert path == tmp_path / "new" / "a.webp"
    frames, fps = load_video(path)
    assert np.array_equal(frames, FRAMES)
    assert fps == 8
    assert json.loads((tmp_path / "new" / "a.webp.json").read_text(encoding="utf-8")) == manifest


def test_the_format_may_be_given_in_place_of_a_suffix(tmp_path):
    path = Video(FRAMES, 8, {}).save(tmp_path / "clip", "frames")
    assert np.array_equal(load_video(path)[0], FRAMES)
    assert (tmp_path / "clip.json").is_file()


def test_a_video_that_cannot_be_written_leaves_no_manifest(tmp_path):
    with pytest.raises(InputError, match="did you mean 'mp4'"):
        Video(FRAMES, 8, {}).save(tmp_path / "a.mp5")
    assert list(tmp_path.iterdir()) == []
