import pytest
from pydantic import model_validator

from guidon.core.errors import InputError, setting
from guidon.core.settings import Settings, read_mapping, validated


class Inner(Settings):
    width: int = 3


class Outer(Settings):
    name: str
    inner: Inner = Inner()


def test_settings_are_validated_and_frozen():
    outer = validated(Outer, {"name": "a", "inner": {"width": 5}}, "here")
    assert outer.inner.width == 5
    with pytest.raises(ValueError, match="frozen"):
        outer.name = "b"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nam": "a"}, "here: .*'nam'.*did you mean 'name'|here: the key 'name' is missing"),
        ({"name": "a", "innr": {}}, "unknown key 'innr' .did you mean 'inner'"),
        ({"name": "a", "inner": {"widht": 2}}, r"unknown key 'inner\.widht' .did you mean 'width'"),
        ({"name": "a", "inner": {"width": "x"}}, r"inner\.width: given 'x'"),
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
    assert message(Checked, {"width": "x"}, None).startswith("--width: given 'x'; ")
    assert message(Checked, {"width": 4}, "a.yaml") == "a.yaml: width 4 is not height"
    assert message(Checked, {"width": "x"}, "a.yaml").startswith("a.yaml: width: given 'x'; ")


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
