import os

import pytest

from guidon.training.data import checking
from guidon.training.data.checking import check_data
from guidon.training.recipe.data import Data
from panned_clips import write_clips

LONG_AGO = 1_600_000_000


@pytest.fixture
def clips(tmp_path):
    folder = write_clips(tmp_path / "clips", 4, frames=5, height=16, width=24)
    for path in folder.iterdir():
        os.utime(path, (LONG_AGO, LONG_AGO))
    return folder


@pytest.fixture
def check(clips, tmp_path, monkeypatch):
    """Checks the clips. Returns what was found, and the names of the files that were looked at."""
    looked = []
    look = checking.look

    def noted(content):
        looked.append(content.path.name)
        return look(content)

    monkeypatch.setattr(checking, "look", noted)

    def check(place=tmp_path / "kept", thorough=False, **values):
        looked.clear()
        data = Data(**{"folder": clips, "size": (16, 16), "frames": 2, "fps": 16.0, "validation": 0} | values)
        return check_data(data, "captions", place=place, thorough=thorough), sorted(looked)

    return check


def test_files_are_looked_at_once(check, clips):
    first, looked = check()
    assert len(looked) == 4
    again, looked = check()
    assert looked == []
    assert [clip.key for clip in again.clips] == [clip.key for clip in first.clips]
    assert (again.notes, again.report(1)) == (first.notes, first.report(1))
    assert "fewer than 16 frames per second" in again.notes[0]
    (clips / "00.mp4").write_bytes((clips / "01.mp4").read_bytes() + b"\0")
    assert check()[1] == ["00.mp4"]


def test_captions_and_places_are_read_anew(check, clips):
    check()
    path = clips / "metadata.jsonl"
    path.write_text(path.read_text().replace("stones", "rocks"))
    found, looked = check(validation=0.5, crop="none")
    assert looked == []
    assert "rocks" in found.clips[0].given.captions[0]
    assert found.held_out
    assert {clip.crop for clip in found.clips} == {"none"}


def test_other_settings_and_a_thorough_check_look_again(check):
    check()
    for other in (
        {"frames": 1},
        {"size": (16, 24)},
        {"fps": 8.0},
        {"clips_per_video": 2},
        {"thorough": True},
        {"place": None},
    ):
        assert len(check(**other)[1]) == 4


def test_files_that_changed_just_now_are_looked_at_again(check, clips):
    os.utime(clips / "02.mp4")
    check()
    assert check()[1] == ["02.mp4"]


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data.replace(b"16", b"17", 1), lambda data: b"", lambda data: b"\xff"])  # fmt: skip
def test_a_damaged_list_is_not_used(check, tmp_path, damage):
    check()
    [path] = (tmp_path / "kept").iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert len(check()[1]) == 4
    assert path.read_bytes() == whole


def test_what_was_found_is_kept_where_a_check_stops(check, clips, monkeypatch):
    keys = checking._clips_of
    monkeypatch.setattr(
        checking, "_clips_of", lambda given, *more: stop() if given.name.endswith("02.mp4") else keys(given, *more)
    )

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check()
    monkeypatch.setattr(checking, "_clips_of", keys)
    assert check()[1] == ["03.mp4"]
