import json
import os
import tarfile
import unicodedata
from io import BytesIO

import pytest

from guidon.core.errors import InputError
from guidon.training.data.sources import METADATA_BYTES, ROWS, Listing, list_files

VIDEO = b"\0\0\0\x20ftypisom"  # as a video begins; nothing is decoded here


def listed(*places):
    found = Listing()
    for number, place in enumerate(places):
        list_files(place, number, found)
    return found


def told(found):
    """Name without suffix -> (captions, class). Captions are joined by a bar."""
    return {
        given.content.shown.stem: (
            given.captions if given.captions is None else " | ".join(given.captions),
            given.label,
        )
        for given in found.given
    }


def put(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(VIDEO)
    return folder


def written(path, text):
    path.write_text(text)
    return path


def packed(path, files):
    """A shard of (name, content)."""
    with tarfile.open(path, "w") as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, BytesIO(content))
    return path


ROWS_OF = {
    "metadata.jsonl": '{"file_name": "a.mp4", "caption": "one"}\n\n{"file_name": "sub/b.mp4", "text": "two \\n lines"}\n',
    "metadata.csv": 'file_name,caption\na.mp4,one\nsub/b.mp4,"two\nlines"\n',
    "train.csv": "path,text,num_frames\na.mp4,one,9\nsub/b.mp4,two lines,9\n",
    "lists.jsonl": '{"path": "a.mp4", "caption": ["one", " "]}\n{"path": "sub/b.mp4", "text": ["two lines"]}\n',
    "captions.jsonl": '{"video_path": "a.mp4", "caption": "one"}\n{"video_path": "sub/b.mp4", "prompt": "two lines"}\n',
}


@pytest.mark.parametrize("name", list(ROWS_OF))
@pytest.mark.parametrize("given", ["folder", "file"])
def test_metadata_says_the_captions(tmp_path, name, given):
    put(tmp_path, "a.mp4", "sub/b.mp4")
    (tmp_path / name).write_text("\ufeff" + ROWS_OF[name])  # some editors begin a file so
    found = listed(tmp_path if given == "folder" else tmp_path / name)
    assert told(found) == {"a": ("one", None), "b": ("two lines", "sub")}
    lines = {"metadata.jsonl": 3}.get(name, 2) + name.endswith(".csv")
    assert found.given[-1].row == f"{tmp_path / name}, line {lines}"
    assert not found.defects
    assert not found.notes


def test_a_contact_sheet_beside_its_clips_is_not_trained_on(tmp_path):
    put(tmp_path, "a.mp4", "a.mp4.json", "a-sheet.png", "other/my-sheet.png")
    found = listed(tmp_path)
    assert sorted(told(found)) == ["a", "my-sheet"]
    assert "a-sheet.png is the contact sheet" in found.notes[0]


def test_text_files_and_folders_say_captions_and_classes(tmp_path):
    put(tmp_path, "a.mp4", "dogs/b.mp4", "cats/c.PNG", "no suffix", ".hidden.mp4", ".git/d.mp4")
    (tmp_path / "a.txt").write_text("\ufeffone\n")
    (tmp_path / "no suffix.txt").write_text("")
    for name in ("readme.md", "notes.txt", "table.csv", "more.jsonl"):
        (tmp_path / name).write_text("nothing of use\n")
    found = listed(tmp_path)
    assert told(found) == {"a": ("one", None), "b": (None, "dogs"), "c": (None, "cats"), "no suffix": ("", None)}
    assert not found.defects
    assert not found.notes


def test_a_file_may_have_several_captions(tmp_path):
    put(tmp_path, "a.mp4")
    (tmp_path / "a.TXT").write_text("\ufeffone\r\n\r\n two  words\r\n", newline="")
    packed(tmp_path / "0.tar", [("b.mp4", VIDEO), ("b.txt", b"x\ny\n")])
    packed(tmp_path / "1.tar", [("c.mp4", VIDEO), ("c.json", b'{"caption": ["x", "y"]}')])
    assert told(listed(tmp_path)) == {"a": ("one | two words", None), "b": ("x | y", None), "c": ("x | y", None)}
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.mp4", "caption": ["three", "four \\n lines"]}\n')
    assert told(listed(tmp_path / "metadata.jsonl")) == {"a": ("three | four lines", None)}


def test_a_file_of_an_unknown_kind_is_named_if_it_has_a_caption(tmp_path):
    for name in ("a.heic", "b.pdf"):
        (tmp_path / name).write_bytes(b"something else")
    (tmp_path / "a.txt").write_text("a caption")
    [defect] = listed(tmp_path).defects
    assert (defect.kind, defect.file) == ("unsupported", str(tmp_path / "a.heic"))


def test_metadata_is_that_of_its_folder(tmp_path):
    put(tmp_path, "one/a.mp4", "one/extra.mp4", "two/b.mp4")
    (tmp_path / "one" / "metadata.jsonl").write_text('{"file_name": "a.mp4", "caption": "x", "label": 7}\n')
    (tmp_path / "two" / "b.txt").write_text("y")
    found = listed(tmp_path)
    assert told(found) == {"a": ("x", "7"), "b": ("y", "two")}
    assert [note.split(" is ")[0] for note in found.notes] == [str(tmp_path / "one" / "extra.mp4")]


def test_what_is_not_given_in_a_row_is_beside_the_file(tmp_path):
    put(tmp_path, "a.mp4")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.mp4", "caption": null}\n')
    assert told(listed(tmp_path)) == {"a": (None, None)}
    (tmp_path / "a.txt").write_text("here")
    assert told(listed(tmp_path)) == {"a": ("here", None)}


@pytest.mark.parametrize(
    ("row", "kind", "why"),
    [
        ("no JSON", "bad row", "no JSON"),
        ("[1]", "bad row", "not a JSON object"),
        ("9" * 5000, "bad row", "no JSON"),
        ("[" * 9999, "bad row", "no JSON"),
        ('{"caption": "x"}', "bad row", "names no file"),
        ('{"file_name": 3, "caption": "x"}', "bad row", "not a path"),
        ('{"file_name": "https://x.org/a.mp4", "caption": "x"}', "bad row", "it is an address"),
        ('{"file_name": "bad.mp4"}', "bad row", "its caption cannot be used: "),
        ('{"file_name": "../a.mp4", "caption": "x"}', "outside", "outside the folder"),
        ('{"file_name": "b/../../a.mp4", "caption": "x"}', "outside", "outside the folder"),
        ('{"file_name": "a.mp4", "caption": ["x", 3]}', "bad row", "give a text, or a list"),
        ('{"file_name": "a.mp4", "caption": "\\ud800"}', "bad row", "half a character"),
        ('{"file_name": "a.mp4", "caption": "x", "label": 1.5}', "bad row", "a whole number"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_and_the_others_are_read(tmp_path, row, kind, why):
    put(tmp_path, "a.mp4", "c.mp4", "bad.mp4")
    (tmp_path / "bad.txt").write_bytes(b"\xff")
    (tmp_path / "metadata.jsonl").write_text(f'{row}\n{{"file_name": "c.mp4", "caption": "y"}}\n')
    found = listed(tmp_path)
    [defect] = found.defects
    assert (defect.kind, told(found)) == (kind, {"c": ("y", None)})
    assert why in str(defect)
    assert f"{tmp_path / 'metadata.jsonl'}, line 1" in str(defect)


def test_a_caption_that_is_no_text_is_named(tmp_path):
    put(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "a.txt").write_bytes(b"\xff")
    (tmp_path / "b.txt").write_text("fine")
    put(tmp_path, "c.mp4")
    (tmp_path / "c.txt").write_bytes("fine".encode("utf-16-le"))
    found = listed(tmp_path)
    assert [(defect.kind, defect.file) for defect in found.defects] == [
        ("bad row", str(tmp_path / "a.mp4")),
        ("bad row", str(tmp_path / "c.mp4")),
    ]
    assert told(found) == {"b": ("fine", None)}


def test_bytes_that_are_no_text_are_named(tmp_path):
    put(tmp_path, "c.mp4")
    (tmp_path / "metadata.jsonl").write_bytes(b'{"file_name": "\xff.mp4"}\n{"file_name": "c.mp4", "text": "y"}\n')
    found = listed(tmp_path)
    assert "not text in UTF-8" in str(found.defects[0])
    assert told(found) == {"c": ("y", None)}


@pytest.mark.parametrize("row", ["a.mp4,x,more", "a.mp4"])
def test_a_line_of_csv_with_other_columns_is_named(tmp_path, row):
    put(tmp_path, "c.mp4")
    (tmp_path / "metadata.csv").write_text(f"file_name,caption\n{row}\nc.mp4,y\n")
    found = listed(tmp_path)
    assert str(found.defects[0]).startswith(f"{tmp_path / 'metadata.csv'}, line 2: it has")
    assert told(found) == {"c": ("y", None)}


def test_files_are_found_by_any_spelling_of_their_letters(tmp_path):
    put(tmp_path, unicodedata.normalize("NFD", "é ü.mp4"))
    row = {"file_name": unicodedata.normalize("NFC", "é ü.mp4"), "caption": "x"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    [given] = listed(tmp_path).given
    assert given.content.path.exists()


def test_absolute_paths_may_lead_elsewhere_and_so_may_links(tmp_path):
    put(tmp_path / "elsewhere", "a.mp4", "b.mp4")
    clips = tmp_path / "clips"
    clips.mkdir()
    (clips / "linked").symlink_to(tmp_path / "elsewhere")
    (clips / "linked" / "back").symlink_to(clips)  # a circle
    row = {"path": str(tmp_path / "elsewhere" / "a.mp4"), "text": "x"}
    (clips / "metadata.jsonl").write_text(json.dumps(row) + '\n{"path": "linked/b.mp4", "text": "y"}\n')
    assert told(listed(clips)) == {"a": ("x", None), "b": ("y", "linked")}


def test_a_shard_holds_samples(tmp_path):
    shard = packed(
        tmp_path / "0.tar",
        [
            ("000.mp4", VIDEO), ("000.txt", b"one\n"), ("000.cls", b"3"),
            ("./x/001.png", VIDEO), ("./x/001.json", b'{"caption": "two", "label": "dog"}'),
            ("002.mp4", VIDEO),
            ("003.txt", b"no video"),
            ("/etc/../../004.mp4", VIDEO), ("/etc/../../004.json", b"no JSON"),
            ("readme.md", b"x"),
        ],
    )  # fmt: skip
    found = listed(shard)
    assert told(found) == {"000": ("one", "3"), "001": ("two", "dog"), "002": (None, None), "004": (None, None)}
    assert all(given.content.head() == VIDEO and given.content.path == shard for given in found.given)
    assert str(found.given[0].content.shown) == f"{shard}/000.mp4"
    assert [defect.kind for defect in found.defects] == ["bad row"]
    assert "003.txt" in found.notes[0]
    put(tmp_path, "more.mp4")
    assert len(listed(tmp_path).given) == 5


def test_links_and_cut_members_of_a_shard_are_named(tmp_path):
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("000.mp4")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    packed(tmp_path / "1.tar", [("001.mp4", VIDEO * 99)])
    whole = (tmp_path / "1.tar").read_bytes()
    (tmp_path / "1.tar").write_bytes(whole[:600])
    [defect] = listed(path).defects
    assert (defect.kind, defect.file) == ("unsupported", f"{path}/000.mp4")
    assert {defect.kind for defect in listed(tmp_path / "1.tar").defects} == {"undecodable"}


def test_a_damaged_shard_is_named_and_what_is_before_the_damage_is_used(tmp_path):
    shard = packed(tmp_path / "0.tar", [(f"{number}.mp4", VIDEO) for number in range(3)])
    data = bytearray(shard.read_bytes())
    data[2 * 1024 + 10 : 2 * 1024 + 60] = b"x" * 50  # the header of the third
    shard.write_bytes(data)
    found = listed(shard)
    assert list(told(found)) == ["0", "1"]
    [defect] = found.defects
    assert str(defect).startswith(f"{shard}: cannot be read as a WebDataset shard: ")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: folder / "nothing", "is not there"),
        (lambda folder: packed(folder / "a.tar.gz", []), "unpack it"),
        (lambda folder: [(folder / name).write_text(ROWS_OF[name]) for name in METADATA_OF_BOTH] and folder, "leave one"),
        (lambda folder: written(folder / "a.json", "[]"), "each of its entries on a line of its own"),
        (lambda folder: written(folder / "a.jsonl", '[{"path": "a.mp4"}]'), "each of its entries on a line of its own"),
        (lambda folder: written(folder / "a.csv", "path;text"), "columns are separated by commas"),
        (lambda folder: put(folder, "metadata.parquet"), "write its columns file_name and caption as metadata.jsonl"),
        (lambda folder: (folder / "a.csv").write_text("x,y\n") and folder / "a.csv", "names no column"),
        (lambda folder: (folder / "a.csv").write_text('path\n"a') and folder / "a.csv", "unexpected end of data in line 2"),
    ],
)  # fmt: skip
def test_a_place_that_cannot_be_read_is_refused(tmp_path, make, said):
    with pytest.raises(InputError, match=said):
        listed(make(tmp_path))


METADATA_OF_BOTH = ("metadata.jsonl", "metadata.csv")


def test_limits(tmp_path, monkeypatch):
    put(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    monkeypatch.setenv(ROWS.variable, "2")
    with pytest.raises(InputError, match="asks for 3 files to train on"):
        listed(tmp_path)
    (tmp_path / "metadata.jsonl").write_text('{"path": "a.mp4"}\n' * 3)
    with pytest.raises(InputError, match="asks for 3 files to train on"):
        listed(tmp_path / "metadata.jsonl")
    monkeypatch.setenv(METADATA_BYTES.variable, "20")
    with pytest.raises(InputError, match="bytes of metadata"):
        listed(tmp_path / "metadata.jsonl")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "metadata.jsonl")
    os.mkfifo(tmp_path / "a.mp4")
    assert not listed(tmp_path).given
