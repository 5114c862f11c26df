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


def test_every_value_moves_as_it_would_alone_and_counters_are_copied():
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(7, 33), torch.nn.BatchNorm1d(33), torch.nn.Linear(33, 5).bfloat16())
    ema = EMA(module, 0.9)
    expected = {name: value.clone() for name, value in ema.state_dict().items()}
    for step in range(20):
        module[1].num_batches_tracked += 1
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter))
        ema.update(module, step)
        for name, value in module.state_dict().items():
            share = 1 - min(0.9, (1 + step) / (10 + step))
            expected[name].lerp_(value, share) if value.is_floating_point() else expected[name].copy_(value)
    assert all(torch.equal(value, expected[name]) for name, value in ema.state_dict().items())
    assert ema.state_dict()["1.num_batches_tracked"] == 20
