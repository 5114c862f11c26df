"""Which files a user gives to train on, and what is said of each: captions and classes. Nothing is decoded here.

A folder may hold a file of metadata, ``metadata.jsonl`` or ``metadata.csv`` as in Hugging Face's VideoFolder and
ImageFolder, or another ``.jsonl`` or ``.csv`` that names files, as Open-Sora and musubi-tuner write them. Without one,
each line of ``a.txt`` is a caption of ``a.mp4``, and the folder in which a file is names its class. WebDataset shards
(tar) hold samples: files of one name, such as ``000.mp4``, ``000.txt`` and ``000.json``.
"""

from __future__ import annotations

import csv
import json
import os
import re
import tarfile
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import TextIOWrapper
from pathlib import Path, PurePosixPath
from typing import IO, Any

from ...core.errors import InputError, quoted
from ...core.reading import TEXT_BYTES, Limit, is_there, read_text, reading, regular_file
from ...media.files import is_sheet
from ...media.streaming import PICTURE_SUFFIXES, VIDEO_SUFFIXES, Content, looks_like_media
from .defects import Defect, DefectKind

METADATA_BYTES = Limit("GUIDON_MAX_METADATA_BYTES", 1 << 30, "bytes of metadata")
"""The size of a file that lists clips."""
ROWS = Limit("GUIDON_MAX_FILES", 1 << 22, "files to train on")
"""The files of a folder, rows of metadata, or members of a shard."""

PATH_KEYS = ("file_name", "video_path", "image_path", "path", "video_file_name", "image_file_name")
CAPTION_KEYS = ("caption", "text", "prompt")
CLASS_KEYS = ("label", "class")
METADATA = ("metadata.jsonl", "metadata.csv")
_LISTS = (".jsonl", ".csv")
_PACKED = (".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar.zst", ".zip")
MEDIA = VIDEO_SUFFIXES + PICTURE_SUFFIXES
_TEXTS = (".txt", ".json", ".cls")  # what a shard may say of a sample


@dataclass(frozen=True)
class Given:
    """A file that is to be trained on."""

    content: Content
    captions: tuple[str, ...] | None
    """Each on one line; one of them is drawn each time. () where the text is empty, None where there is none."""
    label: str | None
    """Its class; None where there is none."""
    row: str
    """Where it is named, for messages; empty for a file that no row names."""
    folder: int = 0
    """The number of the place in ``Data.folder`` that it is from."""

    @property
    def name(self) -> str:
        """What messages call it."""
        return str(self.content.shown)

    def defect(self, kind: DefectKind, why: str) -> Defect:
        """Something that is wrong with it."""
        return Defect(kind, self.name, why, self.row)


@dataclass
class Listing:
    """What was found in the places that a user gave."""

    given: list[Given] = field(default_factory=list[Given])
    defects: list[Defect] = field(default_factory=list[Defect])
    notes: list[str] = field(default_factory=list[str])
    """What a user should know, though nothing is wrong."""


def list_files(place: Path, number: int, into: Listing) -> None:
    """Add the files of a folder, of a file of metadata or of a shard; or the file itself.

    Args:
        place: the path.
        number: of the place among all.
        into: what is added to.

    Raises:
        InputError: the place, or a file of metadata in it, cannot be read; or it has too many files.
    """
    if not is_there(place, "a folder of videos"):
        raise InputError(f"{place} is not there: give a folder of videos, a file that lists them, or a .tar shard")
    suffix = place.suffix.lower()
    if place.is_dir():
        _list_folder(place, number, into)
    elif suffix == ".tar":
        _list_shard(place, number, into)
    elif place.name.lower().endswith(_PACKED):
        raise InputError(f"{place} is compressed, and its samples cannot be read one by one: unpack it, or give a .tar")
    elif suffix in _LISTS:
        _list_rows(place, number, into)
    elif suffix == ".json":
        raise InputError(f"{place} is not read: write each of its entries on a line of its own, as a .jsonl")
    else:
        regular_file(place, "a video or a picture")
        _add_beside(place, number, None, into)


def _list_folder(folder: Path, number: int, into: Listing) -> None:
    """Files are taken from metadata where there is some in their folder or above it, else as they are."""
    with reading(folder, "a folder of videos"):
        files = list(_walk(folder))
    lists = [path for path in files if path.name.lower() in METADATA]
    if parquet := [path for path in files if path.name.lower() == "metadata.parquet"]:
        raise InputError(f"{parquet[0]} is not read: write its columns file_name and caption as metadata.jsonl")
    if not any(path.parent == folder for path in lists):  # as Open-Sora and musubi-tuner name theirs
        lists += [path for path in files if path.parent == folder and path.suffix.lower() in _LISTS and _names(path)]
    governed: dict[Path, Path] = {}
    for path in lists:
        if (other := governed.get(path.parent)) is not None:
            raise InputError(f"{other} and {path.name} both list the files of {path.parent}: leave one there")
        governed[path.parent] = path
    named = {os.path.normpath(given.content.path) for path in lists for given in _list_rows(path, number, into)}
    unnamed: list[Path] = []
    beside = dict[Path, set[str]]()
    for path in files:
        beside.setdefault(path.parent, set()).add(path.name)
    for path in files:
        suffix = path.suffix.lower()
        if suffix == ".tar":
            _list_shard(path, number, into)
        elif path.name.lower().endswith(_PACKED):
            into.notes.append(f"{path} is not read: unpack it, or give an uncompressed .tar")
        elif path in lists or suffix in (*_TEXTS, *_LISTS) or os.path.normpath(path) in named:
            continue
        elif any(parent in governed for parent in path.parents):
            if suffix in MEDIA or (not suffix and looks_like_media(Content(path))):
                unnamed.append(path)
        elif is_sheet(path.name, beside[path.parent]):
            into.notes.append(f"{path} is the contact sheet of the clips beside it: it is not trained on")
        elif suffix in MEDIA or looks_like_media(Content(path)):
            _add_beside(path, number, path.parent.name if path.parent != folder else None, into)
        elif path.with_suffix(".txt").is_file():
            into.defects.append(
                Defect("unsupported", str(path), f"{path.stem}.txt says its caption, but {_UNSUPPORTED}")
            )
    for path in unnamed[:3]:
        into.notes.append(f"{path} is in no row of the metadata: it is not trained on")
    if len(unnamed) > 3:
        into.notes.append(f"{len(unnamed) - 3} more files of {folder} are in no row: they are not trained on")


_UNSUPPORTED = "it is not in a format that Guidon reads: convert a video to mp4, a picture to PNG"


def _walk(folder: Path) -> Iterator[Path]:
    """All files below a folder that are not hidden, sorted. Links are followed, but into no folder a second time."""
    seen: set[str] = set()
    count = 0
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(place, name)
            gone = path.suffix.lower() in MEDIA and path.is_symlink() and not path.exists()  # the check names it
            if not name.startswith(".") and (gone or path.is_file()):
                count += 1
                ROWS.check(count, folder)
                yield path


def _add_beside(path: Path, number: int, label: str | None, into: Listing) -> None:
    """Add a file whose caption is in the text file of its name."""
    try:
        into.given.append(Given(Content(path), _text_beside(path), label, "", number))
    except InputError as error:
        into.defects.append(Defect("bad row", str(path), f"its caption cannot be used: {error}"))


def _text_beside(path: Path) -> tuple[str, ...] | None:
    """The captions in the text file of a file's name, one a line; None if there is no such file.

    Raises:
        InputError: the text file cannot be read.
    """
    places = (path.with_suffix(suffix) for suffix in (".txt", ".TXT"))
    place = next((place for place in places if place != path and place.is_file()), None)
    if place is None:
        return None
    text = read_text(place, "a caption")
    if (why := _unfit(text)) is not None:
        raise InputError(f"{place}: {why}")
    return _captions(text.splitlines())


def _captions(texts: Sequence[str]) -> tuple[str, ...]:
    """Each of several texts on one line, without those that are empty."""
    return tuple(filter(None, map(_one_line, texts)))


def _one_line(text: str) -> str:
    return " ".join(text.split())


# Metadata


def _list_rows(path: Path, number: int, into: Listing) -> list[Given]:
    """Add the files that a file of metadata names. Returns them."""
    found: list[Given] = []
    for count, (line, values) in enumerate(_rows(path), 1):
        ROWS.check(count, path)
        row = f"{path}, line {line}"
        if isinstance(values, str):
            into.defects.append(Defect("bad row", row, values))
            continue
        outcome = _given(path.parent, values, row, number)
        if isinstance(outcome, Defect):
            into.defects.append(outcome)
        else:
            found.append(outcome)
    into.given += found
    return found


def _given(folder: Path, values: Mapping[str, Any], row: str, number: int) -> Given | Defect:
    """What a row says."""
    name = _first(values, PATH_KEYS)
    if not isinstance(name, str) or not name.strip():
        why = f"its file is {quoted(name)}, not a path" if name is not None else "it names no file"
        return Defect("bad row", row, f"{why}: give {PATH_KEYS[0]}")
    if re.match(r"\w{2,}:/", name):
        return Defect("bad row", name, "it is an address: fetch the file, and give its path", row)
    path = Path(name)
    if not path.is_absolute():
        if ".." in PurePosixPath(os.path.normpath(name)).parts:
            return Defect("outside", name, "it is outside the folder: move it there, or give its absolute path", row)
        path = folder / name
    path = _spelled(path)
    caption = _first(values, CAPTION_KEYS)
    texts = _texts(caption)
    if texts is None and caption is not None:
        return Defect("bad row", str(path), f"its caption is {quoted(caption)}: give a text, or a list of texts", row)
    if why := next(filter(None, map(_unfit, texts or ())), None):
        return Defect("bad row", str(path), f"its caption cannot be used: {why}", row)
    label = _first(values, CLASS_KEYS)
    if isinstance(label, bool | float | list | dict):
        return Defect("bad row", str(path), f"its class is {quoted(label)}: give a name or a whole number", row)
    if label is None and path.parent != folder and not Path(name).is_absolute():
        label = path.parent.name
    try:
        captions = _text_beside(path) if texts is None else _captions(texts)
    except InputError as error:
        return Defect("bad row", str(path), f"its caption cannot be used: {error}", row)
    return Given(Content(path), captions, None if label is None else _one_line(str(label)), row, number)


def _first(values: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    """The value of the first key that has one."""
    return next((values[key] for key in keys if values.get(key) is not None), None)


def _texts(said: Any) -> list[str] | None:
    """A text, or a list of texts, as a list; None if it is neither."""
    texts: list[Any] = said if isinstance(said, list) else [said]
    return texts if all(isinstance(each, str) for each in texts) else None


def _unfit(text: str) -> str | None:
    """Why a caption is no text; None if it is one."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return "it holds half a character: give text in UTF-8"
    return "it holds a NUL byte, as UTF-16 does: give text in UTF-8" if "\0" in text else None


def _spelled(path: Path) -> Path:
    """The path as the disk spells it: the same letters may be written in two ways in Unicode."""
    forms = (path, *(Path(unicodedata.normalize(form, str(path))) for form in ("NFC", "NFD")))
    return next((form for form in forms if _exists(form)), path)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # no file can have this name
        return False


def _names(path: Path) -> bool:
    """Whether the first row of a file names a file, as that of metadata does."""
    try:
        _, values = next(_rows(path), (0, ""))
    except InputError:
        return False
    return not isinstance(values, str) and any(key in values for key in PATH_KEYS)


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    """The rows of a file of metadata: the line of each, and its values, or what is wrong with it.

    Raises:
        InputError: the file cannot be read.
    """
    regular_file(path, "a list of videos", METADATA_BYTES)
    with reading(path, "a list of videos"), path.open("rb") as file:
        yield from (_csv_rows if path.suffix.lower() == ".csv" else _json_rows)(path, file)


def _json_rows(path: Path, file: IO[bytes]) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    line = 0
    while data := file.readline(TEXT_BYTES.value + 1):
        line += 1
        TEXT_BYTES.check(len(data), path)
        if line == 1 and (data.strip() == b"[" or data.startswith(b"[{")):
            raise ValueError("it is one list in JSON: write each of its entries on a line of its own")
        try:
            text = data.decode("utf-8-sig" if line == 1 else "utf-8").strip()
            values = json.loads(text) if text else None
        except (ValueError, RecursionError) as error:
            what = "it is not text in UTF-8" if isinstance(error, UnicodeDecodeError) else "it is no JSON"
            yield line, f"{what}: mend the row"
            continue
        if isinstance(values, dict):
            yield line, values
        elif text:
            yield line, f"it is {quoted(values)}, not a JSON object: mend the row"


def _csv_rows(path: Path, file: IO[bytes]) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    rows = csv.reader(TextIOWrapper(file, encoding="utf-8-sig", newline=""), strict=True)
    header = [name.strip() for name in next(rows, [])]
    if not any(key in header for key in PATH_KEYS):
        why = f"its first line is {quoted(','.join(header))}, and names no column {PATH_KEYS[0]} or path"
        raise ValueError(f"{why}; columns are separated by commas")
    while True:
        line = rows.line_num + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise ValueError(f"{error} in line {line}") from None
        if row is None:
            return
        if row and len(row) != len(header):
            yield line, f"it has {len(row)} columns, and the first line has {len(header)}: mend the row"
        elif row:
            yield line, dict(zip(header, row, strict=True))


# WebDataset


def _list_shard(path: Path, number: int, into: Listing) -> None:
    """Add the samples of a shard. Nothing is unpacked: files of it are read where they are."""
    regular_file(path, "a WebDataset shard")
    parts: dict[str, dict[str, tarfile.TarInfo]] = {}
    try:
        if not _index_shard(path, parts, into.defects):
            into.notes.append(f"{path} ends without the blocks of zeros that end a shard: it may have been cut")
    except InputError as error:  # what stands before the damage is used
        into.defects.append(Defect("undecodable", str(path), str(error).removeprefix(f"{path} ")))
    with path.open("rb") as file:
        for members in parts.values():
            media = [suffix for suffix in members if suffix in MEDIA]
            if not media:
                shown = path / next(iter(members.values())).name.lstrip("/")
                into.notes.append(f"{shown} describes a sample without a video or picture: it is left out")
                continue
            into.given.append(_sample(path, file, members, media[0], number, into.defects))


def _index_shard(path: Path, parts: dict[str, dict[str, tarfile.TarInfo]], defects: list[Defect]) -> bool:
    """Find the members of a shard: name without suffix -> suffix -> member. Returns whether it has a proper end.

    Raises:
        InputError: the shard is damaged.
    """
    size = path.stat().st_size
    with reading(path, "a WebDataset shard", "copy it again"), tarfile.open(path, "r:") as archive:
        for count, member in enumerate(archive, 1):
            ROWS.check(count, path)
            name = PurePosixPath(member.name.lstrip("/"))
            suffix, sample = name.suffix.lower(), str(name.with_suffix("")) if name.name else ""
            if member.isdir() or name.name.startswith(".") or suffix not in MEDIA + _TEXTS:
                continue
            if not member.isreg() or member.issparse():
                defects.append(Defect("unsupported", str(path / name), "it is a link in the shard: pack the file"))
            elif member.offset_data + member.size > size:
                defects.append(Defect("undecodable", str(path / name), f"{path} ends in it: copy the shard again"))
            elif suffix in parts.setdefault(sample, {}):
                defects.append(Defect("bad row", str(path / name), "the shard has two files of this name"))
            else:
                parts[sample][suffix] = member
        with path.open("rb") as file:  # the library ends without an error where a header is damaged
            file.seek(archive.offset)
            rest = file.read(tarfile.BLOCKSIZE)
        if rest.strip(b"\0") and archive.offset < size:
            raise ValueError(f"what stands at byte {archive.offset:,} is no header of a file")
        return len(rest) == tarfile.BLOCKSIZE


def _sample(
    path: Path,
    file: IO[bytes],
    members: Mapping[str, tarfile.TarInfo],
    media: str,
    number: int,
    defects: list[Defect],
) -> Given:
    """A sample of a shard."""
    caption: Any = None
    label: Any = None
    for suffix in _TEXTS:
        if suffix not in members:
            continue
        member = members[suffix]
        shown = path / member.name.lstrip("/")
        TEXT_BYTES.check(member.size, shown)
        try:
            file.seek(member.offset_data)
            text = file.read(member.size).decode("utf-8-sig")
            if suffix == ".json":
                values = json.loads(text)
                values = values if isinstance(values, dict) else {}
                caption = _first(values, CAPTION_KEYS) if caption is None else caption
                label = _first(values, CLASS_KEYS)
            elif suffix == ".txt":
                caption = text.splitlines()
            else:
                label = text
        except (ValueError, RecursionError):
            defects.append(Defect("bad row", str(shown), "it is no text in UTF-8, or no JSON: pack it again"))
    member = members[media]
    content = Content(path, (member.offset_data, member.size), member.name.lstrip("/"))
    texts = _texts(caption)
    captions = None if texts is None or any(map(_unfit, texts)) else _captions(texts)
    return Given(content, captions, _label(label), "", number)


def _label(label: Any) -> str | None:
    return _one_line(str(label)) if isinstance(label, str | int) and not isinstance(label, bool) else None
