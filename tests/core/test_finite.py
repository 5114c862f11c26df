import pytest
import torch

from guidon.core.finite import FiniteCheck


class Broken(Exception):
    """Raised by the check's ``fail``."""


def fail():
    raise Broken


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("where", [0, 1])
def test_one_value_that_is_not_finite_is_seen_at_once(value, dtype, where):
    tensors = [torch.ones(3, 4, dtype=dtype), torch.ones(2, dtype=dtype)]
    check = FiniteCheck()
    check.look(tensors, fail)
    tensors[where].view(-1)[1] = value
    with pytest.raises(Broken):
        check.look(tensors, fail)


def test_infinities_of_both_signs_do_not_cancel():
    with pytest.raises(Broken):
        FiniteCheck().look([torch.tensor([float("inf"), -float("inf")])], fail)


def test_a_sum_that_only_overflows_asks_for_a_second_look():
    asked = []
    FiniteCheck().look([torch.full((8,), 3e38)], lambda: asked.append(1))
    assert asked == [1]


class Elsewhere:
    """A tensor of a device that is not the CPU."""

    device = torch.device("mps")
    is_meta = False

    def __init__(self, value):
        self.value = value

    def detach(self):
        return self

    def sum(self, dtype):
        return self

    def __float__(self):
        return self.value


def test_on_another_device_a_step_is_looked_at_one_step_later():
    check, seen = FiniteCheck(), []
    check.look([Elsewhere(1.0)], fail)
    check.look([Elsewhere(float("nan"))], lambda: seen.append("second"))
    assert seen == []
    check.look([Elsewhere(float("nan"))], lambda: seen.append("third"))
    assert seen == ["second"]
    check.finish()
    assert seen == ["second", "third"]
    check.finish()
    assert seen == ["second", "third"]


@pytest.mark.gpu
def test_on_cuda_a_step_is_looked_at_one_step_later():
    check = FiniteCheck()
    check.look([torch.ones(4, device="cuda")], fail)
    check.look([torch.full((4,), float("nan"), device="cuda")], fail)
    with pytest.raises(Broken):
        check.look([torch.ones(4, device="cuda")], fail)
    check.finish()
    check.look([torch.full((4,), float("inf"), device="cuda")], fail)
    with pytest.raises(Broken):
        check.finish()
