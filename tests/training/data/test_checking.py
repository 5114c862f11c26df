import shutil

import numpy as np
import pytest

from guidon.core.errors import InputError
from guidon.media import save_video
from guidon.training.data.checking import check_data
from guidon.training.data.cutting import cut_out
from guidon.training.data.defects import LISTED, refuse_or_tell
from guidon.training.recipe.data import Data
from panned_clips import pan, write_clips, write_rows

SMALL = {"frames": 6, "height": 40, "width": 48}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Six good clips of 6 frames, 40x48, at 8 frames per second."""
    return write_clips(tmp_path_factory.mktemp("clips") / "clips", 6, **SMALL)


def checked(folder, wanted="captions", *, thorough=False, **values):
    return check_data(Data(**{"folder": folder, "size": (32, 32), "frames": 4} | values), wanted, thorough=thorough)


def gray(path, frames=6, height=40, width=48):
    """A clip whose frame k has the value 10 k, without loss."""
    shown = np.arange(frames, dtype=np.uint8)[:, None, None, None] * 10
    return save_video(np.broadcast_to(shown, (frames, height, width, 3)).copy(), path)


def test_good_clips_have_no_defects(clips):
    found = checked(clips, validation=0.4, thorough=True)
    assert not found.defects
    assert not found.notes
    assert len(found.clips) + len(found.held_out) == 6
    assert {clip.bucket for clip in found.clips} == {(4, 32, 32)}
    assert {clip.fps for clip in found.clips} == {8.0}
    assert found.report(4)[0].startswith(f"to train on: {len(found.clips)} clips of {len(found.clips)} files")


def test_every_defect_is_named(tmp_path):
    folder = write_clips(tmp_path / "clips", 2, **SMALL)
    shutil.copy(folder / "00.mp4", folder / "copy.mp4")
    save_video(pan(7, frames=6, height=30, width=48)[0], folder / "small.mp4")
    save_video(pan(8, frames=3, height=40, width=48)[0], folder / "short.mp4")
    for name in ("empty.mp4", "silent.mp4"):
        save_video(pan(len(name), **SMALL)[0], folder / name)
    whole = (folder / "01.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "notes.pdf").write_bytes(b"%PDF")
    (folder / "folder.mp4").mkdir()
    rows = {
        "00.mp4": "good", "gone.mp4": "x", "../out.mp4": "x", "notes.pdf": "x", "cut.mp4": "x", "small.mp4": "x",
        "short.mp4": "x", "empty.mp4": " ", "copy.mp4": "x", "00.mp4 ": "again", "folder.mp4": "x",
    }  # fmt: skip
    write_rows(
        folder,
        [*({"file_name": name.strip(), "caption": text} for name, text in rows.items()), {"file_name": "silent.mp4"}],
    )
    found = checked(folder)
    wanted = [
        ("gone.mp4", 2, "missing", "it is not there"),
        ("../out.mp4", 3, "outside", "outside the folder"),
        ("notes.pdf", 4, "unsupported", "not in a format"),
        ("cut.mp4", 5, "undecodable", "it ends early"),
        ("small.mp4", 6, "too small", "its pictures are 30x48, smaller than 32x32"),
        ("short.mp4", 7, "too short", "it has 3 frames, fewer than 4"),
        ("empty.mp4", 8, "empty caption", "its caption is empty"),
        ("copy.mp4", 9, "duplicate", f"it has the same content as {folder / '00.mp4'} ({folder / 'metadata.jsonl'}, line 1)"),
        ("00.mp4", 10, "duplicate", f"it is given twice, first ({folder / 'metadata.jsonl'}, line 1)"),
        ("folder.mp4", 11, "missing", "it is a folder"),
        ("silent.mp4", 12, "no caption", "it has no caption"),
    ]  # fmt: skip
    told = {
        (defect.kind, line): str(defect) for defect in found.defects for line in [int(defect.row.rpartition(" ")[2])]
    }
    assert set(told) == {(kind, line) for _, line, kind, _ in wanted}
    for name, line, kind, why in wanted:
        assert f"{name} ({folder / 'metadata.jsonl'}, line {line}): " in told[kind, line]
        assert why in told[kind, line]
    assert [clip.given.captions for clip in found.clips] == [("good",)]
    assert found.notes[0] == f"{folder / '01.mp4'} is in no row of the metadata: it is not trained on"


def test_a_refusal_lists_ten_and_counts_the_rest(tmp_path, capsys):
    write_rows(tmp_path, [{"file_name": f"{number}.mp4", "caption": "x"} for number in range(LISTED + 3)])
    defects = checked(tmp_path).defects
    with pytest.raises(
        InputError, match=r"^13 files \(13 missing\) cannot be used: 1\. .*; 10\. .*; and 3 more\. "
    ) as caught:
        refuse_or_tell(defects, False)
    assert "11. " not in str(caught.value)
    refuse_or_tell(defects, True)
    assert capsys.readouterr().err.count("left out: ") == 13
    refuse_or_tell([], False)


def test_captions_may_be_empty_or_not_needed(tmp_path):
    folder = write_clips(tmp_path / "clips", 2, metadata=None, **SMALL)
    (folder / "00.txt").write_text("")
    (folder / "01.txt").unlink()
    assert {defect.kind for defect in checked(folder).defects} == {"no caption", "empty caption"}
    assert not checked(folder, allow_empty=True).defects
    assert not checked(folder, "nothing").defects


def test_classes_are_numbered(tmp_path):
    for number, name in enumerate(("dogs", "cats", "cats")):
        save_video(pan(number, frames=1, height=32, width=32)[0], tmp_path / name / f"{number}.png")
    found = checked(tmp_path, "classes", frames=1, validation=0)
    assert found.classes == ["cats", "dogs"]
    assert sorted((clip.given.label, found.class_number(clip)) for clip in found.clips) == [("cats", 0), ("cats", 0), ("dogs", 1)]  # fmt: skip
    rows = [{"file_name": f"{name}/{number}.png", "label": 5 + number} for number, name in enumerate(("dogs", "cats"))]
    write_rows(tmp_path, [*rows, {"file_name": "cats/2.png", "label": 0}])
    found = checked(tmp_path, "classes", frames=1, validation=0)
    assert found.classes == [str(number) for number in range(7)]
    assert sorted(found.class_number(clip) for clip in found.clips) == [0, 5, 6]
    write_rows(tmp_path, [{"file_name": "cats/2.png", "label": 10**9}])
    with pytest.raises(InputError, match="the number of a class is 1000000000"):
        checked(tmp_path, "classes", frames=1)


def test_files_without_a_class_are_named(tmp_path):
    gray(tmp_path / "a.gif")
    assert [defect.kind for defect in checked(tmp_path, "classes").defects] == ["no class"]


@pytest.mark.parametrize(
    ("pictures", "sizes", "chosen"),
    [
        ((40, 48), [(32, 32), (32, 40), (40, 24)], (32, 40)),
        ((40, 48), [(20, 24), (40, 48), (30, 36)], (40, 48)),  # one shape: the largest
        ((30, 36), [(20, 24), (40, 48), (30, 36)], (30, 36)),
        ((48, 40), [(32, 64), (64, 32), (32, 32)], (32, 32)),  # the nearest does not fit into the pictures
        ((64, 32), [(32, 64), (64, 32), (32, 32)], (64, 32)),
    ],
)
def test_a_clip_gets_the_size_nearest_in_shape_that_it_fills(tmp_path, pictures, sizes, chosen):
    gray(tmp_path / "a.gif", 4, *pictures)
    [clip] = checked(tmp_path, "nothing", size=None, sizes=sizes).clips
    assert clip.bucket[1:] == chosen
    assert cut_out(clip).shape == (4, *chosen, 3)


def test_small_pictures_are_enlarged_if_asked(tmp_path):
    gray(tmp_path / "a.gif", 4, 20, 20)
    assert not checked(tmp_path, "nothing").clips
    [clip] = checked(tmp_path, "nothing", enlarge=True).clips
    assert cut_out(clip).shape == (4, 32, 32, 3)


def test_a_clip_gets_the_longest_length_that_it_has(tmp_path):
    for frames in (1, 3, 5, 9):
        save_video(pan(frames, frames=frames, height=32, width=32)[0], tmp_path / f"{frames}.mp4")
    found = checked(tmp_path, "nothing", frames=(1, 4, 8), validation=0)
    assert {clip.given.content.path.stem: clip.bucket.frames for clip in found.clips} == {
        "1": 1,
        "3": 1,
        "5": 4,
        "9": 8,
    }


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({}, [[4, 5, 6, 7]]),
        ({"clips_per_video": 3}, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]),
        ({"clips_per_video": 2}, [[0, 1, 2, 3], [8, 9, 10, 11]]),
        ({"clips_per_video": 99, "frames": 10}, [list(range(k, k + 10)) for k in range(3)]),
        ({"fps": 8}, [[4, 5, 6, 7]]),
        ({"fps": 4}, [[2, 4, 6, 8]]),
        ({"fps": 3, "frames": 3}, [[0, 3, 5]]),
        ({"fps": 16}, [[5, 5, 6, 6]]),
        ({"fps": 16, "frames": 24}, [[k // 2 for k in range(24)]]),
    ],
)
def test_clips_are_spread_evenly_and_frames_are_chosen_by_time(tmp_path, values, wanted):
    gray(tmp_path / "a.gif", 12)
    found = checked(tmp_path, "nothing", **values)
    starts = sorted(cut_out(clip)[:, 0, 0, 0].tolist() for clip in found.clips)
    assert [[value // 10 for value in clip] for clip in starts] == wanted


def test_a_crop_is_the_middle(tmp_path):
    frames = np.zeros((1, 32, 96, 3), np.uint8)
    frames[:, :, 32:64] = 255
    save_video(frames, tmp_path / "a.png")
    [clip] = checked(tmp_path, "nothing", frames=1).clips
    assert cut_out(clip).min() == 255
    [clip] = checked(tmp_path, "nothing", frames=1, crop="none").clips
    [shown] = cut_out(clip)
    assert shown[:, :9].max() < 10
    assert shown[:, 12:20].min() > 245


def test_pictures_are_made_smaller_without_false_patterns(tmp_path):
    """A fine chequerboard becomes gray, where its pixels would be picked without a filter."""
    board = np.indices((96, 96)).sum(0) % 2 * 255
    save_video(np.repeat(board[None, :, :, None], 3, 3).astype(np.uint8), tmp_path / "a.png")
    [clip] = checked(tmp_path, "nothing", frames=1).clips
    assert np.abs(cut_out(clip)[:, 2:-2, 2:-2].astype(int) - 127).max() <= 3


def test_a_picture_of_the_size_is_as_it_was(tmp_path):
    frames, _ = pan(9, frames=1, height=32, width=32)
    save_video(frames, tmp_path / "a.png")
    [clip] = checked(tmp_path, "nothing", frames=1).clips
    assert np.array_equal(cut_out(clip), frames)


def test_what_is_held_out_stays_so_when_files_are_added(tmp_path):
    names = {}
    for count in (4, 12, 24):
        for number in range(count):
            save_video(np.full((1, 32, 32, 3), number * 9, np.uint8), tmp_path / f"{number}.png")
        found = checked(tmp_path, "nothing", frames=1, validation=0.3)
        names[count] = {clip.given.name for clip in found.held_out}
    assert names[4]
    assert names[4] <= names[12] <= names[24]
    assert 3 <= len(names[24]) <= 12
    assert {clip.sha256 for clip in found.clips}.isdisjoint(clip.sha256 for clip in found.held_out)


def test_at_least_one_file_is_held_out_and_one_is_trained_on(tmp_path, clips):
    assert len(checked(clips, validation=1e-6).held_out) == 1
    assert len(checked(clips, validation=0.999999).clips) == 1
    assert not checked(clips, validation=0).held_out
    gray(tmp_path / "a.gif")
    found = checked(tmp_path, "nothing")
    assert (len(found.clips), len(found.held_out)) == (1, 0)
    assert "one file alone" in found.notes[0]


def test_a_folder_is_held_out(tmp_path, clips):
    held = write_clips(tmp_path / "held", 2, frames=6, height=40, width=56)
    shutil.copy(clips / "00.mp4", held / "same.mp4")
    write_rows(held, [{"file_name": name, "caption": "x"} for name in ("00.mp4", "01.mp4", "same.mp4")])
    found = checked(clips, validation=held)
    assert (len(found.clips), len(found.held_out)) == (6, 2)
    assert [defect.kind for defect in found.defects] == ["duplicate"]


def test_order_and_keys_do_not_depend_on_names(tmp_path, clips):
    moved = tmp_path / "moved"
    shutil.copytree(clips, moved)
    for path in moved.glob("*.mp4"):
        path.rename(path.with_name(f"{9 - int(path.stem)}.mp4"))
    (moved / "metadata.jsonl").unlink()
    assert [clip.key for clip in checked(moved, "nothing").clips] == [
        clip.key for clip in checked(clips, "nothing").clips
    ]
    other = {clip.key for clip in checked(clips, "nothing", crop="none").clips}
    assert other.isdisjoint(clip.key for clip in checked(clips, "nothing").clips)


def test_damage_inside_of_a_file_is_found_by_a_thorough_check(tmp_path):
    folder = write_clips(tmp_path / "clips", 1, frames=12, height=40, width=48)
    path = folder / "00.mp4"
    data = path.read_bytes()
    middle = data.index(b"mdat") + (len(data) - data.index(b"mdat")) * 3 // 4
    path.write_bytes(data[:middle] + bytes(60) + data[middle + 60 :])
    assert not checked(folder, frames=12).defects
    [defect] = checked(folder, frames=12, thorough=True).defects
    assert (defect.kind, defect.file) == ("undecodable", str(path))


def test_uneven_and_slow_videos_are_told(tmp_path):
    from fractions import Fraction

    import av

    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("mpeg4", rate=24)
        stream.height, stream.width, stream.pix_fmt, stream.codec_context.time_base = (
            32,
            32,
            "yuv420p",
            Fraction(1, 1000),
        )
        for time in (0, 40, 80, 500, 540):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), time // 5, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert "some frames longer than others" in checked(tmp_path, "nothing").notes[0]
    found = checked(tmp_path, "nothing", fps=20, frames=10, validation=0)
    assert "fewer than 20 frames per second" in found.notes[0]
    [clip] = found.clips
    assert [value // 8 for value in cut_out(clip)[:, 9, 9, 0].tolist()][2:5] == [2, 2, 2]  # shown until 0.29 s
