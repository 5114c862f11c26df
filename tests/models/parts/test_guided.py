"""Guidance inside a network's call."""

import pytest
import torch

from goldens import golden, relative_error
from guidon import iddpm
from guidon.core.errors import InputError
from guidon.models import STDiT2, STDiT2Config
from guidon.models.dit.network import DiT, DiTConfig
from guidon.models.pixart.network import PixArt, PixArtConfig
from guidon.models.stdit.network import STDiT, STDiTConfig
from toy_network import normal

TEXT = {"caption_channels": 6, "model_max_length": 5}
TINY = {"hidden_size": 24, "depth": 1, "num_heads": 2}


def filled(network):
    """With weights that are not zero."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) / 5
    return network.eval()


CASES = {
    "DiT": (lambda: DiT(DiTConfig(**TINY, input_size=4, num_classes=3)), (4, 4, 4), torch.tensor([0, 1, 3, 3])),
    "PixArt": (lambda: PixArt(PixArtConfig(**TINY, **TEXT, input_size=4)), (4, 4, 4), normal(4, 1, 5, 6)),
    "STDiT": (lambda: STDiT(STDiTConfig(**TINY, **TEXT, input_size=(2, 4, 4))), (4, 2, 4, 4), normal(4, 1, 5, 6)),
    "STDiT2": (lambda: STDiT2(STDiT2Config(**TINY, **TEXT)), (4, 2, 4, 4), normal(4, 1, 5, 6)),
}


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_networks_guide_the_channels_that_their_original_guides(name):
    make, shape, y = CASES[name]
    network, half, t = filled(make()), normal(2, *shape, seed=2), torch.tensor([7, 300, 7, 300])
    x = torch.cat([half, normal(2, *shape, seed=3)])  # the second half is not read
    cond, uncond = network(torch.cat([half, half]), t, y).chunk(2)
    count = 4 if name == "STDiT2" else 3
    found = network.forward_with_cfg(x, t, y, 5.0)
    guided = uncond[:, :count] + 5.0 * (cond[:, :count] - uncond[:, :count])
    assert torch.allclose(found[:2, :count], guided, atol=1e-5)
    assert torch.equal(found[:2, :count], found[2:, :count])
    assert torch.equal(found[:, count:], torch.cat([cond, uncond])[:, count:])
    one = network.forward_with_cfg(x, t, y, cfg_scale=5.0, cfg_channel="only:1")
    assert torch.equal(one[:, 0], torch.cat([cond, uncond])[:, 0])
    assert torch.equal(one[:2, 1], found[:2, 1])
    assert torch.equal(network.forward_with_dpmsolver(torch.cat([half, half]), t, y), torch.cat([cond, uncond])[:, :4])


@torch.no_grad()
def test_pixart_reads_the_arguments_of_its_original():
    config = PixArtConfig(**TINY, **TEXT, input_size=4, micro_condition=True)
    network, x, t, y = filled(PixArt(config)), normal(4, 4, 4, 6), torch.tensor([7, 300, 7, 300]), normal(4, 1, 5, 6)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]])
    size, ratio = torch.tensor([[32.0, 48.0], [64.0, 96.0]]), torch.tensor([[0.6], [0.7]])
    info = {"img_hw": size, "aspect_ratio": ratio}
    found = network.forward_with_cfg(x, t, y, 2.0, data_info=info, mask=mask[:, None, None])
    expected = network.forward_with_cfg(
        x, t, y, 2.0, size=size.repeat(2, 1), aspect_ratio=ratio.repeat(2, 1), mask=mask.repeat(2, 1)
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", ["ddpm", "ddim"])
@torch.no_grad()
def test_dits_own_loop_is_guided_as_dit_guides_it(kind):
    g, run = golden(f"sample/dit_a_{kind}10")
    weights, case = golden("dit/a")
    network = DiT(DiTConfig(**case["config"])).eval()
    network.load_state_dict({k.removeprefix("weights."): v for k, v in weights.items() if k.startswith("weights.")})
    diffusion, z = iddpm.create_diffusion(run["respacing"]), torch.cat([g["z"], g["z"]])
    loop = diffusion.p_sample_loop if kind == "ddpm" else diffusion.ddim_sample_loop
    keywords = {"y": g["y"], "cfg_scale": run["cfg_scale"]}
    torch.manual_seed(run["seed"])
    torch.randn(g["z"].shape)  # the original drew z here
    out = loop(network.forward_with_cfg, z.shape, z, False, model_kwargs=keywords, progress=False, device="cpu")
    assert relative_error(out.chunk(2)[0], g["sample"]) < 1e-4


def test_a_frame_mask_is_repeated_and_a_batch_without_halves_refused():
    seen = []

    def model(x, t, y, x_mask):
        seen.append(x_mask)
        return {"x": torch.cat([x, x], 1)}

    x, mask = normal(4, 4, 3, 2, 2), torch.tensor([[True, False, True]] * 2)
    out = iddpm.forward_with_cfg(model, x, torch.zeros(4), None, 3.0, x_mask=mask)
    assert seen[0].shape == (4, 3)
    assert out.shape == (4, 8, 3, 2, 2)
    with pytest.raises(InputError, match="it has 3 rows"):
        iddpm.forward_with_cfg(model, x[:3], torch.zeros(3), None, 3.0)
    with pytest.raises(InputError, match="asks for more channels"):
        iddpm.forward_with_cfg(model, x, torch.zeros(4), None, 3.0, 5)
