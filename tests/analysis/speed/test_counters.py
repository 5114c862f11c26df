import pytest
import torch
from torch import nn
from torch.nn import functional as F

from guidon.analysis.speed import count

B, N, L, D, H = 2, 6, 5, 8, 3


def test_a_linear_layer_costs_two_flops_for_each_weight_and_row():
    layer, x = nn.Linear(64, 32), torch.randn(B, N, 64)
    for mode in (torch.no_grad, torch.inference_mode):  # composite operators are counted by their parts in both
        with mode():
            found = count(lambda: layer(x))
        assert found.flops == 2 * B * N * 64 * 32
        assert found.operators == 1
        assert found.allocated == found.peak == B * N * 32 * 4


def test_fused_attention_costs_its_two_products():
    q, k, v = (torch.randn(B, H, length, D) for length in (N, L, L))
    mask = torch.ones(B, 1, 1, L, dtype=torch.bool)
    products = 2 * 2 * B * H * N * L * D
    with torch.inference_mode():
        assert count(lambda: F.scaled_dot_product_attention(q, k, v)).flops == products
        assert count(lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=mask)).flops == products
        assert count(lambda: (q @ k.transpose(-1, -2)).softmax(-1) @ v).flops == products


def test_its_gradient_costs_five_more():
    q, k, v = (torch.randn(B, H, N, D, requires_grad=True) for _ in range(3))
    found = count(lambda: F.scaled_dot_product_attention(q, k, v).sum().backward())
    assert found.flops == 2 * B * H * N * N * D * (2 + 5)


def test_products_in_place_are_counted():
    a, b, c = torch.zeros(3, 4), torch.randn(3, 5), torch.randn(5, 4)
    assert count(lambda: a.addmm_(b, c)).flops == 2 * 3 * 5 * 4
    assert count(lambda: a[None].baddbmm_(b[None], c[None])).flops == 2 * 3 * 5 * 4


def test_a_convolution_is_counted():
    layer, x = nn.Conv3d(4, 6, (1, 2, 2), (1, 2, 2)), torch.randn(1, 4, 2, 4, 4)
    with torch.no_grad():
        assert count(lambda: layer(x)).flops == 2 * 6 * 4 * 4 * (2 * 2 * 2)


def test_views_cost_nothing_and_peak_memory_is_what_is_alive():
    x = torch.zeros(1000)

    def work():
        a = x + 1
        b = a * 2
        del a
        return b.view(10, 100).add_(1).transpose(0, 1)

    found = count(work)
    assert found.operators == 3
    assert found.allocated == 8000
    assert found.peak == 8000
    assert count(lambda: x.view(10, 100).T[0]).operators == 0
    alone = count(lambda: ((x + 1).sum(), (x + 1).sum()))  # the first sum's input is gone when the second is made
    assert alone.peak < 4000 + 100


@pytest.mark.parametrize("repeat", range(2))
def test_counts_are_the_same_each_time(repeat):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    x = torch.randn(2, 4, 8)
    assert count(lambda: layer(x)) == count(lambda: layer(x))
