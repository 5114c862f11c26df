import importlib
import re
import socket
from pathlib import Path

import pytest

import guidon
from guidon.core.errors import InputError
from guidon.core.reading import Limit, is_there, parse_json, printable, read_object, read_text, reading, regular_file

DOCS = Path(__file__).parents[2] / "docs"


class Panic(BaseException):
    """What parsers written in Rust raise."""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("bad\nsecond line"), "bad"),
        (KeyError("w"), "'w' is missing or unknown"),
        (RecursionError(), "it is nested too deeply"),
        (MemoryError(), "it asks for more memory than there is"),
        (OverflowError("too large"), "too large"),
        (OSError(5, "Input/output error"), "Input/output error"),
        (Panic("index out of bounds"), "index out of bounds"),
        (ValueError("\x1b[31mred"), r"\x1b[31mred"),
        (AssertionError(), "AssertionError"),
    ],
)
def test_any_exception_becomes_one_line_with_the_file_and_the_reason(error, reason):
    with pytest.raises(InputError) as found, reading(Path("a.txt"), "a recipe", "write it anew"):
        raise error
    assert str(found.value) == f"a.txt cannot be read as a recipe: {reason}; write it anew"
    assert found.value.__cause__ is error


@pytest.mark.parametrize("error", [InputError("as it is"), KeyboardInterrupt(), SystemExit(3)])
def test_refusals_and_the_end_of_the_process_pass(error):
    with pytest.raises(type(error)) as found, reading(Path("a"), "a recipe"):
        raise error
    assert found.value is error


@pytest.mark.skipif(not Path("/proc/self/pagemap").exists(), reason="only Linux has such files")
@pytest.mark.parametrize("name", ["pagemap", "maps"])
def test_a_file_of_the_system_that_does_not_tell_its_size_is_refused(tmp_path, name):
    (tmp_path / "link").symlink_to(f"/proc/self/{name}")  # pagemap has 256 GB
    with pytest.raises(InputError, match="does not tell its size; give a file"):
        regular_file(tmp_path / "link", "a recipe", 100)
    (tmp_path / "empty").touch()
    assert regular_file(tmp_path / "empty", "a recipe") == tmp_path / "empty"


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_object(tmp_path / "a.json", "settings") == {"a": 1}


def test_what_is_no_file_is_refused_before_it_is_opened(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "socket"))
    server.close()
    for name, reason in (
        ("folder", "a folder"),
        ("loop", "symbolic links"),
        ("socket", "a socket"),
        ("none", "not there"),
    ):
        with pytest.raises(InputError, match=reason):
            regular_file(tmp_path / name, "a recipe")
    with pytest.raises(InputError, match="a device"):
        regular_file(Path("/dev/null"), "a recipe")
    with pytest.raises(InputError, match="null byte"):
        regular_file(Path("a\0b"), "a recipe")
    for look in (regular_file, is_there):
        with pytest.raises(InputError, match="File name too long; check the path"):
            look(tmp_path / ("a" * 5000), "a recipe")
    assert not is_there(tmp_path / "none", "a recipe")
    (tmp_path / "text").write_text("12345")
    assert regular_file(tmp_path / "text", "a recipe", 5) == tmp_path / "text"
    with pytest.raises(InputError, match="it has 5 bytes, expected at most 4"):
        regular_file(tmp_path / "text", "a recipe", 4)


def test_a_limit_can_be_raised_and_says_how(monkeypatch, tmp_path):
    limit = Limit("GUIDON_MAX_TEST", 10, "things")
    limit.check(10, tmp_path)
    with pytest.raises(InputError, match=r"asks for 1,000 things, the limit is 10: .*GUIDON_MAX_TEST"):
        limit.check(1000, tmp_path)
    monkeypatch.setenv("GUIDON_MAX_TEST", "1000")
    limit.check(1000, tmp_path)
    for text in ("0", "-1", "1e9", "many", "9" * 30):
        monkeypatch.setenv("GUIDON_MAX_TEST", text)
        with pytest.raises(InputError, match="expected a positive whole number of things"):
            limit.check(1, tmp_path)


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{"a": {"b": 1, "b": 1}}', "9" * 101, "[" * 10_000, "{", "nope"])
def test_json_that_is_not_clear_is_refused(text):
    with pytest.raises(InputError, match="cannot be read as a recipe") as error:
        parse_json(text, Path("a.json"), "a recipe")
    assert "\n" not in str(error.value)


def test_text_and_objects(tmp_path):
    (tmp_path / "a.json").write_text('{"a": "☃"}', encoding="utf-8")
    assert read_object(tmp_path / "a.json", "a recipe") == {"a": "☃"}
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(InputError, match="it holds a list, expected keys with values"):
        read_object(tmp_path / "a.json", "a recipe")
    (tmp_path / "a.json").write_text(" ")
    with pytest.raises(InputError, match="it is empty"):
        read_object(tmp_path / "a.json", "a recipe")
    (tmp_path / "a.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="it is not text in UTF-8"):
        read_text(tmp_path / "a.json", "a recipe")


def test_control_characters_are_escaped_and_letters_are_not():
    assert printable("a\x1b[2J\ud800 — 漢字") == r"a\x1b[2J\ud800 — 漢字"
    assert printable("می\u200cخواهم") == "می\u200cخواهم"
    assert printable("\u202eabc") == r"\u202eabc"


def test_the_page_has_every_limit_of_the_code():
    source = Path(guidon.__file__).parent
    modules = [path for path in source.rglob("*.py") if "Limit(" in path.read_text()]
    names = [".".join(path.relative_to(source.parent).with_suffix("").parts) for path in modules]
    found = [
        value for name in names for value in vars(importlib.import_module(name)).values() if isinstance(value, Limit)
    ]
    rows = re.findall(r"^\| `(GUIDON_\w+)` \| (\d+) \|", (DOCS / "limits.md").read_text(), re.MULTILINE)
    assert dict(rows) == {limit.variable: str(limit.default) for limit in found}
