"""Muon takes kernels as matrices. Its step on several ranks is that of one process, and each does its share of the work."""

import signal

import matplotlib.figure  # noqa: F401 - here, so that not every fork imports it
import pytest
import torch

from guidon.core.ranks import Ranks
from guidon.training.muon import Muon, divided
from ranks import on_ranks
from recipes import at_step, denoiser_recipe, run_on_ranks, weights_of

SHAPES = [(8, 6), (6, 24), (4, 4), (10, 5), (6, 3, 2, 4)]  # the last one is a kernel


def matrices():
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def trained(step):
    """The matrices and their momenta after three steps, the third matrix without a gradient in the first one."""
    weights = matrices()
    muon = Muon(weights, 0.1, weight_decay=0.1)
    generator = torch.Generator().manual_seed(1)
    for count in range(3):
        for place, weight in enumerate(weights):
            gradient = torch.randn(weight.shape, generator=generator)
            weight.grad = None if (count, place) == (0, 2) else gradient
        step(muon)
        assert muon.param_groups[0]["params"][-1].grad is None  # the kernel's
    momenta = [muon.state[matrix]["momentum_buffer"] for matrix in muon.param_groups[0]["params"]]
    return [w.detach().clone() for w in weights], momenta


def test_a_kernel_is_trained_as_the_matrix_of_a_row_for_each_output():
    kernel, matrix = (torch.nn.Parameter(torch.arange(144.0).view(shape)) for shape in ((6, 3, 2, 4), (6, 24)))
    ours = Muon([kernel], 0.1, weight_decay=0.1)
    theirs = torch.optim.Muon([matrix], 0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        matrix.grad = torch.randn(6, 24, generator=generator)
        kernel.grad = matrix.grad.view(6, 3, 2, 4).contiguous(memory_format=torch.channels_last)
        ours.step()
        theirs.step()
    assert kernel.shape == (6, 3, 2, 4)
    assert torch.equal(kernel.flatten(1), matrix)
    assert all(each.grad is None for each in ours.param_groups[0]["params"])
    before = kernel.detach().clone()
    kernel.grad = None
    ours.step()
    assert torch.equal(kernel, before)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_all_ranks_have_the_weights_and_the_state_of_one_process(count, monkeypatch):
    """Seven ranks are more than there are matrices."""
    from torch.optim import _muon

    made = list[tuple[int, ...]]()
    orthogonal = _muon._zeropower_via_newtonschulz  # pyright: ignore[reportPrivateUsage]

    def counted(gradient, *more):
        made.append(tuple(gradient.shape))
        return orthogonal(gradient, *more)

    monkeypatch.setattr(_muon, "_zeropower_via_newtonschulz", counted)

    def work():
        with Ranks.join() as ranks:
            found = trained(lambda muon: muon.divided_step(ranks, torch.device("cpu")))
        return found, made

    weights, momenta = trained(lambda muon: muon.step())
    everything = sorted(made)
    made.clear()
    results = on_ranks(work, count)
    for (found, state), _ in results:
        assert all(map(torch.equal, found, weights))
        assert all(map(torch.equal, state, momenta))
    assert sorted(shape for _, shapes in results for shape in shapes) == everything


def test_ranks_have_equal_work():
    owners = divided([(192, 768)] * 12 + [(192, 192)] * 18, 2)
    assert [owners[:12].count(rank) for rank in range(2)] == [6, 6]
    assert [owners[12:].count(rank) for rank in range(2)] == [9, 9]
    assert divided([], 2) == []


def test_a_run_that_was_stopped_goes_on_with_the_state_of_all_matrices(tmp_path, tiny_model, monkeypatch):
    def recipe(name):
        (tmp_path / name).mkdir()
        return denoiser_recipe(tmp_path / name, tiny_model / "vae.safetensors", steps=3, checkpoint_every=2)

    assert len(set(run_on_ranks(recipe("whole")))) == 1
    stopped = recipe("stopped")
    with monkeypatch.context() as patch:
        at_step(patch, 1, lambda: signal.raise_signal(signal.SIGTERM))
        assert set(run_on_ranks(stopped)) == {"None"}
    run_on_ranks(stopped)
    weights, again = (weights_of(tmp_path / name / "run" / "model") for name in ("whole", "stopped"))
    assert weights.keys() == again.keys()
    assert all(torch.equal(weights[name], again[name]) for name in weights)
