from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from guidon.core.errors import InputError
from guidon.guidance import BlockSkip, Guidance, GuidedDenoiser, WeakModel
from toy_network import COND, UNCOND, latents, level_at


class Blocks(nn.Module):
    """A stack of random blocks on the latents, that looks at its caption."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Conv3d(4, 4, 3, padding=1) for _ in range(3))
        self.calls = []

    def forward(self, x, level, cond):
        self.calls.append(len(x))
        for block in self.blocks:
            x = block(x).tanh() + cond.value.view(-1, 1, 1, 1, 1)
        return x

    def without(self, number, x, cond):
        for k, block in enumerate(self.blocks):
            x = (x if k == number else block(x)).tanh() + cond.value.view(-1, 1, 1, 1, 1)
        return x


@pytest.mark.parametrize("batched", [True, False])
def test_skip_guidance_runs_the_network_with_a_block_skipped_for_the_prompts_alone(batched):
    network, x, level = Blocks(), latents(), level_at(9)
    with torch.inference_mode():
        run = GuidedDenoiser(
            network, Guidance(3.0, "all", "stg:weight=2"), COND, UNCOND, weak=BlockSkip([network.blocks[1]]),
            batched=batched,
        )  # fmt: skip
        found = run(x, level)
        assert network.calls == ([6] if batched else [2, 2, 2])
        cond, uncond = network(x, level, COND), network(x, level, UNCOND)
        weak = network.without(1, x, COND)
    assert torch.allclose(found, uncond + 3 * (cond - uncond) + 2 * (cond - weak), atol=1e-5)
    assert not any(block._forward_hooks for block in network.blocks)


def test_blocks_are_skipped_in_the_calls_of_one_thread_alone():
    block, x = nn.Linear(3, 3), torch.ones(2, 3)
    plain = block(x)
    with BlockSkip([block]).rows(slice(None)), ThreadPoolExecutor(1) as other:
        assert torch.equal(block(x), x)
        assert torch.equal(other.submit(block, x).result(), plain)
    with pytest.raises(InputError, match="stg skipped no block"):  # noqa: SIM117
        with BlockSkip([block]).rows(slice(None)), ThreadPoolExecutor(1) as other:
            other.submit(block, x).result()


class Shared(Blocks):
    """Its first block is computed once for all branches where they are one batch."""

    branches_share_rows = True

    def forward(self, x, level, cond):
        self.calls.append(len(x))
        x = self.blocks[0](x).tanh()
        return x.repeat(len(cond.value) // len(x), 1, 1, 1, 1) + cond.value.view(-1, 1, 1, 1, 1)


def test_a_network_whose_branches_share_rows_does_not_share_those_of_a_skipped_block():
    network, x, level = Shared(), latents(), level_at(9)
    skip = {"weak": BlockSkip([network.blocks[0]])}
    with torch.inference_mode():
        found, alone = (
            GuidedDenoiser(network, Guidance(3.0, "all", "stg:weight=2"), COND, UNCOND, batched=batched, **skip)(
                x, level
            )
            for batched in (True, False)
        )
        assert network.calls == [6, 2, 2, 2]
        GuidedDenoiser(network, Guidance(3.0, "all"), COND, UNCOND)(x, level)
    assert torch.allclose(found, alone, atol=1e-5)
    assert network.calls[4:] == [2]  # no block is skipped


def test_autoguidance_runs_the_weak_network_and_no_unconditional_branch():
    network, weak, x, level = Blocks(), Blocks(), latents(), level_at(9)
    nn.init.zeros_(weak.blocks[2].weight)
    with torch.inference_mode():
        run = GuidedDenoiser(network, Guidance(3.0, "all", "autoguidance"), COND, weak=WeakModel(weak, UNCOND))
        found = run(x, level)
        assert (network.calls, weak.calls) == ([2], [2])
        cond, other = network(x, level, COND), weak(x, level, UNCOND)
    assert torch.allclose(found, cond + 2 * (cond - other), atol=1e-5)


def test_the_weak_branch_runs_only_where_guidance_acts():
    network, weak = Blocks(), Blocks()
    guidance = Guidance(3.0, "all", "autoguidance", "interval:0.5,1")
    run = GuidedDenoiser(network, guidance, COND, weak=WeakModel(weak, COND))
    alone = run(latents(), level_at(19))
    assert weak.calls == []
    assert torch.equal(alone, network(latents(), level_at(19), COND))


def test_a_missing_weak_branch_is_refused_before_the_run():
    with pytest.raises(InputError, match="needs a weaker prediction, and none was given"):
        GuidedDenoiser(Blocks(), Guidance(3.0, rule="stg"), COND, UNCOND)


@pytest.mark.parametrize("name", ["hidden_states", "x"])
def test_a_block_is_skipped_where_it_takes_its_input_by_name(name):
    class Doubled(nn.Module):
        def forward(self, scale=2.0, *, hidden_states=None, x=None):
            return scale * (x if hidden_states is None else hidden_states)

    block, x = Doubled(), latents()
    with BlockSkip([block]).rows(slice(1, None)):
        found = block(**{name: x})
    assert torch.equal(found, torch.cat([2 * x[:1], x[1:]]))


def test_blocks_that_cannot_be_skipped_are_refused():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    pair = Pair()
    with (
        pytest.raises(InputError, match="give one tensor of the shape of their input, and Pair does not"),
        BlockSkip([pair]).rows(slice(None)),
    ):
        pair(torch.zeros(1))
    with pytest.raises(InputError, match="stg skipped no block"), BlockSkip([pair]).rows(slice(None)):
        pass
    assert not pair._forward_hooks
