import pytest
import torch

from guidon.core.devices import cpu_threads, pick_device
from guidon.core.errors import InputError


@pytest.mark.parametrize("name", ["xpu", "meta", "cuda:99", "quantum", ""])
def test_what_guidon_does_not_run_on_is_refused(name):
    with pytest.raises(InputError, match="device"):
        pick_device(name)


def test_the_cpu_is_always_there():
    assert pick_device("cpu").type == "cpu"
    assert pick_device("auto").type in ("cpu", "cuda")


def test_threads_are_what_they_were_before():
    before = torch.get_num_threads()

    def fail():
        with cpu_threads(before + 1):
            assert torch.get_num_threads() == before + 1
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.get_num_threads() == before
