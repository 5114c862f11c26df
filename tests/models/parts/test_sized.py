"""STDiT2 and STDiT3: the originals' numbers, and what both of them promise."""

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from goldens import golden, relative_error
from guidon.core.errors import InputError
from guidon.diffusion import CLEAN
from guidon.models import STDiT2, STDiT2Config, STDiT3, STDiT3Config
from guidon.models.network import ClipFacts
from guidon.models.stdit3.velocity import Velocity

NETWORKS = {"stdit2": (STDiT2, STDiT2Config), "stdit3": (STDiT3, STDiT3Config)}
TOLD = ("num_frames", "height", "width", "ar", "fps")
SMALL = {"hidden_size": 24, "depth": 2, "num_heads": 2, "caption_channels": 8, "model_max_length": 5}


def small(name, **more):
    torch.manual_seed(0)
    network, config = NETWORKS[name]
    model = network(config(**SMALL, **more)).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def inputs(rows=2, frames=3, height=4, width=6):
    torch.manual_seed(1)
    x, y = torch.randn(rows, 4, frames, height, width), torch.randn(rows, 5, 8)
    return x, torch.linspace(20.0, 900.0, rows), y


@pytest.fixture(params=list(NETWORKS))
def model(request):
    return small(request.param)


@torch.no_grad()
@pytest.mark.parametrize("case", ["stdit2/a", "stdit2/b", "stdit2/c_norm_first", "stdit3/a", "stdit3/b"])
def test_released_weights_load_strictly_and_give_the_originals_output(case):
    g, settings = golden(f"open_sora_1_1_to_2_0/{case}")
    network, config = NETWORKS[case.split("/")[0]]
    model = network(config(**settings["config"])).eval()
    model.load_state_dict({key[8:]: value for key, value in g.items() if key.startswith("weights.")})
    told = {name: g[name] for name in TOLD}
    for out, masks in (
        ("plain", ()),
        ("mask", ("mask",)),
        ("x_mask", ("x_mask",)),
        ("mask_x_mask", ("mask", "x_mask")),
    ):
        given = model(g["x"], g["timestep"], g["y"], **told, **{name: g[name] for name in masks})
        assert relative_error(given, g[f"out.{out}"]) < 1e-5, out


@torch.no_grad()
def test_what_is_not_said_of_the_clip_is_that_of_the_latents(model):
    x, t, y = inputs()
    said = model(x, t, y, num_frames=3, height=32, width=48, ar=32 / 48, fps=24)
    assert torch.equal(model(x, t, y), said)
    image = x[:, :, :1]
    assert torch.equal(model(image, t, y), model(image, t, y, num_frames=1, height=32, width=48, ar=32 / 48, fps=120))


@torch.no_grad()
@pytest.mark.parametrize("name", list(NETWORKS))
def test_a_told_network_is_called_by_level(name):
    model = small(name)
    x, t, y = inputs()
    level = dataclasses.replace(CLEAN, timestep=t)
    told = model.told(ClipFacts(height=40, width=56, frames=9, fps=12))
    said = model(x, t, y, num_frames=9, height=40, width=56, ar=40 / 56, fps=12)
    assert torch.equal(told(x, level, model.prepare(y)), said)
    assert relative_error(model(x, t, y), said) > 1e-3


@torch.no_grad()
def test_the_flow_of_stdit3_points_to_the_noise():
    """Open-Sora's velocity is x_0 - noise, and the second half of the channels is not used."""
    model, (x, t, y) = small("stdit3"), inputs()
    level, clip = dataclasses.replace(CLEAN, timestep=t), ClipFacts(height=32, width=48, frames=3, fps=24)
    flow, caption = Velocity(model), model.prepare(y)
    expected = -model(x, t, y)[:, :4]
    assert torch.equal(flow(x, level, caption), expected)
    assert torch.equal(flow.told(clip)(x, level, caption), expected)


@torch.no_grad()
def test_odd_sizes_are_padded_with_zeros_and_cropped(model):
    x, t, y = inputs(height=5, width=7)
    padded = torch.nn.functional.pad(x, (0, 1, 0, 1))
    told = {"num_frames": 3, "height": 40, "width": 56, "ar": 5 / 7, "fps": 24}
    out = model(x, t, y, **told)
    assert out.shape == (2, 8, 3, 5, 7)
    assert torch.equal(out, model(padded, t, y, **told)[..., :5, :7])


@torch.no_grad()
def test_frames_that_are_all_noisy_need_no_mask(model):
    x, t, y = inputs()
    noisy = torch.ones(2, 3, dtype=torch.bool)
    assert relative_error(model(x, t, y, x_mask=noisy), model(x, t, y)) < 1e-6
    assert relative_error(model(x, t, y, x_mask=~noisy), model(x, t, y)) > 1e-3


@torch.no_grad()
def test_rows_of_masks_and_sizes_are_repeated_whole_to_the_batch(model):
    x, t, y = inputs(rows=4)
    noisy = torch.tensor([[1, 0, 1], [0, 1, 1]], dtype=torch.bool)
    fps = torch.tensor([8.0, 24.0])
    told = model(x, t, y, x_mask=noisy, fps=fps)
    assert torch.equal(told, model(x, t, y, x_mask=noisy.repeat(2, 1), fps=fps.repeat(2)))
    assert relative_error(told[2:3], model(x[2:3], t[2:3], y[2:3], x_mask=noisy[:1], fps=fps[:1])) < 1e-5


@torch.no_grad()
def test_a_token_mask_may_have_the_originals_axes(model):
    x, t, y = inputs()
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 0]])
    assert torch.equal(model(x, t, y[:, None], mask[:, None, None]), model(x, t, y, mask))


@torch.no_grad()
def test_what_does_not_fit_the_batch_is_refused_in_one_line(model):
    x, t, y = inputs(rows=4)
    with pytest.raises(InputError, match=r"x_mask is \(4, 2\), expected one value a frame: \(4, 3\)"):
        model(x, t, y, x_mask=torch.ones(4, 2))
    with pytest.raises(InputError, match="fps has 3 rows for a batch of 4"):
        model(x, t, y, fps=torch.ones(3))
    with pytest.raises(InputError, match="a video of 0x48 pixels does not exist"):
        model(x, t, y, height=0)
    with pytest.raises(InputError, match="features are 9 wide, this model reads 8"):
        model(x, t, torch.randn(4, 5, 9))


@pytest.mark.parametrize("name", list(NETWORKS))
@pytest.mark.parametrize(("size", "heads"), [(26, 2), (24, 5), (24, 8)])
def test_a_width_without_positions_is_refused(name, size, heads):
    network, config = NETWORKS[name]
    with pytest.raises(InputError):
        network(config(**SMALL | {"hidden_size": size, "num_heads": heads}))


def test_a_new_network_predicts_nothing_and_every_parameter_learns(model):
    x, t, y = inputs()
    assert type(model)(model.config)(x, t, y).abs().max() == 0
    model(x, t, y).square().sum().backward()
    learned = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(dict(model.named_parameters())) - set(learned) == {"rope.freqs"}
    still = [name for name, parameter in learned.items() if parameter.grad is None or not parameter.grad.abs().max()]
    assert not still


@torch.no_grad()
def test_half_precision_gives_fp32_near_to_that_of_single_precision(model):
    x, t, y = inputs()
    expected = model(x, t, y)
    given = model.to(torch.bfloat16)(x, t, y)
    assert given.dtype == torch.float32
    assert relative_error(given, expected) < 0.05


class Reads(TorchDispatchMode):
    """Counts numbers that are read from a tensor, for which a device would have to be waited for, and copies to it."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += "_local_scalar_dense" in str(func)
        return func(*args, **(kwargs or {}))


@torch.no_grad()
@pytest.mark.parametrize("name", list(NETWORKS))
def test_a_told_network_reads_no_number_from_the_device(name, monkeypatch):
    model = small(name)
    x, _, y = inputs()
    told, caption = model.told(ClipFacts(height=40, width=56, frames=9, fps=12)), model.prepare(y)
    level = dataclasses.replace(CLEAN, timestep=500.0, noisy=torch.tensor([[True, False, True]]))
    rounded, asked = model._rounded, []
    monkeypatch.setattr(model, "_rounded", lambda value: asked.append(value) or rounded(value))
    with Reads() as reads:
        told(x, level, caption)
    assert not any(isinstance(value, torch.Tensor) for value in asked)
    assert reads.count == len(asked)  # each of a number on the CPU


@torch.no_grad()
@pytest.mark.parametrize("name", list(NETWORKS))
def test_numbers_as_tensors_and_as_floats_are_the_same(name):
    x, t, y = inputs()
    for model in (small(name), small(name).bfloat16()):
        said = {"height": 40.3, "width": 56.7, "fps": 11.9, "num_frames": 9.0, "ar": 0.71}
        as_tensors = {key: torch.full((2,), value, dtype=model.dtype) for key, value in said.items()}
        assert torch.equal(model(x, t, y, **said), model(x, t, y, **as_tensors))
    with pytest.raises(InputError, match="height has 3 rows"):
        model(x, t, y, height=torch.ones(3))
