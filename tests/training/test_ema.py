import pytest
import torch

from guidon.training.ema import EMA


def test_the_average_follows_slowly():
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(module.weight)
    ema = EMA(module, 0.9)
    torch.nn.init.ones_(module.weight)
    for _ in range(10):
        ema.update(module, 10**6)
    assert ema.state_dict()["weight"].item() == pytest.approx(1 - 0.9**10)


def test_the_first_steps_count_more():
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(module.weight)
    ema = EMA(module, 0.999)
    torch.nn.init.ones_(module.weight)
    ema.update(module, 0)
    assert ema.state_dict()["weight"].item() == pytest.approx(0.9)
