import pytest

from guidon.core.errors import InputError, first_line, nearest, setting


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
    assert nearest("xyz", ("mp4", "gif")) == "; valid: mp4, gif"


def test_an_error_in_one_line():
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(ValueError()) == "ValueError"
