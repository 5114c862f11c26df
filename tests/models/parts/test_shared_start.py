"""Branches share their rows until the caption is read: the prediction is the same, and the FLOPs are fewer."""

import pytest
import torch
from torch import nn

from guidon.analysis.speed import count
from guidon.diffusion import NoiseSchedule
from guidon.guidance import BlockSkip, Guidance, GuidedDenoiser
from guidon.models.pixart.network import PixArt, PixArtConfig
from guidon.models.small.experts import Experts
from guidon.models.stdit.network import STDiT, STDiTConfig
from guidon.models.stdit2.network import STDiT2, STDiT2Config
from guidon.models.stdit3.network import STDiT3, STDiT3Config

LENGTH, FRAMES, PLACES, DEPTH = 40, 4, 16, 2
TOKENS, WIDE, NARROW = FRAMES * PLACES, 264, 24
LEVEL = NoiseSchedule.named("linear", 1000).respaced(10).levels[5]
FEATURES, X = torch.randn(2, LENGTH, 24), torch.randn(2, 4, FRAMES, 8, 8)
MADE = {
    STDiT: lambda shared: STDiT(STDiTConfig((FRAMES, 8, 8), **shared)),
    STDiT2: lambda shared: STDiT2(STDiT2Config((FRAMES, 8, 8), **shared)),
    STDiT3: lambda shared: STDiT3(STDiT3Config((FRAMES, 8, 8), **shared)),
    PixArt: lambda shared: PixArt(PixArtConfig(8, **shared)),
}


def network(kind=STDiT, width=WIDE, **more):
    torch.manual_seed(0)
    sizes = {"hidden_size": width, "depth": DEPTH, "num_heads": 3, "caption_channels": 24, "model_max_length": LENGTH}
    made = MADE[kind](sizes | more).eval().requires_grad_(False)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return made


def captions(made, tokens=LENGTH):
    """Both branches of two prompts, whose captions are so long."""
    mask = (torch.arange(LENGTH) < tokens).long()[None].repeat(2, 1)
    return made.prepare(FEATURES, mask), made.null(2, mask)


def latents(kind):
    return X[:, :, 0] if kind is PixArt else X


@pytest.mark.parametrize("tokens", [5, LENGTH])  # short captions are multiplied with the weights, long ones are not
@pytest.mark.parametrize("kind", MADE)
def test_shared_rows_predict_what_repeated_rows_do(kind, tokens):
    made, x = network(kind), latents(kind)
    with torch.no_grad():
        cond, uncond = captions(made, tokens)
        both = cond.cat(uncond)
        whole = made(torch.cat([x, x]), LEVEL, both)
        assert (made(x, LEVEL, both) - whole).abs().max() <= 1e-6 * whole.abs().max()
        assert (whole[:2] - whole[2:]).abs().max() > 0.01  # the branches are not the same


@pytest.mark.parametrize("kind", MADE)
def test_narrow_networks_keep_every_bit(kind):
    made, x = network(kind, NARROW), latents(kind)
    with torch.no_grad():
        cond, uncond = captions(made)
        both = cond.cat(uncond)
        assert torch.equal(made(x, LEVEL, both), made(torch.cat([x, x]), LEVEL, both))


def test_first_layers_of_shared_rows_are_computed_once():
    made = network(depth=1)
    with torch.no_grad():
        cond, uncond = captions(made)
        both = cond.cat(uncond)
        made(X, LEVEL, both)  # the caption is multiplied with the weights once for all steps
        once = count(lambda: made(X, LEVEL, both)).flops
        twice = count(lambda: made(torch.cat([X, X]), LEVEL, both)).flops
    per_row = 2 * TOKENS * (8 * WIDE**2) + 4 * TOKENS * WIDE * (PLACES + FRAMES)  # both self-attentions
    per_row += 2 * TOKENS * 16 * WIDE + 2 * (256 * WIDE + 7 * WIDE**2)  # patches, timestep and its modulation
    assert twice - once == 2 * per_row


def guided(made, **more):
    """A guided step, and the rows of latents that the network was given in it."""
    given = []

    class Watched(type(made)):
        def __call__(self, x, level, condition):
            given.append(len(x))
            return super().__call__(x, level, condition)

    made.__class__ = Watched
    with torch.no_grad():
        cond, uncond = captions(made)
        found = GuidedDenoiser(made, Guidance(3, 3, **more.pop("guidance", {})), cond, uncond, **more)(X, LEVEL)
    return found, given


def test_guidance_gives_latents_once_and_branches_after_each_other_agree():
    (shared, given), (alone, each) = guided(network()), guided(network(), batched=False)
    assert given == [2]
    assert each == [2, 2]
    assert (shared - alone).abs().max() <= 2e-6 * alone.abs().max()


def test_two_experts_share_rows():
    high, low = network(), network(depth=1)
    found, given = guided(Experts(high, low, 500))
    assert given == [2]
    assert found.shape == (2, 8, FRAMES, 8, 8)


def test_a_branch_that_skips_blocks_is_given_all_rows():
    made = network()
    _, given = guided(made, guidance={"rule": "stg:blocks=0"}, weak=BlockSkip([made.blocks[0]]))
    assert given == [6]


def test_networks_that_do_not_say_so_are_given_all_rows():
    made, given = network(), []

    def plain(x, level, condition):
        given.append(len(x))
        return made(x, level, condition)

    with torch.no_grad():
        cond, uncond = captions(made)
        GuidedDenoiser(plain, Guidance(3, 3), cond, uncond)(X, LEVEL)
    assert given == [4]
