"""Every XL model has exactly the tensors of its released checkpoint, written down here apart from the code."""

import pytest
import torch

from guidon.models import MMDiT, TemporalVAE
from guidon.models.dit.network import DiT, DiTConfig
from guidon.models.pixart.network import PixArt, PixArtConfig
from guidon.models.stdit.network import STDiT, STDiTConfig
from guidon.models.stdit2.network import STDiT2, STDiT2Config
from guidon.models.stdit3.network import STDiT3, STDiT3Config

D = 1152


def linear(name, out, into):
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def attention(block, name):
    return linear(f"{block}.{name}.qkv", 3 * D, D) | linear(f"{block}.{name}.proj", D, D)


def mlp(block):
    return linear(f"{block}.mlp.fc1", 4 * D, D) | linear(f"{block}.mlp.fc2", D, 4 * D)


def stem():
    return linear("t_embedder.mlp.0", D, 256) | linear("t_embedder.mlp.2", D, D)


def captioned(temporal):
    found = stem() | linear("t_block.1", 6 * D, D)
    found |= linear("y_embedder.y_proj.fc1", D, 4096) | linear("y_embedder.y_proj.fc2", D, D)
    found |= {"y_embedder.y_embedding": (120, 4096), "final_layer.scale_shift_table": (2, D)}
    found |= linear("final_layer.linear", 32, D)
    for k in range(28):
        block = f"blocks.{k}"
        found |= {f"{block}.scale_shift_table": (6, D)} | attention(block, "attn") | mlp(block)
        found |= linear(f"{block}.cross_attn.q_linear", D, D) | linear(f"{block}.cross_attn.kv_linear", 2 * D, D)
        found |= linear(f"{block}.cross_attn.proj", D, D)
        if temporal:
            found |= attention(block, "attn_temp")
    return found


def stdit(side):
    kernel = {"x_embedder.proj.weight": (D, 4, 1, 2, 2), "x_embedder.proj.bias": (D,)}
    return captioned(True) | kernel | {"pos_embed": (1, (side // 16) ** 2, D), "pos_embed_temporal": (1, 16, D)}


def sized(block):
    """What the released STDiT2 and STDiT3 share, and a function of every block."""
    found = stem() | linear("t_block.1", 6 * D, D) | {"rope.freqs": (36,)}
    found |= {"x_embedder.proj.weight": (D, 4, 1, 2, 2), "x_embedder.proj.bias": (D,)}
    found |= linear("y_embedder.y_proj.fc1", D, 4096) | linear("y_embedder.y_proj.fc2", D, D)
    found |= linear("fps_embedder.mlp.0", D, 256) | linear("fps_embedder.mlp.2", D, D)
    found |= {"final_layer.scale_shift_table": (2, D)} | linear("final_layer.linear", 32, D)
    for k in range(28):
        found |= block(k)
    return found


def normed(block, name):
    return attention(block, name) | {f"{block}.{name}.q_norm.weight": (72,), f"{block}.{name}.k_norm.weight": (72,)}


def crossing(block):
    found = linear(f"{block}.cross_attn.q_linear", D, D) | linear(f"{block}.cross_attn.kv_linear", 2 * D, D)
    return found | linear(f"{block}.cross_attn.proj", D, D) | {f"{block}.scale_shift_table": (6, D)}


def stdit2():
    def block(k):
        name = f"blocks.{k}"
        found = normed(name, "attn") | normed(name, "attn_temp") | crossing(name) | mlp(name)
        return found | {f"{name}.scale_shift_table_temporal": (3, D)}

    found = sized(block) | linear("t_block_temp.1", 3 * D, D) | {"y_embedder.y_embedding": (200, 4096)}
    for name, width in (("csize_embedder", D // 3), ("ar_embedder", D // 3), ("fl_embedder", D)):
        found |= linear(f"{name}.mlp.0", width, 256) | linear(f"{name}.mlp.2", width, width)
    return found


def stdit3():
    def block(k):
        kinds = (f"{kind}_blocks.{k}" for kind in ("spatial", "temporal"))
        return {key: shape for b in kinds for key, shape in (normed(b, "attn") | crossing(b) | mlp(b)).items()}

    return sized(block) | {"y_embedder.y_embedding": (300, 4096)}


def pixart(side):
    kernel = {"x_embedder.proj.weight": (D, 4, 2, 2), "x_embedder.proj.bias": (D,)}
    return captioned(False) | kernel | {"pos_embed": (1, (side // 16) ** 2, D)}


def pixart_ms():
    found = pixart(1024)
    for name in ("csize_embedder", "ar_embedder"):
        found |= linear(f"{name}.mlp.0", D // 3, 256) | linear(f"{name}.mlp.2", D // 3, D // 3)
    return found


def dit(side):
    found = stem() | linear("final_layer.linear", 32, D) | linear("final_layer.adaLN_modulation.1", 2 * D, D)
    found |= {"x_embedder.proj.weight": (D, 4, 2, 2), "x_embedder.proj.bias": (D,)}
    found |= {"pos_embed": (1, (side // 16) ** 2, D), "y_embedder.embedding_table.weight": (1001, D)}
    for k in range(28):
        block = f"blocks.{k}"
        found |= attention(block, "attn") | mlp(block) | linear(f"{block}.adaLN_modulation.1", 6 * D, D)
    return found


def convolution(name, out, into, kernel=3, bias=True):
    return {f"{name}.conv.weight": (out, into) + (kernel,) * 3} | ({f"{name}.conv.bias": (out,)} if bias else {})


def norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def residual(name, out, into):
    found = norm(f"{name}.norm1", into) | norm(f"{name}.norm2", out)
    found |= convolution(f"{name}.conv1", out, into, bias=False) | convolution(f"{name}.conv2", out, out, bias=False)
    return found | (convolution(f"{name}.conv3", out, into, 1, bias=False) if out != into else {})


def temporal_vae():
    widths = 128, 256, 256, 512
    found = convolution("encoder.conv_in", 128, 4, bias=False) | convolution("encoder.conv2", 8, 512, 1)
    found |= convolution("quant_conv", 8, 8, 1) | convolution("post_quant_conv", 4, 4, 1)
    found |= convolution("decoder.conv1", 512, 4) | convolution("decoder.conv_out", 4, 128)
    found |= norm("encoder.norm1", 512) | norm("decoder.norm1", 128)
    for level, (width, before, after) in enumerate(zip(widths, (128, *widths), (*widths[1:], 512), strict=False)):
        for k in range(4):
            place = f"block_res_blocks.{level}.{k}"
            found |= residual(f"encoder.{place}", width, width if k else before)
            found |= residual(f"decoder.{place}", width, width if k else after)
    for k in range(4):
        found |= residual(f"encoder.res_blocks.{k}", 512, 512) | residual(f"decoder.res_blocks.{k}", 512, 512)
    for level in (1, 2):  # after these, time is halved
        found |= convolution(f"encoder.conv_blocks.{level}", 256, 256)
        found |= convolution(f"decoder.conv_blocks.{level}", 2 * widths[level + 1], widths[level + 1])
    return found


def mmdit():
    d, found = 3072, {}
    for name, into in (("img_in", 64), ("cond_in", 68), ("txt_in", 4096)):
        found |= linear(name, d, into)
    for name, into in (("time_in", 256), ("vector_in", 768)):
        found |= linear(f"{name}.in_layer", d, into) | linear(f"{name}.out_layer", d, d)
    for k in range(19):
        for stream in (f"double_blocks.{k}.img", f"double_blocks.{k}.txt"):
            found |= linear(f"{stream}_mod.lin", 6 * d, d)
            found |= linear(f"{stream}_mlp.0", 4 * d, d) | linear(f"{stream}_mlp.2", d, 4 * d)
            for part in ("q_proj", "k_proj", "v_proj", "proj"):
                found |= linear(f"{stream}_attn.{part}", d, d)
            found |= {f"{stream}_attn.norm.{part}_norm.scale": (128,) for part in ("query", "key")}
    for k in range(38):
        block = f"single_blocks.{k}"
        found |= linear(f"{block}.q_proj", d, d) | linear(f"{block}.k_proj", d, d) | linear(f"{block}.v_mlp", 5 * d, d)
        found |= linear(f"{block}.linear2", d, 5 * d) | linear(f"{block}.modulation.lin", 3 * d, d)
        found |= {f"{block}.norm.{part}_norm.scale": (128,) for part in ("query", "key")}
    return found | linear("final_layer.linear", 64, d) | linear("final_layer.adaLN_modulation.1", 2 * d, d)


@pytest.mark.parametrize(
    ("model", "layout", "millions"),
    [
        (lambda: STDiT(STDiTConfig((16, 32, 32), space_scale=0.5)), stdit(256), 760),
        (lambda: STDiT(STDiTConfig((16, 64, 64))), stdit(512), 760),
        (lambda: STDiT2(STDiT2Config()), stdit2(), 767),
        (lambda: STDiT3(STDiT3Config()), stdit3(), 1208),
        (TemporalVAE, temporal_vae(), 310),
        (MMDiT, mmdit(), 11891),
        (lambda: PixArt(PixArtConfig(32)), pixart(256), 611),
        (lambda: PixArt(PixArtConfig(64)), pixart(512), 611),
        (lambda: PixArt(PixArtConfig(128, lewei_scale=2.0, micro_condition=True)), pixart_ms(), 612),
        (lambda: DiT(DiTConfig(32)), dit(256), 675),
        (lambda: DiT(DiTConfig(64)), dit(512), 675),
    ],
    ids=[
        "stdit-256",
        "stdit-512",
        "stdit2",
        "stdit3",
        "temporal-vae",
        "mmdit",
        "pixart-256",
        "pixart-512",
        "pixart-1024",
        "dit-256",
        "dit-512",
    ],
)
def test_the_released_layout(model, layout, millions):
    with torch.device("meta"):
        built = model()
    assert {name: tuple(value.shape) for name, value in built.state_dict().items()} == layout
    count = sum(p.numel() for p in built.parameters() if p.requires_grad)
    assert round(count / 1e6) == pytest.approx(millions, abs=1)
