from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from pydantic import Field, PositiveInt, model_validator

from guidon.core.errors import InputError, setting
from guidon.core.settings import Settings, read_mapping, validated


class Inner(Settings):
    width: int = 3


class Outer(Settings):
    name: Annotated[str, Field(examples=["Ada"])]
    inner: Inner = Inner()
    place: Path = Path()


def test_settings_are_validated_and_frozen():
    outer = validated(Outer, {"name": "a", "inner": {"width": 5}}, "here")
    assert outer.inner.width == 5
    with pytest.raises(ValueError, match="frozen"):
        outer.name = "b"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"inner": {}}, "here: the key 'name' is missing, as in name: Ada$"),
        ({"name": "a", "innr": {}}, "unknown key 'innr' .did you mean 'inner'"),
        ({"nam": "a"}, "unknown key 'nam' .did you mean 'name'"),
        ({"name": "a", "place": "a\0b"}, "place is 'a.*: a path cannot hold the character NUL"),
        ({"name": "a", "inner": {"widht": 2}}, r"unknown key 'inner\.widht' .did you mean 'width'"),
        ({"name": "a", "inner": {"width": "x"}}, r"inner\.width is 'x': expected a whole number"),
        (["name"], "expected a mapping"),
    ],
)
def test_faults_are_named_in_one_line(values, message):
    with pytest.raises(InputError, match=message) as error:
        validated(Outer, values, "here")
    assert "\n" not in str(error.value)


class Checked(Settings):
    width: int = 3
    height: int = 3

    @model_validator(mode="after")
    def _square(self) -> "Checked":
        if self.width != self.height:
            raise InputError(f"{setting('width')} {self.width} is not {setting('height')}")
        return self


def test_what_a_call_gave_is_named_as_the_face_spells_it():
    def message(model, values, source):
        with pytest.raises(InputError) as error:
            validated(model, values, source)
        return error.value.spelled(lambda name: f"--{name}")

    assert message(Checked, {"width": 4}, None) == "--width 4 is not --height"
    assert message(Checked, {"width": "x"}, None) == "--width is 'x': expected a whole number"
    assert message(Checked, {"width": 4}, "a.yaml") == "a.yaml: width 4 is not height"
    assert message(Checked, {"width": "x"}, "a.yaml") == "a.yaml: width is 'x': expected a whole number"
    assert message(Checked, {"width": None}, "a.yaml") == "a.yaml: width is empty: expected a whole number"
    assert message(Checked, {"width": None}, None) == "--width is None: expected a whole number"


def test_files_are_read_or_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("a: [1, 2]")
    assert read_mapping(tmp_path / "a.yaml") == {"a": [1, 2]}
    (tmp_path / "bad.yaml").write_text("a: [1, 2")
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for name in ("bad.yaml", "bad.json", "binary.yaml", "none.yaml"):
        with pytest.raises(InputError, match=name) as error:
            read_mapping(tmp_path / name)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "found"),
    [("", "is empty"), ("# no\n", "is empty"), ("~", "holds nothing"), ("- 1", "holds a list"), ("3", "holds a number"),
     ("on", "holds true or false"), ("hello", "holds text")],
)  # fmt: skip
def test_a_file_without_keys_is_refused_in_words(text, found, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(
        InputError, match=rf"a\.yaml cannot be read as a study: it {found}, expected keys with values; "
    ):
        read_mapping(tmp_path / "a.yaml", "a study")


def read_yaml(folder, text):
    (folder / "a.yaml").write_text(text)
    return read_mapping(folder / "a.yaml")


def test_an_alias_repeats_a_value_and_a_merge_fills_a_mapping(tmp_path):
    text = "a: &x {b: 1}\nc: *x\nd: {<<: *x, b: 2, e: 3}\n"
    assert read_yaml(tmp_path, text) == {"a": {"b": 1}, "c": {"b": 1}, "d": {"b": 2, "e": 3}}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\nb: 2\na: 3", "the key 'a' is given twice, in line 3"),
        ("a: &x [*x]", "an alias stands inside the value that it repeats"),
        ("a: !!bool maybe", "the value 'maybe' is not valid ('maybe') in line 1, column 4"),
        ("a: !!int ''", "the value '' is not valid (string index out of range) in line 1, column 4"),
        ("a: 1\nb: 2024-13-45", "the value '2024-13-45' is not valid (month must be in 1..12) in line 2, column 4"),
        ("a: 1\nb: x\x07", "control characters are not allowed in line 2, column 5"),
        ("a: " + ":".join(["1"] * 1000), "a number has 1999 digits"),
        ("a: !!python/name:os.system", "could not determine a constructor"),
        ("a: [1, 2", "did not find expected"),
        ("a: 1\nb:2\nc: 3", "could not find expected ':' in line 2, column 1"),
        ("[" * 2000, "nesting"),
        ("a: 1\n---\nb: 2", "another document"),
    ],
)
def test_yaml_that_is_not_clear_is_refused_with_its_place(tmp_path, text, reason):
    with pytest.raises(InputError, match=r"a\.yaml cannot be read as YAML: ") as error:
        read_yaml(tmp_path, text)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


class Row(Settings):
    scale: float | tuple[float, ...] | None = None
    kind: Literal["ddim", "ddpm"] = "ddim"


class Table(Settings):
    rows: Annotated[tuple[Row, ...], Field(min_length=1)] = (Row(),)
    prompts: PositiveInt | Annotated[tuple[str, ...], Field(min_length=1)] = 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rows": [{}, {"scal": 1}]}, "unknown key 'scal' in rows, item 2 (did you mean 'scale'?)"),
        ({"rows": [{}, {"scale": "many"}]}, "rows, item 2, scale is 'many': expected a number or a list"),
        ({"rows": [{"scale": [1, "x"]}]}, "rows, item 1, scale, item 2 is 'x': expected a number"),
        ({"rows": [{"kind": "dddm"}]}, "rows, item 1, kind is 'dddm': expected 'ddim' or 'ddpm' (did you mean 'ddpm'?)"),
        ({"rows": []}, "rows is []: expected a list of at least 1"),
        ({"prompts": 0}, "prompts is 0: expected more than 0"),
        ({"prompts": []}, "prompts is []: expected a whole number or a list of at least 1"),
        ({"prompts": ["a", ["b"]]}, "prompts, item 2 is ['b']: expected text"),
        ({"prompts": "x" * 5000}, f"prompts is '{'x' * 80}…': expected"),
    ],
)  # fmt: skip
def test_faults_are_named_by_keys_and_items_alone(tmp_path, values, message):
    with pytest.raises(InputError) as error:
        validated(Table, values, None)
    assert str(error.value).startswith(message)
    # from a file, the line comes too
    path = tmp_path / "a.yaml"
    path.write_text("# a comment\n" + yaml.safe_dump(values))
    with pytest.raises(InputError, match=rf"^{path}, line \d+: ") as error:
        validated(Table, read_mapping(path), str(path))
    assert str(error.value).partition(": ")[2].startswith(message)


def test_the_line_is_that_of_the_value(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("# a table\nprompts: 2\nrows:\n  - {scale: 1}\n  - kind: ddpm\n    scale: many\n")
    with pytest.raises(InputError, match="line 6: rows, item 2, scale is 'many'"):
        validated(Table, read_mapping(path), str(path))


class Sorted(Settings):
    names: object = None

    @model_validator(mode="after")
    def _sorted(self) -> "Sorted":
        sorted(self.names)
        return self


def test_what_a_validator_stumbles_over_in_a_file_is_a_refusal():
    with pytest.raises(InputError, match=r"^a\.yaml cannot be read as settings: '<' not supported"):
        validated(Sorted, {"names": [1, "x"]}, "a.yaml")
    with pytest.raises(TypeError):  # from Python it is a mistake in the call
        validated(Sorted, {"names": [1, "x"]}, None)
