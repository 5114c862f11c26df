"""Captions without padding, and short captions multiplied with the weights once, read as the whole ones do."""

import pytest
import torch
from torch import nn

from guidon.analysis.speed import count
from guidon.models.parts.captioned import GROUP, Caption
from guidon.models.parts.layers import MOST_TABLES, Absorbed, absorbs
from guidon.models.stdit.network import STDiT, STDiTConfig

LENGTH = 40


def network(width=32, heads=2, **more):
    torch.manual_seed(0)
    config = STDiTConfig(
        (4, 8, 8), hidden_size=width, depth=2, num_heads=heads, caption_channels=24, model_max_length=LENGTH, **more
    )
    made = STDiT(config).eval().requires_grad_(False)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return made


@pytest.fixture(scope="module")
def narrow():
    return network()


@pytest.fixture(scope="module")
def wide():
    return network(256, 4)


def mask_of(*lengths):
    return torch.stack([(torch.arange(LENGTH) < length).long() for length in lengths])


FEATURES, X, T = torch.randn(2, LENGTH, 24), torch.randn(2, 4, 4, 8, 8), torch.tensor([500.0, 500.0])


def whole(made, mask):
    """The caption with all of its padding."""
    with torch.enable_grad():
        return made.prepare(FEATURES, mask)


@pytest.mark.parametrize("lengths", [(1, 1), (5, 20), (16, 16), (17, 3), (LENGTH, 2)])
def test_padding_is_left_out_bit_for_bit(narrow, lengths):
    mask = mask_of(*lengths)
    with torch.no_grad():
        short = narrow.prepare(FEATURES, mask)
        assert torch.equal(narrow(X, T, short), narrow(X, T, whole(narrow, mask)))
    kept = min(LENGTH, -(-max(lengths) // GROUP) * GROUP)
    assert short.keys_values[0].shape[3] == short.mask.shape[-1] == kept


def test_padding_stays_where_gradients_flow_or_parts_of_a_narrow_network_are_compiled(narrow):
    assert narrow.prepare(FEATURES, mask_of(3, 3)).mask.shape[-1] == LENGTH
    for sets in ("_compiled_call_impl", "forward"):  # by Module.compile, and by --compile
        compiled = network()
        setattr(compiled.blocks[0], sets, compiled.blocks[0].forward)
        with torch.no_grad():
            assert compiled.prepare(FEATURES, mask_of(3, 3)).mask.shape[-1] == LENGTH


@pytest.mark.parametrize(("tokens", "kept"), [(3, 16), (17, 32), (33, LENGTH)])
def test_a_compiled_network_reads_short_captions_of_few_lengths(wide, tokens, kept):
    mask, compiled = mask_of(tokens, 2), network(256, 4)
    compiled.blocks[0].forward = compiled.blocks[0].forward  # as --compile does
    with torch.no_grad():
        caption = compiled.prepare(FEATURES, mask)
        found, exact = compiled(X, T, caption), wide(X, T, wide.prepare(FEATURES, mask))
    assert caption.mask.shape[-1] == kept
    assert [each.scores.shape for each in absorbed(caption)] == [(2, 256, 4 * kept)] * 2
    assert (found - exact).abs().max() < 1e-5 * exact.abs().max()


def test_a_caption_of_no_token_keeps_its_length(narrow):
    with torch.no_grad():
        assert narrow.prepare(FEATURES, mask_of(0, 0)).mask.shape[-1] == LENGTH


def test_captions_of_other_lengths_are_joined(narrow):
    with torch.no_grad():
        masks = mask_of(3, 9), mask_of(20, 30)
        short, long = (narrow.prepare(FEATURES, mask) for mask in masks)
        both = narrow(torch.cat([X, X]), torch.cat([T, T]), short.cat(long))
        full, other = (whole(narrow, mask) for mask in masks)
        assert torch.equal(both, narrow(torch.cat([X, X]), torch.cat([T, T]), full.cat(other)))
        unmasked = narrow.prepare(FEATURES)
        both = narrow(torch.cat([X, X]), torch.cat([T, T]), unmasked.cat(short))
        assert torch.allclose(both, torch.cat([narrow(X, T, unmasked), narrow(X, T, short)]), atol=1e-4)


def absorbed(caption: Caption) -> list:
    return [pair for value in caption.kept.values() for pair in value.value if isinstance(pair, Absorbed)]


@pytest.mark.parametrize("lengths", [(1, 1), (5, 12), (16, 16)])
def test_an_absorbed_caption_is_read_to_rounding(wide, lengths):
    mask = mask_of(*lengths)
    with torch.no_grad():
        caption = wide.prepare(FEATURES, mask)
        found = wide(X, T, caption)
        exact = wide.double()(X.double(), T, wide.prepare(FEATURES, mask))
    wide.float()
    assert len(absorbed(caption)) == 2
    assert absorbed(caption)[0].scores.shape == (2, 256, 4 * max(lengths))
    assert (found - exact).abs().max() < 1e-5 * exact.abs().max()


def test_a_row_without_tokens_is_not_absorbed(wide):
    with torch.no_grad():
        caption = wide.prepare(FEATURES, mask_of(5, 0))
        wide(X, T, caption)
    assert not absorbed(caption)


def test_absorbing_takes_fewer_products_and_is_done_once(wide):
    with torch.no_grad():
        caption = wide.prepare(FEATURES, mask_of(8, 8))
        first, kept = count(lambda: wide(X, T, caption)), absorbed(caption)
        second = count(lambda: wide(X, T, caption))
        with torch.enable_grad():
            plain = count(lambda: wide(X, T, caption))
    assert all(a is b for a, b in zip(kept, absorbed(caption), strict=True))
    assert second.flops < first.flops
    # of 2 rows of 64 tokens in 2 blocks: queries, scores, values and their projection; or two products with 8 tokens
    d, heads, n = 256, 4, 2 * 64
    assert plain.flops - second.flops == 2 * 2 * n * (2 * d * d + 2 * d * GROUP - 2 * d * heads * 8)


@pytest.mark.parametrize("change", ["in place", "replaced", "moved"])
def test_a_changed_weight_is_seen(wide, change):
    made = network(256, 4)
    with torch.no_grad():
        caption = made.prepare(FEATURES, mask_of(8, 8))
        before = made(X, T, caption)
        weight = made.blocks[1].cross_attn.proj.weight
        if change == "in place":
            weight.mul_(2)
        elif change == "replaced":
            made.blocks[1].cross_attn.proj.weight = nn.Parameter(weight * 2, requires_grad=False)
        else:
            weight.data = weight.data * 2
        after = made(X, T, caption)
        fresh = made(X, T, made.prepare(FEATURES, mask_of(8, 8)))
    assert not torch.equal(before, after)
    assert torch.equal(after, fresh)


def test_what_is_absorbed(wide):
    cross = wide.blocks[0].cross_attn

    def pair(rows=2, length=8, dtype=torch.float32):
        return torch.zeros(2, rows, 4, length, 64, dtype=dtype)

    with torch.no_grad():
        assert absorbs(cross, pair(), 64)
        assert absorbs(cross, pair(dtype=torch.bfloat16), 64)
        assert not absorbs(cross, pair(), 63)  # few tokens
        assert not absorbs(cross, pair(length=86), 64)  # a long caption: 4 x 86 is no less than 256 + 86
        assert not absorbs(cross, pair(rows=MOST_TABLES * 8 + 1), 64)  # many rows: too much memory
        assert not absorbs(network().blocks[0].cross_attn, torch.zeros(2, 1, 2, 8, 16), 64)  # a narrow network
    assert not absorbs(cross, pair(), 64)  # gradients


def test_positions_of_another_size_are_computed_once(narrow, monkeypatch):
    made, own = [], network()
    monkeypatch.setattr(own, "_in_space", lambda *grid: made.append(grid) or type(own)._in_space(own, *grid))
    larger, caption = torch.randn(2, 4, 6, 12, 8), own.prepare(FEATURES, mask_of(3, 3))
    with torch.no_grad():
        first, second = (own(larger, T, caption) for _ in range(2))
        assert torch.equal(first, second)
        assert made == [(6, 4)]
        own.double()
        assert own(larger.double(), T, own.prepare(FEATURES, mask_of(3, 3))).isfinite().all()
    assert made == [(6, 4)] * 2
