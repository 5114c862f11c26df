import pytest
import torch

from guidon.core.errors import InputError
from guidon.training.optimisers import learning_rate, make_optimisers
from guidon.training.recipe import Optimiser


def test_the_learning_rate_warms_up_holds_and_falls_to_zero():
    settings = Optimiser(warmup_steps=10, decay=0.5)
    rates = [learning_rate(step, 100, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:50] == [1.0] * 41
    assert rates[75] == pytest.approx(0.5)
    assert 0 < rates[99] <= 0.02


def blocks_and_head():
    module = torch.nn.Module()
    module.blocks = torch.nn.ModuleList([torch.nn.Linear(4, 4)])
    module.head = torch.nn.Linear(4, 4)
    return module


def test_muon_takes_the_hidden_matrices_only():
    module = blocks_and_head()
    muon, adamw = make_optimisers(module, Optimiser(name="muon"))
    assert [p is module.blocks[0].weight for p in muon.param_groups[0]["params"]] == [True]
    assert len(adamw.param_groups[0]["params"]) == 3
    module.blocks[0].scale_shift_table = torch.nn.Parameter(torch.zeros(6, 4))  # rows of vectors, and no matrix
    muon, adamw = make_optimisers(module, Optimiser(name="muon"))
    assert [len(made.param_groups[0]["params"]) for made in (muon, adamw)] == [1, 4]
    assert len(make_optimisers(module, Optimiser())) == 1


def test_muon_takes_the_kernels_but_those_of_first_and_last_layers():
    module = torch.nn.Module()
    module.x_embedder = torch.nn.Conv2d(5, 8, 2)
    module.entrance, module.exit = torch.nn.Conv2d(5, 8, 3), torch.nn.Conv2d(8, 4, 3)
    module.time = torch.nn.Conv1d(8, 8, 3)
    module.narrow = torch.nn.Conv3d(1, 8, (1, 2, 2))
    module.query = torch.nn.Parameter(torch.zeros(8, 8, 8))  # no kernel
    muon, adamw = make_optimisers(module, Optimiser(name="muon"))
    taken = {parameter.data_ptr() for parameter in muon.param_groups[0]["params"]}
    assert taken == {module.entrance.weight.data_ptr(), module.time.weight.data_ptr()}
    assert len(adamw.param_groups[0]["params"]) == 9
    module.entrance.bias.requires_grad_(False)
    (alone,) = make_optimisers(module.entrance, Optimiser(name="muon"))
    assert type(alone).__name__ == "Muon"


def test_each_optimiser_has_the_settings_of_the_recipe():
    values = {"lr": 0.002, "muon_lr": 0.03, "betas": (0.8, 0.95), "weight_decay": 0.05}
    muon, adamw = (
        made.param_groups[0] for made in make_optimisers(blocks_and_head(), Optimiser(name="muon", **values))
    )
    assert (muon["lr"], muon["weight_decay"], muon["adjust_lr_fn"]) == (0.03, 0.05, "match_rms_adamw")
    assert (adamw["lr"], adamw["betas"], adamw["weight_decay"]) == (0.002, (0.8, 0.95), 0.05)
    plain = make_optimisers(blocks_and_head(), Optimiser(name="muon"))
    assert [made.param_groups[0]["weight_decay"] for made in plain] == [0, 0]


def test_a_pytorch_without_muon_is_named(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(InputError, match=r"needs PyTorch 2\.9 or newer"):
        make_optimisers(blocks_and_head(), Optimiser(name="muon"))
    assert len(make_optimisers(blocks_and_head(), Optimiser())) == 1


def test_frozen_weights_are_left_out():
    module = blocks_and_head()
    module.blocks.requires_grad_(False)
    (adamw,) = make_optimisers(module, Optimiser(name="muon"))
    assert {id(p) for p in adamw.param_groups[0]["params"]} == {id(p) for p in module.head.parameters()}
