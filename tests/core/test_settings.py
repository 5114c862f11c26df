import pytest

from guidon.core.errors import InputError
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
