import pytest
import torch

from guidon.core.errors import InputError
from guidon.guidance.rules import Renormalised
from toy_network import branches, draw, of_images, plain


def packed(x):
    """Flux' and Qwen-Image's tokens of 2x2 pixels: (B, C, H, W) -> (B, H/2 W/2, 4 C)."""
    b, c, h, w = x.shape
    return x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h // 2 * (w // 2), 4 * c)


def test_renorm_of_patches_is_the_step_of_qwen_images_pipeline():
    cond, uncond = draw(0, 1, shape=(2, 16, 6, 4))
    c, u = packed(cond), packed(uncond)
    guided = u + 4.0 * (c - u)
    expected = guided * (torch.norm(c, dim=-1, keepdim=True) / torch.norm(guided, dim=-1, keepdim=True))
    found = Renormalised("token", patch=2)(of_images(cond, uncond), 4.0)
    assert torch.allclose(packed(found), expected, atol=1e-5)


def test_renorm_of_rows_is_the_step_of_lumina_2s_pipeline():
    b = of_images(*draw(0, 1, shape=(2, 16, 6, 4)))
    guided = plain(b, 4.0)
    expected = guided * (torch.norm(b.cond, dim=-1, keepdim=True) / torch.norm(guided, dim=-1, keepdim=True))
    assert torch.allclose(Renormalised("row")(b, 4.0), expected, atol=1e-5)


def test_renorm_that_only_shrinks_is_comfyuis_cfgnorm():
    b = of_images(*draw(0, 1, shape=(2, 4, 6, 4)))
    guided = plain(b, 1.5)
    ratio = torch.norm(b.cond, dim=1, keepdim=True) / torch.norm(guided, dim=1, keepdim=True)
    assert (ratio > 1).any()
    assert torch.allclose(Renormalised(shrink=1)(b, 1.5), guided * ratio.clamp(max=1), atol=1e-5)


@pytest.mark.parametrize("rule", [Renormalised(), Renormalised(patch=2), Renormalised("row"), Renormalised("sample")])
def test_a_renormalised_part_has_the_norm_of_the_conditional_prediction(rule):
    b = branches()
    found = rule(b, 5.0)
    over = {"row": (-1,), "sample": (1, 2, 3, 4)}.get(rule.over, (1,))
    if rule.patch == 2:
        parts = [x.unfold(-2, 2, 2).unfold(-2, 2, 2).square().sum((1, -1, -2)) for x in (found, b.cond)]
    else:
        parts = [x.square().sum(over) for x in (found, b.cond)]
    assert torch.allclose(*parts, rtol=1e-4)
    half = Renormalised(rule.over, rule.patch, phi=0.5)(b, 5.0)
    assert torch.allclose(half, (found + plain(b, 5.0)) / 2, atol=1e-5)


def test_a_prediction_of_zeros_stays_one():
    zero = of_images(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4))
    for rule in (Renormalised(), Renormalised("row"), Renormalised("sample")):
        assert not rule(zero, 3.0).any()


def test_patches_that_do_not_fit_are_refused():
    for size in ((6, 5), (5, 6)):
        b = of_images(*draw(0, 1, shape=(1, 2, *size)))
        with pytest.raises(InputError, match="latents of {}x{} hold no whole patches of 2x2: give".format(*size)):
            Renormalised(patch=2)(b, 3.0)
    with pytest.raises(InputError, match=r"renorm: latents .* have no height and width"):
        Renormalised(patch=2)(of_images(*draw(0, 1, shape=(1, 2, 64))), 3.0)
    with pytest.raises(InputError, match=r"renorm: latents .* have no height and width"):
        Renormalised("row")(of_images(*draw(0, 1, shape=(1, 2, 64))), 3.0)
