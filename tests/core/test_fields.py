import pydoc

import guidon
from guidon.core.fields import fields_of
from guidon.request import KEYWORDS


def test_help_lists_every_keyword_of_a_call_with_its_type_and_meaning():
    shown = pydoc.plain(pydoc.render_doc(guidon.CallOptions))
    fields = fields_of(guidon.CallOptions)
    assert set(fields) == set(guidon.CallOptions.__annotations__) > set(KEYWORDS)
    for name, (kind, text) in fields.items():
        assert text, name
        assert f" |  {name}: {kind}" in shown
        assert f" |      {text.splitlines()[0]}" in shown


def test_help_of_the_choices_begins_with_what_a_key_that_is_left_out_means():
    lines = pydoc.plain(pydoc.render_doc(guidon.Choices)).splitlines()
    assert "A key that is left out" in lines[3]
    assert " |  cfg_scale: float | Sequence[float] | None" in lines
