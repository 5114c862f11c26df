import pytest

from guidon.core.devices import pick_device
from guidon.core.errors import InputError


@pytest.mark.parametrize("name", ["xpu", "meta", "cuda:99", "quantum", ""])
def test_what_guidon_does_not_run_on_is_refused(name):
    with pytest.raises(InputError, match="device"):
        pick_device(name)


def test_the_cpu_is_always_there():
    assert pick_device("cpu").type == "cpu"
    assert pick_device("auto").type in ("cpu", "cuda")
