import pytest
import torch

from goldens import golden, relative_error
from guidon.core.errors import InputError
from guidon.models.stdit.network import STDiT, STDiTConfig

SMALL = STDiTConfig((4, 8, 8), hidden_size=32, depth=2, num_heads=4, caption_channels=12, model_max_length=6)


def small(config=SMALL):
    torch.manual_seed(0)
    model = STDiT(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.mark.parametrize("name", ["a", "b"])
def test_released_weights_load_strictly_and_give_the_originals_output(name):
    g, case = golden(f"stdit/{name}")
    model = STDiT(STDiTConfig(**case["config"]))
    weights = {key.removeprefix("weights."): value for key, value in g.items() if key.startswith("weights.")}
    buffers = {key: value for key, value in model.state_dict().items() if key.startswith("pos_embed")}
    for key, value in buffers.items():
        if key in weights:
            assert torch.allclose(value, weights[key], atol=1e-6), key
    model.load_state_dict(weights | buffers)
    with torch.no_grad():
        assert relative_error(model(g["x"], g["timestep"], g["y"], g["mask"]), g["out.mask"]) < 1e-5
        assert relative_error(model(g["x"], g["timestep"], g["y"]), g["out.no_mask"]) < 1e-5
        prepared = model.prepare(g["y"], g["mask"])
        assert relative_error(model(g["x"], g["timestep"], prepared), g["out.mask"]) < 1e-5


@torch.no_grad()
def test_another_size_is_that_of_a_model_made_for_it():
    small = {"hidden_size": 48, "depth": 2, "num_heads": 4, "caption_channels": 8, "model_max_length": 5}
    scales = {"space_scale": 0.5, "time_scale": 2.0}
    made, other = STDiT(STDiTConfig((4, 8, 8), **small, **scales)), STDiT(STDiTConfig((6, 4, 12), **small, **scales))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    weights = {k: v for k, v in made.state_dict().items() if not k.startswith("pos_")}
    other.load_state_dict(weights, strict=False)
    x, y = torch.randn(2, 4, 6, 4, 12), torch.randn(2, 5, 8)
    t = torch.tensor([3.0, 800.0])
    assert torch.equal(made(x, t, y), other(x, t, y))
    with pytest.raises(InputError, match="not whole patches"):
        made(torch.randn(2, 4, 6, 5, 12), t, y)


def test_joined_captions_keep_their_rows_and_masks():
    model = small()
    x, t, y = torch.randn(3, 4, 4, 8, 8), torch.tensor([5, 400, 999]), torch.randn(3, 6, 12)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0]])
    together = model(x, t, y, mask)
    masked, free = model.prepare(y[:1], mask[:1]), model.prepare(y[1:2])
    joined = masked.cat(free).cat(model.prepare(y[2:], mask[2:]))
    assert len(joined) == 3
    assert torch.allclose(model(x, t, joined), together, atol=1e-5)


@torch.no_grad()
def test_masked_tokens_do_not_matter():
    model = small()
    x, t, y = torch.randn(1, 4, 4, 8, 8), torch.tensor([5]), torch.randn(1, 6, 12)
    mask = torch.tensor([[1, 1, 0, 0, 0, 0]])
    other = torch.cat([y[:, :2], torch.randn(1, 4, 12)], dim=1)
    assert torch.allclose(model(x, t, y, mask), model(x, t, other, mask), atol=1e-6)
    assert not torch.allclose(model(x, t, y), model(x, t, other), atol=1e-3)


@torch.no_grad()
def test_rows_do_not_see_each_other():
    model = small()
    x, t, y = torch.randn(3, 4, 4, 8, 8), torch.tensor([5, 400, 999]), torch.randn(3, 6, 12)
    assert relative_error(model(x, t, y)[1:2], model(x[1:2], t[1:2], y[1:2])) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("patch", [(1, 2, 2), (2, 2, 2), (4, 4, 4), (1, 1, 1)])
def test_any_patch_size_keeps_the_shape(patch):
    model = small(
        STDiTConfig(
            (4, 8, 8),
            patch_size=patch,
            hidden_size=32,
            depth=1,
            num_heads=4,
            caption_channels=12,
            model_max_length=6,
            learn_sigma=False,
        )
    )
    assert model(torch.randn(2, 4, 4, 8, 8), torch.tensor([1, 2]), torch.randn(2, 6, 12)).shape == (2, 4, 4, 8, 8)


@torch.no_grad()
def test_embedding_patches_is_the_convolution_it_is_named_after():
    model = small(
        STDiTConfig((4, 8, 8), patch_size=(2, 2, 2), hidden_size=32, depth=1, num_heads=4, caption_channels=12)
    )
    x = torch.randn(2, 4, 4, 8, 8)
    expected = model.x_embedder.proj(x).flatten(2).transpose(1, 2)
    assert torch.allclose(model.x_embedder(x), expected, atol=1e-5)


def test_a_fresh_model_predicts_nothing_and_every_parameter_learns():
    torch.manual_seed(0)
    model = STDiT(SMALL)
    x, t, y = torch.randn(2, 4, 4, 8, 8), torch.tensor([5, 400]), torch.randn(2, 6, 12)
    assert model(x, t, y).abs().max() == 0
    small_model = small()
    small_model(x, t, y).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in small_model.parameters())


@torch.no_grad()
def test_the_output_is_fp32_whatever_the_network_runs_in():
    model = small().to(torch.bfloat16)
    assert model(torch.randn(1, 4, 4, 8, 8), torch.tensor([5]), torch.randn(1, 6, 12)).dtype == torch.float32
