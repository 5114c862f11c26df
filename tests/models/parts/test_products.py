"""Products by oneDNN are torch's own to rounding, and are taken only where no gradient needs them."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from guidon.models.parts import products
from guidon.models.parts.layers import Mlp
from guidon.models.parts.products import LEAST_ROWS, LEAST_WIDTH, Linear, gelu_of, product
from guidon.models.stdit.network import STDiT, STDiTConfig

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
WIDE = LEAST_WIDTH


class Names(TorchDispatchMode):
    """The names of all operators that run."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def by_onednn(work):
    with Names() as names:
        work()
    return any("mkldnn._linear_pointwise" in name for name in names.found)


@pytest.fixture(autouse=True)
def faster(monkeypatch):
    """As on a processor where oneDNN is faster."""
    monkeypatch.setattr(products, "FASTER", {torch.float32: True, torch.bfloat16: True})


def inputs(rows=LEAST_ROWS, into=WIDE, out=2 * WIDE, dtype=torch.float32):
    torch.manual_seed(0)
    return [
        t.to(dtype) for t in (torch.randn(2, rows // 2, into), torch.randn(out, into) / into**0.5, torch.randn(out))
    ]


@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_the_product_is_torchs_to_rounding(activation):
    x, weight, bias = inputs()
    exact = F.linear(x.double(), weight.double(), bias.double())
    exact = F.gelu(exact, approximate="tanh") if activation == "gelu" else exact
    with torch.no_grad():
        assert by_onednn(lambda: product(x, weight, bias, activation))
        assert (product(x, weight, bias, activation) - exact).abs().max() < 1e-5


def test_a_product_without_bias():
    x, weight, _ = inputs()
    with torch.no_grad():
        assert (product(x, weight, None) - F.linear(x.double(), weight.double())).abs().max() < 1e-5


def test_a_layer_that_was_replaced_or_hooked_is_called():
    mlp, (x, *_), seen = Mlp(WIDE, WIDE, WIDE), inputs(), []
    with torch.no_grad():
        before = mlp(x)
        hook = mlp.fc1.register_forward_hook(lambda layer, given, made: seen.append(made))
        assert torch.allclose(mlp(x), before, atol=1e-5)
        assert len(seen) == 1
        hook.remove()
        mlp.fc1 = nn.Sequential(mlp.fc1, nn.Identity())
        assert torch.allclose(mlp(x), before, atol=1e-5)


def test_half_precision_errs_no_more_than_torchs():
    x, weight, bias = inputs(dtype=torch.bfloat16)
    exact = F.gelu(F.linear(x.double(), weight.double(), bias.double()), approximate="tanh")
    with torch.no_grad():
        ours, torchs = product(x, weight, bias, "gelu"), F.gelu(F.linear(x, weight, bias), approximate="tanh")
    assert ours.dtype == torch.bfloat16
    assert (ours - exact).square().mean() <= (torchs - exact).square().mean()


def test_a_row_is_the_same_in_every_batch():
    x, weight, bias = inputs(4 * LEAST_ROWS)
    with torch.no_grad():
        whole = product(x, weight, bias, "gelu")
        assert torch.equal(whole[:1], product(x[:1], weight, bias, "gelu"))
        assert torch.equal(whole[1:, 7:71], product(x[1:, 7:71], weight, bias, "gelu"))


@pytest.mark.parametrize(
    "made", [inputs(LEAST_ROWS - 2), inputs(into=WIDE - 64), inputs(out=WIDE - 64), inputs(dtype=torch.float64)]
)
def test_small_and_other_products_are_torchs_bit_for_bit(made):
    with torch.no_grad():
        assert not by_onednn(lambda: product(*made))
        assert torch.equal(product(*made), F.linear(*made))


def test_gradients_are_torchs():
    x, weight, bias = inputs()
    layer = Linear(WIDE, 2 * WIDE)
    layer.load_state_dict({"weight": weight, "bias": bias})
    assert not by_onednn(lambda: gelu_of(layer, x))
    gelu_of(layer, x).sum().backward()
    weight.requires_grad_()
    F.gelu(F.linear(x, weight, bias), approximate="tanh").sum().backward()
    assert torch.equal(layer.weight.grad, weight.grad)


def test_forward_derivatives_and_autocast_are_torchs():
    x, weight, bias = inputs()
    with torch.no_grad(), forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(product(forward_ad.make_dual(x, x), weight, bias)).tangent
        assert torch.allclose(tangent, F.linear(x, weight), atol=1e-5)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert product(x, weight, bias).dtype == torch.bfloat16


def test_torchs_counter_knows_its_flops():
    x, weight, bias = inputs()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        product(x, weight, bias)
    assert counter.get_total_flops() == 2 * LEAST_ROWS * weight.numel()


def test_processors_of_others_keep_torchs_product(monkeypatch):
    monkeypatch.undo()
    for name, flags, faster in (
        ("Intel(R) Xeon(R)", {"avx512f"}, False), ("AMD EPYC", {"avx2"}, False), ("AMD EPYC", {"avx512f"}, True),
    ):  # fmt: skip
        monkeypatch.setattr(products, "processor", lambda name=name, flags=flags: (name, flags))
        assert products._is_faster(torch.float32) == (faster and torch.backends.mkl.is_available())
    assert not products._is_faster(torch.float16)


def network():
    torch.manual_seed(0)
    config = STDiTConfig(
        (4, 8, 8),
        hidden_size=WIDE,
        depth=2,
        num_heads=4,
        caption_channels=24,
        model_max_length=40,
        patch_size=(1, 2, 2),
    )
    made = STDiT(config).eval().requires_grad_(False)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return made


FEATURES, X, T = torch.randn(2, 40, 24), torch.randn(2, 4, 4, 8, 8), torch.tensor([500.0, 500.0])


def arrangements(work):
    """How often weights were arranged."""
    with Names() as names:
        work()
    return sum("_reorder_linear_weight" in name for name in names.found)


@torch.no_grad()
def test_weights_are_arranged_once_for_all_steps_bit_for_bit(monkeypatch):
    made = network()
    caption, first = made.prepare(FEATURES), made.prepare(FEATURES[:1])
    with monkeypatch.context() as patch:
        patch.setattr(products, "MOST_ARRANGED", 0)
        assert not arrangements(lambda: made(X, T, caption))
        plain, alone = made(X, T, caption), made(X[:1], T[:1], first)
    assert arrangements(lambda: made(X, T, caption)) == 2 * 6  # both attentions: 4, the MLP: 2; the caption is short
    assert not arrangements(lambda: made(X, T, caption))
    assert torch.equal(made(X, T, caption), plain)
    assert torch.equal(made(X[:1], T[:1], first), alone)  # a batch of another size, with the same weights


@torch.no_grad()
def test_weights_that_change_are_arranged_anew():
    made = network()
    caption = made.prepare(FEATURES)
    before = made(X, T, caption)
    made.blocks[1].mlp.fc2.weight.mul_(2)
    assert arrangements(lambda: made(X, T, caption)) == 1
    after = made(X, T, caption)
    assert not torch.equal(after, before)
    made.blocks[1].mlp.fc2.weight.data.div_(2)  # not seen until the condition is prepared anew
    assert torch.equal(made(X, T, caption), after)
    assert torch.equal(made(X, T, made.prepare(FEATURES)), before)


@torch.no_grad()
def test_arranged_weights_take_a_bounded_memory_and_stay_with_their_network(monkeypatch):
    made = network()
    caption = made.prepare(FEATURES)
    weights = made.blocks[0].attn.qkv.weight.nbytes, made.blocks[0].attn.proj.weight.nbytes
    monkeypatch.setattr(products, "MOST_ARRANGED", sum(weights))
    assert arrangements(lambda: made(X, T, caption)) == 2
    found = made(X, T, caption)
    again = copy.deepcopy(made)
    assert arrangements(lambda: again(X, T, caption)) == 2
    assert torch.equal(again(X, T, caption), found)
    monkeypatch.setattr(products, "MOST_ROWS", LEAST_ROWS - 1)
    assert not arrangements(lambda: network()(X, T, caption))
    with torch.enable_grad():
        assert not arrangements(lambda: network()(X, T, caption))


@torch.no_grad()
def test_weights_that_are_made_for_each_product_are_not_kept():
    """Their memory is that of another weight soon."""

    class Twice(nn.Module):
        def forward(self, weight):
            return 2 * weight

    made = network()
    caption = made.prepare(FEATURES)
    before = made(X, T, caption)
    for block in made.blocks:
        parametrize.register_parametrization(block.mlp.fc2, "weight", Twice())
        parametrize.register_parametrization(block.attn.proj, "weight", Twice())
    assert arrangements(lambda: made(X, T, caption)) == 0
    found = made(X, T, caption)
    for block in made.blocks:
        parametrize.remove_parametrizations(block.mlp.fc2, "weight")
        parametrize.remove_parametrizations(block.attn.proj, "weight")
    assert torch.equal(made(X, T, caption), found)
    assert not torch.equal(found, before)
