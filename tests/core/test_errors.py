import pytest

from guidon.core.errors import InputError, first_line, nearest, quoted, setting


def test_a_message_names_its_settings_as_each_face_spells_them():
    error = InputError(f"{setting('cfg_scale')} 5 needs {setting('out')}: give both")
    assert str(error) == "cfg_scale 5 needs out: give both"
    assert error.spelled(lambda name: "--" + name.replace("_", "-")) == "--cfg-scale 5 needs --out: give both"
    assert InputError(error.spelled(setting)).spelled(str.upper) == "CFG_SCALE 5 needs OUT: give both"


def test_bad_input_is_a_value_error():
    with pytest.raises(ValueError, match=r"^no$"):
        raise InputError("no")


def test_the_nearest_name_or_all_of_them():
    assert nearest("mp5", ("mp4", "gif")) == " (did you mean 'mp4'?)"
    assert nearest("GIF", ("mp4", "gif")) == " (did you mean 'gif'?)"
    assert nearest("xyz", ("mp4", "gif")) == "; valid: mp4, gif"


def test_an_error_in_one_line():
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(ValueError()) == "ValueError"


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (f"cfg_scale {'x' * 5000!r} is not a number", f"cfg_scale '{'x' * 80}…' is not a number"),
        (f"the prompts {'a' * 82!r} and {'b ' * 90!r}", f"the prompts '{'a' * 80}…' and '{'b ' * 40}…'"),
        (f"the file {'y' * 5000} is not there", f"the file {'y' * 80}… is not there"),
        (f"the model's {'z' * 90} and the user's", f"the model's {'z' * 90} and the user's"),
        (f"/{'folder/' * 30}a.yaml: no", f"/{'folder/' * 30}a.yaml: no"),
    ],
)
def test_long_values_in_messages_are_cut(message, shown):
    assert str(InputError(message)) == shown


def test_a_value_is_quoted_and_cut():
    assert quoted("x" * 5000) == f"'{'x' * 80}…'"
    assert quoted([1] * 5000) == f"{str([1] * 5000)[:80]}…"
    assert quoted("short") == "'short'"
