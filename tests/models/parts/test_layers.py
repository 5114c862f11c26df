import math

import pytest
import torch
from torch.nn import functional as F

from guidon.models.parts.layers import Attention, attend, modulate, sincos_2d, timestep_embedding


def test_timestep_embedding_is_cosines_then_sines():
    out = timestep_embedding(torch.tensor([0.0, 7.5]), 8)
    angle = 7.5 * math.exp(-math.log(1e4) * 3 / 4)
    assert torch.equal(out[0], torch.tensor([1.0] * 4 + [0.0] * 4))
    assert torch.allclose(out[1, [3, 7]], torch.tensor([math.cos(angle), math.sin(angle)]))


def test_positions_put_x_first_and_are_divided_by_the_scale():
    grid = sincos_2d(8, 2, 3)
    assert torch.equal(grid[0, :4], grid[3, :4])  # the same x in both rows
    assert torch.equal(grid[0, 4:], grid[1, 4:])  # the same y in both columns
    assert torch.allclose(sincos_2d(8, 3, 3, scale=2.0)[2], sincos_2d(8, 3, 3)[1])


def test_modulation():
    x, shift, scale = torch.randn(2, 5, 3), torch.randn(2, 1, 3), torch.randn(2, 1, 3)
    assert torch.allclose(modulate(x, shift, scale), x * (1 + scale) + shift)


@pytest.mark.parametrize(("heads", "by_products"), [(4, True), (2, False)])
def test_attention_in_bf16_errs_as_products_do(heads, by_products):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 5, heads, 16, 64).bfloat16()
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    with torch.no_grad():
        found, fused = attend(q, k, v), F.scaled_dot_product_attention(q, k, v)
    assert (found - exact).square().mean() < 1e-5
    assert torch.equal(found, fused) != by_products
    assert torch.equal(attend(q, k, v), fused)  # where gradients may flow
    with torch.no_grad():
        assert torch.equal(
            attend(*(each.float() for each in (q, k, v))),
            F.scaled_dot_product_attention(q.float(), k.float(), v.float()),
        )


def test_attention_in_bf16_reads_no_token_that_does_not_count():
    torch.manual_seed(0)
    q, (k, v) = torch.randn(3, 4, 9, 64).bfloat16(), torch.randn(2, 3, 4, 7, 64).bfloat16()
    mask = (torch.arange(7) < torch.tensor([[7], [2], [0]]))[:, None, None]
    with torch.no_grad():
        found = attend(q, k, v, mask)
        k[~mask.transpose(2, 3).expand_as(k)], v[~mask.transpose(2, 3).expand_as(v)] = 3.0, -5.0
        assert torch.equal(attend(q, k, v, mask), found)
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=mask)
    assert (found - exact)[:2].square().mean() < 1e-5
    assert not found[2].any()  # as torch's: where no token counts, nothing is read


@torch.no_grad()
def test_a_token_alone_has_its_own_value_whoever_made_the_layer():
    """As if it attended to itself twice; also where an adapter is around the layer."""
    torch.manual_seed(0)
    attention, x = Attention(32, 2), torch.randn(3, 1, 32)
    expected = attention(x.expand(-1, 2, -1))[:, :1]
    assert torch.allclose(attention(x), expected, atol=1e-6)
    attention.qkv = torch.nn.Sequential(attention.qkv)
    assert torch.allclose(attention(x), expected, atol=1e-6)
