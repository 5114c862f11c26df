import numpy as np
import pytest
from PIL import Image

from guidon import world
from guidon.core.errors import InputError
from guidon.media import contact_sheet, load_video
from guidon.media.sheet import _fitting, sheet_of_samples

CLIP = (world.clip("train", 0, 3).frames() * 255).round().astype(np.uint8)


def test_a_contact_sheet_shows_every_clip_under_its_labels(tmp_path):
    red, blue = (np.broadcast_to(np.array(c, np.uint8), (8, 64, 64, 3)) for c in ((255, 0, 0), (0, 0, 255)))
    path = contact_sheet(
        [[red, blue], [blue, red]], ["a prompt " * 30, "second"], ["sample 0", "sample 1"], path=tmp_path / "sheet.png"
    )
    sheet = np.asarray(Image.open(path))
    for colour in ((255, 0, 0), (0, 0, 255)):
        assert (sheet == colour).all(-1).sum() == 2 * 4 * 192 * 192
    dark = (sheet.max(-1) < 120).any(1)
    assert dark[:20].any()
    assert dark[20:60].any()


def test_long_column_labels_stay_in_their_column(tmp_path):
    def label_ink(labels):
        sheet = np.asarray(Image.open(contact_sheet([[CLIP, CLIP]], ["p"], labels, path=tmp_path / "sheet.png")))
        return sheet[:20].min(axis=(0, 2)) < 128

    short, long = label_ink(["a", "b"]), label_ink(["a label " * 40, "b"])
    middle = len(short) // 2
    assert np.array_equal(long[middle:], short[middle:])
    assert long[:middle].sum() > short[:middle].sum()


@pytest.mark.parametrize(
    ("clips", "rows", "columns", "message"),
    [([], [], [], "at least one clip"), ([[CLIP, CLIP[:, :32]]], ["a"], ["b", "c"], "one size, not 64x32, 64x64")],
)
def test_a_contact_sheet_refuses_what_it_cannot_show(tmp_path, clips, rows, columns, message):
    with pytest.raises(InputError, match=message):
        contact_sheet(clips, rows, columns, path=tmp_path / "sheet.png")
    assert list(tmp_path.iterdir()) == []


def test_a_contact_sheet_needs_its_labels(tmp_path):
    with pytest.raises(InputError, match="one label per row"):
        contact_sheet([[CLIP]], [], ["a"], path=tmp_path / "sheet.png")


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_a_moving_sheet_plays_every_clip_in_its_cell(tmp_path, suffix):
    shorter = CLIP[:5, ::-1]
    path = contact_sheet([[CLIP, shorter]], ["a prompt"], ["one", "two"], path=tmp_path / f"sheet.{suffix}", fps=4)
    frames, fps = load_video(path)
    assert (len(frames), fps) == (len(CLIP), 4)
    top = len(frames[0]) - 15 - 192  # the last row of cells ends 15 pixels above the border
    for left, clip in ((10, CLIP), (10 + 192 + 10, shorter)):
        for time, frame in enumerate(frames):
            shown = frame[top : top + 192 : 3, left : left + 192 : 3].astype(int)
            error = np.abs(shown - clip[min(time, len(clip) - 1)])
            assert error.max() <= (0 if suffix == "webp" else 40)  # a GIF has 256 colours a frame


@pytest.mark.parametrize("name", ["sheet.foo", "sheet"])
def test_a_contact_sheet_is_a_picture_in_a_folder_that_it_makes(tmp_path, name):
    clips = [[np.zeros((2, 16, 16, 3), np.uint8)]]
    with pytest.raises(InputError, match=r"ends in \.png, \.gif or \.webp"):
        contact_sheet(clips, ["a"], ["b"], path=tmp_path / name)
    assert contact_sheet(clips, ["a"], ["b"], path=tmp_path / "new" / "sheet.png").exists()


def test_many_samples_are_in_several_rows_of_the_sheet(tmp_path):
    clips = [[np.full((4, 64, 64, 3), 100 * row + 20 * k, np.uint8) for k in range(5)] for row in range(2)]
    shown = sheet_of_samples(clips, ["a circle", "a square"], range(5), path=tmp_path / "sheet.png")
    assert shown == 10
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.width < 1700
        colours = {red for _, (red, green, blue) in picture.getcolors(1 << 20) if red == green == blue}
        assert np.asarray(picture)[:20].min() == 255
    assert {20 * number for number in range(10)} <= colours
    sheet_of_samples(clips, ["a circle", "a square"], range(5), path=tmp_path / "sheet.png", heading="cfg_scale 3")
    with Image.open(tmp_path / "sheet.png") as picture:
        assert np.asarray(picture)[:20].min() < 128


def test_a_contact_sheet_stays_a_picture_that_can_be_opened():
    assert _fitting(3, 2, 64 * 64) == (3, 2)
    assert _fitting(1, 1, 8192 * 8192) == (1, 1)
    for prompts, samples, pixels in ((10**5, 1, 4096), (1, 10**5, 4096), (10**4, 10**4, 65536), (100, 100, 1 << 24)):
        rows, columns = _fitting(prompts, samples, pixels)
        assert 1 <= rows <= prompts
        assert 1 <= columns <= samples
        assert rows * columns * 4 * pixels <= 1 << 26
